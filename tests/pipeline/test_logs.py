"""Log streams: lines to templates, templates to verdicts, from a file and on a real broker."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.bundle import read_bundle, serving_digest
from pipeline.sentences import why_of
from tests.kafka import Stack, WorkerProcess, as_records, by_id
from tests.pipeline.test_worker import CLOCK_KEYS, decisions_of, explained, scored_by_file

STREAM = {
    "kind": "logs", "message": "message", "tokens": ["level"], "parameters": 2,
    "session": {"by": "session", "gap": "20s", "end_when": {"final": True}},
    "promise": {"false_alarm_rate": 0.02},
}  # fmt: skip
STRANGE = "Replica 7 lost its lease and 12 writes were dropped"


def service_logs(
    seed: int, sessions: int, *, strange: frozenset[int] = frozenset(), slow: frozenset[int] = frozenset()
) -> Iterator[dict[str, Any]]:
    """Lines of a service in time order, a trace each: a request, some queries with a hit or a miss each, an answer.

    In the traces `strange` a line is like no other; in those `slow` a query takes a hundred times too long.
    """
    rng = random.Random(seed)
    pending = [(1_700_000_000_000 + rng.randrange(sessions * 30), s, 0, rng.randint(2, 5)) for s in range(sessions)]
    heapq.heapify(pending)
    while pending:
        now, s, done, queries = heapq.heappop(pending)
        level, final = "INFO", False
        if done == 0:
            message = f"GET /shelves/{rng.randrange(10**6)} from 10.0.{rng.randrange(256)}.{rng.randrange(256)}"
        elif done <= 2 * queries:
            message = f"Query {rng.randrange(10**9):x} took {rng.random() * 9:.2f} ms" if done % 2 else "Cache miss"
        else:
            message, final = f"Answered 200 with {rng.randrange(90_000)} bytes", True
        if s in strange and done == 3:
            level, message = "INFO", STRANGE
        if s in slow and done == 3:
            message = f"Query {rng.randrange(10**9):x} took {300 + rng.random() * 600:.2f} ms"
        yield {"session": f"t-{s}", "level": level, "message": message, "ts": now, "final": final}
        if not final:
            heapq.heappush(pending, (now + rng.randint(1, 40), s, done + 1, queries))


def train(stack: Stack) -> None:
    """On a history of its own."""
    history = stack.folder / "history.jsonl"
    history.write_text("".join(json.dumps(line) + "\n" for line in service_logs(1, 1_500)))
    stack.run("train", "-s", "orders", "--input", str(history), "--promote")


@pytest.fixture
def logs(tmp_path: Path) -> Stack:
    """A trained stack without a broker."""
    stack = Stack("127.0.0.1:1", tmp_path, name="t")
    stack.configure(stream=STREAM)
    train(stack)
    return stack


def test_lines_are_read_by_their_templates(logs: Stack) -> None:
    """A bundle holds the templates; a line of none is the alarm, with its own words and the expected templates."""
    directory = logs.folder / "bundles" / "orders"
    bundle = read_bundle(directory / str(serving_digest(directory)))
    templates = json.loads(bundle.files["templates.json"])
    assert sorted(templates) == [
        "Answered <*> with <*> bytes", "Cache miss", "GET /shelves/<*> from <*>", "Query <*> took <*> ms",
    ]  # fmt: skip

    strange = frozenset(range(0, 300, 30))
    lines = list(service_logs(2, 300, strange=strange))
    (logs.folder / "live.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logs.run("score", "-s", "orders", "--input", "live.jsonl", "--output", "verdicts.jsonl")
    verdicts = [json.loads(line) for line in (logs.folder / "verdicts.jsonl").read_text().splitlines()]
    alarms = [v for v in verdicts if v["type"] == "record" and v["anomaly"]]
    said = [v for v in alarms if v["observed"]["message"] == STRANGE]
    assert {v["session"] for v in said} == {f"t-{s}" for s in strange}
    assert {e["token"] for e in said[0]["expected"]["message"]} <= {*templates, "<oov>", "<end>"}
    assert said[0]["context"][0]["message"] == "GET /shelves/<*> from <*>"
    assert len(alarms) < 0.1 * len(lines)


def test_a_strange_number_in_a_usual_line_is_found(logs: Stack) -> None:
    """A line whose template is usual is an anomaly for its number alone, and says which and what was expected."""
    directory = logs.folder / "bundles" / "orders"
    bundle = read_bundle(directory / str(serving_digest(directory)))
    places = json.loads(bundle.files["parameters.json"])
    assert places["Query <*> took <*> ms"] == [3]
    assert bundle.content["schema"]["numbers"] == ["message[0]", "message[1]"]

    slow = frozenset(range(0, 300, 30))
    lines = list(service_logs(2, 300, slow=slow))
    (logs.folder / "live.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logs.run("score", "-s", "orders", "--input", "live.jsonl", "--output", "verdicts.jsonl")
    verdicts = [json.loads(line) for line in (logs.folder / "verdicts.jsonl").read_text().splitlines()]
    alarms = [v for v in verdicts if v["type"] == "record" and v["anomaly"]]
    found = [v for v in alarms if (v["observed"]["message[0]"] or 0) > 100 and "took" in v["observed"]["message"]]
    assert {v["session"] for v in found} == {f"t-{s}" for s in slow}
    for verdict in found:
        took = float(verdict["observed"]["message"].split()[3])
        assert verdict["observed"]["message[0]"] == pytest.approx(took)
        assert max(verdict["contributions"], key=verdict["contributions"].get) == "message[0]"
        (interval,) = verdict["expected"]["message[0]"]
        assert 0 <= interval["low"] <= interval["median"] <= interval["high"] <= 10
        line = verdict["observed"]["message"]
        assert why_of(verdict).startswith(f"message[0]: in '{line}' came {took:.4g} (<0.01 %), expected ")
    assert len(alarms) < 0.1 * len(lines)


def test_worker_and_file_agree_on_logs(stack: Stack) -> None:
    """Decisions and anomalies of a log topic, numbers in its lines included, equal `offbeat score`'s bit by bit."""
    stack.configure(stream=STREAM)
    train(stack)
    stack.score(as_records(service_logs(3, 400, strange=frozenset({5, 50}), slow=frozenset({6, 60}))))
    decisions = by_id(stack.read_json("decisions"))
    anomalies = by_id(stack.read_json("anomalies"), ignore=CLOCK_KEYS)
    expected = scored_by_file(stack)
    assert decisions == decisions_of(expected)
    assert explained(anomalies) == explained(expected)
    assert sum(a["observed"].get("message") == STRANGE for a in anomalies.values()) == 2
    slow = [a for a in anomalies.values() if (a["observed"].get("message[0]") or 0) > 100]
    assert {"t-6", "t-60"} <= {a["session"] for a in slow if "took" in a["observed"]["message"]}


