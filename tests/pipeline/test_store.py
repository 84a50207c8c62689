"""The row store against a plain dictionary: nothing is lost, room comes back, the ended stay ended."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from detectors.rows import RowShape, SessionRows
from pipeline.cold_rows import ColdRows, session_key
from pipeline.errors import StateError
from pipeline.store import RowStore

SHAPE = RowShape(hidden=2, context=2, fields=1)
GAP_MS = 10
CAPACITY = 4
names = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "é", ""])


def make_rows(events: list[int], last_ms: list[int]) -> SessionRows:
    rows = SessionRows.empty(len(events), SHAPE)
    rows.events[:], rows.last_ms[:] = events, last_ms
    rows.hidden[:] = np.array(events, np.float32)[:, None]
    return rows


def as_pairs(rows: SessionRows) -> list[tuple[int, int]]:
    return list(zip(rows.events.tolist(), rows.last_ms.tolist(), strict=True))


class StoreMachine(RuleBasedStateMachine):
    """Random work on a tiny store over a real RocksDB, with checkpoints that a crash may cut anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.model: dict[str, tuple[int, int]] = {}  # open sessions: events and last time
        self.saved: dict[str, tuple[int, int]] = {}  # as of the last snapshot that was written
        self.snapshot: dict[bytes, bytes | None] | None = None
        self.at_snapshot: dict[str, tuple[int, int]] = {}
        self.written = False
        self.position = 0

    @initialize()
    def open(self) -> None:
        """Open, or open again: a timer for every saved session."""
        self.cold = ColdRows(Path(self.folder.name))
        self.store = RowStore(SHAPE, GAP_MS, CAPACITY, self.cold)
        assert self.store.arm_saved() == len(self.model)

    @rule(chosen=st.lists(names, min_size=1, max_size=CAPACITY, unique=True), data=st.data())
    def work(self, chosen: list[str], data: st.DataObject) -> None:
        """Take rows and put them back, advanced or ended; a full store must have room after a checkpoint."""
        if not self.store.make_room(chosen):
            assert self.store.changed or self.snapshot is not None
            self.finish_checkpoint()
            if not self.store.make_room(chosen):
                self.begin_checkpoint()
                self.finish_checkpoint()
                assert self.store.make_room(chosen)
        taken = self.store.take(chosen)
        assert as_pairs(taken) == [self.model.get(name, (0, 0)) for name in chosen]
        assert taken.hidden[:, 0].tolist() == taken.events.tolist()
        events = [0 if data.draw(st.integers(0, 3)) == 0 else n + 1 for n in taken.events.tolist()]
        last_ms = [data.draw(st.integers(0, 100)) for _ in chosen]
        self.store.put(chosen, make_rows(events, last_ms))
        for name, count, last in zip(chosen, events, last_ms, strict=True):
            if count:
                self.model[name] = (count, last)
            else:
                self.model.pop(name, None)

    @precondition(lambda self: self.snapshot is None)
    @rule()
    def begin_checkpoint(self) -> None:
        """Step 0."""
        self.snapshot, self.at_snapshot, self.written = self.store.snapshot(), dict(self.model), False

    @precondition(lambda self: self.snapshot is not None and not self.written)
    @rule()
    def write(self) -> None:
        """Step 4."""
        assert self.snapshot is not None
        self.position += 1
        self.cold.write(self.snapshot, self.position, now_ms=0)
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

    @rule(watermark_ms=st.integers(0, 120))
    def look_for_due(self, watermark_ms: int) -> None:
        """Every session whose gap has passed is found (others may be, whose timer was set before they went on)."""
        due = self.store.due(watermark_ms)
        assert len(set(due)) == len(due)
        assert set(due) <= set(self.model)
        late = {name for name, (_, last) in self.model.items() if last + GAP_MS < watermark_ms}
        assert late <= set(due) | self.unsure
        self.store.rearm(due, [self.model[name][1] for name in due])

    @property
    def unsure(self) -> set[str]:
        """Sessions whose last time went back after their timer was set; the product's never does."""
        return {name for name in self.model if self.store._armed[name] > self.model[name][1] + GAP_MS}

    @rule()
    def crash(self) -> None:
        """What was not written is forgotten; what was is there again, and what had ended is not."""
        self.cold.close()
        self.model, self.snapshot = dict(self.saved), None
        self.open()
        assert self.cold.position == self.position
        found = {name: as_pairs(self.store.format.decode([value]))[0] for name, value in self.cold.sessions()}
        assert found == self.saved

    @invariant()
    def the_open_are_known(self) -> None:
        """Every open session has a timer, and the hot ones are bounded."""
        if hasattr(self, "store"):
            assert set(self.store.open_names()) == set(self.model)
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
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
    case("runTest").runTest()


