"""Verdicts to messages: what goes to which topic, with which id. Nothing here does I/O."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from zlib import crc32

import numpy as np
import orjson

from detectors.explanation import explain_end, explain_record, observed
from detectors.parts import Parts
from detectors.patterns import hex_of
from detectors.process import Verdicts
from detectors.rate_watch import RateAlarm
from detectors.rescoring import Rescore
from detectors.severity import severity_of
from features.events import Record, Reject
from features.sessions import ENDED
from pipeline.notices import FEED, By, encode, key_of, notice_of, notice_of_rate
from pipeline.origins import origin_of
from pipeline.slices import Processed

NORMAL = "normal"  # what people have called the pattern of what would have been an anomaly
LATE = "late"  # status of a record that neither steps its session nor is ever an anomaly
NO_MODEL = "online"  # in place of a digest, while warming up
MAX_PAYLOAD = 64_000  # bytes of a dead letter's value we keep
MAX_KEY = 1_024  # and of its key
Json = dict[str, Any]
Headers = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Output:
    """One message: which of our topics (such as `anomalies`), key, JSON, CloudEvents headers."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers


@dataclass(frozen=True)
class Place:
    """The partition that verdicts are about; `epoch` counts how often other records came under offsets used before."""

    topic: str
    partition: int
    epoch: int = 0

    @property
    def name(self) -> str:
        """The topic's, as ids have it.

        Offset 7 of a topic that was made anew is another record, so its topic is called `orders~1`; no topic's own
        name can hold that sign.
        """
        return f"{self.topic}~{self.epoch}" if self.epoch else self.topic


def message_id(stream: str, place: Place, offset: int, what: str) -> str:
    """Name one message for ever: the same record gives the same id after a crash, a rebalance or a replay."""
    return f"{stream}/{place.name}/{place.partition}/{offset}/{what}"


def record_id(verdicts: Verdicts, i: int, place: Place, parts: Parts) -> str:
    """Name of the decision on event `i`: two windows may have the same last sample, so a window is named by its end."""
    events = verdicts.events
    what = "record" if events.windows is None else f"window-{events.windows[i]}"
    return message_id(parts.stream, place, int(events.offsets[i]), what)


def session_id(verdicts: Verdicts, e: int, place: Place, parts: Parts) -> str:
    """Name of the session verdict number `e`: by its last record, or by the end of its last window."""
    last_ms = int(verdicts.walk.ended_last_ms[verdicts.ends.operation[e]])
    what = "session" if parts.windows is None else f"session-{last_ms + 1}"
    return message_id(parts.stream, place, int(verdicts.ends.last_offset[e]), what)


def event_headers(stream: str, identity: str, kind: str, now_ms: int) -> Headers:
    """CloudEvents 1.0 attributes in Kafka's binary content mode; `kind` is the type after `io.offbeat.`."""
    moment = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", identity.encode()),
        ("ce_type", f"io.offbeat.{kind}".encode()),
        ("ce_source", f"/offbeat/{stream}".encode()),
        ("ce_time", moment.replace("+00:00", "Z").encode()),
        ("content-type", b"application/json"),
    ]


def is_sampled(identity: str, share: float) -> bool:
    """Whether a decision is written, by a hash of its id, so that a replay writes the same ones."""
    return share >= 1.0 or crc32(identity.encode()) < share * 2**32


def sampled_records(verdicts: Verdicts, place: Place, parts: Parts, share: float) -> list[int]:
    """Which of the slice's events `is_sampled` takes; ids are hashed from where they begin to differ."""
    events = verdicts.events
    if share <= 0.0 or share >= 1.0 or events.windows is not None:
        everyone = range(len(events)) if share > 0.0 else ()
        return [i for i in everyone if is_sampled(record_id(verdicts, i, place, parts), share)]
    begun, below = crc32(message_id(parts.stream, place, 0, "").removesuffix("0/").encode()), share * 2**32
    offsets = events.offsets.tolist()
    return [i for i, offset in enumerate(offsets) if crc32(b"%d/record" % offset, begun) < below]


