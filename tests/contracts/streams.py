"""Streams that every detector must bear, and each detector that follows one, behind one small contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors import drift_watch, kept, label_watch, novelty, profile_sightings, rate_watch
from detectors.calibration import Calibration
from detectors.drift_events import DriftEvent
from detectors.drift_watch import DriftState, DriftWatch, Scored, UsualDrift
from detectors.half_space_trees import Trees, score_and_learn
from detectors.input_watch import InputWatch
from detectors.intervals import GROUPS
from detectors.label_watch import Labelled, LabelState
from detectors.novelty import NoveltyState, count_tokens
from detectors.parts import Parts
from detectors.profile_sightings import Sightings, count_profiles
from detectors.promise_keeper import KeeperState, KeepingRules, keep
from detectors.rate_fit import learn_rates
from detectors.rate_watch import RateState, RateWatch
from detectors.rows import PartitionState, SessionRows
from detectors.score_watch import ScoreWatch
from detectors.usual_rates import UsualRates
from features.event_order import put_in_order
from features.events import Events
from features.sessions import SessionRules, walk_sessions
from features.tokens import RARE
from pipeline.partition_row import PartitionRow, decode_partition_row
from tests.conftest import make_number_parts

DAY_MS = 86_400_000
START_MS = 1_700_006_400_000 // DAY_MS * DAY_MS
RATE = 0.01
Found = NDArray[np.int64]  # (n,) how many alarms each record brought


class Stream(NamedTuple):
    """(n,) records: times, offsets, whether each is strange, two uniform draws, and a session's number."""

    time_ms: NDArray[np.int64]
    offsets: NDArray[np.int64]
    is_strange: NDArray[np.bool_]
    one: NDArray[np.float64]
    other: NDArray[np.float64]
    session: NDArray[np.int32]

    def part(self, low: int, high: int) -> Stream:
        """Records from one to before another."""
        return Stream(*(column[low:high] for column in self))

    def copy(self) -> Stream:
        """One that shares nothing."""
        return Stream(*(column.copy() for column in self))


