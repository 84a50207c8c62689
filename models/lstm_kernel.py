"""LSTM steps in numba, row by row: a row's result has the same bits whatever stands beside it."""

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
    table, table_offset, gap_weight, value_weight, bias, recurrent, states,
):  # fmt: skip
    """Advance S rows by m operations.

    Parameters
    ----------
    turns
        As `models.lanes.take_turns` gives them.
    kind, row, record, first, tokens, start, states
        As in `models.kernels.begin_operation`.
    log_gap, values, table, table_offset, gap_weight, value_weight, bias
        As in `models.kernels.read_event`, for G = 4H: the input part of the gates i, f, g and o, both biases in one.
    hidden
        (S, 2H or more) float32 outputs and cells, advanced in place; the caller owns it.
    recurrent
        (H, 4H) transposed.
    """
    size = len(start)
    h, gates = np.zeros((LANES, size), f4), np.zeros((LANES, 4 * size), f4)
    for turn in range(len(turns)):
        for lane in range(LANES):
            o = turns[turn, lane]
            if o == NOBODY:
                continue
            begin_operation(o, kind, row, record, first, hidden, start, h[lane], states)
            if kind[o] == STEP or kind[o] == ADVANCE:
                read_event(
                    gates[lane], record[o], tokens, log_gap, values, table, table_offset, gap_weight, value_weight, bias
                )
        add_products(gates, h, recurrent, size, 4 * size)
        for lane in range(LANES):
            o = turns[turn, lane]
            if o == NOBODY or (kind[o] != STEP and kind[o] != ADVANCE):
                continue
            s, opens = row[o], first[record[o]]
            for j in range(size):
                before = f4(0.0) if opens else hidden[s, size + j]
                kept = sigmoid(gates[lane, size + j]) * before
                cell = kept + sigmoid(gates[lane, j]) * tanh(gates[lane, 2 * size + j])
                hidden[s, size + j] = cell
                hidden[s, j] = sigmoid(gates[lane, 3 * size + j]) * tanh(cell)


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

    def _advance(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, values: F32, scores: Scores,
    ) -> None:  # fmt: skip
        turns = take_turns(row, len(scores.hidden))
        advance(
            turns, kind, row, record, first, tokens, log_gap, values, scores.hidden, self._start, *self._weights,
            scores.states,
        )  # fmt: skip
