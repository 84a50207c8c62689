"""Temperature: one number per field to divide logits by, so that a head's probabilities are those that come true.

A head that is too sure, or not sure enough, gives p-values of the right order but surprise of the wrong size, and
fields whose surprises are added up count by the wrong weights. The number is folded into the head's weights before
they are saved, so serving knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Blocks = Callable[[], Iterable[tuple[F32, I64]]]  # logits (k, V) and what came (k,), as often as they are asked for

COLDEST, HOTTEST = 0.1, 10.0  # where every target is the top one, the best temperature would be 0
BINS = 15
_TURNS, _CLOSE_ENOUGH = 50, 1e-6
_BLOCK_NUMBERS = 1 << 22  # logits in one block: 32 MB as float64


@dataclass(frozen=True)
class HeadCheck:
    """What a field's temperature is and what it mends.

    Attributes
    ----------
    temperature
        To divide logits by; 1 where there was nothing to fit it on.
    error_before, error_after
        Expected calibration error of the likeliest token, without and with it.
    nats_before, nats_after
        Mean surprise.
    """

    temperature: float
    error_before: float
    error_after: float
    nats_before: float
    nats_after: float

    def to_json(self) -> dict[str, float]:
        """For a manifest; rounded, so that a last bit of some processor is not seen in a digest."""
        return {name: round(value, 6) for name, value in vars(self).items()}


def blocks_of(states: F32, weight: F32, bias: F32, targets: I64) -> Blocks:
    """Logits of a linear head under (n, H) states, a block at a time: (V, H) weight, (V,) bias, (n,) targets."""
    rows = max(1, _BLOCK_NUMBERS // max(1, len(bias)))

    def blocks() -> Iterator[tuple[F32, I64]]:
        for low in range(0, len(targets), rows):
            yield states[low : low + rows] @ weight.T + bias, targets[low : low + rows]

    return blocks


def check_head(blocks: Blocks, bins: int = BINS) -> HeadCheck:
    """Fit a field's temperature on sessions its weights never saw, and measure what it mends."""
    temperature = fit_temperature(blocks)
    errors, nats = [], []
    for divisor in (1.0, temperature):
        seen = [np.stack(_of_top(logits, targets, divisor)) for logits, targets in blocks()]
        confidence, correct, surprise = np.concatenate([np.empty((3, 0)), *seen], axis=1)
        errors.append(expected_calibration_error(confidence, correct.astype(np.bool_), bins))
        nats.append(float(surprise.mean()) if len(surprise) else 0.0)
    return HeadCheck(temperature, errors[0], errors[1], nats[0], nats[1])


def fit_temperature(blocks: Blocks) -> float:
    """The temperature of least surprise, of `COLDEST` to `HOTTEST`, to four decimals.

    Surprise is convex in the temperature's inverse, so Newton's steps within a bracket find its one least value.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599, section 4.2.
    """
    low, high, inverse = 1 / HOTTEST, 1 / COLDEST, 1.0
    for _ in range(_TURNS):
        slope, bend = _slope_and_bend(blocks, inverse)
        if slope == 0:
            break
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / bend if bend > 0 else -1.0
        before, inverse = inverse, step if low < step < high else (low + high) / 2
        if abs(inverse - before) < _CLOSE_ENOUGH * inverse:
            break
    return round(1 / inverse, 4)


def fold(weight: F32, bias: F32, widths: Sequence[int], temperatures: Sequence[float]) -> tuple[F32, F32]:
    """A head of several fields, divided by their temperatures.

    Parameters
    ----------
    weight, bias
        (sum of widths, H) and (sum of widths,), field after field; left untouched.
    """
    divisor = np.repeat(np.asarray(temperatures, np.float64), widths)
    return (weight / divisor[:, None]).astype(np.float32), (bias / divisor).astype(np.float32)


def expected_calibration_error(confidence: F64, correct: NDArray[np.bool_], bins: int = BINS) -> float:
    """How far confidence is from how often it is right, on average over bins of as many predictions each; 0 for none.

    >>> expected_calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, False, False]))
    0.4

    References
    ----------
    Naeini, Cooper, Hauskrecht 2015, doi:10.1609/aaai.v29i1.9602, with the equal-mass bins of Nixon et al. 2019,
    arXiv:1904.01685, which do not leave most predictions in one bin.
    """
    n = len(confidence)
    if n == 0:
        return 0.0
    ordered = np.sort(confidence)
    # Predictions of one confidence stay together, so that none are told apart by the order they stand in.
    edges = np.unique(ordered[np.arange(1, bins) * n // bins])
    which = np.searchsorted(edges, confidence, side="right")
    return float(np.abs(np.bincount(which, confidence - correct)).sum() / n)


def _slope_and_bend(blocks: Blocks, inverse: float) -> tuple[float, float]:
    """First and second derivative of the summed surprise by the temperature's inverse."""
    slope = bend = 0.0
    for logits, targets in blocks():
        z, p, _ = _softmax(logits, inverse)
        mean = (p * z).sum(axis=1)
        slope += float((mean - z[np.arange(len(targets)), targets]).sum())
        bend += float(((p * z * z).sum(axis=1) - mean**2).sum())
    return slope, bend


def _of_top(logits: F32, targets: I64, temperature: float) -> tuple[F64, F64, F64]:
    """(k,) each: probability of the likeliest token, 1.0 where that came, and surprise of what came."""
    z, p, log_total = _softmax(logits, 1 / temperature)
    rows = np.arange(len(targets))
    correct = (np.argmax(z, axis=1) == targets).astype(np.float64)
    return p.max(axis=1), correct, log_total - z[rows, targets] / temperature


def _softmax(logits: F32, inverse: float) -> tuple[F64, F64, F64]:
    """Logits less the largest of their row, their probabilities, and the logarithm of what these were divided by."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z * inverse)
    total = p.sum(axis=1, keepdims=True)
    return z, p / total, np.log(total[:, 0])
