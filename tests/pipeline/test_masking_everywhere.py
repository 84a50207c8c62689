"""Planted secrets: nothing that the system writes holds one, whatever field or record they came in."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient

from tests.kafka import PATIENCE_S, QUIET, Stack, WorkerProcess, by_id, wait_until
from tests.pipeline.test_logs import service_logs
from tests.pipeline.test_worker import CLOCK_KEYS, decisions_of, explained, scored_by_file

SECRET_KEY = "a key of more than sixteen bytes"
STREAM = {
    "kind": "logs", "message": "message", "tokens": ["level", "user.mail", "plan"],
    "session": {"by": "session", "gap": "20s", "end_when": {"final": True}},
    "promise": {"false_alarm_rate": 0.2},
    "mask": {"session": "hash", "user": "hash", "plan": {"truncate": 3}, "message": "redact"},
}  # fmt: skip
# Each has a mark of its own, which no rule keeps.
MAILS = [f"marked-{i:03}@example.org" for i in range(40)]
MARKS = [b"marked-", b"trace-of-", b"hunter", b"-enterprise", b"203.0.113."]


def lines(seed: int, sessions: int) -> list[dict[str, Any]]:
    """Log lines with a secret in each field, and records that are set aside for reasons that quote them."""
    rng = random.Random(seed)
    out: list[dict[str, Any]] = []
    for line in service_logs(seed, sessions, strange=frozenset(range(0, sessions, 40))):
        mail = rng.choice(MAILS)
        said = f"{line['message']} by {mail} password=hunter{rng.randrange(99)} at 203.0.113.{rng.randrange(9)}"
        plan = rng.choice(["pro-enterprise", "try-enterprise"])
        session = f"trace-of-{line['session']}"
        out.append(line | {"session": session, "message": said, "user": {"mail": mail}, "plan": plan})
    return out


def bad_records() -> list[tuple[bytes, bytes]]:
    """Each is set aside by another check, whose sentence would quote it."""
    good, long = lines(9, 1)[0], "trace-of-" + "x" * 2_000
    key = good["session"].encode()
    return [
        (key, b"marked-no-json"),
        (key, json.dumps(good | {"ts": "marked-time"}).encode()),
        (b"trace-of-other", json.dumps(good).encode()),
        (long.encode(), json.dumps(good | {"session": long}).encode()),
        (key, json.dumps(good | {"plan": {"marked-": 1}}).encode()),
    ]


def test_no_secret_is_written_anywhere(stack: Stack, monkeypatch: Any) -> None:
    """Topics, changelog, RocksDB, bundles, logs, metrics, samples and verdicts of files: every byte is searched."""
    monkeypatch.setenv("OFFBEAT_MASK_SECRET", SECRET_KEY)
    stack.configure(stream=STREAM)
    history = stack.folder / "private" / "history.jsonl"
    history.parent.mkdir()
    history.write_text("".join(json.dumps(line) + "\n" for line in lines(1, 700)))
    stack.run("train", "-s", "orders", "--input", str(history), "--promote")
    live = lines(2, 200)
    records = [(line["session"].encode(), json.dumps(line).encode()) for line in live]
    with WorkerProcess(stack) as worker:
        stack.produce([*records, *bad_records()])
        stack.wait_until_scored()
        metrics = worker.metrics().encode()
        name = live[-1]["session"]
        shown = stack.run("sessions", "show", "-s", "orders", name, check=False)
        assert worker.stop() == 0

    # It did its work: alarms, sessions that are told apart, and every bad record set aside.
    anomalies = by_id(stack.read_json("anomalies"), ignore=CLOCK_KEYS)
    decisions = by_id(stack.read_json("decisions"))
    letters = stack.read_json("dead-letters")
    assert len(anomalies) > 0
    assert len({d["session"] for d in decisions.values()}) == 200
    assert all(d["session"].startswith("hash:") for d in decisions.values())
    assert sorted(letter["reason"] for letter in letters) == sorted(
        ["not_json", "bad_time", "key_is_not_session", "wrong_type", "wrong_type"]
    )
    assert {letter["payload"] for letter in letters} == {None}
    words = {a["observed"]["message"] for a in anomalies.values() if "message" in a["observed"]}
    assert any("<email>" in said and "<secret>" in said and "<ip>" in said for said in words)

    admin = AdminClient({"bootstrap.servers": stack.address, **QUIET})
    ours = [topic for topic in admin.list_topics(timeout=PATIENCE_S).topics if topic.startswith(stack.name)]
    source = b"".join(m.value() for m in stack.read(stack.source))
    assert all(mark in source for mark in MARKS)  # so the search would find them
    written = [("metrics", metrics), ("sessions show", shown.stdout.encode())]
    for topic in ours:
        if topic != stack.source:
            parts = [part for m in stack.read(topic) for part in (m.key(), m.value(), repr(m.headers()).encode())]
            written.append((topic, b"\n".join(part for part in parts if part is not None)))
    written += [
        (str(path), path.read_bytes())
        for path in stack.folder.rglob("*")
        if path.is_file() and "private" not in path.parts
    ]
    assert len(written) > 20
    found = [(where, mark) for where, content in written for mark in MARKS if mark in content]
    assert found == []


def test_worker_and_file_agree_on_masked_records(stack: Stack, monkeypatch: Any) -> None:
    """`offbeat score` masks as the worker does, bit by bit; the same deletion finds the session by its own name."""
    monkeypatch.setenv("OFFBEAT_MASK_SECRET", SECRET_KEY)
    stack.configure(stream=STREAM | {"session": {"by": "session", "gap": "10h"}})
    history = stack.folder / "history.jsonl"
    history.write_text("".join(json.dumps(line) + "\n" for line in lines(1, 700)))
    stack.run("train", "-s", "orders", "--input", str(history), "--promote")
    live = lines(3, 100)
    with WorkerProcess(stack) as worker:
        stack.produce((line["session"].encode(), json.dumps(line).encode()) for line in live)
        stack.wait_until_scored()
        name = live[0]["session"]
        assert "hash:" in stack.run("sessions", "show", "-s", "orders", name).stdout
        stack.run("sessions", "delete", "-s", "orders", name, "--yes")
        wait_until(
            lambda: stack.run("sessions", "show", "-s", "orders", name, check=False).returncode == 1, "the deletion"
        )
        assert worker.stop() == 0
    decisions = by_id(stack.read_json("decisions"))
    expected = scored_by_file(stack)
    assert decisions == decisions_of(expected)
    assert explained(by_id(stack.read_json("anomalies"), ignore=CLOCK_KEYS)) == explained(expected)


def test_another_secret_is_another_state(tmp_path: Path) -> None:
    """The fingerprint of saved rows changes with rules and secret, and is as it was where nothing is masked."""
    from pipeline.serving import state_fingerprint
    from pipeline.settings import load_settings

    stack = Stack("127.0.0.1:1", tmp_path, name="t")

    def fingerprint(secret: str, **stream: Any) -> str:
        stack.configure(stream=STREAM | stream)
        return state_fingerprint(load_settings(stack.config_path, {"OFFBEAT_MASK_SECRET": secret}), "orders")

    one = fingerprint("0" * 16)
    assert one == fingerprint("0" * 16)
    assert len({one, fingerprint("1" * 16), fingerprint("0" * 16, mask={}), fingerprint("0" * 16, format="text")}) == 4
    assert fingerprint("0" * 16, mask={}) == fingerprint("1" * 16, mask={})
