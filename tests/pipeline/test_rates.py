"""Rate anomalies as messages, notices, lines and sentences; what a training leaves for them; and the idle clock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detectors.incidents import IncidentRules
from detectors.parts import Parts
from detectors.rate_fit import learn_rates
from detectors.rate_watch import IDLE_BUCKETS, RateWatch
from detectors.rows import PartitionState
from features.decode import Decoder
from features.events import Events
from pipeline.anomaly_ids import AnomalyId
from pipeline.errors import UsageError
from pipeline.incident_replay import notices, replay
from pipeline.notices import FEED, decode
from pipeline.outputs import Emitter, Output, Place
from pipeline.score import Line, score_file
from pipeline.sentences import sentence_of
from pipeline.settings import load_settings
from pipeline.slices import Processed, process_slice
from pipeline.store import RowStore
from pipeline.verdict_columns import gather
from tests.conftest import CONTEXT, HIDDEN
from tests.pipeline.test_outputs import NOW_MS, validate

PLACE = Place("shop.orders", 3)
START_MS, SECOND_MS, MINUTE_MS = 1_700_000_040_000, 1_000, 60_000
DECODER = Decoder("session", "ts", ["action", "status"], {}, segment="service")
SILENT_MS = START_MS + 20 * MINUTE_MS


def lines(times_ms: Any, service: str = "a/b") -> list[Line]:
    return [
        Line(i, PLACE, i, 0, b"s", json.dumps(record(int(at), i, service)).encode()) for i, at in enumerate(times_ms)
    ]


def record(at_ms: int, i: int, service: str) -> dict[str, Any]:
    return {"session": f"s{i % 40}", "action": "add", "status": "ok", "ts": at_ms, "service": service}


def read(given: list[Line]) -> Events:
    return DECODER.decode(given, check_key=False)


@pytest.fixture
def watching(parts: Parts) -> Parts:
    """Training had a record of service a/b every two seconds."""
    usual = learn_rates([read(lines(START_MS - 7_200_000 + np.arange(0, 7_200_000, 2 * SECOND_MS)))], 0, 0.001)
    assert usual is not None
    assert parts.learned is not None
    learned = replace(parts.learned, rates=usual)
    return replace(parts, rate=0.001, learned=learned, rates=RateWatch(usual, 0.001))


def silence() -> list[Line]:
    """Twenty minutes as in training, a quarter of an hour of nothing, and one record."""
    return lines([*np.arange(START_MS, SILENT_MS, 2 * SECOND_MS), SILENT_MS + 15 * MINUTE_MS])


def processed(parts: Parts, given: list[Line], slice_size: int) -> Iterator[tuple[Processed, list[Line]]]:
    store, state = RowStore(parts.shape, parts.rules), PartitionState(0)
    for low in range(0, len(given), slice_size):
        chunk = given[low : low + slice_size]
        done = process_slice(store, read(chunk), state, parts)
        assert done is not None
        state = done.state
        yield done, chunk


def outputs_of(parts: Parts, given: list[Line], slice_size: int) -> list[Output]:
    emitter = Emitter(parts, PLACE, 0.0, incidents_by="app")
    return [o for done, chunk in processed(parts, given, slice_size) for o in emitter.outputs(done, NOW_MS, chunk)]


def of_rates(outputs: list[Output], topic: str) -> list[Output]:
    return [o for o in outputs if o.topic == topic and b"/rate/a%2Fb" in o.value]


def test_silence_is_told_as_the_schema_says(watching: Parts) -> None:
    """Each message validates; the id names the bucket and the segment, the source the record that showed it."""
    told = of_rates(outputs_of(watching, silence(), 100), "anomalies")
    messages = [validate(output) for output in told]
    assert len(messages) >= 12
    assert {type(m).__name__ for m in messages} == {"RateAnomaly"}
    first, width = messages[0], MINUTE_MS
    assert first.id == f"orders/shop.orders/3/{first.until_ms}/rate/a%2Fb"
    assert (first.from_ms, first.until_ms - first.from_ms) == (SILENT_MS, width)
    assert (first.direction, first.count, first.segment, first.severity) == ("too_few", 0, "a/b", "critical")
    assert first.source.offset == len(silence()) - 1
    assert first.expected.low > 0
    headers = dict(told[0].headers)
    assert told[0].key == b"a/b"
    assert headers["ce_id"].decode() == first.id
    assert sentence_of("anomalies", json.loads(told[0].value)).endswith(
        f"orders  a/b  too few: no records in 60 s, expected {first.expected.low} to {first.expected.high}"
    )


@pytest.mark.parametrize("slice_size", [1, 7, 10_000])
def test_slices_do_not_change_messages(slice_size: int, watching: Parts) -> None:
    """The same ids with the same content, however the stream is cut."""
    found, expected = (of_rates(outputs_of(watching, silence(), size), "anomalies") for size in (slice_size, 600))
    assert [o.value for o in found] == [o.value for o in expected]


def test_incidents_take_rates(watching: Parts) -> None:
    """A silence that goes on opens one incident, by a worker's notices and by the lines of `offbeat score` alike."""
    feed = [decode(o.value) for o in of_rates(outputs_of(watching, silence(), 100), FEED)]
    emitter = Emitter(watching, PLACE, 0.0)
    scored = [emitter.rate_anomaly(a) for done, _ in processed(watching, silence(), 100) for a in done.rated.alarms]
    of_lines = [notice for _, notice in notices(scored, 0.001)]
    assert [(n.id, n.decisions, n.since_ms, n.type) for n in feed] == [
        (n.id, n.decisions, n.since_ms, n.type) for n in of_lines
    ]
    changes = replay([notices(scored, 0.001)], IncidentRules())
    assert [c.change for c in changes if c.change != "updated"] == ["opened", "closed"]
    assert changes[-1].segments == ["a/b"]
    assert changes[-1].contributors[0].field == "@rate"


