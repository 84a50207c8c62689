"""What the incident stage reads: anomalies as notices, and mutes. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from detectors.incident_state import LONGEST_NAME, Mute, Notice
from pipeline.leading_fields import leading_fields

By = Literal["app", "segment"]
TOP = 3  # fields named
OBSERVED = 16  # tokens that a mute can look at
END = "session's end"
RATE = "@rate"  # in place of a session and of a field, of what is about how many records came
FEED = "incident-feed"


class Unmute(msgspec.Struct, frozen=True, tag_field="what", tag="unmute"):
    """A control: a mute is lifted."""

    id: str


_encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Notice | Mute | Unmute).decode


def encode(message: Notice | Mute | Unmute) -> bytes:
    """As it stands in the feed; `decode` reads it back."""
    return _encode(message)


def key_of(notice: Notice) -> bytes:
    """A scope lies in one partition, for its order counts."""
    return notice.scope.encode()


def notice_of(
    decision: Mapping[str, Any], *, rate: float, decisions: int, since_ms: int, topic: str, partition: int, by: By
) -> Notice:
    """An anomaly as a notice.

    Parameters
    ----------
    decision
        The anomaly as it is explained.
    rate
        The stream's promise.
    decisions, since_ms
        How many-th decision of its kind and segment it is, and since when these are counted.
    topic
        Another one, where the source was made anew.
    """
    segment = decision["segment"]
    observed = decision["observed"] if decision["type"] == "record" else {}
    tokens = {field: value[:LONGEST_NAME] for field, value in observed.items() if isinstance(value, str)}
    return Notice(
        id=decision["id"], stream=decision["stream"], session=decision["session"], type=decision["type"],
        time_ms=decision["time_ms"], p_value=decision["p_value"], rate=rate, decisions=decisions,
        since_ms=since_ms, topic=topic, partition=partition, offset=int(decision["id"].rsplit("/", 2)[1]),
        scope=(segment or "")[:LONGEST_NAME] if by == "segment" else "",
        segment=None if segment is None else segment[:LONGEST_NAME], score=decision["score"],
        top=tuple(_top(decision)), observed=dict(list(tokens.items())[:OBSERVED]),
    )  # fmt: skip


def notice_of_rate(anomaly: Mapping[str, Any], *, rate: float, topic: str, partition: int, by: By) -> Notice:
    """A rate anomaly as a notice; arguments as `notice_of` has them.

    All of a segment stand for one session, so that a silence that goes on adds less and less.
    """
    segment = anomaly["segment"]
    return Notice(
        id=anomaly["id"], stream=anomaly["stream"], session=RATE, type="rate", time_ms=anomaly["time_ms"],
        p_value=anomaly["p_value"], rate=rate, decisions=anomaly["judged"], since_ms=anomaly["since_ms"],
        topic=topic, partition=partition, offset=anomaly["source"]["offset"],
        scope=(segment or "")[:LONGEST_NAME] if by == "segment" else "",
        segment=None if segment is None else segment[:LONGEST_NAME], top=((RATE, 1.0),),
    )  # fmt: skip


def _top(decision: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The fields that contributed most, with their shares; of a session its end, where that was what was strange."""
    found = decision["contributions"]
    if decision["type"] == "session":
        worst, end = found.get("worst_record"), found.get("end")
        return [(END, 1.0)] if end is not None and end >= (worst or 0.0) else []
    shares = [(field, nats) for field, nats in leading_fields(decision) if nats > 0]
    total = sum(nats for _, nats in shares)
    return [(field, nats / total) for field, nats in shares[:TOP]]