def record_decision(verdicts: Verdicts, i: int, place: Place, parts: Parts) -> Json:
    """The decision on event `i` of the slice."""
    events = verdicts.events
    return {
        "type": "record",
        "id": record_id(verdicts, i, place, parts),
        "stream": parts.stream,
        "session": events.sessions[events.session[i]],
        "segment": None if events.segments is None else events.segments[i],
        "time_ms": int(events.time_ms[i]),
        "score": _number(verdicts.score[i]),
        "p_value": _number(verdicts.p_value[i]),
        "anomaly": bool(verdicts.anomaly[i]),
        "confidence": _number(verdicts.confidence[i]),
        **verdicts.tags.of(int(verdicts.walk.of_events[i])),
        "status": LATE if verdicts.late[i] else verdicts.status,
    }


def session_decision(verdicts: Verdicts, e: int, name: str, place: Place, parts: Parts) -> Json:
    """The decision on the session verdict number `e` of the slice."""
    ends, walk = verdicts.ends, verdicts.walk
    operation = ends.operation[e]
    return {
        "type": "session",
        "id": session_id(verdicts, e, place, parts),
        "stream": parts.stream,
        "session": name,
        "segment": ends.segment[e],
        "time_ms": int(walk.ended_last_ms[operation]),
        "first_ms": int(walk.ended_first_ms[operation]),
        "events": int(walk.ended_events[operation]),
        "ended": ENDED[int(walk.kind[operation])],
        "score": _number(ends.score[e]),
        "p_value": _number(ends.p_value[e]),
        "anomaly": bool(ends.anomaly[e]),
        "confidence": _number(ends.confidence[e]),
        **verdicts.tags.of(int(operation)),
        "status": verdicts.status,
    }


