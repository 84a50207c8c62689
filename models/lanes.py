"""Which operations of a slice advance side by side: four rows at a time, so that a weight is fetched once for four.

A row's operations keep their order, and rows know nothing of each other. So any order of rows gives each the same
numbers, as long as each lane is computed alike, whatever the others hold.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LANES = 4  # rows at a time: with more, their sums do not stay in the processor's registers
NOBODY = -1


@njit(cache=True)
def take_turns(row, rows):
    """(T, LANES) int32: the operation of each lane at each turn, or NOBODY; a row stays in its lane.

    Parameters
    ----------
    row
        (m,) whose operation each is, of `rows` in all. Those with many operations begin, so that lanes end together.
    """
    counts = np.zeros(rows, np.int64)
    for o in range(len(row)):
        counts[row[o]] += 1
    most = 0
    for s in range(rows):
        most = max(most, counts[s])
    by_count = np.zeros(most + 2, np.int64)  # a counting sort, the longest first
    for s in range(rows):
        by_count[most - counts[s] + 1] += 1
    for c in range(most + 1):
        by_count[c + 1] += by_count[c]
    longest = np.empty(rows, np.int64)
    for s in range(rows):
        at = most - counts[s]
        longest[by_count[at]] = s
        by_count[at] += 1
    lane, turn = np.empty(rows, np.int64), np.empty(rows, np.int64)
    until = np.zeros(LANES, np.int64)
    for place in range(rows):
        s, free = longest[place], 0
        for other in range(1, LANES):
            if until[other] < until[free]:
                free = other
        lane[s], turn[s] = free, until[free]
        until[free] += counts[s]
    turns = np.full((until.max(), LANES), NOBODY, np.int32)
    for o in range(len(row)):
        s = row[o]
        turns[turn[s], lane[s]] = o
        turn[s] += 1
    return turns


@njit(forceinline=True, fastmath={"contract"}, error_model="numpy")
def add_products(out, x, w, size, width):
    """out[:, :width] += x[:, :size] @ w[:, :width] for four rows, four rows of w at a time.

    Only contracted, so that all four are summed in the order that is written here.
    """
    for k in range(0, size, 4):
        a0, a1, a2, a3 = x[0, k], x[0, k + 1], x[0, k + 2], x[0, k + 3]
        b0, b1, b2, b3 = x[1, k], x[1, k + 1], x[1, k + 2], x[1, k + 3]
        c0, c1, c2, c3 = x[2, k], x[2, k + 1], x[2, k + 2], x[2, k + 3]
        d0, d1, d2, d3 = x[3, k], x[3, k + 1], x[3, k + 2], x[3, k + 3]
        for j in range(width):
            w0, w1, w2, w3 = w[k, j], w[k + 1, j], w[k + 2, j], w[k + 3, j]
            out[0, j] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
            out[1, j] += b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
            out[2, j] += c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
            out[3, j] += d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3
