"""Session profiles against those of training: how far from the nearest, and the strangest relation of two counts.

A sequence model looks at one event after the other, and forgets. What a whole session holds is told better by how
often each token came: one that never had a `close`, or three copies where two are the rule. Two detectors say so at a
session's end, and each sees what the other misses: `nearest` finds mixtures that never were, `pairs` a single event too
many or too few, which changes a relation of two counts and hardly any distance.

It works where sessions have ends and kinds of which there are not too many. It fails, by saying little, where each
session is a kind of its own: all distances are large then, and calibrated as such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.profiles import FREE, OTHERS

F32 = NDArray[np.float32]
MOST_COLUMNS = 256  # tokens of their own, the ones that most sessions have; all others count together
MOST_CELLS = 262_144  # of the known profiles: so that a session's end takes .1 ms at most
PAIRED = 32  # columns whose relations are learned
LEVELS = 16  # of a count in a relation: 0 to 14, and more
_PRIOR = 0.5  # sessions that say of a level after another what levels are anyway
_UNKNOWN_COLUMN = 0


class Profiles(NamedTuple):
    """Sessions as counts: (S, P) uint64 keys and (S, P) uint16 counts of features/profiles.py, (S,) int64 durations.

    `events` (S,) int64: how many events each had; where the first field's counts do not add up to that, its profile is
    not whole, as of a session that began before profiles were counted.
    """

    keys: NDArray[np.uint64]
    counts: NDArray[np.uint16]
    events: NDArray[np.int64]
    duration_ms: NDArray[np.int64]

    def take(self, chosen: NDArray[Any]) -> Profiles:
        """Some of them."""
        return Profiles(*(column[chosen] for column in self))


class ProfileScores(NamedTuple):
    """Of E sessions; NaN where the profile is not whole.

    Attributes
    ----------
    nearest
        (E,) float32: sum of the differences of log(1 + count) to the nearest known profile.
    pairs
        (E,) float32 nats: the largest -log p(count of b | count of a) of two tokens.
    neighbour
        (E,) int32: which known profile is the nearest.
    pair
        (E, 2) int32: which a and b.
    """

    nearest: F32
    pairs: F32
    neighbour: NDArray[np.int32]
    pair: NDArray[np.int32]

    def without(self, known: NDArray[np.bool_]) -> ProfileScores:
        """The same, but nothing said of the sessions that (E,) `known` names."""
        nothing = np.float32(np.nan)
        return self._replace(nearest=np.where(known, nothing, self.nearest), pairs=np.where(known, nothing, self.pairs))

    @property
    def columns(self) -> F32:
        """(E, 2) both scores."""
        return np.stack([self.nearest, self.pairs], axis=1)


@dataclass(frozen=True, eq=False)
class KnownProfiles:
    """What training's sessions looked like: less than 2 MB.

    Attributes
    ----------
    keys
        (K,) uint64, the tokens that have a column of their own, those that most sessions have first. Column 0 is of all
        others, column k + 1 of key k.
    known
        (D, 1 + K) uint16: distinct profiles, the most frequent first.
    nats
        (V, V, L, L) float32: -log p(level of b | level of a), by a and b. Their first columns are those of `known`, up
        to `PAIRED`, then the number of events and the duration.
    fields
        F, how many tokens each event has.
    """

    keys: NDArray[np.uint64]
    known: NDArray[np.uint16]
    nats: F32
    fields: int

    @classmethod
    def learn(cls, profiles: Profiles, fields: int) -> KnownProfiles:
        """Learn from the profiles of whole sessions, of events with so many tokens."""
        named = profiles.keys[profiles.keys > OTHERS]
        keys, sessions = np.unique(named, return_counts=True)
        keys = keys[np.argsort(-sessions, kind="stable")][:MOST_COLUMNS]
        table = _table(profiles, keys, np.argsort(keys))
        known, first, times = np.unique(table, axis=0, return_index=True, return_counts=True)
        order = np.lexsort((first, -times))[: max(1, MOST_CELLS // table.shape[1])]
        levels = _levels(table, profiles)
        return cls(keys, np.minimum(known[order], 65_535).astype(np.uint16), _relations(levels), fields)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> KnownProfiles:
        """What `to_arrays` gave. KeyError: it is not there."""
        return cls(arrays["keys"], arrays["known"], arrays["nats"], int(arrays["fields"][0]))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays to save."""
        return {"keys": self.keys, "known": self.known, "nats": self.nats, "fields": np.array([self.fields], np.int64)}

    def score(self, profiles: Profiles) -> ProfileScores:
        """Compare sessions with what is known; each alone, so what stands beside it changes nothing."""
        table = self.table(profiles)
        count = len(table)
        out = ProfileScores(
            np.full(count, np.nan, np.float32), np.full(count, np.nan, np.float32), np.zeros(count, np.int32),
            np.zeros((count, 2), np.int32),
        )  # fmt: skip
        whole = profiles.counts.sum(axis=1, dtype=np.int64) == self.fields * profiles.events
        _score(whole, table, _levels(table, profiles), self._logs, self.nats, *out)
        return out

    @cached_property
    def _logs(self) -> NDArray[np.float64]:
        logs: NDArray[np.float64] = _logs(self.known)
        return logs

    def table(self, profiles: Profiles) -> NDArray[np.int64]:
        """(S, 1 + K) counts by column."""
        return _table(profiles, self.keys, self._order)

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self.keys)


