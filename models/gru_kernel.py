"""GRU steps in numba: a row's result has the same bits whatever stands beside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.kernels import ADVANCE, FAST, STEP, begin_operation, f4, read_event, sigmoid, tanh
from models.lanes import LANES, NOBODY, add_products, take_turns
from models.row_kernel import RowKernel
from models.runtime import F32, Scores


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def advance(
    turns, kind, row, record, first, tokens, log_gap, values, hidden, start,
    table, table_offset, gap_weight, value_weight, bias, recurrent, recurrent_bias, states,
):  # fmt: skip
    """Advance S rows by m operations.

    Parameters
    ----------
    turns
        As `models.lanes.take_turns` gives them.
    kind, row, record, first, tokens, start, states
        As in `models.kernels.begin_operation`.
    log_gap, values, table, table_offset, gap_weight, value_weight, bias
        As in `models.kernels.read_event`, for G = 3H: the input part of the gates r, z and n.
    hidden
        (S, H or more) float32, advanced in place; the caller owns it.
    recurrent, recurrent_bias
        (H, 3H) transposed; (H,) for the candidate, inside the reset gate.
    """
    size = len(start)
    h, came = np.zeros((LANES, size), f4), np.zeros((LANES, 3 * size), f4)
    gates = np.zeros((LANES, 3 * size), f4)
    for turn in range(len(turns)):
        for lane in range(LANES):
            o = turns[turn, lane]
            if o == NOBODY:
                continue
            begin_operation(o, kind, row, record, first, hidden, start, h[lane], states)
            if kind[o] != STEP and kind[o] != ADVANCE:
                continue
            read_event(
                came[lane], record[o], tokens, log_gap, values, table, table_offset, gap_weight, value_weight, bias
            )
            for j in range(2 * size):
                gates[lane, j] = came[lane, j]
            for j in range(size):
                gates[lane, 2 * size + j] = recurrent_bias[j]
        add_products(gates, h, recurrent, size, 3 * size)
        for lane in range(LANES):
            o = turns[turn, lane]
            if o == NOBODY or (kind[o] != STEP and kind[o] != ADVANCE):
                continue
            s = row[o]
            for j in range(size):
                r = sigmoid(gates[lane, j])
                z = sigmoid(gates[lane, size + j])
                n = tanh(came[lane, 2 * size + j] + r * gates[lane, 2 * size + j])
                hidden[s, j] = n + z * (h[lane, j] - n)


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

    def _advance(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, values: F32, scores: Scores,
    ) -> None:  # fmt: skip
        turns = take_turns(row, len(scores.hidden))
        advance(
            turns, kind, row, record, first, tokens, log_gap, values, scores.hidden, self._start, *self._weights,
            scores.states,
        )  # fmt: skip
