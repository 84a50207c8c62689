"""What the kernels of all cores have in common: weights checked and laid out, and the shape of what they tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError
from models.kernels import input_table, log_probabilities, score_states
from models.runtime import F32, Scores, add_tails
from models.spec import ModelSpec


class RowKernel:
    """Serves one model event by event. Same input, same bits, on one kind of CPU.

    Parameters
    ----------
    weights
        As `models.family.SequenceModel.weights` gives them.

    Raises
    ------
    BundleError
        A weight is missing, has another shape, or is not finite.
    """

    name, resumes = "kernel", False

    def __init__(self, spec: ModelSpec, weights: Mapping[str, F32]) -> None:
        self.spec = spec
        self._check(weights)
        self._start = np.ascontiguousarray(weights["start"], np.float32)
        order, self._head_offset, self._classed = _columns(spec)
        self._head = np.ascontiguousarray(weights["head.weight"].T[:, order], np.float32)
        self._head_bias = np.ascontiguousarray(weights["head.bias"][order], np.float32)
        self._lay_out(weights)

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each of the core's own weights; an event brings it `width` numbers."""
        raise NotImplementedError

    def _lay_out(self, weights: Mapping[str, F32]) -> None:
        """Keep the core's own weights as its kernel wants them."""
        raise NotImplementedError

    def _advance(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, values: F32, scores: Scores,
    ) -> None:  # fmt: skip
        """Make `scores.states` those before each operation, and `scores.hidden`, the rows before them, those after."""
        raise NotImplementedError

    def score_and_step(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, hidden: F32, among: NDArray[np.int32] | None = None,
        numbers: F32 | None = None, tails: F32 | None = None, time_ms: NDArray[np.int64] | None = None,
    ) -> Scores:  # fmt: skip
        """As `models.runtime.Runtime.score_and_step` says."""
        fields = len(self.spec.sizes)
        among = np.empty((len(tokens), 0, 2), np.int32) if among is None else among
        assert not self._classed[fields - among.shape[1] :].any(), "fields with known ranges have few ids"
        scores = Scores(
            np.zeros((len(tokens), fields), np.float32), np.empty((len(kind), self.spec.hidden), np.float32),
            np.zeros(len(kind), np.float32), np.array(hidden, np.float32, order="C"),
        )  # fmt: skip
        values = np.empty((len(tokens), 0), np.float32)
        if numbers is not None and self.spec.values:
            values = np.ascontiguousarray(numbers)
        tokens, log_gap = np.ascontiguousarray(tokens), np.ascontiguousarray(log_gap)  # else numba would compile anew
        self._advance(kind, row, record, first, tokens, log_gap, values, scores)
        score_states(
            kind, record, scores.states, tokens, np.ascontiguousarray(among), self._head, self._head_bias,
            self._head_offset, self._classed, scores.surprise, scores.end_surprise,
        )  # fmt: skip
        add_tails(scores, tails)
        return scores

    def log_probabilities(self, states: F32) -> list[F32]:
        """As `models.runtime.Runtime.log_probabilities` says."""
        offset, classed = self._head_offset, self._classed
        found = log_probabilities(np.ascontiguousarray(states), self._head, self._head_bias, offset, classed)
        return [
            found[:, at:stop] if width else found[:, offset[f] : offset[f + 1]]
            for f, (width, at, stop) in enumerate(classed.tolist())
        ]

    def _inputs(self, weights: Mapping[str, F32], weight: F32) -> tuple[F32, NDArray[np.int64], F32, F32]:
        """What events bring by a (G, D) `weight`: `table`, `table_offset`, `gap_weight` and `value_weight`.

        As `models.kernels.read_event` reads them.
        """
        read = (*self.spec.sizes, *self.spec.inputs)
        embeddings = [np.ascontiguousarray(weights[f"embeddings.{f}.weight"], np.float32) for f in range(len(read))]
        width = embeddings[0].shape[1] if read else 0
        blocks = [np.ascontiguousarray(weight[:, f * width : (f + 1) * width], np.float32) for f in range(len(read))]
        rows = [input_table(e, w) for e, w in zip(embeddings, blocks, strict=True)]
        at = width * len(read)
        return (
            np.concatenate([np.empty((0, len(weight)), np.float32), *rows]),
            np.cumsum([0, *read[:-1]], dtype=np.int64),
            np.ascontiguousarray(weight[:, at], np.float32),
            np.ascontiguousarray(weight[:, at + 1 :].T, np.float32),
        )

    def _check(self, weights: Mapping[str, F32]) -> None:
        spec, read = self.spec, (*self.spec.sizes, *self.spec.inputs)
        first = weights.get("embeddings.0.weight")
        width = 0 if first is None else first.shape[-1]
        expected = {
            "start": (spec.hidden,), **self._shapes(width * len(read) + 1 + 2 * spec.values),
            **{f"embeddings.{f}.weight": (size, width) for f, size in enumerate(read)},
            "head.weight": (sum(spec.head_widths), spec.hidden), "head.bias": (sum(spec.head_widths),),
        }  # fmt: skip
        missing = [name for name in expected if name not in weights]
        if missing:
            message = f"the bundle has no weight {missing[0]}; train it again"
            raise BundleError(message)
        if any(weights[name].shape != shape for name, shape in expected.items()):
            message = "the bundle's weights do not fit its vocabulary; train it again"
            raise BundleError(message)
        if not all(np.isfinite(w).all() for w in weights.values()):
            message = "the bundle holds weights that are not finite; train it again"
            raise BundleError(message)


def _columns(spec: ModelSpec) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """How a kernel orders a head's columns: which they are, and `head_offset` and `classed` over them.

    What is computed of every event stands first: symbols of fields without classes, and classes. The symbols of fields
    with classes follow, of which each event needs one class.
    """
    widths, symbols = np.array(spec.head_widths, np.int64), np.array(spec.symbols, np.int64)
    classes = widths - symbols
    always = np.where(classes > 0, classes, symbols)  # of each field's columns, so many come first
    offset, begins = np.append(0, np.cumsum(always)), np.cumsum(widths) - widths
    order = [np.empty(0, np.int64), *(np.arange(low, low + n) for low, n in zip(begins, always, strict=True))]
    classed, at = np.zeros((len(spec.sizes), 3), np.int64), int(offset[-1])
    for f in np.flatnonzero(classes).tolist():
        classed[f] = spec.class_widths[f], at, at + spec.symbols[f]
        order.append(np.arange(begins[f] + classes[f], begins[f] + spec.head_widths[f]))
        at += spec.symbols[f]
    return np.concatenate(order), offset, classed
