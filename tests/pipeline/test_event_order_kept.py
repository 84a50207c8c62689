"""Events that wait, in a store that keeps few rows hot: through checkpoints, restarts and replays nothing changes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.parts import Parts
from detectors.rows import PartitionState
from pipeline.cold_rows import ColdRows
from pipeline.row_format import RowFormat
from pipeline.slices import process_slice
from pipeline.store import RowStore
from tests.detectors.test_process import (
    as_columns,
    as_events,
    by_id,
    cut,
    cuts_of_a_stream,
    events_of_a_stream,
    flatten,
    last_of,
    property_test,
    rules_of_a_stream,
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
        for piece in as_columns(events, len(self._parts.number_fields)).pieces(_PIECE):
            more = self._piece(piece)
        while more:
            more = self._piece(as_columns([], len(self._parts.number_fields)))

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


@settings(property_test, max_examples=80)
@given(
    drawn=events_of_a_stream, cuts=cuts_of_a_stream, rules=rules_of_a_stream,
    between=st.lists(st.sampled_from(["nothing", "checkpoint", "restart", "replay"]), min_size=1, max_size=9),
)  # fmt: skip
def test_any_life_gives_the_naive_verdicts(
    drawn: list[Any], cuts: list[int], rules: dict[str, Any], between: list[str], any_parts: Parts
) -> None:
    """Slices, pieces, checkpoints, restarts and replays in any order: each verdict once, and the naive one."""
    parts = any_parts
    parts, events, partition = with_rules(parts, rules), as_events(drawn, parts), Partition()
    expected = by_id([v for e in [*events, last_of(parts)] for v in process_one(e, partition, parts)])
    with tempfile.TemporaryDirectory() as folder:
        life = _Life(Path(folder), parts)
        for i, part in enumerate([*cut(events, cuts), [last_of(parts)]]):
            if part:
                life.score(part)
            happens = between[i % len(between)]
            if happens == "checkpoint":
                life.checkpoint()
            elif happens != "nothing":
                life.restart(replayed=happens == "replay")
        assert life.close() == 1
    assert by_id(life.found) == expected