def test_without_a_bundle_lines_are_taken_in(stack: Stack) -> None:
    """Nothing is known yet: verdicts say `warming_up`, and a message that is no text is a dead letter."""
    stack.configure(stream=STREAM)
    (stack.folder / "bundles" / "orders" / "serving").unlink()
    lines = [*service_logs(4, 5), {"session": "t-0", "message": 7, "ts": 1_700_000_000_000}]
    with WorkerProcess(stack) as worker:
        stack.produce(as_records(lines))
        stack.wait_until_scored()
        assert worker.stop() == 0
    assert {d["status"] for d in stack.read_json("decisions")} == {"warming_up"}
    (letter,) = stack.read_json("dead-letters")
    assert letter["reason"] == "wrong_type"


TEXT = STREAM | {
    "format": "text", "pattern": r"(?P<at>\S+) (?P<level>[A-Z]+) \[(?P<trace>[^\]]+)\] (?P<message>.*)", "time": "at",
    "session": {"by": "trace", "gap": "1s"},
}  # fmt: skip


def as_text(line: dict[str, Any]) -> str:
    """The line as a program prints it."""
    moment = datetime.fromtimestamp(line["ts"] / 1_000, UTC).isoformat(timespec="milliseconds")
    return f"{moment} {line['level']} [{line['session']}] {line['message']}"


def test_raw_lines_are_scored(stack: Stack) -> None:
    """Plain text in files and on a topic: a pattern finds the fields, and worker and file agree bit by bit."""
    stack.configure(stream=TEXT)
    history = stack.folder / "history.log"
    history.write_text("".join(as_text(line) + "\n" for line in service_logs(1, 1_500)))
    stack.run("train", "-s", "orders", "--input", str(history), "--promote")
    live = stack.folder / "live.log"
    live.write_text("".join(as_text(line) + "\n" for line in service_logs(5, 300, strange=frozenset({7, 70}))))
    with WorkerProcess(stack) as worker:
        stack.run("produce", "-s", "orders", str(live))  # finds the session in the text, and makes it the key
        stack.produce([(b"t-1", b"no such line"), (b"t-1", b" ")])
        stack.wait_until_scored()
        assert worker.stop() == 0
    assert sorted(letter["reason"] for letter in stack.read_json("dead-letters")) == ["no_match", "not_text"]
    decisions = by_id(stack.read_json("decisions"))
    anomalies = by_id(stack.read_json("anomalies"), ignore=CLOCK_KEYS)
    expected = scored_by_file(stack, as_text=True)
    assert decisions == decisions_of({i: v for i, v in expected.items() if v["status"] != "dead_letter"})
    assert explained(anomalies) == explained(expected)
    assert sum(a["observed"].get("message") == STRANGE for a in anomalies.values()) == 2
