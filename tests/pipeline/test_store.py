"""The row store against a plain dictionary: nothing is lost, room comes back, the ended stay ended."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from detectors.rows import RowShape, SessionRows
from features.sessions import SessionRules
from pipeline.cold_rows import ColdRows, session_key
from pipeline.errors import DamagedStateError
from pipeline.store import RowStore, Snapshot

SHAPE = RowShape(hidden=2, context=2, fields=1)
GAP_MS = 10
RULES = SessionRules(GAP_MS, 1_000)
CAPACITY = 4
names = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "é", ""])


Row = tuple[int, int, int]  # events, first and last time


def make_rows(rows: list[Row]) -> SessionRows:
    made = SessionRows.empty(len(rows), SHAPE)
    made.events[:], made.first_ms[:], made.last_ms[:] = np.array(rows, np.int64).reshape(-1, 3).T
    made.hidden[:] = made.events[:, None]
    return made


def as_rows(rows: SessionRows) -> list[Row]:
    return list(zip(rows.events.tolist(), rows.first_ms.tolist(), rows.last_ms.tolist(), strict=True))


NONE: Row = (0, 0, 0)


class StoreMachine(RuleBasedStateMachine):
    """Random work on a tiny store over a real RocksDB, with checkpoints that a crash may cut anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.model: dict[str, Row] = {}  # open sessions
        self.watermark_ms = 0
        self.saved: tuple[dict[str, Row], int] = ({}, 0)  # model and watermark as of the last snapshot written
        self.at_snapshot = self.saved
        self.snapshot: Snapshot | None = None
        self.written = False
        self.position = 0

    @initialize()
    def open(self) -> None:
        """Open, or open again."""
        self.cold = ColdRows(Path(self.folder.name))
        self.store = RowStore(SHAPE, RULES, CAPACITY, self.cold, len(self.model))

    @rule(chosen=st.lists(names, min_size=1, max_size=CAPACITY, unique=True), data=st.data())
    def work(self, chosen: list[str], data: st.DataObject) -> None:
        """Sessions open, go on, end, or end and open again at once; a full store must have room after a checkpoint."""
        self.make_room(chosen)
        hot, self.store.lookups = sum(name in self.store._slots for name in chosen), Counter()
        taken = self.store.take(chosen)
        known = sum(name in self.model for name in chosen)
        assert self.store.lookups == Counter(hot=hot, cold=known - hot, new=len(chosen) - known)
        assert as_rows(taken) == [self.model.get(name, NONE) for name in chosen]
        assert taken.hidden[:, 0].tolist() == taken.events.tolist()
        after = [self.advanced(row, data) for row in as_rows(taken)]
        self.put(chosen, after)

    def advanced(self, row: Row, data: st.DataObject) -> Row:
        """A row after a slice."""
        events, first, last = row
        now = data.draw(st.integers(self.watermark_ms - GAP_MS, self.watermark_ms)) + GAP_MS
        how = data.draw(st.sampled_from(["on", "on", "end", "anew"]))
        if how == "end":
            return NONE
        return (1, now, now) if events == 0 or how == "anew" else (events + 1, first, max(last, now))

    def put(self, chosen: list[str], rows: list[Row]) -> None:
        """Into the store and the model."""
        self.store.put(chosen, make_rows(rows))
        for name, row in zip(chosen, rows, strict=True):
            self.model.pop(name, None)
            if row[0]:
                self.model[name] = row

    def make_room(self, chosen: list[str]) -> None:
        """By a checkpoint where it must be."""
        if self.store.make_room(chosen):
            return
        assert self.store.changed or self.snapshot is not None
        self.finish_checkpoint()
        if not self.store.make_room(chosen):
            self.begin_checkpoint()
            self.finish_checkpoint()
            assert self.store.make_room(chosen)

    @rule(by=st.integers(0, 15), limit=st.sampled_from([1, 2, CAPACITY]))
    def time_passes(self, by: int, limit: int) -> None:
        """All sessions that are due, and only open ones, end; found a few at a time, some put off before."""
        self.watermark_ms += by
        while True:
            timers = self.store.due(self.watermark_ms, limit)
            assert timers == sorted(timers)
            self.store.postpone(timers)
            assert self.store.due(self.watermark_ms, limit) == timers
            found = list(dict.fromkeys(name for _, name in timers))
            if not self.store.make_room(found):
                self.store.postpone(timers)
                self.make_room(found)
                continue
            after = [
                NONE if last + GAP_MS < self.watermark_ms else (events, first, last)
                for events, first, last in as_rows(self.store.take(found))
            ]
            self.put(found, after)
            row = dict(zip(found, after, strict=True))
            self.store.rearm(timers, make_rows([row[name] for _, name in timers]))
            if len(timers) < limit:
                break
        assert not [name for name, (_, _, last) in self.model.items() if last + GAP_MS < self.watermark_ms]

    @rule(chosen=st.lists(names, min_size=1, max_size=3, unique=True))
    def forget(self, chosen: list[str]) -> None:
        """Sessions go without a verdict."""
        self.store.forget(chosen)
        for name in chosen:
            self.model.pop(name, None)

    @precondition(lambda self: self.snapshot is None)
    @rule()
    def begin_checkpoint(self) -> None:
        """Step 0."""
        self.snapshot, self.written = self.store.snapshot(), False
        self.at_snapshot = (dict(self.model), self.watermark_ms)

    @precondition(lambda self: self.snapshot is not None and not self.written)
    @rule()
    def write(self) -> None:
        """Step 4."""
        assert self.snapshot is not None
        self.position += 1
        write(self.cold, self.snapshot, self.position)
        self.saved, self.written = self.at_snapshot, True

    @rule()
    def finish_checkpoint(self) -> None:
        """The rest of the checkpoint, if one is under way."""
        if self.snapshot is None:
            return
        if not self.written:
            self.write()
        self.store.settle()
        self.snapshot = None

    @rule()
    def crash(self) -> None:
        """What was not written is forgotten; what was is there again, and what had ended is not."""
        self.cold.close()
        (model, self.watermark_ms), self.snapshot = self.saved, None
        self.model = dict(model)
        self.open()
        assert self.cold.position == self.position
        assert {name: as_rows(self.store.format.decode([value]))[0] for name, value in self.cold.sessions()} == model

    @invariant()
    def counts_are_right(self) -> None:
        """Open sessions are counted, and the hot ones are bounded."""
        if hasattr(self, "store"):
            assert self.store.open_sessions == len(self.model)
            assert len(self.store) <= CAPACITY

    def teardown(self) -> None:
        """Unlock and remove."""
        if hasattr(self, "cold"):
            self.cold.close()
        self.folder.cleanup()


