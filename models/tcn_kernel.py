"""TCN steps in numba, some operations at a time: an event's result has the same bits whatever stands beside it.

A block needs no more of an event than what came in for it and `far` events before, so all events of some operations go
through the first block, then through the second. A weight is then fetched once for all of them: those of a wide core
do not fit into a processor's inner caches. Each event's sums are still its own, in one order, along one compiled path.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.kernels import ADVANCE, FAST, STEP, begin_operation, f4, read_event
from models.row_kernel import RowKernel
from models.runtime import F32, Scores
from models.spec import dilations

AT_ONCE = 32  # operations: what is computed of so many events, 32 KB at the widest, stays in the innermost cache
_EPSILON = f4(1e-5)  # torch's of a layer norm


@njit(inline="always", fastmath=FAST, error_model="numpy")
def _normalise(out, x, count, scale, shift):
    """out[:count] = layer norm of x[:count], (count, H), with its (H,) scale and shift."""
    size = x.shape[1]
    for e in range(count):
        total = f4(0.0)
        for j in range(size):
            total += x[e, j]
        mean = total / f4(size)
        total = f4(0.0)
        for j in range(size):
            total += (x[e, j] - mean) * (x[e, j] - mean)
        narrow = f4(1.0) / np.sqrt(total / f4(size) + _EPSILON)
        for j in range(size):
            out[e, j] = (x[e, j] - mean) * narrow * scale[j] + shift[j]


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _add_products(out, x, w, count):
    """out[:count] += x[:count] @ w, eight rows of w (H, H) at a time for all of x."""
    size = x.shape[1]
    for k in range(0, size, 8):
        for e in range(count):
            x0, x1, x2, x3 = x[e, k], x[e, k + 1], x[e, k + 2], x[e, k + 3]
            x4, x5, x6, x7 = x[e, k + 4], x[e, k + 5], x[e, k + 6], x[e, k + 7]
            for j in range(size):
                out[e, j] += (
                    x0 * w[k, j] + x1 * w[k + 1, j] + x2 * w[k + 2, j] + x3 * w[k + 3, j]
                    + x4 * w[k + 4, j] + x5 * w[k + 5, j] + x6 * w[k + 6, j] + x7 * w[k + 7, j]
                )  # fmt: skip


@njit(inline="always", error_model="numpy")
def _link(low, high, kind, row, record, first, newest, of, previous, back, position, opened):
    """Find the runs of events among operations `low` to `high`; how many events they apply.

    Of the e-th of these, `of` says the row, `previous` and `back` which came before it in its run (-1: none of these
    did), `position` how many did, `opened` whether the run begins its session. `newest` (S,) is each row's last one.
    """
    count = 0
    for o in range(low, high):
        if kind[o] != STEP and kind[o] != ADVANCE:
            continue
        s, opens = row[o], first[record[o]]
        before = -1 if opens else newest[s]
        of[count], previous[count], back[count] = s, before, before
        position[count] = position[before] + 1 if before >= 0 else 0
        opened[count] = opened[before] if before >= 0 else opens
        newest[s] = count
        count += 1
    return count


@njit(inline="always", error_model="numpy")
def _look_back(past, seen, count, far, at, hidden, of, position, opened, back):
    """past[e] = what the block saw `far` events before e: among these, or kept in the row from `at` on, or zeros."""
    size = seen.shape[1]
    for e in range(count):
        if back[e] >= 0:
            past[e] = seen[back[e]]
        elif opened[e]:
            past[e] = f4(0.0)
        else:
            kept = at + position[e] * size
            past[e] = hidden[of[e], kept : kept + size]


@njit(inline="always", error_model="numpy")
def _keep(seen, count, far, at, hidden, newest, of, previous, position, opened):
    """Leave in each row, from `at` on, the last `far` inputs of a block, the oldest first."""
    size = seen.shape[1]
    for last in range(count):
        s, new = of[last], position[last] + 1
        if newest[s] != last:
            continue
        for q in range(far - new):
            to = at + q * size
            if opened[last]:
                hidden[s, to : to + size] = f4(0.0)
            else:
                for j in range(size):
                    hidden[s, to + j] = hidden[s, to + new * size + j]
        e = last
        for q in range(far - 1, max(far - new, 0) - 1, -1):
            hidden[s, at + q * size : at + (q + 1) * size] = seen[e]
            e = previous[e]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def advance(
    kind, row, record, first, tokens, log_gap, values, hidden, start,
    table, table_offset, gap_weight, value_weight, bias, scale, shift, before, now, now_bias, leave, leave_bias,
    states,
):  # fmt: skip
    """Advance S rows by m operations.

    Parameters
    ----------
    kind, row, record, first, tokens, start, states
        As in `models.kernels.begin_operation`.
    log_gap, values, table, table_offset, gap_weight, value_weight, bias
        As in `models.kernels.read_event`, for G = H: what enters the first block.
    hidden
        (S, H (1 + 1 + 2 + 4 ...) or more) float32 outputs and the last inputs of each block, the oldest first; advanced
        in place, the caller owns it.
    scale, shift
        (B + 1, H) of the layer norms before each of B blocks, and of that before the heads.
    before, now, now_bias
        (B, H, H) transposed, twice, and (B, H): the two taps of the convolutions.
    leave, leave_bias
        (B, H, H) transposed and (B, H): the products after them.
    """
    size = len(start)
    x, seen = np.empty((AT_ONCE, size), f4), np.empty((AT_ONCE, size), f4)
    past, inner = np.empty((AT_ONCE, size), f4), np.empty((AT_ONCE, size), f4)
    h = np.empty(size, f4)
    of, previous = np.empty(AT_ONCE, np.int64), np.empty(AT_ONCE, np.int64)
    position, back = np.empty(AT_ONCE, np.int64), np.empty(AT_ONCE, np.int64)
    opened, newest = np.empty(AT_ONCE, np.bool_), np.full(len(hidden), -1, np.int64)
    for low in range(0, len(kind), AT_ONCE):
        high = min(low + AT_ONCE, len(kind))
        count = _link(low, high, kind, row, record, first, newest, of, previous, back, position, opened)
        e = 0
        for o in range(low, high):
            if kind[o] == STEP or kind[o] == ADVANCE:
                read_event(
                    x[e], record[o], tokens, log_gap, values, table, table_offset, gap_weight, value_weight, bias
                )
                e += 1
        at, far = size, 1
        for b in range(len(before)):
            _normalise(seen, x, count, scale[b], shift[b])
            _look_back(past, seen, count, far, at, hidden, of, position, opened, back)
            _keep(seen, count, far, at, hidden, newest, of, previous, position, opened)
            for e in range(count):
                inner[e] = now_bias[b]
            _add_products(inner, past, before[b], count)
            _add_products(inner, seen, now[b], count)
            for e in range(count):
                for j in range(size):
                    inner[e, j] = max(inner[e, j], f4(0.0))
                    x[e, j] += leave_bias[b, j]
            _add_products(x, inner, leave[b], count)
            for e in range(count - 1, -1, -1):  # twice as far: what came before what came before
                back[e] = back[back[e]] if back[e] >= 0 else -1
            at, far = at + far * size, 2 * far
        _normalise(seen, x, count, scale[len(before)], shift[len(before)])
        e = 0
        for o in range(low, high):
            begin_operation(o, kind, row, record, first, hidden, start, h, states)
            if kind[o] == STEP or kind[o] == ADVANCE:
                hidden[row[o], :size] = seen[e]
                e += 1
        for e in range(count):
            newest[of[e]] = -1


class TcnKernel(RowKernel):
    """Serves `models.tcn.TcnModel`."""

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        hidden = self.spec.hidden
        shapes: dict[str, tuple[int, ...]] = {
            "enter.weight": (hidden, width), "enter.bias": (hidden,), "norm.weight": (hidden,), "norm.bias": (hidden,),
        }  # fmt: skip
        for b in range(len(dilations(self.spec.window))):
            shapes |= {f"blocks.{b}.{name}.weight": (hidden, hidden) for name in ("before", "now", "leave")}
            shapes |= {f"blocks.{b}.{name}.bias": (hidden,) for name in ("norm", "now", "leave")}
            shapes[f"blocks.{b}.norm.weight"] = (hidden,)
        return shapes

    def _lay_out(self, weights: Mapping[str, F32]) -> None:
        hidden, blocks = self.spec.hidden, len(dilations(self.spec.window))

        def of_blocks(name: str) -> F32:
            """Of all blocks, matrices transposed."""
            return np.array([weights[f"blocks.{b}.{name}"].T for b in range(blocks)], np.float32, order="C")

        norms = ((of_blocks(f"norm.{part}"), weights[f"norm.{part}"]) for part in ("weight", "bias"))
        scale, shift = (np.vstack([own.reshape(blocks, hidden), last]).astype(np.float32) for own, last in norms)
        self._weights = (
            *self._inputs(weights, weights["enter.weight"]), np.array(weights["enter.bias"], np.float32), scale, shift,
            of_blocks("before.weight"), of_blocks("now.weight"), of_blocks("now.bias"),
            of_blocks("leave.weight"), of_blocks("leave.bias"),
        )  # fmt: skip

    def _advance(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, values: F32, scores: Scores,
    ) -> None:  # fmt: skip
        advance(
            kind, row, record, first, tokens, log_gap, values, scores.hidden, self._start, *self._weights, scores.states
        )