def stream(n: int, *, seed: int = 0, days: float = 2.0, sessions: int = 300) -> Stream:
    """Normal records, evenly spread over some days."""
    random = np.random.default_rng(seed)
    at = np.sort(random.uniform(0, days, n))
    return Stream(
        START_MS + np.round(DAY_MS * at).astype(np.int64), np.arange(n), np.zeros(n, np.bool_), random.uniform(0, 1, n),
        random.uniform(0, 1, n), random.integers(0, sessions, n, dtype=np.int32),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A detector that follows a stream.

    Attributes
    ----------
    state
        The class whose docstring states how many bytes it takes.
    begin, update, save, read
        A state before the first record; a state and records to the alarms and the state after; to bytes and back.
    says
        Of a stream that is strange from its first record: each record, for good; the first ones, until they are usual;
        one of each bucket of time; one event about it; or nothing, for it has no other past to compare with.
    looks_at_times
        Whether a clock set back may change what it says.
    promised
        Share of alarms that a stream without anything strange may have.
    records
        Of a stream in two days.
    flood
        Records of one key in one minute that the test can afford.
    """

    state: type
    begin: Callable[[], Any]
    update: Callable[[Any, Stream], tuple[Found, Any]]
    save: Callable[[Any], bytes]
    read: Callable[[bytes], Any]
    says: Literal["always", "at first", "by bucket", "once", "nothing"]
    looks_at_times: bool = False
    promised: float = 0.0
    records: int = 20_000
    flood: int = 1_000_000

    def run(self, given: Stream, cuts: tuple[int, ...] = (), *, saved: bool = False) -> tuple[Found, Any]:
        """Alarms of a stream that comes in pieces, and the state after; `saved`: through bytes between them."""
        state, found, bounds = self.begin(), [np.empty(0, np.int64)], [0, *sorted(cuts), len(given.time_ms)]
        for low, high in pairwise(bounds):
            part, state = self.update(self.read(self.save(state)) if saved else state, given.part(low, high))
            found.append(part)
        return np.concatenate(found), state


# --- news


def _news(state: NoveltyState, given: Stream) -> tuple[Found, NoveltyState]:
    hashes = np.where(given.is_strange, np.uint64(7), np.uint64(0)).astype(np.uint64)[:, None]
    found, after = count_tokens(state, hashes, hashes > 0, np.array([True]))
    return (found[:, 0] == novelty.NEWS).astype(np.int64), after


# --- profiles that training never met


def _sightings(state: Sightings, given: Stream) -> tuple[Found, Sightings]:
    """Each record is a session of its own, over with it."""
    profiles = np.full(len(given.offsets), 7, np.uint64)
    absorbed, after = count_profiles(state, profiles, given.is_strange, 2 * given.offsets, given.offsets, 100)
    return (given.is_strange & ~absorbed).astype(np.int64), after


# --- drift of inputs and scores


def _given(given: Stream) -> tuple[Events, NDArray[np.int32], Scored]:
    """Strange records have higher numbers, and scores that are rarer than was promised."""
    n, strange = len(given.time_ms), given.is_strange
    ids = (given.one > 0.6).astype(np.int32)[:, None] + RARE
    events = Events(
        np.arange(n, dtype=np.int32), given.offsets, given.time_ms, given.session % GROUPS,
        [f"session-{i}" for i in range(GROUPS)], [[None] * n], np.zeros(n, np.bool_), [], 0, None,
        numbers=(given.other + 2.0 * strange)[:, None],
    )  # fmt: skip
    p_values = np.where(strange, 1e-6, np.maximum(given.one, 1e-9))
    return events, ids, Scored(p_values, given.time_ms, given.session.astype(np.int64) % GROUPS, given.offsets)


@cache
def _watch() -> DriftWatch:
    """With what four days of normal records teach, which lie before the streams."""
    past = stream(48_000, seed=9, days=4.0)
    events, ids, scored = _given(past._replace(time_ms=past.time_ms - 4 * DAY_MS))
    usual = UsualDrift(
        InputWatch(("action",), ("ms",)).learn([(events, ids, np.zeros(len(ids), np.bool_))]),
        ScoreWatch().learn([scored.p_values], [scored.time_ms], [scored.group]),
    )
    return DriftWatch.of(("action",), ("ms",), usual, None)


def _at(offsets: NDArray[np.int64], events: tuple[DriftEvent, ...]) -> Found:
    """Events by the record after which they were told."""
    found = np.zeros(len(offsets), np.int64)
    np.add.at(found, np.searchsorted(offsets, [event.offset for event in events]), 1)
    return found


def _drift(state: DriftState, given: Stream) -> tuple[Found, DriftState]:
    after, drifted = _watch().update_many(state, *_given(given))
    return _at(given.offsets, drifted.events), after


# --- thresholds that keep the promise


@cache
def _keeping() -> Parts:
    parts, rng = make_number_parts("wide"), np.random.default_rng(0)
    assert parts.learned is not None
    learned = replace(parts.learned, records=Calibration.learn(rng.gumbel(size=20_000)))
    rules = SessionRules(gap_ms=2**50, max_events=2**50)  # none ends
    return replace(parts, learned=learned, rate=RATE, keeping=KeepingRules(), rules=rules)


def _promise(state: KeeperState | None, given: Stream) -> tuple[Found, KeeperState | None]:
    """Strange records are far beyond the threshold: those are never learned."""
    events, _, _ = _given(given)
    parts = _keeping()
    rows = SessionRows.empty(GROUPS, parts.shape)
    walk = walk_sessions(put_in_order(events, rows.held, -1, parts.rules), rows.clocks, parts.rules)
    p_values = np.where(given.is_strange, RATE**3, np.maximum(given.one, 2 * RATE))
    nothing = np.empty(0, np.int64)
    kept = keep(p_values, np.empty(0), walk, nothing, events, PartitionState(0, keeper=state), parts)
    return (kept.p_value <= RATE).astype(np.int64), kept.state


def _save_promise(state: KeeperState | None) -> bytes:
    return PartitionRow(0, -1, 0, 0, "", None, "", "", 0, 0, keeper=state).encode()


# --- labels


def _labels(state: LabelState, given: Stream) -> tuple[Found, LabelState]:
    """Strange is where a label says otherwise than the model."""
    columns = (given.one < 0.3, given.is_strange, given.time_ms, given.offsets)
    labels = [Labelled(p, p != wrong, at, o) for p, wrong, at, o in zip(*(c.tolist() for c in columns), strict=True)]
    after, events = label_watch.update_many(state, labels)
    return _at(given.offsets, tuple(events)), after


# --- half-space trees

_TREES, _WINDOW = Trees.grow(25, 8, 1), 256


@dataclass(frozen=True)
class TreeCounts:
    """Counts of the last window, of that under way, and records so far: less than 52 KB of trees as online."""

    before: NDArray[np.uint16]
    now: NDArray[np.uint16]
    seen: int = 0

    def save(self) -> bytes:
        """As bytes."""
        return self.seen.to_bytes(8, "little") + self.before.tobytes() + self.now.tobytes()

    @classmethod
    def read(cls, saved: bytes) -> TreeCounts:
        """What `save` gave."""
        counts = np.frombuffer(saved[8:], np.uint16).reshape(2, 25, _TREES.nodes).copy()
        return cls(counts[0], counts[1], int.from_bytes(saved[:8], "little"))


def _trees(state: TreeCounts, given: Stream) -> tuple[Found, TreeCounts]:
    """Strange points lie far from where half of the others do; once they fill a window they are usual."""
    before, now, seen = state.before, state.now.copy(), state.seen
    points = np.where(given.is_strange, 0.98, 0.2 + 0.2 * given.one)
    found = np.zeros(len(points), np.int64)
    for i, point in enumerate(points):
        mass = score_and_learn(_TREES.feature, _TREES.threshold, before, now, _WINDOW, np.array([point]), True)
        found[i] = seen >= _WINDOW and mass < 0.01 * _TREES.most(_WINDOW)
        seen += 1
        if seen % _WINDOW == 0:
            before, now = now, np.zeros_like(now)
    return found, TreeCounts(before, now, seen)


def _no_counts() -> TreeCounts:
    return TreeCounts(*np.zeros((2, 25, _TREES.nodes), np.uint16))


# --- how many records come, which says nothing of what is in them

RateMemory = tuple[RateState | None, int]  # and the watermark


@dataclass
class _Came:
    time_ms: NDArray[np.int64]
    segments: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.time_ms)


def _usual_rates() -> UsualRates:
    history: Any = _Came(stream(20_000, seed=9).time_ms)
    usual = learn_rates([history], 0, RATE)
    assert usual is not None
    return usual


def _rates(memory: RateMemory, given: Stream) -> tuple[Found, RateMemory]:
    (state, watermark_ms), found = memory, np.zeros(len(given.time_ms), np.int64)
    if not len(found):
        return found, memory
    watch = RateWatch(_usual_rates(), 1e-9)
    last, times = int(given.offsets[0]) - 1, np.where(given.is_strange, 5, 1)  # strange ones come five at once
    time_ms, offsets = np.repeat(given.time_ms, times), np.repeat(given.offsets, times)
    state, rated = watch.update_many(state, 1, watermark_ms, time_ms, None, offsets, last)
    for alarm in rated.alarms:
        found[max(0, int(np.searchsorted(given.offsets, alarm.offset)))] += 1
    return found, (state, max(watermark_ms, int(given.time_ms.max())))


def _save_rates(memory: RateMemory) -> bytes:
    state, watermark_ms = memory
    return watermark_ms.to_bytes(8, "little", signed=True) + (b"" if state is None else state.pack())


def _read_rates(saved: bytes) -> RateMemory:
    watermark_ms = int.from_bytes(saved[:8], "little", signed=True)
    return (RateState.unpack(saved[8:]) if len(saved) > 8 else None), watermark_ms


CASES: dict[str, Case] = {
    rate_watch.NAME: Case(
        RateState, lambda: (None, -1), _rates, _save_rates, _read_rates, "by bucket", looks_at_times=True
    ),
    novelty.NAME: Case(
        NoveltyState, lambda: NoveltyState.empty(1), _news, NoveltyState.pack, kept.READERS[novelty.NAME], "at first"
    ),
    profile_sightings.NAME: Case(
        Sightings,
        lambda: Sightings(1),
        _sightings,
        Sightings.pack,
        kept.READERS[profile_sightings.NAME],
        "at first",
        flood=200_000,
    ),
    drift_watch.NAME: Case(
        DriftState, DriftState, _drift, DriftState.pack, kept.READERS[drift_watch.NAME], "once", looks_at_times=True
    ),
    "promise": Case(
        KeeperState,
        lambda: None,
        _promise,
        _save_promise,
        lambda row: decode_partition_row(row).keeper,
        "always",
        promised=1.5 * RATE,  # kept from below, too: without alarms the threshold sinks until there are some
    ),
    "labels": Case(
        LabelState, LabelState, _labels, LabelState.pack, LabelState.unpack, "nothing", records=1_000, flood=1_000
    ),
    "trees": Case(TreeCounts, _no_counts, _trees, TreeCounts.save, TreeCounts.read, "nothing", flood=50_000),
}
