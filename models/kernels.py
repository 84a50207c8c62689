"""Softmax heads and what else the cores' kernels share, row by row: the same bits whatever stands beside a row.

Every session advances through one and the same compiled path, with fixed orders of summation, so neither the size of
a batch nor a row's place in it can change a bit. (BLAS does not give that: its blocking depends on the shape.) The
kernels are held to torch within a tolerance by `tests/models/test_kernels.py`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from models.lanes import LANES, add_products

f4 = np.float32
LOG2E = f4(1.4426950408889634)
LN2_HIGH, LN2_LOW = f4(0.693359375), f4(-2.12194440e-4)  # ln 2 in two parts, so that x - n ln 2 keeps its bits
# Kernels run m operations on S rows: `kind` (m,) says what, `row` (m,) on which row, `record` (m,) by which of n
# events, `first` (n,) whether this opens a session, so that its row begins at `start`. An event is scored and applied
# to its row, scored alone, or applied alone. Other kinds are ends of sessions, and have no event.
STEP, LATE, ADVANCE = 0, 5, 6

# Kernels that run for long leave the interpreter to other threads meanwhile (nogil).
# LLVM may contract, reassociate and so vectorise. It may also take all numbers for finite, which weights are checked
# to be and inputs are by construction.
FAST = True


@njit(inline="always", fastmath=FAST, error_model="numpy")
def _exp(x):
    """Exp in float32 by range reduction and a polynomial of degree 5 (Cephes expf), relative error about 1e-7."""
    x = min(max(x, f4(-87.0)), f4(88.0))
    n = np.floor(x * LOG2E + f4(0.5))
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = f4(1.9875691500e-4)
    p = p * r + f4(1.3981999507e-3)
    p = p * r + f4(8.3334519073e-3)
    p = p * r + f4(4.1665795894e-2)
    p = p * r + f4(1.6666665459e-1)
    p = p * r + f4(5.0000001201e-1)
    p = p * r * r + r + f4(1.0)
    bits = np.int32((np.int32(n) + np.int32(127)) << np.int32(23))  # 2^n, written into the exponent
    return p * bits.view(f4)


@njit(inline="always", fastmath=FAST, error_model="numpy")
def tanh(x):
    """Tanh in float32 as a ratio of polynomials of degrees 13 and 6 (Eigen's coefficients), error about 1e-7."""
    x = min(max(x, f4(-7.90531110763549805)), f4(7.90531110763549805))
    y = x * x
    p = f4(-2.76076847742355e-16)
    p = p * y + f4(2.00018790482477e-13)
    p = p * y + f4(-8.60467152213735e-11)
    p = p * y + f4(5.12229709037114e-08)
    p = p * y + f4(1.48572235717979e-05)
    p = p * y + f4(6.37261928875436e-04)
    p = p * y + f4(4.89352455891786e-03)
    q = f4(1.19825839466702e-06)
    q = q * y + f4(1.18534705686654e-04)
    q = q * y + f4(2.26843463243900e-03)
    q = q * y + f4(4.89352518554385e-03)
    return x * p / q


@njit(inline="always", fastmath=FAST, error_model="numpy")
def sigmoid(x):
    """By `tanh`."""
    return f4(0.5) * tanh(f4(0.5) * x) + f4(0.5)


@njit(inline="always", fastmath=FAST, error_model="numpy")
def add_product(out, h, w, hidden, low, high):
    """out[low:high] += h @ w[:, low:high], eight rows of w at a time."""
    for k in range(0, hidden, 8):
        h0, h1, h2, h3 = h[k], h[k + 1], h[k + 2], h[k + 3]
        h4, h5, h6, h7 = h[k + 4], h[k + 5], h[k + 6], h[k + 7]
        for j in range(low, high):
            out[j] += (
                h0 * w[k, j] + h1 * w[k + 1, j] + h2 * w[k + 2, j] + h3 * w[k + 3, j]
                + h4 * w[k + 4, j] + h5 * w[k + 5, j] + h6 * w[k + 6, j] + h7 * w[k + 7, j]
            )  # fmt: skip


@njit(inline="always", fastmath=FAST, error_model="numpy")
def _log_sum_exp(logits, low, high):
    top = logits[low]
    for j in range(low + 1, high):
        top = max(top, logits[j])
    total = f4(0.0)
    for j in range(low, high):
        total += _exp(logits[j] - top)
    return top + f4(np.log(total))


@njit(inline="always", fastmath=FAST, error_model="numpy")
def _surprise_in_class(logits, h, head, head_bias, size, low, high, at, width, stop, symbol):
    """Surprise of a symbol of a field with classes: of its class, whose logits are known, and among its class's ids."""
    which = symbol // width
    begin = at + which * width
    end = min(begin + width, stop)
    for j in range(begin, end):
        logits[j] = head_bias[j]
    add_product(logits, h, head, size, begin, end)
    of_class = _log_sum_exp(logits, low, high) - logits[low + which]
    return of_class + _log_sum_exp(logits, begin, end) - logits[at + symbol]


@njit(forceinline=True, error_model="numpy")
def begin_operation(o, kind, row, record, first, hidden, start, h, states):
    """Make h (H,) the state that operation `o` is scored under, and note it in `states`.

    Parameters
    ----------
    kind, row, record, first
        Operations, as above.
    start
        (H,) what heads read before a session's first event.
    hidden
        (S, H or more) float32; what lies beyond H is another's.
    states
        Out: (m, H).
    """
    s = row[o]
    is_event = kind[o] == STEP or kind[o] == LATE or kind[o] == ADVANCE
    opens = is_event and first[record[o]]
    for j in range(len(start)):
        h[j] = start[j] if opens else hidden[s, j]
        states[o, j] = h[j]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def score_states(
    kind, record, states, tokens, among, head, head_bias, head_offset, classed, surprise, end_surprise
):  # fmt: skip
    """Score what m operations are by the states before them; those that only advance are not scored.

    Parameters
    ----------
    kind, record
        Operations, as above.
    states
        (m, H) float32.
    tokens
        (n, F + I) int32 ids, those of F fields and of I inputs that are not predicted.
    among
        (n, G, 2) int32, of the last G fields: what comes is known to be one of the ids from the first number to before
        the second, so surprise is that of the id given this; less its mean, the entropy of what is predicted.
    head, head_bias, head_offset
        (H, W), (W,), (F + 1,): columns of field f are head_offset[f] to head_offset[f + 1], its symbols, or its classes
        where it has these; the first field's last symbol is the end of the session.
    classed
        (F, 3): of a field with classes, how many symbols each has, where the columns of its symbols begin and end; all
        of them stand after head_offset[F]. Else 0.
    surprise, end_surprise
        Out: (n, F) float32 in nats, (m,) surprise of each end.
    """
    size, fields = states.shape[1], len(head_offset) - 1
    if fields == 0:
        return
    free, width, end_width = fields - among.shape[1], head_offset[fields], head_offset[1]
    logits, h = np.zeros((LANES, head.shape[1]), f4), np.zeros((LANES, size), f4)
    of = np.empty(LANES, np.int64)
    o = 0
    while o < len(kind):
        count = 0
        while count < LANES and o < len(kind):
            if kind[o] == STEP or kind[o] == LATE:
                of[count] = o
                for j in range(size):
                    h[count, j] = states[o, j]
                for j in range(width):
                    logits[count, j] = head_bias[j]
                count += 1
            elif kind[o] != ADVANCE:
                end_surprise[o] = _surprise_of_end(states[o], head, head_bias, classed, end_width)
            o += 1
        if count == 0:
            break
        add_products(logits, h, head, size, width)
        for lane in range(count):
            i = record[of[lane]]
            _score_event(
                i, h[lane], free, tokens, among, head, head_bias, head_offset, classed, logits[lane], surprise
            )  # fmt: skip


@njit(inline="always", fastmath=FAST, error_model="numpy")
def _score_event(i, h, free, tokens, among, head, head_bias, head_offset, classed, logits, surprise):
    for f in range(len(head_offset) - 1):
        low, high = head_offset[f], head_offset[f + 1]
        if classed[f, 0] > 0:
            surprise[i, f] = _surprise_in_class(
                logits, h, head, head_bias, len(h), low, high, classed[f, 1], classed[f, 0], classed[f, 2],
                tokens[i, f],
            )  # fmt: skip
            continue
        came = logits[low + tokens[i, f]]
        if f >= free:
            low, high = low + among[i, f - free, 0], low + among[i, f - free, 1]
        total = _log_sum_exp(logits, low, high)
        surprise[i, f] = total - came
        if f >= free:
            for j in range(low, high):  # less its mean
                surprise[i, f] -= _exp(logits[j] - total) * (total - logits[j])


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _surprise_of_end(h, head, head_bias, classed, end_width):
    logits = np.empty(head.shape[1], f4)
    for j in range(end_width):
        logits[j] = head_bias[j]
    add_product(logits, h, head, len(h), 0, end_width)
    if classed[0, 0] == 0:
        return _log_sum_exp(logits, 0, end_width) - logits[end_width - 1]
    at, stop = classed[0, 1], classed[0, 2]
    return _surprise_in_class(logits, h, head, head_bias, len(h), 0, end_width, at, classed[0, 0], stop, stop - at - 1)


@njit(inline="always", fastmath=FAST, error_model="numpy")
def read_event(out, i, tokens, log_gap, values, table, table_offset, gap_weight, value_weight, bias):
    """Make out (G,) what event `i` brings to a core: its ids' rows, its time gap, its values and the bias.

    Parameters
    ----------
    tokens, log_gap, values
        (n, F + I) int32, (n,) float32, (n, D) float32.
    table, table_offset, gap_weight, value_weight, bias
        (sum V, G) rows by id, (F + I,) where those of each field and input begin, (G,), (D, G) and (G,).
    """
    gap = log_gap[i]
    for j in range(len(out)):
        out[j] = bias[j] + gap * gap_weight[j]
    for f in range(tokens.shape[1]):
        t = table_offset[f] + tokens[i, f]
        for j in range(len(out)):
            out[j] += table[t, j]
    for k in range(values.shape[1]):
        value = values[i, k]
        if value != f4(0.0):  # which it is of all that is not missing
            for j in range(len(out)):
                out[j] += value * value_weight[k, j]


@njit(cache=True, fastmath=FAST, error_model="numpy")
def log_probabilities(states, head, head_bias, head_offset, classed):
    """(k, W) float32 log-probabilities of (k, H) states, each field normalised on its own; classes have theirs too."""
    k, size = states.shape
    out = np.empty((k, head.shape[1]), f4)
    for i in range(k):
        logits = out[i]
        for j in range(head.shape[1]):
            logits[j] = head_bias[j]
        add_product(logits, states[i], head, size, 0, head.shape[1])
        for f in range(len(head_offset) - 1):
            low, high = head_offset[f], head_offset[f + 1]
            total = _log_sum_exp(logits, low, high)
            for j in range(low, high):
                logits[j] -= total
            if classed[f, 0] == 0:
                continue
            for which in range(high - low):
                begin = classed[f, 1] + which * classed[f, 0]
                end = min(begin + classed[f, 0], classed[f, 2])
                total = _log_sum_exp(logits, begin, end) - logits[low + which]
                for j in range(begin, end):
                    logits[j] -= total
    return out


@njit(cache=True)
def input_table(embedding, weight):
    """(V, G) float32: what each token brings to a core, embedding (V, E) times weight (G, E), summed in order."""
    vocabulary, width = embedding.shape
    out = np.zeros((vocabulary, weight.shape[0]), f4)
    for t in range(vocabulary):
        for g in range(weight.shape[0]):
            total = f4(0.0)
            for e in range(width):
                total += embedding[t, e] * weight[g, e]
            out[t, g] = total
    return out


@njit(inline="always", error_model="numpy")
def _forecast(coefficients, last, lags):
    total = 0.0
    for k in range(lags):
        total += coefficients[k] * last[k]
    return total


@njit(cache=True, error_model="numpy")
def autoregress(
    kind, row, record, first, values, state, mean, spread, coefficients, usual, cap, weight,
    scores, residuals, levels, forecasts,
):  # fmt: skip
    """Score n records of S sessions by each channel's own last values, then learn them.

    Parameters
    ----------
    kind, row, record, first
        m operations, and which of n records open a session, as this module has them.
    values
        (n, C) float64; what is not finite is missing.
    state
        (S, C, P + 1) float32, advanced in place: last values in spreads, the latest first, then the mean squared
        residual; NaN while not known.
    mean, spread, coefficients, usual
        (C,), (C,), (C, P), (C,) float64.
    cap, weight
        Largest residual in spreads; the share of a new one in the mean.
    scores, residuals, levels
        Out: (n,) float64; (n, C) float32, NaN without a forecast; (n, C) float32 roots of the means, the usual one
        where there is none yet.
    forecasts
        Out: (m, C) float32 what each operation met, in the values' own units; NaN where there is none.
    """
    channels, lags = coefficients.shape
    mine = np.empty(lags + 1, f4)
    for o in range(len(kind)):
        s = row[o]
        steps, is_record = kind[o] == STEP, kind[o] == STEP or kind[o] == LATE
        i = record[o] if is_record else 0
        opens = is_record and first[i]
        for c in range(channels):
            forecasts[o, c] = np.nan
            if not opens and not np.isnan(state[s, c, 0]):
                forecasts[o, c] = mean[c] + spread[c] * _forecast(coefficients[c], state[s, c], lags)
        if not is_record:
            continue
        total, known = 0.0, 0
        for c in range(channels):
            for k in range(lags + 1):
                mine[k] = f4(np.nan) if opens else state[s, c, k]
            residuals[i, c] = np.nan
            now = mine[0]  # of a missing value the one before stands for it
            if np.isfinite(values[i, c]):
                # Clipped, so that a state stays finite in float32.
                now = f4(min(max((values[i, c] - mean[c]) / spread[c], -1e9), 1e9))
                if np.isnan(mine[0]):
                    for k in range(lags):
                        mine[k] = now
                else:
                    off = min(max(now - _forecast(coefficients[c], mine, lags), -cap), cap)
                    residuals[i, c] = off
                    before = usual[c] if np.isnan(mine[lags]) else np.float64(mine[lags])
                    mine[lags] = before + weight * (off * off - before)
            level = np.sqrt(usual[c] if np.isnan(mine[lags]) else np.float64(mine[lags]))
            levels[i, c] = level
            if not np.isnan(mine[lags]):
                total += level
                known += 1
            if not np.isnan(now):
                for k in range(lags - 1, 0, -1):
                    mine[k] = mine[k - 1]
                mine[0] = now
            if steps:
                for k in range(lags + 1):
                    state[s, c, k] = mine[k]
        scores[i] = total / known if known else np.nan
