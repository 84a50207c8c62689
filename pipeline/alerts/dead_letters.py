"""Alerts that were given up: as dead letters with all that is needed to send them again, and back from there."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from pipeline.alerts.change import Change
from pipeline.alerts.index import Taken
from pipeline.alerts.rows import Pending
from pipeline.outputs import Output, event_headers

TOPIC = "dead-letters"


class GivenUp(msgspec.Struct, frozen=True):
    """A change that a receiver did not get.

    Attributes
    ----------
    message, changes
        The message that told it, and all that this told: sent again, it has the same id and content.
    """

    receiver: str
    message: str
    changes: tuple[str, ...]
    partition: int
    reason: str
    detail: str
    detected_ms: int
    change: Change

    @property
    def id(self) -> str:
        """Of its dead letter."""
        return f"{self.change.id}/{self.receiver}/dead-letter"


def given_up(taken: Taken, reason: str, detail: str, now_ms: int, attempts: int) -> list[Output]:
    """A dead letter for each change of a message."""
    together = [row.change.id for row in taken.rows]
    return [_letter(taken, row, together, reason, detail, now_ms, attempts) for row in taken.rows]


def _letter(
    taken: Taken, row: Pending, together: list[str], reason: str, detail: str, now_ms: int, attempts: int
) -> Output:  # fmt: skip
    change = row.change
    stream = change.streams[0] if change.streams else "incidents"
    identity = f"{change.id}/{taken.receiver}/dead-letter"
    about = {
        "receiver": taken.receiver, "message": taken.id, "changes": together, "attempts": attempts,
        "change": change.id, "subject": change.subject, "kind": change.kind, "streams": list(change.streams),
        "severity": change.severity, "labels": dict(change.labels), "at_ms": change.at_ms,
    }  # fmt: skip
    body: dict[str, Any] = {
        "id": identity, "stream": stream, "reason": reason, "detail": detail,
        "source": {"topic": row.topic, "partition": taken.partition, "offset": row.offset}, "origin": None,
        "key": change.subject, "payload": orjson.dumps(change.body).decode(), "payload_base64": None,
        "truncated": False, "detected_ms": now_ms, "alert": about,
    }  # fmt: skip
    headers = event_headers(stream, identity, "dead-letter", now_ms)
    return Output(TOPIC, change.subject.encode(), orjson.dumps(body), headers)


def parse(value: bytes | None) -> GivenUp | None:
    """A dead letter read back; None: it is about something else, or none of ours."""
    try:
        letter = orjson.loads(value or b"")
        about = letter["alert"]
        change = Change(
            about["change"], about["subject"], about["kind"], tuple(about["streams"]), about["severity"],
            about["labels"], about["at_ms"], orjson.loads(letter["payload"]),
        )  # fmt: skip
        return GivenUp(
            about["receiver"], about["message"], tuple(about["changes"]), letter["source"]["partition"],
            letter["reason"], letter["detail"], letter["detected_ms"], change,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return None