def test_backtest_passes_rates_over(watching: Parts) -> None:
    """They are about no record and no session, so labels of these say nothing of them."""
    emitter = Emitter(watching, PLACE, 0.0)
    done = [done for done, _ in processed(watching, silence(), 10_000)]
    records, sessions = gather([emitter.rate_anomaly(a) for d in done for a in d.rated.alarms])
    assert len(records.line) == len(sessions.line) == 0


def test_without_asking_nothing_is_said(watching: Parts) -> None:
    """A stream with `rate: false` remembers and tells nothing of it, whatever its bundle knows."""
    off = replace(watching, rates=None)
    assert of_rates(outputs_of(off, silence(), 100), "anomalies") == []
    assert all("rate" not in done.state.kept for done, _ in processed(off, silence(), 100))


@pytest.mark.parametrize("text", ["orders/shop.orders/3/1700000040000/rate", "orders/shop.orders~1/0/7/rate/a%2Fb"])
def test_no_record_to_replay_or_label(text: str) -> None:
    """Who asks for it is told what the id names, and what to do instead."""
    with pytest.raises(UsageError, match=r"names a count of many records.*offbeat mute"):
        AnomalyId.parse(text)


def test_the_idle_clock_shows_three_empty_buckets(watching: Parts) -> None:
    """Moved as far as it goes, the watermark shows that many, by the last record's offset; a night moves it no more."""
    given, store = silence()[:-1], RowStore(watching.shape, watching.rules)
    done = process_slice(store, read(given), PartitionState(0), watching)
    assert done is not None
    assert done.rated.alarms == ()

    width, watch = MINUTE_MS, watching.rates
    assert watch is not None
    moved = [watch.idle_ms(quiet_ms) for quiet_ms in (59_000, 61_000, 185_000, 100_000_000)]
    assert moved == [0, width, 3 * width, IDLE_BUCKETS * width]
    state = replace(done.state, watermark_ms=done.state.watermark_ms + moved[-1])
    after = process_slice(store, read([]), state, watching)
    assert after is not None
    assert [a.count for a in after.rated.alarms] == [0, 0, 0]
    assert {a.offset for a in after.rated.alarms} == {len(given) - 1}
    again = process_slice(store, read([]), after.state, watching)
    assert again is not None
    assert again.rated.judged == 0


def test_score_writes_lines_of_rates(watching: Parts, tmp_path: Path) -> None:
    """With `rate: true` a line of its own, after the record that showed it; without the setting none."""
    source, config = tmp_path / "in.jsonl", tmp_path / "offbeat.yaml"
    source.write_bytes(b"".join((line.value or b"") + b"\n" for line in silence()))
    stream = {
        "topic": "shop.orders", "session": {"by": "session", "gap": "5s"}, "time": "ts", "segment": "service",
        "tokens": ["action", "status"], "model": {"hidden": HIDDEN, "context": CONTEXT},
    }  # fmt: skip
    counts = []
    for rate in (True, False):
        config.write_text(json.dumps({"streams": {"orders": stream | {"detectors": {"rate": rate}}}}))
        target = tmp_path / f"out-{rate}.jsonl"
        counts.append(score_file(load_settings(config), "orders", watching.learned, source, target))
    assert counts[0].pop("rate_anomalies") >= 12
    assert counts[0] == counts[1]
    verdicts = [json.loads(line) for line in (tmp_path / "out-True.jsonl").read_text().splitlines()]
    rates = [v for v in verdicts if v["type"] == "rate" and v["from_ms"] >= SILENT_MS]
    assert {v["line"] for v in rates} == {len(silence())}
    assert all(v["anomaly"] and v["count"] == 0 for v in rates)
    assert [v for v in verdicts if v["type"] != "rate"] == [
        json.loads(line) for line in (tmp_path / "out-False.jsonl").read_text().splitlines()
    ]
