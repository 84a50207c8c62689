"""A microservice system's logs, spans and metrics as three topics at once, through one worker as from files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from benchmarks import nezha
from tests.kafka import Stack, WorkerProcess, by_id
from tests.pipeline.test_worker import CLOCK_KEYS, decisions_of, explained, scored_by_file

# From within the recording of the second fault; some traces were under way when it begins.
FROM_S, UNTIL_S = 1_675_080_040, 1_675_080_100
LATER = {"time_ns": 3_600 * 10**9, "StartTimeUnixNano": 3_600 * 10**9, "timestamp": 3_600}
Record = tuple[str, bytes, bytes]  # topic's stream, key, value


def as_record(arrival: nezha.Arrival) -> Record:
    return arrival.stream, arrival.session.encode(), json.dumps(arrival.row).encode()


def slice_of(stream: str) -> Iterator[nezha.Arrival]:
    """Its records of one minute, and all dirt of the day."""
    return (a for a in nezha.arrivals(stream, until_s=UNTIL_S) if a.dirt or a.at_ns >= FROM_S * 10**9)


def train(stack: Stack) -> None:
    """On what is normal, from a file, in the order of arrival."""
    path = stack.folder / f"{stack.stream}-history.jsonl"
    path.write_text("".join(json.dumps(a.row) + "\n" for a in nezha.history(stack.stream)))
    stack.run("train", "-s", stack.stream, "--input", str(path))


def end_all(stack: Stack, last: nezha.Arrival) -> None:
    """To each partition an event an hour later, so that all before it are released and over."""
    section = nezha.STREAMS[stack.stream]
    by, time = section["session"]["by"], section["time"]
    for partition in range(stack.partitions):
        row = last.row | {by: f"last-{partition}", time: str(int(last.row[time]) + LATER[time])}
        stack.produce_to(stack.source, partition, [(row[by].encode(), json.dumps(row).encode())])


@pytest.fixture
def streams(shared_data: Path, kafka_address: str, tmp_path: Path) -> dict[str, Stack]:
    """One config with three streams, each with its topic and trained; a stack for each."""
    whole = Stack(kafka_address, tmp_path, partitions=2)
    views = {name: replace(whole, stream=name) for name in nezha.STREAMS}
    common: dict[str, Any] = {
        "start": "earliest", "promise": {"false_alarm_rate": 0.01},
        "model": {"hidden": 16, "context": 8, "max_epochs": 4},
    }  # fmt: skip
    whole.configure(streams={name: common | nezha.STREAMS[name] | {"topic": v.source} for name, v in views.items()})
    for view in views.values():
        view.create_source()
    with ThreadPoolExecutor(len(views)) as pool:
        list(pool.map(train, views.values()))
    return views


def test_three_topics_at_once(streams: dict[str, Stack]) -> None:
    """The worker says of each topic what a file says, bit by bit; dead letters are the lines of garbage times."""
    arrived = {name: list(slice_of(name)) for name in streams}
    assert all(len(found) > 800 for found in arrived.values())
    some = streams["logs"]
    with WorkerProcess(some) as worker:
        worker.wait_ready(sum(stack.partitions for stack in streams.values()))
        replay(streams, sorted(chain(*arrived.values()), key=lambda a: a.at_ns))
        for name, stack in streams.items():
            end_all(stack, max((a for a in arrived[name] if not a.dirt), key=lambda a: a.at_ns))
        for stack in streams.values():
            stack.wait_until_scored()
        page = worker.metrics()
        assert worker.stop() == 0
    failures = re.findall(r"^offbeat_partition_failures_total\{.*\} (.*)$", page, re.MULTILINE)
    assert failures == ["0.0"] * len(streams)

    files = {name: scored_by_file(stack) for name, stack in streams.items()}
    expected = {i: v for found in files.values() for i, v in found.items() if not is_last(v)}
    scored = {i: v for i, v in expected.items() if v["status"] != "dead_letter"}
    decisions = {d["id"]: d for d in by_id(some.read_json("decisions")).values() if not is_last(d)}
    assert decisions == decisions_of(scored)
    anomalies = by_id(some.read_json("anomalies"), ignore=CLOCK_KEYS)
    assert explained({i: a for i, a in anomalies.items() if not is_last(a)}) == explained(scored)
    for name, found in arrived.items():
        records = [d for d in decisions.values() if (d["stream"], d["type"]) == (name, "record")]
        assert len(records) == sum(not a.dirt for a in found)
        assert 0 < sum(d["anomaly"] for d in records) < 0.5 * len(records)

    letters = some.read_json("dead-letters")
    garbage = sorted(json.dumps(a.row) for a in arrived["logs"] if a.dirt)
    assert len(garbage) == 79
    assert {letter["reason"] for letter in letters} == {"bad_time"}
    assert sorted(letter["payload"] for letter in letters) == garbage
    lying = {
        (m.topic(), m.partition(), m.offset()) for m in some.read(some.source) if b'"time_ns": "-' in m.value()
    }  # fmt: skip
    assert {(s["topic"], s["partition"], s["offset"]) for s in (letter["source"] for letter in letters)} == lying


def replay(streams: dict[str, Stack], arrivals: list[nezha.Arrival]) -> None:
    """Send all in the order of arrival, the topics mixed."""
    step = 500  # records between two waits for acknowledgements, so that no topic runs far ahead of the others
    for begin in range(0, len(arrivals), step):
        records = [as_record(a) for a in arrivals[begin : begin + step]]
        for name, stack in streams.items():
            stack.produce((key, value) for stream, key, value in records if stream == name)


def is_last(verdict: dict[str, Any]) -> bool:
    """Whether it is of an event that only ends the others."""
    return str(verdict["session"]).startswith("last-")
