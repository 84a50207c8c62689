"""Temperature: a head that is too sure is mended, and folding it in is dividing logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import temperature
from models.temperature import (
    COLDEST,
    HOTTEST,
    blocks_of,
    check_head,
    expected_calibration_error,
    fit_temperature,
    fold,
)


def drawn(seed: int, n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and targets drawn from just these: a calibrated head."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, width))
    gumbel = rng.gumbel(size=(n, width))
    return logits.astype(np.float32), np.argmax(logits + gumbel, axis=1)


def nats(logits: np.ndarray, targets: np.ndarray, t: float) -> float:
    """Mean surprise at a temperature, the slow way."""
    z = logits.astype(np.float64) / t
    return float(
        np.mean([np.log(np.exp(row - row.max()).sum()) + row.max() - row[y] for row, y in zip(z, targets, strict=True)])
    )


@pytest.mark.parametrize("wrong_by", [0.4, 1.0, 2.5])
def test_a_miscalibrated_head_is_mended(wrong_by: float) -> None:
    """Logits that were multiplied get that number as temperature, and the error falls to what chance leaves."""
    logits, targets = drawn(0, 20_000, 12)
    logits *= np.float32(wrong_by)
    found = check_head(lambda: [(logits[:7_000], targets[:7_000]), (logits[7_000:], targets[7_000:])])
    assert found.temperature == pytest.approx(wrong_by, rel=0.03)
    assert found.error_after < 0.015
    assert found.error_before > 0.1 or wrong_by == 1.0
    assert found.nats_after <= found.nats_before
    assert found.nats_after == pytest.approx(nats(logits[:], targets, found.temperature), rel=1e-6)
    assert found.to_json()["temperature"] == found.temperature


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(2, 6), st.floats(0.05, 20))
def test_no_other_temperature_is_better(seed: int, n: int, width: int, scale: float) -> None:
    """Whatever the logits, the found temperature has the least surprise of all that are allowed."""
    logits, targets = drawn(seed, n, width)
    logits = (logits * scale).astype(np.float32)
    found = fit_temperature(lambda: [(logits, targets)])
    assert COLDEST <= found <= HOTTEST
    least = nats(logits, targets, found)
    for other in np.geomspace(COLDEST, HOTTEST, 41).tolist():
        assert least <= nats(logits, targets, other) * (1 + 1e-4) + 1e-6


def test_where_nothing_can_be_fitted() -> None:
    """No data leave a head as it is; one that never errs is cooled as far as is allowed."""
    assert check_head(list).to_json() == {
        "temperature": 1.0, "error_before": 0.0, "error_after": 0.0, "nats_before": 0.0, "nats_after": 0.0,
    }  # fmt: skip
    sure = np.eye(5, dtype=np.float32)
    assert fit_temperature(lambda: [(sure, np.arange(5))]) == COLDEST
    assert fit_temperature(lambda: [(-sure, np.arange(5))]) == HOTTEST
    assert fit_temperature(lambda: [(np.zeros((3, 4), np.float32), np.arange(3))]) == 1.0


def test_folding_divides_logits() -> None:
    """A folded head gives each field's logits divided by its temperature, and the old one is left alone."""
    rng = np.random.default_rng(2)
    weight, bias = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    states = rng.normal(size=(10, 3)).astype(np.float32)
    was = weight.copy()
    folded, folded_bias = fold(weight, bias, (4, 3), (0.5, 2.0))
    assert folded.dtype == folded_bias.dtype == np.float32
    logits = states @ weight.T + bias
    np.testing.assert_allclose(states @ folded.T + folded_bias, logits / np.repeat([0.5, 2.0], [4, 3]), rtol=1e-5)
    assert (weight == was).all()


def test_blocks_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head read in blocks of three rows is checked as in one."""
    rng = np.random.default_rng(3)
    states, weight = rng.normal(size=(40, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    targets = rng.integers(0, 5, 40)
    whole = blocks_of(states, weight, np.zeros(5, np.float32), targets)
    assert len(list(whole())) == 1
    expected = check_head(whole).to_json()
    monkeypatch.setattr(temperature, "_BLOCK_NUMBERS", 15)
    cut = blocks_of(states, weight, np.zeros(5, np.float32), targets)
    assert [len(targets) for _, targets in cut()] == [3] * 13 + [1]
    assert check_head(cut).to_json() == pytest.approx(expected, abs=1e-5)


def test_the_error_of_confidence() -> None:
    """Right as often as said: 0. Bins hold as many predictions each, and those of one confidence are in one."""
    confidence = np.repeat([0.5, 0.75], 400)
    correct = np.concatenate([np.arange(400) % 2 == 0, np.arange(400) % 4 != 0])
    assert expected_calibration_error(confidence, correct) == 0.0
    assert expected_calibration_error(confidence[::-1], correct[::-1]) == 0.0
    assert expected_calibration_error(confidence, ~correct) == pytest.approx((0.0 + 0.5) / 2)
    rng = np.random.default_rng(4)
    spread = rng.random(3_000)
    assert expected_calibration_error(spread, rng.random(3_000) < spread**2) == pytest.approx(1 / 6, abs=0.02)
    assert expected_calibration_error(np.empty(0), np.empty(0, np.bool_)) == 0.0