def test_the_store_is_a_dictionary_whatever_happens() -> None:
    """Random work, checkpoints and crashes over a tiny store and a real RocksDB equal a plain dictionary."""
    case: Any = StoreMachine.TestCase
    case.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
    case("runTest").runTest()


@pytest.fixture
def cold(tmp_path: Path) -> Any:
    made = ColdRows(tmp_path / "rows")
    yield made
    made.close()


def write(cold: ColdRows, snapshot: Snapshot, position: int) -> None:
    cold.write(snapshot.rows, position, 0, snapshot.timers, snapshot.void_timers)


def save(store: RowStore, cold: ColdRows) -> dict[bytes, bytes | None]:
    snapshot = store.snapshot()
    write(cold, snapshot, 1)
    store.settle()
    return snapshot.rows


def test_without_a_bound_everything_stays_hot() -> None:
    """For files: the store grows as it must, and needs no RocksDB."""
    store = RowStore(SHAPE, RULES)
    many = [f"s{i}" for i in range(5_000)]
    assert store.make_room(many)
    store.put(many, make_rows([(1, i, i) for i in range(len(many))]))
    assert len(store) == store.open_sessions == len(many)
    assert [name for _, name in store.due(1_000)] == many[:990]


def test_timers_in_memory_do_not_pile_up_in_files() -> None:
    """Sessions that end by their end event leave void timers; most of them are dropped long before they are due."""
    store = RowStore(SHAPE, RULES)
    for i in range(20_000):
        store.make_room([f"s{i}"])
        store.put([f"s{i}"], make_rows([(1, i, i)]))
        store.put([f"s{i}"], make_rows([NONE]))
        store.rearm([], make_rows([]))
    assert len(store._timers) < 2_000


