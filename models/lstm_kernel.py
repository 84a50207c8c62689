"""LSTM steps in numba, row by row: a row's result has the same bits whatever stands beside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.kernels import ADVANCE, FAST, LATE, STEP, add_product, f4, read_event, score_end, score_event, sigmoid, tanh
from models.row_kernel import RowKernel
from models.runtime import F32, Scores


@njit(cache=True, fastmath=FAST, error_model="numpy")
def score_and_step(
    kind, row, record, first, tokens, among, log_gap, values, hidden, start,
    table, table_offset, gap_weight, value_weight, bias, recurrent, head, head_bias, head_offset, classed,
    surprise, states, end_surprise,
):  # fmt: skip
    """Run m operations on S rows: score each event under the state before it, then step.

    Parameters
    ----------
    kind, row, record, first
        Operations, as `models.kernels` has them.
    tokens, among, head, head_bias, head_offset, classed
        As in `models.kernels.score_event`.
    log_gap, values, table, table_offset, gap_weight, value_weight, bias
        As in `models.kernels.read_event`, for G = 4H: the input part of the gates i, f, g and o, both biases in one.
    hidden
        (S, 2H or more) float32 outputs and cells, advanced in place; the caller owns it.
    recurrent
        (H, 4H) transposed.
    start
        (H,) what heads read before a session's first event.
    surprise, states, end_surprise
        Out: (n, F) float32 in nats, (m, H) states each operation was scored under, (m,) surprise of each end.
    """
    size = len(start)
    fields = len(head_offset) - 1
    free, width = fields - among.shape[1], head_offset[fields]
    end_width = head_offset[1] if fields > 0 else 0
    gates, h, logits = np.empty(4 * size, f4), np.empty(size, f4), np.empty(head.shape[1], f4)
    for o in range(len(kind)):
        s = row[o]
        if kind[o] != STEP and kind[o] != LATE and kind[o] != ADVANCE:
            for j in range(size):
                states[o, j] = hidden[s, j]
            if fields > 0:
                score_end(o, s, hidden, size, end_width, head, head_bias, classed, logits, end_surprise)
            continue
        i = record[o]
        for j in range(size):
            h[j] = start[j] if first[i] else hidden[s, j]
            states[o, j] = h[j]
        if kind[o] != ADVANCE:
            score_event(
                i, h, size, fields, free, width, tokens, among, head, head_bias, head_offset, classed, logits, surprise
            )
        if kind[o] == LATE:
            continue
        read_event(gates, i, tokens, log_gap, values, table, table_offset, gap_weight, value_weight, bias)
        add_product(gates, h, recurrent, size, 0, 4 * size)
        for j in range(size):
            before = f4(0.0) if first[i] else hidden[s, size + j]
            cell = sigmoid(gates[size + j]) * before + sigmoid(gates[j]) * tanh(gates[2 * size + j])
            hidden[s, size + j] = cell
            hidden[s, j] = sigmoid(gates[3 * size + j]) * tanh(cell)


class LstmKernel(RowKernel):
    """Serves `models.lstm.LstmModel`."""

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        gates = 4 * self.spec.hidden
        return {
            "core.weight_ih_l0": (gates, width), "core.weight_hh_l0": (gates, self.spec.hidden),
            "core.bias_ih_l0": (gates,), "core.bias_hh_l0": (gates,),
        }  # fmt: skip

    def _lay_out(self, weights: Mapping[str, F32]) -> None:
        self._weights = (
            *self._inputs(weights, weights["core.weight_ih_l0"]),
            np.array(weights["core.bias_ih_l0"] + weights["core.bias_hh_l0"], np.float32),
            np.ascontiguousarray(weights["core.weight_hh_l0"].T, np.float32),
        )

    def _run(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], among: NDArray[np.int32], log_gap: F32, values: F32, scores: Scores,
    ) -> None:  # fmt: skip
        score_and_step(
            kind, row, record, first, tokens, among, log_gap, values, scores.hidden, self._start, *self._weights,
            self._head, self._head_bias, self._head_offset, self._classed,
            scores.surprise, scores.states, scores.end_surprise,
        )  # fmt: skip
