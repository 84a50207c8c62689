"""What was learned online as rows: small, written only when changed, checked when read, gone when a bundle serves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from detectors.online import ONLINE, OnlineRules, OnlineState
from detectors.parts import Parts
from detectors.rows import PartitionState
from features.tokens import TokenEncoder
from pipeline.errors import DamagedStateError
from pipeline.online_rows import PREFIX, OnlineRows, decode_online, encode_online
from pipeline.slices import process_slice
from pipeline.store import RowStore
from tests.conftest import make_number_parts
from tests.detectors.test_process import as_columns
from tests.naive import Event

LARGEST = 256 << 10


def learn(count: int, start: PartitionState | None = None, words: int = 7) -> PartitionState:
    """The partition after so many records with two tokens and two numbers."""
    parts: Parts = dataclasses.replace(make_number_parts("wide"), learned=None, encoder=TokenEncoder(2, None))
    state = PartitionState(0) if start is None else start
    rng = np.random.default_rng(count)
    events = [
        Event(state.next_offset + i, f"s{i % 5}", i * 10, (f"w{rng.integers(words)}", "ok"), False, None, (x, 2.0 * i))
        for i, x in enumerate(rng.normal(0, 1, count))
    ]
    done = process_slice(RowStore(parts.shape, parts.rules), as_columns(events, 2), state, parts)
    assert done is not None
    return done.state


def test_what_is_written_is_what_is_read() -> None:
    """Every number comes back, and what only follows from the others is made anew."""
    online = learn(700).online
    assert online is not None
    found = decode_online(encode_online(online, ONLINE), ONLINE, 2)
    assert found is not None
    for column in dataclasses.fields(OnlineState):
        np.testing.assert_array_equal(getattr(found, column.name), getattr(online, column.name))


def test_rows_are_small_and_only_those_that_changed_are_written() -> None:
    """Nothing is written twice; with a large table most rows stay; and where nothing was learned nothing is written."""
    state = learn(20_000, words=5_000)
    online, rows = state.online, OnlineRows({})
    first = rows.changes(online, ONLINE)
    assert {len(value or b"") < LARGEST for value in first.values()} == {True}
    assert all(key.startswith(PREFIX) for key in first)
    rows.settle(online, first)
    assert rows.changes(online, ONLINE) == {}
    assert online is not None
    assert rows.changes(online.copy(), ONLINE) == {}
    again = rows.changes(learn(3, state, words=5).online, ONLINE)
    assert 0 < len(again) < len(first) / 2
    assert sum(len(value or b"") for value in again.values()) < sum(len(value or b"") for value in first.values())


def test_a_bundle_leaves_tombstones() -> None:
    """Once nothing is learned online any more every row is deleted, once."""
    online, rows = learn(300).online, OnlineRows({})
    first = rows.changes(online, ONLINE)
    rows.settle(online, first)
    gone = rows.changes(None, ONLINE)
    assert gone == dict.fromkeys(first)
    rows.settle(None, gone)
    assert rows.changes(None, ONLINE) == {}


def test_a_worker_without_them_writes_none() -> None:
    """Rows of before there were any: nothing is read, nothing is written until something is learned."""
    assert decode_online({}, ONLINE, 2) is None
    assert OnlineRows({}).changes(None, ONLINE) == {}


def test_rows_left_by_an_earlier_opening_are_deleted() -> None:
    """A bundle began to serve while nobody held the partition: the first checkpoint deletes what was learned."""
    online = learn(300).online
    assert online is not None
    saved = encode_online(online, ONLINE)
    assert OnlineRows(saved).changes(None, ONLINE) == dict.fromkeys(saved)


def test_other_rules_or_other_numbers_begin_anew() -> None:
    """What another release or another shape of records has written is not mistaken for one's own."""
    online = learn(300).online
    assert online is not None
    saved = encode_online(online, ONLINE)
    assert decode_online(saved, OnlineRules(counts=512), 2) is None
    assert decode_online(saved, ONLINE, 0) is None
    newer = {key: value[:2] + bytes([9]) + value[3:] for key, value in saved.items()}
    assert decode_online(newer, ONLINE, 2) is None


@pytest.mark.parametrize("harm", ["flip", "drop", "cut"])
def test_damage_is_found_in_every_row(harm: str) -> None:
    """A flipped bit, a missing row or a row cut short is damage, which the changelog mends; never another state."""
    online = learn(300).online
    assert online is not None
    saved = encode_online(online, ONLINE)
    for key in saved:
        harmed = dict(saved)
        if harm == "flip":
            value = bytearray(saved[key])
            value[len(value) // 2] ^= 1
            harmed[key] = bytes(value)
        elif harm == "cut":
            harmed[key] = saved[key][:-9]
        else:
            del harmed[key]
        with pytest.raises(DamagedStateError):
            decode_online(harmed, ONLINE, 2)
