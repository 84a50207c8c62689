"""The sequential part of forecasting: what each operation knows of its session's numbers, and how far off it is."""

from __future__ import annotations

import numpy as np
from numba import njit

from models.kernels import LATE, STEP

f4 = np.float32


@njit(cache=True, error_model="numpy")
def hold(kind, row, record, first, values, last, known, before):
    """Keep the last known values of S sessions.

    Parameters
    ----------
    kind, row, record, first
        Operations, as `models.kernels` has them, and which of n records open a session.
    values
        (n, C) float32, NaN where missing.
    last
        (S, C) float32, advanced in place.
    known
        Out: (n, C) what is known once each record came.
    before
        Out: (m, C) what was known before each operation.
    """
    for o in range(len(kind)):
        s = row[o]
        is_record = kind[o] == STEP or kind[o] == LATE
        for c in range(last.shape[1]):
            before[o, c] = f4(np.nan) if is_record and first[record[o]] else last[s, c]
            if not is_record:
                continue
            i = record[o]
            known[i, c] = before[o, c] if np.isnan(values[i, c]) else values[i, c]
            if kind[o] == STEP:
                last[s, c] = known[i, c]


@njit(cache=True, error_model="numpy")
def gather(
    kind, row, record, first, values, before, states, weight, bias, usual, cap, share, squares,
    forecasts, residuals, levels,
):  # fmt: skip
    """Forecast each number as its last value and a change, and gather how far off forecasts are.

    Parameters
    ----------
    before, states
        (m, C) and (m, H or more): what was known before each operation, and what heads read.
    weight, bias
        (C, H) and (C,) float32: the change.
    usual, cap, share
        (C,) float64 mean squared residual where there is none yet; largest residual; share of a new one in the mean.
    squares
        (S, C) float32 mean squared residuals, NaN while there is none; advanced in place.
    forecasts
        Out: (m, C) in spreads; NaN where nothing is known.
    residuals, levels
        Out: (n, C) in spreads, NaN without a forecast; (n, C) roots of the means.
    """
    channels, size = weight.shape
    for o in range(len(kind)):
        s = row[o]
        steps, is_record = kind[o] == STEP, kind[o] == STEP or kind[o] == LATE
        i = record[o] if is_record else 0
        for c in range(channels):
            change = bias[c]
            for j in range(size):
                change += weight[c, j] * states[o, j]
            forecasts[o, c] = before[o, c] + change
            if not is_record:
                continue
            square = f4(np.nan) if first[i] else squares[s, c]
            residuals[i, c] = f4(np.nan)
            if not np.isnan(values[i, c]) and not np.isnan(before[o, c]):
                # The change first: of large values float32 has few digits, of their difference as many as it can.
                off = min(max(np.float64(values[i, c] - before[o, c]) - np.float64(change), -cap), cap)
                residuals[i, c] = f4(off)
                mean = usual[c] if np.isnan(square) else np.float64(square)
                square = f4(mean + share * (off * off - mean))
            levels[i, c] = f4(np.sqrt(usual[c] if np.isnan(square) else np.float64(square)))
            if steps:
                squares[s, c] = square
