"""GRU steps in numba, row by row: a row's result has the same bits whatever stands beside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.kernels import ADVANCE, FAST, LATE, STEP, add_product, f4, score_end, score_event, sigmoid, tanh
from models.row_kernel import RowKernel
from models.runtime import F32, Scores


@njit(cache=True, fastmath=FAST, error_model="numpy")
def score_and_step(
    kind, row, record, first, tokens, among, log_gap, values, hidden, start,
    table, table_offset, gap_weight, value_weight, bias, recurrent, recurrent_bias, head, head_bias, head_offset,
    classed, surprise, states, end_surprise,
):  # fmt: skip
    """Run m operations on S rows: score each event under the state before it, then step.

    Parameters
    ----------
    kind, row, record, first
        Operations, as `models.kernels` has them.
    tokens, among, head, head_bias, head_offset, classed
        As in `models.kernels.score_event`.
    log_gap, values, table, table_offset, gap_weight, value_weight, bias
        As in `models.kernels.read_event`, for G = 3H: the input part of the gates r, z and n.
    hidden
        (S, H or more) float32, advanced in place; the caller owns it.
    recurrent, recurrent_bias
        (H, 3H) transposed; (H,) for the candidate, inside the reset gate.
    start
        (H,) what heads read before a session's first event.
    surprise, states, end_surprise
        Out: (n, F) float32 in nats, (m, H) states each operation was scored under, (m,) surprise of each end.
    """
    size = len(start)
    fields, inputs = len(head_offset) - 1, tokens.shape[1]
    free, width = fields - among.shape[1], head_offset[fields]
    end_width = head_offset[1] if fields > 0 else 0
    gates, told = np.empty(3 * size, f4), np.zeros(3 * size, f4)
    h = np.empty(size, f4)
    logits = np.empty(head.shape[1], f4)
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
        gap = log_gap[i]
        for j in range(2 * size):
            gates[j] = bias[j] + gap * gap_weight[j]
        for j in range(size):
            gates[2 * size + j] = recurrent_bias[j]
        for f in range(inputs):
            t = table_offset[f] + tokens[i, f]
            for j in range(2 * size):
                gates[j] += table[t, j]
        if values.shape[1] > 0:
            told[:] = f4(0.0)
            for k in range(values.shape[1]):
                value = values[i, k]
                if value == f4(0.0):  # as of all that is not missing
                    continue
                for j in range(3 * size):
                    told[j] += value * value_weight[k, j]
            for j in range(2 * size):
                gates[j] += told[j]
        add_product(gates, h, recurrent, size, 0, 3 * size)
        for j in range(size):
            candidate = bias[2 * size + j] + gap * gap_weight[2 * size + j] + told[2 * size + j]
            for f in range(inputs):
                candidate += table[table_offset[f] + tokens[i, f], 2 * size + j]
            r = sigmoid(gates[j])
            z = sigmoid(gates[size + j])
            n = tanh(candidate + r * gates[2 * size + j])
            hidden[s, j] = n + z * (h[j] - n)


class GruKernel(RowKernel):
    """Serves `models.gru.GruModel`; its state is what heads read, so rows may begin with one."""

    resumes = True

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        gates = 3 * self.spec.hidden
        return {
            "core.weight_ih_l0": (gates, width), "core.weight_hh_l0": (gates, self.spec.hidden),
            "core.bias_ih_l0": (gates,), "core.bias_hh_l0": (gates,),
        }  # fmt: skip

    def _lay_out(self, weights: Mapping[str, F32]) -> None:
        until = 2 * self.spec.hidden  # the candidate's recurrent part stands inside the reset gate
        recurrent_bias = weights["core.bias_hh_l0"]
        bias = np.array(weights["core.bias_ih_l0"], np.float32)
        bias[:until] += recurrent_bias[:until]
        self._weights = (
            *self._inputs(weights, weights["core.weight_ih_l0"]), bias,
            np.ascontiguousarray(weights["core.weight_hh_l0"].T, np.float32),
            np.ascontiguousarray(recurrent_bias[until:], np.float32),
        )  # fmt: skip

    def _run(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], among: NDArray[np.int32], log_gap: F32, values: F32, scores: Scores,
    ) -> None:  # fmt: skip
        score_and_step(
            kind, row, record, first, tokens, among, log_gap, values, scores.hidden, self._start, *self._weights,
            self._head, self._head_bias, self._head_offset, self._classed,
            scores.surprise, scores.states, scores.end_surprise,
        )  # fmt: skip
