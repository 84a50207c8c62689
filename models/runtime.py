"""A trained model ready to serve: by numpy weights and the row-wise kernels, which need no torch; else by torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError
from models.kernels import input_table, log_probabilities, score_and_step
from models.spec import KERNELS, ModelSpec

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """What the model says of a slice of n events and m operations.

    Attributes
    ----------
    surprise
        (n, F) float32: minus log-likelihood of each field, in nats, under the state before the event.
    states
        (m, H) float32: what the heads read, which each operation was scored under.
    end_surprise
        (m,) float32: surprise of a session's end; defined where the operation is an end.
    hidden
        (S, width) float32 after the slice, as wide as the rows are.
    """

    surprise: F32
    states: F32
    end_surprise: F32
    hidden: F32


class Runtime(Protocol):
    """What serves a model.

    Attributes
    ----------
    name
        For logs.
    resumes
        Whether the states it tells are what rows hold, so that a row may begin with one, and ADVANCE is an operation.
    """

    name: str
    resumes: bool

    def score_and_step(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, hidden: F32, among: NDArray[np.int32] | None = None,
        numbers: F32 | None = None, tails: F32 | None = None, time_ms: NDArray[np.int64] | None = None,
    ) -> Scores:  # fmt: skip
        """Score each event before learning it; shapes as in `models.kernels.score_and_step`. `hidden` is untouched.

        `hidden` may be wider than the model's state; what lies beyond stays as it is. `numbers` are the (n, N) values
        themselves, for what reads them by no ids (a core that forecasts, what `models.values.told` says of them),
        `tails` (n, N) nats that come on top of the surprise of their ids, `time_ms` (n,) when each event was, for
        what goes by the time of day.
        """

    def log_probabilities(self, states: F32) -> list[F32]:
        """(k, V_f) per field for (k, H) of what heads read; the first field's last column is the session's end."""


def load_runtime(spec: ModelSpec, weights: Mapping[str, F32], runtime: str = "auto", device: str = "cpu") -> Runtime:
    """The runtime for a model.

    Parameters
    ----------
    runtime
        "kernel", for cores that have one; "torch"; or "auto": the kernel where there is one, but not where CUDA is
        asked for.
    device
        "cpu", "cuda", or "auto": for torch CUDA where there is some.

    Raises
    ------
    BundleError
        The weights do not fit the model.
    RuntimeUnavailableError
        CUDA is asked for, and there is none.
    """
    has_kernel = spec.core in KERNELS and spec.hidden % 8 == 0
    if runtime == "kernel" or (runtime == "auto" and has_kernel and device != "cuda"):
        assert has_kernel, "the config's rules let nobody ask for a kernel that there is not"
        return GruKernel(weights, spec.sizes, spec.inputs, flat=spec.flat, values=spec.values)
    from models.torch_runtime import TorchRuntime, choose_device  # a worker maps libtorch only where it must

    return TorchRuntime(spec, weights, choose_device(device))


def add_tails(scores: Scores, tails: F32 | None) -> None:
    """Put (n, N) nats on top of the surprise of the last N fields."""
    if tails is not None and tails.shape[1]:
        scores.surprise[:, -tails.shape[1] :] += tails


def widened(weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What a bundle holds, with float32 for float16."""
    return {name: w.astype(np.float32) if w.dtype == np.float16 else w for name, w in weights.items()}


