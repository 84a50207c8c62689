"""Events that wait, in a store that keeps few rows hot: through checkpoints, restarts and replays nothing changes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.parts import Parts
from detectors.rows import PartitionState
from features.events import Events
from pipeline.cold_rows import ColdRows
from pipeline.row_format import RowFormat
from pipeline.slices import process_slice
from pipeline.store import RowStore
from tests.detectors.test_process import (
    as_columns,
    as_events,
    by_id,
    columns_of,
    cut,
    cuts_of_a_stream,
    events_of_a_stream,
    flatten,
    is_segmented,
    last_of,
    make_window_parts,
    property_test,
    rules_of_a_stream,
    run_slices,
    with_rules,
)  # fmt: skip
from tests.naive import Event, Partition, process_one

_CAPACITY, _PIECE = 4, 2


class _Life:
    """One partition through checkpoints and restarts."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self._folder, self._parts, self._state = folder, parts, PartitionState(0)
        self._changelog: dict[bytes, bytes | None] = {}
        self._lives = 0
        self.found: list[dict[str, Any]] = []
        self._open(replayed=False)

    def score(self, events: list[Event]) -> None:
        """One slice, as a worker does it: piece by piece, with checkpoints where there is no room."""
        for piece in self._columns(events).pieces(_PIECE):
            more = self._piece(piece)
        while more:
            more = self._piece(self._columns([]))

    def _columns(self, events: list[Event]) -> Events:
        return as_columns(events, columns_of(self._parts), segmented=is_segmented(self._parts))

    def _piece(self, piece: Any) -> bool:
        done = process_slice(self._store, piece, self._state, self._parts, limit=_PIECE)
        if done is None:
            self.checkpoint()
            done = process_slice(self._store, piece, self._state, self._parts, limit=_PIECE)
        assert done is not None
        self._state = done.state
        self.found += flatten(done)
        return done.more_due

    def checkpoint(self) -> None:
        snapshot = self._store.snapshot()
        self._changelog.update(snapshot.rows)
        self._cold.write(snapshot.rows, 0, 0, snapshot.timers, snapshot.void_timers)
        self._store.settle()

    def restart(self, *, replayed: bool) -> None:
        """From RocksDB as it is, or from the changelog into a new one."""
        self.checkpoint()
        sessions = self._store.open_sessions
        self._cold.close()
        self._open(replayed=replayed)
        self._store.open_sessions = sessions

    def _open(self, *, replayed: bool) -> None:
        self._lives += replayed
        self._cold = ColdRows(self._folder / str(self._lives))
        if replayed:
            form, lead_ms = RowFormat(self._parts.shape), self._parts.rules.lead_ms
            self._cold.replay(self._changelog, 0, 0, lambda row: form.first_ms(row) + lead_ms)
        self._store = RowStore(self._parts.shape, self._parts.rules, _CAPACITY, self._cold)

    def close(self) -> int:
        self._cold.close()
        return self._store.open_sessions


what_happens = st.lists(st.sampled_from(["nothing", "checkpoint", "restart", "replay"]), min_size=1, max_size=9)


def live(slices: list[list[Event]], between: list[str], parts: Parts) -> list[dict[str, Any]]:
    """Verdicts of a partition that lives through what happens between its slices; the last session stays open."""
    with tempfile.TemporaryDirectory() as folder:
        life = _Life(Path(folder), parts)
        for i, part in enumerate(slices):
            if part:
                life.score(part)
            happens = between[i % len(between)]
            if happens == "checkpoint":
                life.checkpoint()
            elif happens != "nothing":
                life.restart(replayed=happens == "replay")
        assert life.close() == 1
    return life.found


@settings(property_test, max_examples=80)
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream, rules=rules_of_a_stream, between=what_happens)
def test_any_life_gives_the_naive_verdicts(
    drawn: list[Any], cuts: list[int], rules: dict[str, Any], between: list[str], any_parts: Parts
) -> None:
    """Slices, pieces, checkpoints, restarts and replays in any order: each verdict once, and the naive one."""
    parts = with_rules(any_parts, rules)
    events, last, partition = as_events(drawn, parts), last_of(parts), Partition()
    expected = by_id([v for e in [*events, last] for v in process_one(e, partition, parts)])
    assert by_id(live([*cut(events, cuts), [last]], between, parts)) == expected


@settings(property_test, max_examples=80)
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream, rules=rules_of_a_stream, between=what_happens)
def test_windows_survive_any_life(drawn: list[Any], cuts: list[int], rules: dict[str, Any], between: list[str]) -> None:
    """The same of samples in windows: what one slice gives."""
    parts = make_window_parts(rules, 4_000, 2)
    samples = [replace(s, numbers=(*s.numbers, 0.0, 0.0)[:2]) for s in [*as_events(drawn, parts), last_of(parts)]]
    whole, _ = run_slices([samples[:-1], samples[-1:]], parts)
    assert by_id(live([*cut(samples[:-1], cuts), samples[-1:]], between, parts)) == by_id(whole)


def test_a_duplicate_of_a_later_time_moves_nothing(parts: Parts) -> None:
    """It is dropped before anybody looks at its time: the timers it seemed to make due still come."""
    parts = replace(parts, remembered=8)
    start = [Event(0, "a", 0, ("view", "ok"), False, "1"), Event(1, "b", 1_000, ("view", "ok"), False, "2")]
    again = Event(2, "b", 60_000, ("view", "ok"), False, "2")
    later = [Event(3, "c", 90_000, ("view", "ok"), False, "3"), Event(4, "c", 300_000, ("view", "ok"), False, "4")]
    found = live([start, [again], later], ["checkpoint"], parts)
    assert [v["session"] for v in found if v["kind"] == "session"].count("a") == 1
    assert [v["session"] for v in found if v["kind"] == "session"].count("b") == 1


def test_an_older_event_that_waits_loses_no_timer(parts: Parts) -> None:
    """Where so much waits that events go on early, one before the session's first may wait: the session still ends."""
    parts = with_rules(parts, {"gap_ms": 7_200_000, "reorder_ms": 3_600_000, "reorder_events": 3})
    tokens, times = ("view", "ok"), [100_000 + 1_000 * i for i in range(6)]
    early = [Event(i, "a", time_ms, tokens, False) for i, time_ms in enumerate(times)]
    older = Event(6, "a", 50_000, tokens, False)
    rest = [Event(7 + i, "b", 20_000_000 + 10_000_000 * i, tokens, False) for i in range(3)]
    found = live([[*early, older], *([event] for event in rest)], ["checkpoint"], parts)
    assert [v["session"] for v in found if v["kind"] == "session"].count("a") == 1