def _table(profiles: Profiles, keys: NDArray[np.uint64], order: NDArray[np.intp]) -> NDArray[np.int64]:
    """(S, 1 + K) counts: of what has no column of its own, and of each key, which `order` sorts."""
    table = np.zeros((len(profiles.keys), 1 + len(keys)), np.int64)
    session, at = np.nonzero(profiles.keys != FREE)
    wanted, counts = profiles.keys[session, at], profiles.counts[session, at]
    place = np.searchsorted(keys[order], wanted)
    column = np.full(len(wanted), _UNKNOWN_COLUMN)
    if len(keys):
        place = np.minimum(place, len(keys) - 1)
        found = keys[order[place]] == wanted
        column[found] = order[place[found]] + 1
    np.add.at(table, (session, column), counts.astype(np.int64))
    return table


def _levels(table: NDArray[np.int64], profiles: Profiles) -> NDArray[np.uint8]:
    """(S, V) levels of the counts that are related to each other, of the number of events and of the duration."""
    levels = np.empty((len(table), min(table.shape[1], PAIRED) + 2), np.uint8)
    levels[:, :-2] = np.minimum(table[:, :PAIRED], LEVELS - 1)
    _spans(profiles.events, profiles.duration_ms, levels)
    return levels


@njit(cache=True)
def _spans(events, duration_ms, levels):
    """Half octaves of the number of events, octaves of the duration from a tenth of a second on."""
    for s in range(len(events)):
        length, lasted = 2.0 * math.log2(1.0 + events[s]), math.log2(1.0 + max(0, duration_ms[s]) / 100.0)
        levels[s, -2] = min(LEVELS - 1, int(length + 0.5))
        levels[s, -1] = min(LEVELS - 1, int(lasted + 0.5))


def _relations(levels: NDArray[np.uint8]) -> F32:
    """(V, V, L, L) nats of each level of b given each of a, with b's own frequencies as a prior."""
    variables = levels.shape[1]
    nats = np.zeros((variables, variables, LEVELS, LEVELS), np.float32)
    one_hot = levels[:, :, None] == np.arange(LEVELS)
    alone = one_hot.sum(axis=0) + _PRIOR / LEVELS
    alone = alone / alone.sum(axis=1, keepdims=True)
    for a in range(variables):
        together = np.einsum("sl,sbm->blm", one_hot[:, a].astype(np.float32), one_hot.astype(np.float32), optimize=True)
        p = (together + _PRIOR * alone[:, None]) / (together.sum(axis=2, keepdims=True) + _PRIOR)
        nats[a] = -np.log(p)
        nats[a, a] = 0.0  # a count tells itself
    return nats


@njit(cache=True)
def _logs(counts):
    """(D, C) log(1 + count), by the scalar logarithm that sessions get: another's last bit would be a distance."""
    out = np.empty(counts.shape)
    for d in range(len(counts)):
        for c in range(counts.shape[1]):
            out[d, c] = math.log1p(float(counts[d, c]))
    return out


@njit(cache=True)
def _score(whole, table, levels, known, nats, nearest, pairs, neighbour, pair):
    profiles, columns = known.shape
    logs = np.empty(columns)
    for s in range(len(table)):
        if not whole[s]:
            continue
        for c in range(columns):
            logs[c] = math.log1p(float(table[s, c]))
        best, which = np.inf, 0
        for d in range(profiles):
            distance = 0.0
            for c in range(columns):
                distance += abs(logs[c] - known[d, c])
                if distance >= best:
                    break
            if distance < best:
                best, which = distance, d
        nearest[s], neighbour[s] = best, which
        strangest = -np.inf
        for a in range(levels.shape[1]):
            for b in range(levels.shape[1]):
                found = nats[a, b, levels[s, a], levels[s, b]]
                if a != b and found > strangest:
                    strangest = found
                    pair[s, 0], pair[s, 1] = a, b
        pairs[s] = strangest
