"""Online detectors in numba, record by record: counts of tokens, half-space trees of numbers, ranks among last scores.

`OnlineState` in `detectors/online.py` says what the arrays are, and `NaiveOnline` in `tests/naive_online.py` is the
same story in dictionaries and lists; a property test says they agree bit for bit.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from detectors.half_space_trees import score_and_learn as walk_trees

STEP, LATE = 0, 5  # an event that is scored and learned, and one that is scored only; others are ends
# Places in `sizes`.
RECORDS, SINCE_HALVED, ENTRIES, SCORES, IN_WINDOW, WINDOWS, MOMENTS = range(7)
# What a key counts: a token; how often anything came (after a token), how often something new; a token after another.
_TOKEN, _ALL, _NEW, _PAIR, _VALUE, _CHANGE = range(6)
SMALLEST_P, CONFIDENCE = 0, 1  # places in a row's hidden state, which is the online model's while no bundle serves
PRIOR = 0.5  # of something new, so that nothing is ever impossible
KEPT_FROM = 0.5  # a count that halving brings below that is dropped
_MOMENTS_OVER = 1_000.0  # records: after these a mean forgets as it learns
_SOFT = 3.0  # deviations that lie half-way from a feature's middle to its end

_u8 = np.uint64
_GOLDEN = _u8(0x9E3779B97F4A7C15)


@njit(cache=True)
def _mix(z):
    z = (z ^ (z >> _u8(30))) * _u8(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _u8(27))) * _u8(0x94D049BB133111EB)
    return z ^ (z >> _u8(31))


@njit(cache=True)
def _key(kind, field, a, b):
    """64 bits that name what is counted (splitmix64's finaliser over its parts)."""
    return _mix(_mix(a + _GOLDEN * _u8(16 * field + kind + 1)) ^ _mix(b + _GOLDEN))


@njit(cache=True)
def find(keys, index, key):
    """Entry of a key; where there is none, -1 less the place in `index` it would have."""
    place = key & _u8(len(index) - 1)
    while index[place] >= 0:
        if keys[index[place]] == key:
            return np.int64(index[place])
        place = (place + _u8(1)) & _u8(len(index) - 1)
    return -1 - np.int64(place)


@njit(cache=True)
def fill_index(keys, entries, index):
    """Open addressing with linear probing over the first `entries` keys; `index` has a power of two of places."""
    index[:] = -1
    for e in range(entries):
        index[-1 - find(keys, index, keys[e])] = e


@njit(cache=True)
def _counted(keys, counts, index, key):
    entry = find(keys, index, key)
    return counts[entry] if entry >= 0 else 0.0


@njit(cache=True)
def _add(keys, counts, index, sizes, key):
    entry = find(keys, index, key)
    if entry < 0:
        if sizes[ENTRIES] == len(keys):
            while 4 * sizes[ENTRIES] > 3 * len(keys):
                _halve(keys, counts, index, sizes)
            entry = find(keys, index, key)
        keys[sizes[ENTRIES]], counts[sizes[ENTRIES]] = key, 0.0
        index[-1 - entry] = sizes[ENTRIES]
        entry = sizes[ENTRIES]
        sizes[ENTRIES] += 1
    counts[entry] += 1.0


@njit(cache=True)
def _halve(keys, counts, index, sizes):
    """What came long ago counts half; what was seldom then goes. The order of the others stays."""
    kept = 0
    for e in range(sizes[ENTRIES]):
        half = counts[e] / 2.0
        if half >= KEPT_FROM:
            keys[kept], counts[kept] = keys[e], half
            kept += 1
    sizes[ENTRIES] = kept
    fill_index(keys, kept, index)


@njit(cache=True)
def _token(keys, counts, index, sizes, field, before, token, learns):
    """Nats of a token after another of its field, and the share of what came in the field that was new."""
    nothing = _u8(0)
    of_token, of_pair = _key(_TOKEN, field, token, nothing), _key(_PAIR, field, before, token)
    # Of the field as a whole, and of what came after `before`; no token is 0 or 1 less than that.
    every, every_new = _key(_ALL, field, nothing, nothing), _key(_NEW, field, nothing, nothing)
    after, after_new = _key(_ALL, field, before, _u8(1)), _key(_NEW, field, before, _u8(1))
    came, total = _counted(keys, counts, index, of_token), _counted(keys, counts, index, every)
    new = _counted(keys, counts, index, every_new)
    p = (came if came > 0.0 else new + PRIOR) / (total + new + PRIOR)
    pairs, total_after = _counted(keys, counts, index, of_pair), _counted(keys, counts, index, after)
    new_after = _counted(keys, counts, index, after_new)
    rest = total_after + new_after + PRIOR
    p = pairs / rest if pairs > 0.0 else (new_after + PRIOR) / rest * p
    if learns:
        if came == 0.0:
            _add(keys, counts, index, sizes, every_new)
        _add(keys, counts, index, sizes, every)
        _add(keys, counts, index, sizes, of_token)
        if pairs == 0.0:
            _add(keys, counts, index, sizes, after_new)
        _add(keys, counts, index, sizes, after)
        _add(keys, counts, index, sizes, of_pair)
    return -math.log(p), new / total if total > 0.0 else 1.0


@njit(cache=True)
def _feature(keys, moments, index, sizes, key, value, learns):
    """A number as a coordinate in [0, 1] and in deviations from its mean; NaN where nothing is known of it."""
    if math.isnan(value):
        return np.nan, np.nan
    entry = find(keys, index, key)
    if entry < 0:
        if learns and sizes[MOMENTS] < len(keys):
            e = sizes[MOMENTS]
            keys[e], moments[e, 0], moments[e, 1], moments[e, 2] = key, 1.0, value, 0.0
            index[-1 - entry] = e
            sizes[MOMENTS] += 1
        return np.nan, np.nan
    count, mean, variance = moments[entry, 0], moments[entry, 1], moments[entry, 2]
    off = value - mean
    if variance > 0.0:
        z = off / math.sqrt(variance)
        at = 0.5 + 0.5 * (z / (_SOFT + abs(z)))
    else:
        z = 0.0 if off == 0.0 else math.copysign(math.inf, off)
        at = 0.5 if off == 0.0 else (1.0 if off > 0.0 else 0.0)
    if learns:
        count = min(count + 1.0, _MOMENTS_OVER)
        share = 1.0 / count
        moments[entry, 0], moments[entry, 1] = count, mean + share * off
        moments[entry, 2] = (1.0 - share) * (variance + share * off * off)
    return at, abs(z)


@njit(cache=True)
def _reaching(scores, count, score):
    """How many of the kept scores reach one."""
    reaching = 0
    for k in range(count):
        reaching += scores[k] >= score
    return reaching


@njit(cache=True)
def score_and_learn(
    kind, row, record, first, ended_events, tokens, numbers, names, last_tokens, last_numbers, hidden, rate,
    first_records, halved_every, window, trees_feature, trees_threshold, most,
    sizes, keys, counts, index, number_keys, moments, number_index, before, now, scores,
    surprise, p_value, confidence, end_p_value, end_confidence,
):  # fmt: skip
    """Score n records, each before it is learned; all is written to `hidden`, the state and the last five arguments.

    Parameters
    ----------
    kind, row, record, first, ended_events
        The walk, m operations.
    tokens, numbers, names
        (n, F) uint64, (n, N) float32 and (n, N) uint64: hashes, measures, and what each number is called (0: as its
        column).
    last_tokens, last_numbers
        (S, F) and (S, N): of each session's event before the slice; 0 and NaN where there is none. Written to.
    hidden
        (S, H): see `SMALLEST_P`.
    most
        The largest mass the trees can give.
    """
    fields, columns = tokens.shape[1], numbers.shape[1]
    point = np.empty(2 * columns, np.float64)
    for o in range(len(kind)):
        s = row[o]
        if kind[o] != STEP and kind[o] != LATE:
            smallest = np.float64(hidden[s, SMALLEST_P])
            end_p_value[o] = min(1.0, ended_events[o] * smallest) if smallest > 0.0 else np.nan
            end_confidence[o] = hidden[s, CONFIDENCE]
            continue
        i, learns = record[o], kind[o] == STEP
        knows = sizes[RECORDS] >= first_records
        if first[i] and learns:
            hidden[s, SMALLEST_P], hidden[s, CONFIDENCE] = 0.0, 0.0
        newest = 0.0
        for f in range(fields):
            last = _u8(0) if first[i] else last_tokens[s, f]
            nats, new = _token(keys, counts, index, sizes, f, last, tokens[i, f], learns)
            surprise[i, f] = nats
            newest = max(newest, new)
            if learns:
                last_tokens[s, f] = tokens[i, f]
        any_number, strangest, largest = False, 0, -1.0
        for c in range(columns):
            value = np.float64(numbers[i, c])
            change = np.nan if first[i] or names[i, c] != _u8(0) else value - np.float64(last_numbers[s, c])
            for which in range(2):
                key = _key(_VALUE + which, c, names[i, c], _u8(0))
                point[2 * c + which], z = _feature(
                    number_keys, moments, number_index, sizes, key, change if which else value, learns
                )
                any_number |= not math.isnan(z)
                if z > largest:
                    strangest, largest = c, z
            surprise[i, fields + c] = 0.0
            if learns:
                last_numbers[s, c] = numbers[i, c]
        has_mass = any_number and sizes[WINDOWS] > 0
        if any_number:
            mass = walk_trees(trees_feature, trees_threshold, before, now, window, point, learns)
            if has_mass:
                surprise[i, fields + strangest] = -math.log(mass / most)
            if learns:
                sizes[IN_WINDOW] += 1
                if sizes[IN_WINDOW] == window:
                    before[:], now[:] = now, 0
                    sizes[IN_WINDOW] = 0
                    sizes[WINDOWS] += 1
        kept = min(sizes[SCORES], len(scores))
        if knows and (fields > 0 or has_mass):
            score = surprise[i, 0]
            for f in range(1, fields + columns):
                score = np.float32(score + surprise[i, f])
            p_value[i] = (1.0 + _reaching(scores, kept, score)) / (1.0 + kept)
            confidence[i] = kept / (kept + 1.0 / rate) * (1.0 - newest)
            if learns:
                scores[sizes[SCORES] % len(scores)] = score
                sizes[SCORES] += 1
                p = np.float32(p_value[i])
                if hidden[s, SMALLEST_P] == 0.0 or p < hidden[s, SMALLEST_P]:
                    hidden[s, SMALLEST_P] = p
                hidden[s, CONFIDENCE] = confidence[i]
        else:
            surprise[i], p_value[i], confidence[i] = np.nan, np.nan, np.nan
        if learns:
            sizes[RECORDS] += 1
            sizes[SINCE_HALVED] += 1
            if sizes[SINCE_HALVED] == halved_every:
                sizes[SINCE_HALVED] = 0
                _halve(keys, counts, index, sizes)
