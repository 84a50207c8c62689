"""What an uninterrupted run would have said and saved: `process_one` over each partition's log, record by record."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from detectors.packing import unpack
from detectors.parts import Parts
from detectors.promise_keeper import KeepingRules
from detectors.rows import RowShape
from features.profiles import ENTRIES
from features.sessions import SessionRules
from features.tokens import TokenEncoder
from models.bundle import read_bundle, serving_digest
from models.spec import ModelSpec
from tests.naive import Event, Partition, Row, process_one

STREAM, FIELDS = "orders", ("action", "status")
HIDDEN, CONTEXT, RATE = 16, 6, 0.02
_PROCESSES = 2
_TAG = ("tag", "tag_confidence")
Logged = tuple[int, bytes | None, bytes | None]  # offset, key, value


@dataclass
class Expected:
    """One partition as it must be.

    Attributes
    ----------
    sessions
        Rows of the sessions still open, as `rows.read_session` gives them.
    partition
        As `rows.read_partition` gives it.
    messages
        Contents by id, as `canonical` writes them: decisions and dead letters.
    anomalies
        Ids of the decisions that are anomalies.
    """

    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    partition: dict[str, float] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    anomalies: set[str] = field(default_factory=set)


def canonical(content: dict[str, Any]) -> str:
    """A content as text, the same for the same content."""
    return json.dumps(content, sort_keys=True)


def make_parts(bundles: Path, topic: str, gap_ms: int, max_events: int) -> Parts:
    """What `process_one` asks of a stream's parts, from the bundle that serves it."""
    digest = serving_digest(bundles / STREAM)
    parts = Parts(
        STREAM, topic, FIELDS, RowShape(HIDDEN, CONTEXT, len(FIELDS), profile=ENTRIES),
        SessionRules(gap_ms, max_events), RATE, TokenEncoder(len(FIELDS), None), None,
        model=ModelSpec("gru", HIDDEN, ()), keeping=KeepingRules(),
    )  # fmt: skip
    learned = unpack(read_bundle(bundles / STREAM / str(digest)), parts)
    return replace(parts, encoder=TokenEncoder(len(FIELDS), learned.vocabulary), learned=learned)


def expect(logs: Sequence[Sequence[Logged]], bundles: Path, topic: str, gap_ms: int, max_events: int) -> list[Expected]:
    """Run every partition's log, in processes of their own."""
    with ProcessPoolExecutor(_PROCESSES, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(expect_partition, log, p, make_parts, (bundles, topic, gap_ms, max_events))
            for p, log in enumerate(logs)
        ]
        return [job.result() for job in jobs]


def expect_partition(log: Sequence[Logged], number: int, parts_of: Any, arguments: tuple[Any, ...]) -> Expected:
    """One partition's log from its first record to its last."""
    parts: Parts = parts_of(*arguments)
    expected, partition, valid = Expected(), Partition(), 0
    place = f"{STREAM}/{parts.topic}/{number}"
    for offset, key, value in log:
        if value is None:
            continue
        event, reason = read_event(offset, key, value)
        if event is None:
            identity = f"{place}/{offset}/dead-letter"
            expected.messages[identity] = canonical(_dead_letter(identity, reason, parts.topic, number, offset, key))
            continue
        valid += 1
        for verdict in process_one(event, partition, parts):
            content = _decision(verdict, place, event.time_ms)
            expected.messages[content["id"]] = canonical(content)
            if content["anomaly"]:
                expected.anomalies.add(content["id"])
    assert parts.learned is not None
    expected.sessions = {name: _saved(row, parts.learned.number) for name, row in partition.rows.items()}
    next_offset = log[-1][0] + 1 if log else 0
    expected.partition = {"next_offset": next_offset, "watermark_ms": partition.watermark_ms, "records": valid}
    if partition.keeper.records is not None:
        expected.partition["threshold"] = partition.keeper.records.nats
    return expected


def read_event(offset: int, key: bytes | None, value: bytes) -> tuple[Event | None, str]:
    """A record as an event, or why it is none."""
    try:
        found = json.loads(value)
    except ValueError:
        return None, "not_json"
    if not isinstance(found, dict) or not all(isinstance(found.get(f), str | None) for f in FIELDS):
        return None, "wrong_type"
    name = found.get("session")
    if not name:
        return None, "missing_session"
    if key != name.encode():
        return None, "key_is_not_session"
    if not isinstance(found["ts"], int):
        return None, "bad_time"
    tokens = tuple(found.get(f) for f in FIELDS)
    return Event(offset, name, found["ts"], tokens, found.get("action") == "close"), ""


def _decision(verdict: dict[str, Any], place: str, time_ms: int) -> dict[str, Any]:
    """A naive verdict as the message on it."""
    content = {
        "type": verdict["kind"], "id": f"{place}/{verdict['offset']}/{verdict['kind']}", "stream": STREAM,
        "time_ms": time_ms, "status": "ok", "confidence": None,
    } | {name: verdict[name] for name in ("session", "segment", "score", "p_value", *_TAG)}  # fmt: skip
    content["anomaly"] = bool(verdict["anomaly"])
    if verdict["kind"] == "session":
        content |= {name: verdict[name] for name in ("ended", "events", "first_ms")} | {"time_ms": verdict["last_ms"]}
    return content


def _dead_letter(identity: str, reason: str, topic: str, number: int, offset: int, key: bytes | None) -> dict[str, Any]:
    return {
        "id": identity, "stream": STREAM, "reason": reason, "key": None if key is None else key.decode(),
        "source": {"topic": topic, "partition": number, "offset": offset},
    }  # fmt: skip


def _saved(row: Row, bundle: int) -> dict[str, Any]:
    """A naive row as a saved one is read."""
    return {
        "tag": struct.pack("<f", -row.bad if row.in_stretch else row.bad), "segment": row.segment,
        "events": row.events, "first_ms": row.first_ms, "last_ms": row.last_ms, "applied": row.applied,
        "worst": struct.pack("<f", row.worst), "worst_offset": row.worst_offset, "bundle": bundle,
        "hidden": row.hidden.astype("<f4").tobytes(), "beyond": [],
        "context": [(time_ms, hashes) for time_ms, hashes, _ in row.context],
        "profile": row.profile,
    }  # fmt: skip
