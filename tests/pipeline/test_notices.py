"""Notices: what the incident stage reads of anomalies is the same however the stream is cut."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from detectors.incident_state import Mute, Notice
from detectors.parts import Parts
from detectors.rows import MOST_SEGMENTS, PartitionState
from pipeline.notices import FEED, By, Unmute, decode, encode, key_of
from pipeline.outputs import Emitter, Place
from pipeline.slices import process_slice
from pipeline.store import RowStore
from tests.kafka import shop_events
from tests.pipeline.test_outputs import DECODER, NOW_MS, PLACE, Given


def notices_of(
    parts: Parts, size: int, by: By | None = "app", place: Place = PLACE, segments: int = 0
) -> tuple[list[Notice], PartitionState]:
    """Those of a stream of shopping sessions in slices of so many, and the partition after it."""
    emitter, store = Emitter(parts, place, 0.0, incidents_by=by), RowStore(parts.shape, parts.rules)
    state = PartitionState(0)
    records = [Given(json.dumps(e).encode(), i) for i, e in enumerate(shop_events(3, 200))]
    found = []
    for low in range(0, len(records), size):
        events = DECODER.decode(records[low : low + size], check_key=False)
        if segments:
            events = replace(events, segments=[f"g-{i % segments}" for i in events.offsets.tolist()])
        done = process_slice(store, events, state, parts)
        assert done is not None
        state = done.state
        out = [o for o in emitter.outputs(done, NOW_MS) if o.topic == FEED]
        for output in out:
            notice = decode(output.value)
            assert isinstance(notice, Notice)
            assert output.key == key_of(notice)
            found.append(notice)
    return found, state


@pytest.mark.parametrize("segments", [0, 3, 2 * MOST_SEGMENTS])
def test_any_slicing_tells_the_same(parts: Parts, segments: int) -> None:
    """Records' notices are the same in any slices, sessions' have the same ids, and the counts come to the same."""
    whole, after = notices_of(parts, 10_000, segments=segments)
    assert {n.type for n in whole} == {"record", "session"}
    for size in (1, 7, 500):
        cut, end = notices_of(parts, size, segments=segments)
        assert [n for n in cut if n.type == "record"] == [n for n in whole if n.type == "record"]
        assert {n.id for n in cut} == {n.id for n in whole}
        assert end.decided == after.decided
    assert len(after.decided.records) <= MOST_SEGMENTS + 2
    assert sum(after.decided.records.values()) <= after.records


def test_a_topic_made_anew_has_another_name(parts: Parts) -> None:
    """Its decisions are counted from 0, which no count of the old one may hide."""
    assert {n.topic for n in notices_of(parts, 500, place=Place("t", 0, 2))[0]} == {"t~2"}


def test_a_scope_is_the_app_or_a_segment(parts: Parts) -> None:
    """By it the feed is keyed; without incidents nothing is told."""
    assert {n.scope for n in notices_of(parts, 500, segments=3)[0]} == {""}
    by_segment, _ = notices_of(parts, 500, by="segment", segments=3)
    assert {n.scope for n in by_segment if n.type == "record"} == {"g-0", "g-1", "g-2"}
    assert all(n.scope == (n.segment or "") for n in by_segment)
    assert notices_of(parts, 500, by=None)[0] == []


def test_what_is_written_is_read() -> None:
    """Mutes and their removal come back as what they were."""
    for message in (Mute("m", 2, "why", "me", 1, stream="s"), Unmute("m")):
        assert decode(encode(message)) == message