class GruKernel:
    """Serves `models.gru.GruModel` weights. Same input, same bits, on one kind of CPU.

    Parameters
    ----------
    weights
        As `GruModel.weights` gives them.
    sizes, inputs
        Vocabulary size of each of F fields, and of further inputs that are not predicted.
    flat
        As `ModelSpec` has it.
    values
        C, of which `score_and_step` is given (n, 2C) as `numbers`.

    Raises
    ------
    BundleError
        A weight is missing, has another shape, or is not finite.
    """

    def __init__(
        self, weights: Mapping[str, F32], sizes: tuple[int, ...], inputs: tuple[int, ...] = (), *, flat: bool = False,
        values: int = 0,
    ) -> None:  # fmt: skip
        read = (*sizes, *inputs)
        try:
            self.start = np.ascontiguousarray(weights["start"], np.float32)
            input_weight, recurrent = weights["core.weight_ih_l0"], weights["core.weight_hh_l0"]
            input_bias, recurrent_bias = weights["core.bias_ih_l0"], weights["core.bias_hh_l0"]
            embeddings = [np.ascontiguousarray(weights[f"embeddings.{f}.weight"]) for f in range(len(read))]
            head, head_bias = weights["head.weight"], weights["head.bias"]
        except KeyError as error:
            message = f"the bundle has no weight {error.args[0]}; train it again"
            raise BundleError(message) from None
        self.name = "kernel"
        self.resumes = True
        self.size = size = len(self.start)
        self.sizes = sizes
        spec = ModelSpec("gru", size, sizes, inputs, flat=flat, values=values)
        width = embeddings[0].shape[1] if embeddings else 0
        expected = {
            recurrent.shape: (3 * size, size), head.shape: (sum(spec.head_widths), size),
            input_weight.shape: (3 * size, width * len(read) + 1 + 2 * values),
        }  # fmt: skip
        if any(have != want for have, want in expected.items()) or [len(e) for e in embeddings] != list(read):
            message = "the bundle's weights do not fit its vocabulary; train it again"
            raise BundleError(message)
        if not all(np.isfinite(w).all() for w in weights.values()):
            message = "the bundle holds weights that are not finite; train it again"
            raise BundleError(message)
        blocks = [np.ascontiguousarray(input_weight[:, f * width : (f + 1) * width]) for f in range(len(read))]
        rows = [input_table(e, w) for e, w in zip(embeddings, blocks, strict=True)]
        self._table = np.concatenate([np.empty((0, 3 * size), np.float32), *rows])
        self._table_offset = np.cumsum([0, *read[:-1]], dtype=np.int64)
        self._gap_weight = np.ascontiguousarray(input_weight[:, width * len(read)], np.float32)
        self._value_weight = np.ascontiguousarray(input_weight[:, width * len(read) + 1 :].T, np.float32)
        self._bias = np.ascontiguousarray(input_bias, np.float32).copy()
        self._bias[: 2 * size] += recurrent_bias[: 2 * size]
        self._recurrent = np.ascontiguousarray(recurrent.T, np.float32)
        self._recurrent_bias = np.ascontiguousarray(recurrent_bias[2 * size :], np.float32)
        order, self._head_offset, self._classed = _columns(spec)
        self._head = np.ascontiguousarray(head.T[:, order], np.float32)
        self._head_bias = np.ascontiguousarray(head_bias[order], np.float32)

    def score_and_step(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, hidden: F32, among: NDArray[np.int32] | None = None,
        numbers: F32 | None = None, tails: F32 | None = None, time_ms: NDArray[np.int64] | None = None,
    ) -> Scores:  # fmt: skip
        """As `Runtime.score_and_step` says."""
        among = np.empty((len(tokens), 0, 2), np.int32) if among is None else among
        assert not self._classed[len(self.sizes) - among.shape[1] :].any(), "fields with known ranges have few ids"
        scores = Scores(
            np.zeros((len(tokens), len(self.sizes)), np.float32), np.empty((len(kind), self.size), np.float32),
            np.zeros(len(kind), np.float32), np.array(hidden, np.float32, order="C"),
        )  # fmt: skip
        told = np.empty((len(tokens), 0), np.float32)
        if numbers is not None and len(self._value_weight):
            told = numbers
        score_and_step(
            kind, row, record, first, tokens, among, log_gap, told, scores.hidden, self.start,
            self._table, self._table_offset, self._gap_weight, self._value_weight, self._bias,
            self._recurrent, self._recurrent_bias, self._head, self._head_bias, self._head_offset, self._classed,
            scores.surprise, scores.states, scores.end_surprise,
        )  # fmt: skip
        add_tails(scores, tails)
        return scores

    def log_probabilities(self, states: F32) -> list[F32]:
        """As `Runtime.log_probabilities` says."""
        offset, classed = self._head_offset, self._classed
        found = log_probabilities(np.ascontiguousarray(states), self._head, self._head_bias, offset, classed)
        return [
            found[:, at:stop] if width else found[:, offset[f] : offset[f + 1]]
            for f, (width, at, stop) in enumerate(classed.tolist())
        ]


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