def test_due_timers_come_oldest_first_and_limited(cold: ColdRows) -> None:
    """`due` gives the oldest, at most as many as asked, in memory or saved; those set anew come again."""
    store = RowStore(SHAPE, RULES, CAPACITY, cold)
    store.put(["a", "c"], make_rows([(1, 5, 5), (1, 4, 4)]))
    save(store, cold)
    store.put(["b"], make_rows([(1, 3, 3)]))
    assert store.due(15, 2) == [(13, "b"), (14, "c")]
    store.postpone([(13, "b"), (14, "c")])
    assert store.due(15) == [(13, "b"), (14, "c")]
    store.rearm([(13, "b"), (14, "c")], make_rows([(2, 3, 50), (2, 4, 20)]))
    assert store.due(1_000) == [(15, "a"), (30, "c"), (60, "b")]


def test_a_void_timer_does_not_multiply(cold: ColdRows) -> None:
    """A timer left by an earlier session of the name is not set anew for the present one."""
    store = RowStore(SHAPE, RULES, CAPACITY, cold)
    store.put(["a"], make_rows([(1, 0, 0)]))
    store.put(["a"], make_rows([(1, 5, 5)]))
    assert store.due(11) == [(10, "a")]
    store.rearm([(10, "a")], make_rows([(1, 5, 5)]))
    assert store.due(1_000) == [(15, "a")]


def test_an_ended_session_is_deleted_once(cold: ColdRows) -> None:
    """Only a session with a saved row leaves a deletion behind, and a new one of its name replaces it."""
    store = RowStore(SHAPE, RULES, CAPACITY, cold)
    store.put(["a", "b"], make_rows([(1, 0, 0), (1, 0, 0)]))
    store.put(["b"], make_rows([NONE]))
    assert set(save(store, cold)) == {session_key("a")}
    store.put(["a"], make_rows([NONE]))
    assert store.take(["a"]).events.tolist() == [0]
    assert save(store, cold) == {session_key("a"): None}
    assert save(store, cold) == {}
    assert list(cold.sessions()) == []


def test_a_name_that_comes_back_while_its_end_is_being_saved(cold: ColdRows) -> None:
    """A session that begins anew during the checkpoint of its predecessor's end is saved, and can end again."""
    store = RowStore(SHAPE, RULES, CAPACITY, cold)
    store.put(["a"], make_rows([(1, 0, 0)]))
    save(store, cold)
    store.put(["a"], make_rows([NONE]))
    under_way = store.snapshot()
    assert store.take(["a"]).events.tolist() == [0]  # the saved row is still there, and void
    store.put(["a"], make_rows([(7, 1, 1)]))
    write(cold, under_way, 2)
    store.settle()
    assert store.take(["a"]).events.tolist() == [7]
    assert [name for name, value in cold.sessions()] == []
    save(store, cold)
    assert [name for name, value in cold.sessions()] == ["a"]


def test_a_damaged_saved_row_is_refused(cold: ColdRows) -> None:
    """A row that was damaged on disk stops the partition instead of scoring on."""
    store = RowStore(SHAPE, RULES, CAPACITY, cold)
    store.put(["a"], make_rows([(1, 0, 0)]))
    changes = save(store, cold)
    value = bytearray(changes[session_key("a")] or b"")
    value[20] ^= 1
    cold.write({session_key("a"): bytes(value)}, 2, None)
    fresh = RowStore(SHAPE, RULES, CAPACITY, cold)
    with pytest.raises(DamagedStateError, match="a"):
        fresh.take(["a"])


def test_what_is_erased_is_on_no_disk(cold: ColdRows) -> None:
    """After `erase` no file of the database holds the name or the row of a deleted session, nor its timer's key."""
    store = RowStore(SHAPE, RULES, CAPACITY, cold)
    store.put(["keep-me", "erase-me"], make_rows([(1, 0, 0), (1, 0, 0)]))
    save(store, cold)
    cold._db.flush()
    store.forget(["erase-me"])
    save(store, cold)
    assert on_disk(cold, b"erase-me")  # else this test could not fail
    cold.erase(["erase-me"])
    assert not on_disk(cold, b"erase-me")
    assert on_disk(cold, b"keep-me")
    assert [name for name, _ in cold.sessions()] == ["keep-me"]
    assert store.due(1_000) == [(10, "keep-me")]


def on_disk(cold: ColdRows, text: bytes) -> bool:
    files = [path for path in cold.path.iterdir() if path.is_file() and not path.name.startswith("MANIFEST")]
    return any(text in path.read_bytes() for path in files)
