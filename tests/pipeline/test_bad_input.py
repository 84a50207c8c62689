"""Whatever a producer sends: each record is scored or set aside, and none stops the worker or fills its memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from tests.kafka import Stack, WorkerProcess, by_id
from tests.pipeline.test_worker import decisions_of

GOOD = {"session": "a", "action": "view", "status": "ok", "ts": 1_700_000_000_000, "size": 1.5, "id": "1"}


def with_(**fields: Any) -> bytes:
    """The good record with other fields."""
    return json.dumps(GOOD | fields).encode()


def raw(field: str, text: str) -> bytes:
    """The good record with a field written as it stands."""
    return json.dumps(GOOD | {field: "PLACE"}).replace('"PLACE"', text).encode()


# What it is, the record, and the reason of its dead letter; None: it is scored.
RECORDS: list[tuple[str, bytes, str | None]] = [
    ("invalid UTF-8", b'{"session": "a", "action": "\xff\xfe"}', "not_json"),
    ("no JSON", b"hello", "not_json"),
    ("an empty value", b"", "not_json"),
    ("an empty object", b"{}", "missing_session"),
    ("a list", b"[1, 2]", "wrong_type"),
    ("deep nesting in a field that is read", raw("action", "[" * 5_000 + "]" * 5_000), "wrong_type"),
    ("deep nesting in one that is not", raw("other", "[" * 500 + "]" * 500), None),
    ("a huge whole number as a token", raw("action", "9" * 300), None),
    ("a huge whole number as a number", raw("size", "9" * 400), None),
    ("a number of 5,000 digits", raw("size", "9" * 5_000), "wrong_type"),
    ("NaN", raw("size", "NaN"), "not_json"),
    ("an infinity", raw("size", "1e999"), None),
    ("minus the largest", with_(size=-1.7e308), None),
    ("a text as number", with_(size="12 kB"), "wrong_type"),
    ("the year 0", with_(ts="0000-01-01T00:00:00Z"), "bad_time"),
    ("the year 9999", with_(ts="9999-12-31T23:59:59Z"), None),  # too far ahead: Kafka's time
    ("a negative time", with_(ts=-5), "bad_time"),
    ("a far future", with_(ts=10**18), None),
    ("no time at all", raw("ts", "null"), None),
    ("a time that is none", with_(ts="yesterday"), "bad_time"),
    ("a truth value as time", with_(ts=True), "wrong_type"),
    ("a line of nearly 1 MB", with_(action="x" * 900_000), "wrong_type"),
    ("nearly 1 MB in a field that is not read", with_(other="x" * 900_000), None),
    ("an empty token", with_(action=""), None),
    ("a token with a NUL", with_(action="a\0b"), None),
    ("a reserved word", with_(action="<oov>"), None),
    ("a number as session", raw("session", "7"), "key_is_not_session"),
    ("a session of 2,000 characters", with_(session="s" * 2_000), "wrong_type"),
]  # fmt: skip


def test_every_kind_of_bad_record(stack: Stack) -> None:
    """Scored or set aside, by reason, and the same from the file; records after them are scored as ever."""
    late = {"reorder": "500ms", "allowed": "1h"}
    stack.configure(
        stream={"numbers": ["size"], "late": late, "duplicates": {"id": "id"}, "session": {"by": "session"}},
        models_dir=str(stack.folder / "none yet"),
    )
    records = [value.replace(b'"id": "1"', b'"id": "%d"' % i) for i, (_, value, _) in enumerate(RECORDS)]
    with WorkerProcess(stack) as worker:
        stack.produce_to(stack.source, 0, [*((b"a", value) for value in records), (b"a", None)])
        stack.produce_to(stack.source, 0, [(b"a", with_(id="last", ts=1_700_000_900_000))])
        stack.wait_until_scored()
        assert 'offbeat_partition_failures_total{stream="orders"} 0.0' in worker.metrics()
        assert worker.stop() == 0
    letters = {letter["source"]["offset"]: letter["reason"] for letter in stack.read_json("dead-letters")}
    wanted = {i: reason for i, (_, _, reason) in enumerate(RECORDS) if reason is not None}
    assert {RECORDS[i][0]: letters.get(i) for i in wanted} == {RECORDS[i][0]: reason for i, reason in wanted.items()}
    assert set(letters) == set(wanted)
    found = decisions_of(by_id(stack.read_json("decisions")))
    expected = {i: d for i, d in decisions_of(scored_by_file(stack)).items() if i in found}
    assert found == expected


def scored_by_file(stack: Stack) -> dict[str, dict[str, Any]]:
    """What `offbeat score` says of the records that a text file can hold."""
    with (stack.folder / "records.jsonl").open("w") as file:
        for m in stack.read(stack.source):
            if m.value() is not None and b"\xff" not in m.value():
                about = {"_key": "a", "_partition": m.partition(), "_offset": m.offset()}
                line = about | {"_timestamp_ms": m.timestamp()[1], "_value": m.value().decode()}
                file.write(json.dumps(line) + "\n")
    stack.run("score", "-s", "orders", "--input", str(stack.folder / "records.jsonl"), "--output", "verdicts.jsonl")
    lines = map(json.loads, (stack.folder / "verdicts.jsonl").read_text().splitlines())
    return {v["id"]: v for v in lines}


def test_a_flood_and_a_session_without_end(stack: Stack) -> None:
    """A hundred thousand tokens nobody knows, all in one session: memory stays, and limits end the session."""
    stack.configure(stream={"session": {"by": "session", "gap": "1h", "max_events": 1_000}})
    flood = ((b"a", with_(action=f"token {i}", ts=1_700_000_000_000 + i)) for i in range(100_000))
    with WorkerProcess(stack, forked=False) as worker:
        worker.wait_ready(4)
        stack.produce([(b"a", with_(ts=1_699_999_999_000))])
        stack.wait_until_scored()
        before = memory_of(worker.process.pid)
        stack.produce(flood)
        stack.wait_until_scored()
        after = memory_of(worker.process.pid)
        assert worker.stop() == 0
    assert after - before < 150 << 20
    ended = Counter(d["ended"] for d in stack.read_json("decisions") if d["type"] == "session")
    assert ended == {"limit": 100}


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
