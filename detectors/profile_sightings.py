"""Profiles that training never met: strange until they have come often enough, and known from then on.

To what training learned, a profile it never met stays as far as it was: after a release every session may be a kind of
its own, and alarm for ever. So sessions with such a profile are counted, each profile by itself, by its hash. Once ten
have ended that nobody labelled an anomaly, and these are a tenth of all sessions since the first of them, those that
end later are absorbed: `nearest` and `pairs` say nothing of them any more. By their share, so that a fault that comes
again and again stays one. Their surprise still speaks, for a known mixture may come in a strange order.

What counts is when a session was over, by event time and offset, not when somebody looked. A session is compared with
those that were over before it, and each slice sees them all (`pipeline/slices.py`), so it does not matter how a stream
is cut. Two that time ends at the same millisecond do not count for each other.

It works where records count in the order in which they come; where they wait to be put in order, or are gathered in
windows, that order depends on when somebody looks, and nothing is absorbed. Beyond so many profiles the one that has
not come for longest is forgotten, and is strange again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from features.event_order import Ordered
from features.sessions import END_EVENT, END_LIMIT, NO_WATERMARK, SessionRules, Walk

if TYPE_CHECKING:
    from detectors.kept import Kept

NAME = "profiles"
MOST = 2_048  # profiles remembered; while sessions end at the same millisecond twice as many
MOST_LABELLED = 1_000  # patterns; of more the oldest are forgotten
SHARE = 0.1  # of the sessions since its first that a profile has to make up
_VERSION = 1
_HEADER = struct.Struct("<BQqqqII")  # version, bundle, newest, sessions, together, how many profiles and patterns
_PROFILE = np.dtype([("hash", "<u8"), ("last", "<i8"), ("first", "<i8"), ("before", "<u4"), ("latest", "<u4")])
_NONE = -2  # a moment before all others
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Sighted:
    """A profile.

    Attributes
    ----------
    last
        When it last came.
    first
        How many sessions were over before it came for the first time.
    before, latest
        How often it came before `last`, and how often then.
    """

    last: int
    first: int
    before: int
    latest: int


@dataclass(frozen=True, eq=False)
class Sightings:
    """What a partition has counted since its bundle serves: less than 160 KB.

    Attributes
    ----------
    bundle
        The bundle's number: another one knows other profiles.
    newest
        The last moment at which a session was over, as `moments` has it.
    sessions, together
        How many were over before that moment, and how many then.
    profiles
        By their hashes, the one that has not come for longest first.
    labelled
        Patterns that people have called anomalies, the latest last; they outlive bundles.
    """

    bundle: int
    newest: int = _NONE
    sessions: int = 0
    together: int = 0
    profiles: Mapping[int, Sighted] = field(default_factory=dict)
    labelled: tuple[int, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sightings) and self.pack() == other.pack()

    def __hash__(self) -> int:
        return hash(self.pack())

    def pack(self) -> bytes:
        """Header, profiles, patterns; little endian. Profiles of one moment of time in the order of their hashes."""
        profiles = sorted(self.profiles.items(), key=_place)
        rows = [(key, seen.last, seen.first, seen.before, seen.latest) for key, seen in profiles]
        numbers = self.bundle, self.newest, self.sessions, self.together, len(profiles), len(self.labelled)
        saved = np.array(rows, _PROFILE).tobytes() + np.array(self.labelled, "<u8").tobytes()
        return _HEADER.pack(_VERSION, *numbers) + saved

    @classmethod
    def unpack(cls, packed: bytes) -> Sightings | None:
        """What `pack` gave; None of another version. ValueError: it is none."""
        if len(packed) < _HEADER.size:
            message = "it cannot be unpacked: it is too short"
            raise ValueError(message)
        version, bundle, newest, sessions, together, count, labelled = _HEADER.unpack_from(packed)
        if version != _VERSION:
            return None
        at = _HEADER.size + _PROFILE.itemsize * count
        if len(packed) != at + 8 * labelled:
            message = "it cannot be unpacked: it has another length than it says"
            raise ValueError(message)
        rows = np.frombuffer(packed, _PROFILE, count, _HEADER.size).tolist()
        profiles = {key: Sighted(*seen) for key, *seen in rows}
        patterns = np.frombuffer(packed, "<u8", labelled, at).tolist()
        return cls(bundle, newest, sessions, together, profiles, tuple(patterns))

    def with_label(self, pattern: int, *, is_anomaly: bool) -> Sightings:
        """After a label of a pattern."""
        labelled = [known for known in self.labelled if known != pattern] + ([pattern] if is_anomaly else [])
        return replace(self, labelled=tuple(labelled[-MOST_LABELLED:]))

    def of_bundle(self, number: int) -> Sightings:
        """Itself, or what is left of it under another bundle."""
        return self if self.bundle == number else Sightings(number, labelled=self.labelled)


def sightings_of(kept: Mapping[str, Kept], bundle: int) -> Sightings:
    """What a partition remembers, for the bundle of that number."""
    state = kept.get(NAME)
    return state.of_bundle(bundle) if isinstance(state, Sightings) else Sightings(bundle)


def moments(walk: Walk, last_offset: Whole, ordered: Ordered, rules: SessionRules) -> Whole:
    """When each of E ended sessions was over, the same however the stream was cut.

    Parameters
    ----------
    walk, ordered
        Of a slice of records that count as they come.
    last_offset
        (E,) offset of each session's last record.

    Returns
    -------
    moments
        (E,) int64: of a session that a record ended, twice the watermark that this record brought; of one that time
        ended, twice that time and one. So they sort, those of one watermark by `last_offset`. One that was over by the
        time its last record came, which came late, was ended by that record.
    """
    ended, offsets = walk.of_ends, ordered.events.offsets
    over = rules.over_ms(walk.ended_first_ms[ended], walk.ended_last_ms[ended])
    watermark = np.full(len(ended), NO_WATERMARK, np.int64)
    at = np.searchsorted(offsets, last_offset)
    here = np.flatnonzero(np.append(offsets, -1)[at] == last_offset)
    watermark[here] = ordered.watermarks[at[here]]
    is_full = (walk.kind[ended] == END_LIMIT) & (walk.ended_events[ended] >= rules.max_events)
    by_record = (walk.kind[ended] == END_EVENT) | is_full | (over < watermark)
    return np.where(by_record, 2 * watermark, 2 * over + 1)


def count_profiles(
    state: Sightings, profiles: NDArray[np.uint64], unmet: NDArray[np.bool_], moments: Whole, offsets: Whole, after: int
) -> tuple[NDArray[np.bool_], Sightings]:
    """Count sessions that were over.

    Parameters
    ----------
    profiles, unmet, moments, offsets
        (E,) hashes of profiles, whether training never met them, when the sessions were over, and where.
    after
        So many sightings make a profile known.

    Returns
    -------
    absorbed, state
        (E,) whether a profile that training never met was known by then; and the state after.
    """
    absorbed, known = np.zeros(len(profiles), np.bool_), dict(state.profiles)
    newest, sessions, together = state.newest, state.sessions, state.together
    of_sessions = list(zip(profiles.tolist(), unmet.tolist(), moments.tolist(), strict=True))
    for e in np.lexsort((offsets, moments)).tolist():
        profile, counts, moment = of_sessions[e]
        if moment > newest or not _by_time(moment):  # whatever comes later, nothing of the moments before does
            _forget(known, newest)
            newest, sessions, together = max(moment, newest), sessions + together, 0
        together += 1
        if not counts:
            continue
        seen = known.pop(profile, Sighted(_NONE, sessions, 0, 0))
        if _by_time(moment) and moment == seen.last:
            seen = replace(seen, latest=seen.latest + 1)
        else:
            seen = Sighted(moment, seen.first, seen.before + seen.latest, 1)
        known[profile] = seen
        absorbed[e] = seen.before >= max(after, SHARE * (sessions - seen.first))
    _forget_of(known, newest)
    return absorbed, Sightings(state.bundle, newest, sessions, together, known, state.labelled)


def _place(item: tuple[int, Sighted]) -> tuple[int, int]:
    profile, seen = item
    return seen.last, profile if _by_time(seen.last) else 0


def _by_time(moment: int) -> bool:
    return bool(moment & 1)


def _forget_of(known: dict[int, Sighted], newest: int) -> None:
    """Of a moment's new profiles keep those with the lowest hashes, so that it does not matter which came first."""
    if (excess := len(known) - 2 * MOST) > 0:
        new = [profile for profile, seen in known.items() if seen.last == newest and not seen.before]
        _drop(known, sorted(new, reverse=True)[:excess])


def _forget(known: dict[int, Sighted], newest: int) -> None:
    """Forget, once a moment is over, what has not come for longest; of one moment of time the lowest hashes."""
    _forget_of(known, newest)
    while (excess := len(known) - MOST) > 0:
        oldest, seen = next(iter(known.items()))
        _drop(known, sorted(_of(known, seen.last))[:excess] if _by_time(seen.last) else [oldest])


def _of(known: Mapping[int, Sighted], moment: int) -> Iterable[int]:
    """The first profiles, as far as they are of one moment."""
    return takewhile(lambda profile: known[profile].last == moment, known)


def _drop(known: dict[int, Sighted], profiles: Iterable[int]) -> None:
    for profile in profiles:
        del known[profile]