@pytest.fixture
def cold(tmp_path: Path) -> Any:
    made = ColdRows(tmp_path / "rows")
    yield made
    made.close()


def save(store: RowStore, cold: ColdRows) -> dict[bytes, bytes | None]:
    changes = store.snapshot()
    cold.write(changes, 1, now_ms=0)
    store.settle()
    return changes


def test_without_a_bound_everything_stays_hot() -> None:
    """For files: the store grows as it must, and needs no RocksDB."""
    store = RowStore(SHAPE, GAP_MS)
    many = [f"s{i}" for i in range(5_000)]
    assert store.make_room(many)
    store.put(many, make_rows([1] * len(many), list(range(len(many)))))
    assert len(store) == len(many)
    assert store.due(1_000) == many[:990]


def test_due_sessions_come_oldest_first_and_limited(cold: ColdRows) -> None:
    """`due` gives the oldest, at most as many as asked; postponed and rearmed ones come again, ended ones do not."""
    store = RowStore(SHAPE, GAP_MS, CAPACITY, cold)
    store.put(["a", "b", "c"], make_rows([1, 1, 1], [5, 3, 4]))
    assert store.due(15, 2) == ["b", "c"]
    store.postpone(["b", "c"])
    assert store.due(15) == ["b", "c"]
    store.rearm(["b", "c"], [50, 4])
    store.put(["c"], make_rows([0], [0]))
    assert store.due(1_000) == ["a", "b"]


def test_an_ended_session_is_deleted_once(cold: ColdRows) -> None:
    """Only a session with a saved row leaves a deletion behind, and a new one of its name replaces it."""
    store = RowStore(SHAPE, GAP_MS, CAPACITY, cold)
    store.put(["a", "b"], make_rows([1, 1], [0, 0]))
    store.put(["b"], make_rows([0], [0]))
    assert set(save(store, cold)) == {session_key("a")}
    store.put(["a"], make_rows([0], [0]))
    assert store.take(["a"]).events.tolist() == [0]
    assert save(store, cold) == {session_key("a"): None}
    assert save(store, cold) == {}
    assert list(cold.sessions()) == []


def test_a_name_that_comes_back_while_its_end_is_being_saved(cold: ColdRows) -> None:
    """A session that begins anew during the checkpoint of its predecessor's end is saved, and can end again."""
    store = RowStore(SHAPE, GAP_MS, CAPACITY, cold)
    store.put(["a"], make_rows([1], [0]))
    save(store, cold)
    store.put(["a"], make_rows([0], [0]))
    under_way = store.snapshot()
    assert store.take(["a"]).events.tolist() == [0]  # the saved row is still there, and void
    store.put(["a"], make_rows([7], [1]))
    cold.write(under_way, 2, now_ms=0)
    store.settle()
    assert store.take(["a"]).events.tolist() == [7]
    assert [name for name, value in cold.sessions()] == []
    save(store, cold)
    assert [name for name, value in cold.sessions()] == ["a"]


def test_a_damaged_saved_row_is_refused(cold: ColdRows) -> None:
    """A row that was damaged on disk stops the partition instead of scoring on."""
    store = RowStore(SHAPE, GAP_MS, CAPACITY, cold)
    store.put(["a"], make_rows([1], [0]))
    changes = save(store, cold)
    value = bytearray(changes[session_key("a")] or b"")
    value[20] ^= 1
    cold.write({session_key("a"): bytes(value)}, 2, now_ms=0)
    fresh = RowStore(SHAPE, GAP_MS, CAPACITY, cold)
    with pytest.raises(StateError, match="damaged"):
        fresh.take(["a"])