@dataclass(frozen=True)
class Emitter:
    """Turns verdicts of one partition into outputs.

    Attributes
    ----------
    sample
        Share of decisions written; anomalies are always written to their own topic.
    is_repartitioned
        Records carry in their headers where they come from.
    incidents_by
        What incidents do not reach beyond; None: anomalies are not told to the incident stage.
    """

    parts: Parts
    place: Place
    sample: float
    is_repartitioned: bool = False
    incidents_by: By | None = None

    def decisions(self, done: Processed) -> Iterator[tuple[int, Json]]:
        """All decisions in the order they were taken, each with the event it belongs to (-1: none).

        An anomaly carries its explanation under the keys of an anomaly message, and what a second stage says of it.
        """
        verdicts, record = done.verdicts, 0
        for e, operation in enumerate(verdicts.ends.operation.tolist()):
            seen = int(verdicts.walk.record[operation])
            while record <= min(seen, len(verdicts.events) - 1):
                yield record, self._record(done, record)
                record += 1
            yield seen, self._session(done, e)
        for i in range(record, len(verdicts.events)):
            yield i, self._record(done, i)

    def outputs(self, done: Processed, now_ms: int, records: Sequence[Record] = ()) -> list[Output]:
        """What leaves for Kafka: each anomaly with its explanation, what is said of it, and the sampled decisions.

        `records` are those that the slice was decoded from.
        """
        verdicts, out = done.verdicts, list[Output]()
        for i in sampled_records(verdicts, self.place, self.parts, self.sample):
            if not (self.parts.sends_late and verdicts.late[i]):
                self._decide(out, self._decision_on_record(done, i), now_ms)
        if self.parts.sends_late:
            out.extend(self._late(verdicts, i, now_ms) for i in np.flatnonzero(verdicts.late).tolist())
        for i in np.flatnonzero(verdicts.anomaly).tolist():
            # An event that waited is released by another record; whether that is known depends on the slice.
            known = bool(records) and self.parts.rules.lead_ms > 0
            origin = self._origin(records[verdicts.events.index[i]]) if known else None
            explained = self._record(done, i)
            self._alarm(out, explained, now_ms, origin)
            self._notice(out, explained, done.numbers.records[i], done.numbers.since_ms)
        for e in range(len(verdicts.ends.operation)):
            decision = self._decision_on_session(done, e)
            if is_sampled(decision["id"], self.sample):
                self._decide(out, decision, now_ms)
            if decision["anomaly"]:
                explained = decision | self._why_session(done, e, decision)
                self._alarm(out, explained, now_ms, None)
                self._notice(out, explained, done.numbers.sessions[e], done.numbers.since_ms)
        for alarm in done.rated.alarms:
            self._alarm_of_rate(out, alarm, now_ms)
        return out

    def rate_anomaly(self, alarm: RateAlarm) -> Json:
        """A bucket with too many records or too few, named by where it ends."""
        what = "rate" if alarm.segment is None else f"rate/{quote(alarm.segment, safe='')}"
        return {
            "type": "rate",
            "id": message_id(self.parts.stream, self.place, alarm.until_ms, what),
            "stream": self.parts.stream,
            "segment": alarm.segment,
            "time_ms": alarm.until_ms - 1,
            "from_ms": alarm.from_ms,
            "until_ms": alarm.until_ms,
            "count": alarm.count,
            "expected": {"low": alarm.low, "median": alarm.median, "high": alarm.high},
            "direction": alarm.direction,
            "p_value": alarm.p_value,
            "severity": severity_of(alarm.p_value, self.parts.rate),
            "status": "ok",
            "judged": alarm.judged,
            "since_ms": alarm.since_ms,
            "source": {"topic": self.place.topic, "partition": self.place.partition, "offset": alarm.offset},
        }

    def _alarm_of_rate(self, out: list[Output], alarm: RateAlarm, now_ms: int) -> None:
        anomaly = self.rate_anomaly(alarm)
        headers = event_headers(self.parts.stream, anomaly["id"], "anomaly", now_ms)
        key = (alarm.segment or self.parts.stream).encode()
        assert self.parts.learned is not None, "a bundle says what is usual"
        body = anomaly | {"model": {"name": self.parts.stream, "digest": self.parts.learned.digest}}
        out.append(Output("anomalies", key, orjson.dumps(body | {"detected_ms": now_ms}), headers))
        if self.incidents_by is not None:
            notice = notice_of_rate(
                anomaly, rate=self.parts.rate, topic=self.place.name, partition=self.place.partition,
                by=self.incidents_by,
            )  # fmt: skip
            out.append(Output(FEED, key_of(notice), encode(notice), []))

    def dead_letter(self, reject: Reject, record: Record, now_ms: int) -> Output:
        """A record that cannot be scored, with its reason, and what it holds unless that is private."""
        value, key = (b"", None) if reject.is_private else (record.value or b"", record.key)
        kept = value[:MAX_PAYLOAD]
        text = _text(kept, cut=len(value) > MAX_PAYLOAD)
        identity = message_id(self.parts.stream, self.place, record.offset, "dead-letter")
        body = {
            "id": identity,
            "stream": self.parts.stream,
            "reason": reject.error.reason,
            "detail": str(reject.error),
            "source": {"topic": self.place.topic, "partition": self.place.partition, "offset": record.offset},
            "origin": self._origin(record),
            "key": None if key is None else key[:MAX_KEY].decode("utf-8", "replace"),
            "payload": None if reject.is_private else text,
            "payload_base64": b64encode(kept).decode() if text is None else None,
            "truncated": len(value) > MAX_PAYLOAD,
            "alert": None,
            "detected_ms": now_ms,
        }
        return Output(
            "dead-letters",
            None if key is None else key[:MAX_KEY],
            orjson.dumps(body),
            event_headers(self.parts.stream, identity, "dead-letter", now_ms),
        )

    def _late(self, verdicts: Verdicts, i: int, now_ms: int) -> Output:
        events, offset = verdicts.events, int(verdicts.events.offsets[i])
        identity = message_id(self.parts.stream, self.place, offset, "late")
        session = events.sessions[events.session[i]]
        body = {
            "id": identity,
            "stream": self.parts.stream,
            "session": session,
            "time_ms": int(events.time_ms[i]),
            "behind_ms": int(verdicts.behind_ms[i]),
            "observed": observed(verdicts, i, self.parts),
            "source": {"topic": self.place.topic, "partition": self.place.partition, "offset": offset},
            "detected_ms": now_ms,
        }
        headers = event_headers(self.parts.stream, identity, "late", now_ms)
        return Output("late", session.encode(), orjson.dumps(body), headers)

    def _record(self, done: Processed, i: int) -> Json:
        decision = self._decision_on_record(done, i)
        if not decision["anomaly"]:
            return decision
        operation = int(done.verdicts.walk.of_events[i])
        explained = explain_record(done.verdicts, operation, done.rows, self.parts, done.occluded.of_record(i))
        explained |= {
            "pattern": hex_of(done.absolved.records[i]),
            "calibrated_p_value": float(done.verdicts.calibrated[i]),
            "severity": self._severity(decision, done, operation),
        }
        return decision | explained | self._again(done.rescored.records.get(i))

    def _session(self, done: Processed, e: int) -> Json:
        decision = self._decision_on_session(done, e)
        return decision | self._why_session(done, e, decision) if decision["anomaly"] else decision

    def _decision_on_record(self, done: Processed, i: int) -> Json:
        labelled = NORMAL if i in done.absolved.normal_records else None
        return record_decision(done.verdicts, i, self.place, self.parts) | {"labelled": labelled}

    def _decision_on_session(self, done: Processed, e: int) -> Json:
        name = done.names[done.verdicts.walk.row[done.verdicts.ends.operation[e]]]
        labelled = NORMAL if e in done.absolved.normal_sessions else None
        return session_decision(done.verdicts, e, name, self.place, self.parts) | {"labelled": labelled}

    def _why_session(self, done: Processed, e: int, decision: Json) -> Json:
        explained = explain_end(done.verdicts, e, done.rows, self.parts, done.occluded.of_session(e))
        calibrated = float(done.verdicts.ends.calibrated[e])
        explained |= {"pattern": hex_of(done.absolved.sessions[e]), "calibrated_p_value": calibrated}
        explained["severity"] = self._severity(decision, done, int(done.verdicts.ends.operation[e]))
        return explained | self._again(done.rescored.sessions.get(e))

    def _severity(self, decision: Json, done: Processed, operation: int) -> str:
        persists = done.verdicts.tags.persists(operation)
        return severity_of(decision["p_value"], self.parts.rate, persists=persists)

    def _again(self, rescore: Rescore | None) -> Json:
        """What a second stage says, None where it had no pass left; nothing where there is none."""
        return {} if self.parts.second is None else {"rescored": None if rescore is None else asdict(rescore)}

    def _rescored(self, explained: Json, now_ms: int) -> Output:
        """What the second stage says, with a name that goes on from the anomaly's."""
        identity = f"{explained['id']}/rescore"
        about = {key: explained[key] for key in ("type", "stream", "session", "time_ms")}
        body = {"id": identity, "anomaly": explained["id"]} | about | explained["rescored"]
        body |= self._whence(explained, now_ms)
        headers = event_headers(self.parts.stream, identity, "rescore", now_ms)
        return Output("rescores", explained["session"].encode(), orjson.dumps(body), headers)

    def _whence(self, decision: Json, now_ms: int) -> Json:
        """Which bundle judged what, and when."""
        digest = NO_MODEL if self.parts.learned is None else self.parts.learned.digest
        *_, offset, _ = decision["id"].rsplit("/", 2)
        return {
            "model": {"name": self.parts.stream, "digest": digest},
            "source": {"topic": self.place.topic, "partition": self.place.partition, "offset": int(offset)},
            "detected_ms": now_ms,
        }

    def _decide(self, out: list[Output], decision: Json, now_ms: int) -> None:
        headers = event_headers(self.parts.stream, decision["id"], "decision", now_ms)
        out.append(Output("decisions", decision["session"].encode(), orjson.dumps(decision), headers))

    def _origin(self, record: Record) -> Json | None:
        return origin_of(record) if self.is_repartitioned else None

    def _alarm(self, out: list[Output], explained: Json, now_ms: int, origin: Json | None) -> None:
        body = {key: value for key, value in explained.items() if key not in {"anomaly", "rescored", "labelled"}}
        body |= {"origin": origin}
        body |= self._whence(explained, now_ms)
        headers = event_headers(self.parts.stream, explained["id"], "anomaly", now_ms)
        out.append(Output("anomalies", explained["session"].encode(), orjson.dumps(body), headers))
        if explained.get("rescored") is not None:
            out.append(self._rescored(explained, now_ms))

    def _notice(self, out: list[Output], explained: Json, number: int, since_ms: int) -> None:
        if self.incidents_by is None:
            return
        notice = notice_of(
            explained, rate=self.parts.rate, decisions=number, since_ms=since_ms, topic=self.place.name,
            partition=self.place.partition, by=self.incidents_by,
        )  # fmt: skip
        out.append(Output(FEED, key_of(notice), encode(notice), []))


def _number(value: np.floating[Any]) -> float | None:
    """A JSON number, or null for none; never 0 for none."""
    number = float(value)
    return None if math.isnan(number) else number


def _text(value: bytes, *, cut: bool) -> str | None:
    """The bytes as text, or None where they are no UTF-8; a character cut in two at the end does not count."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        return value[: error.start].decode() if cut and error.start > len(value) - 4 else None
