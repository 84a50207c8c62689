"""Spans of OpenTelemetry, made once what they tell of is over: slices, anomalies, checkpoints, incidents, alerts.

Only where the config asks for traces is this imported, and with it OpenTelemetry (`pipeline/trace_export.py`). A span
is made with its start and end: so nothing is made of a slice that is not sampled, and an anomaly, of which nobody knew
when its slice began, has its spans all the same.

Ids of an anomaly's spans, and of an incident's, follow from its own: one that is told again after a crash is the same
span, and its message has the same `traceparent`.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, Setter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from detectors.incident_report import Report
from pipeline.alerts.change import Message, Outcome
from pipeline.notices import FEED
from pipeline.outputs import Headers, Output, Place

if TYPE_CHECKING:
    from pipeline.context import StreamContext

MOST_LINKS = 32  # of a span; collectors and stores have limits of their own, 128 most often
_MOST_REMEMBERED = 4_096  # anomalies that an incident may yet link to
_LONGEST = 512  # bytes of a header; the right ones of W3C are shorter, and a longer tracestate may be left
_CARRIERS = {"anomalies", "rescores", FEED}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_W3C = TraceContextTextMapPropagator()

Attributes = Mapping[str, Any]
Put = Callable[..., None]


class _Reader(Getter[Mapping[str, str]]):
    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        return [carrier[key]] if key in carrier else None

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


class _Writer(Setter[Headers]):
    def set(self, carrier: Headers, key: str, value: str) -> None:
        carrier.append((key, value.encode()))


_READER, _WRITER = _Reader(), _Writer()


def producer_of(headers: Iterable[tuple[str, bytes | None]] | None) -> SpanContext | None:
    """What a record's producer was doing, by its W3C headers; None where they are absent, or not right."""
    found = dict[str, str]()
    for name, value in headers or ():
        if name in {"traceparent", "tracestate"} and value is not None and len(value) <= _LONGEST:
            found[name] = value.decode("latin-1")  # what is not ASCII is not right
    if "traceparent" not in found:
        return None
    context = get_current_span(_W3C.extract(found, Context(), _READER)).get_span_context()
    return context if context.is_valid else None


def as_headers(context: SpanContext) -> Headers:
    """A message's headers, by which whoever reads it goes on."""
    headers: Headers = []
    _W3C.inject(headers, set_span_in_context(NonRecordingSpan(context), Context()), _WRITER)
    return headers


def _hash(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest()) or 1  # 0 is no id


def named(what: str, identity: str, parent: SpanContext | None = None, *, trace: str | None = None) -> SpanContext:
    """The context of a span that has its id from its name: in the trace of `parent`, or else of what `trace` names."""
    trace_id = _hash(identity if trace is None else trace, 16) if parent is None else parent.trace_id
    flags = _SAMPLED if parent is None else TraceFlags(parent.trace_flags | TraceFlags.SAMPLED)
    state = None if parent is None else parent.trace_state
    return SpanContext(trace_id, _hash(f"{what} {identity}", 8), is_remote=False, trace_flags=flags, trace_state=state)


class Traces:
    """Makes spans for one process.

    Parameters
    ----------
    put
        Takes a span that is over; with `must_keep`, also where there is little room left.
    ratio
        Share of slices that have spans.
    """

    def __init__(
        self, put: Put, service: Mapping[str, str], ratio: float, *, now_ns: Callable[[], int] = time.time_ns,
        rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        self._put, self.ratio, self.now_ns = put, ratio, now_ns
        self._rng = rng or random.Random()  # noqa: S311 (ids of traces are no secrets)
        self._resource = Resource.create(dict(service))
        self._scope = InstrumentationScope("offbeat", service.get("service.version"))

    def is_sampled(self) -> bool:
        """Whether the next slice shall have spans."""
        return self._rng.random() < self.ratio

    def context(self, parent: SpanContext | None = None) -> SpanContext:
        """Of a span that nobody will make again."""
        trace_id = self._rng.getrandbits(128) or 1 if parent is None else parent.trace_id
        return SpanContext(trace_id, self._rng.getrandbits(64) or 1, is_remote=False, trace_flags=_SAMPLED)

    def add(
        self, name: str, context: SpanContext, parent: SpanContext | None, start_ns: int, end_ns: int | None = None, *,
        kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes | None = None, links: Sequence[SpanContext] = (),
        failed: str | None = None, must_keep: bool = False,
    ) -> None:  # fmt: skip
        """A span that is over, just now unless `end_ns` says when."""
        known = {key: value for key, value in (attributes or {}).items() if value is not None}
        span = ReadableSpan(
            name, context, parent, self._resource, known, (), [Link(to) for to in links[:MOST_LINKS]], kind,
            status=Status(StatusCode.UNSET) if failed is None else Status(StatusCode.ERROR, failed),
            start_time=start_ns, end_time=max(start_ns, self.now_ns() if end_ns is None else end_ns),
            instrumentation_scope=self._scope,
        )  # fmt: skip
        self._put(span, must_keep=must_keep)

    def of_partition(self, context: StreamContext, place: Place) -> PartitionTraces:
        """Those of one opening of a partition."""
        return PartitionTraces(self, context.name, context.group, place)

    def of_deliveries(self) -> DeliveryTraces:
        """Those of alerts."""
        return DeliveryTraces(self)

    def of_incidents(self, feed: str, incidents: str) -> IncidentTraces:
        """Those of the incident stage; names of what it reads and writes."""
        return IncidentTraces(self, feed, incidents)


def messaging(operation: str, topic: str) -> dict[str, Any]:
    """Attributes by OpenTelemetry's conventions for messages."""
    kind = {"messaging.operation.name": operation, "messaging.operation.type": operation}
    return {"messaging.system": "kafka", **kind, "messaging.destination.name": topic}


@dataclass(frozen=True)
class _Anomaly:
    """The span of an anomaly whose message is on its way out."""

    context: SpanContext
    producer: SpanContext | None
    start_ns: int
    attributes: Attributes
    links: Sequence[SpanContext]


class PartitionTraces:
    """Spans of one opening of a partition: a few for each slice that is sampled, one for each anomaly."""

    def __init__(self, traces: Traces, stream: str, group: str, place: Place) -> None:
        self._traces, self._place = traces, place
        self._about = {
            "messaging.consumer.group.name": group, "messaging.destination.partition.id": str(place.partition),
            "offbeat.stream": stream,
        }  # fmt: skip
        self._slice: SpanContext | None = None  # the one that is being scored, where it is sampled
        self._fetched_ns: int | None = None
        self._step_ns = 0  # when the step began that is under way
        self._anomalies: list[_Anomaly] = []
        self._covered: list[SpanContext] = []  # spans whose checkpoint is to come: slices'
        self._told: list[SpanContext] = []  # and anomalies'

    def begin(self, waited_s: float) -> None:
        """A slice is about to be scored, that was fetched so long ago."""
        self._step_ns = self._traces.now_ns()
        self._fetched_ns = self._step_ns - int(waited_s * 1e9)
        self._slice = self._traces.context() if self._traces.is_sampled() else None

    def traced(self, outputs: list[Output], records: Sequence[Any]) -> list[Output]:
        """The outputs of what was scored just now; anomalies, and what is said of them, say which span they are of."""
        now_ns, headers = self._traces.now_ns(), dict[str, Headers]()
        self._end_step("score", now_ns)
        if not any(output.topic in _CARRIERS for output in outputs):
            return outputs
        found = []
        for output in outputs:
            if output.topic in _CARRIERS:
                body = orjson.loads(output.value)
                identity = body.get("anomaly", body["id"])
                if output.topic == "anomalies":
                    headers[identity] = self._anomaly(body, records, now_ns)
                output = replace(output, headers=[*output.headers, *headers.get(identity, ())])  # noqa: PLW2901
            found.append(output)
        return found

    def emitted(self) -> None:
        """All outputs of a piece were handed over."""
        now_ns = self._traces.now_ns()
        self._end_step("emit", now_ns)
        for one in self._anomalies:
            self._traces.add(
                f"process {self._place.topic}", one.context, one.producer, one.start_ns, now_ns, kind=SpanKind.CONSUMER,
                attributes=one.attributes, links=one.links, must_keep=True,
            )  # fmt: skip
            if len(self._told) <= MOST_LINKS:
                self._told.append(one.context)
        self._anomalies = []

    def end(self, records: Sequence[Any]) -> None:
        """A slice is scored."""
        began, self._fetched_ns = self._fetched_ns, None
        if self._slice is None or began is None:
            return
        self._traces.add(
            f"process {self._place.topic}", self._slice, None, began, kind=SpanKind.CONSUMER,
            attributes=messaging("process", self._place.topic) | self._about | {
                "messaging.batch.message_count": len(records),
                "offbeat.offset.first": records[0].offset, "offbeat.offset.last": records[-1].offset,
            },
            links=producers_of(records),
        )  # fmt: skip
        if len(self._covered) <= MOST_LINKS:
            self._covered.append(self._slice)
        self._slice = None

    def covered(self) -> Sequence[SpanContext]:
        """Spans that the checkpoint covers which begins now."""
        covered, self._covered, self._told = [*self._covered, *self._told], [], []
        return covered[: MOST_LINKS + 1]

    def checkpointed(self, covered: Sequence[SpanContext], began_s: float) -> None:
        """A checkpoint has ended that began so long ago: all of `covered` is safe, and the broker has its messages."""
        if covered:
            now_ns, parent = self._traces.now_ns(), covered[0]
            self._traces.add(
                "checkpoint", self._traces.context(parent), parent, now_ns - int(began_s * 1e9), now_ns,
                attributes=self._about, links=covered[1:],
            )  # fmt: skip

    def _end_step(self, name: str, now_ns: int) -> None:
        if self._slice is not None:
            self._traces.add(name, self._traces.context(self._slice), self._slice, self._step_ns, now_ns)
        self._step_ns = now_ns

    def _anomaly(self, body: Mapping[str, Any], records: Sequence[Any], now_ns: int) -> Headers:
        """The span of an anomaly, in its producer's trace; returns what its message says of it.

        A bucket of records has no one producer, so its anomaly begins a trace, and so does one whose record came with
        an earlier slice.
        """
        identity, offset = body["id"], body["source"]["offset"]
        producer, links = producer_at(records, offset), list[SpanContext]() if self._slice is None else [self._slice]
        if body["type"] == "rate" and producer is not None:
            links.append(producer)
            producer = None
        context = named("process", identity, producer)
        about = messaging("process", self._place.topic) | self._about | {
            "messaging.kafka.offset": offset, "offbeat.anomaly.id": identity, "offbeat.anomaly.type": body["type"],
            "offbeat.p_value": body["p_value"], "offbeat.severity": body["severity"],
        }  # fmt: skip
        self._anomalies.append(_Anomaly(context, producer, self._fetched_ns or now_ns, about, links))
        return as_headers(context)


def producer_at(records: Sequence[Any], offset: int) -> SpanContext | None:
    """The context that came with the record at an offset; None where it is not among these."""
    at = bisect_left(records, offset, key=lambda record: record.offset)
    return producer_of(records[at].headers) if at < len(records) and records[at].offset == offset else None


def producers_of(records: Iterable[Any]) -> list[SpanContext]:
    """Different contexts that came with records, the first few; of those that their producers recorded."""
    found = dict[tuple[int, int], SpanContext]()
    for record in records:
        if (one := producer_of(record.headers)) is not None and one.trace_flags.sampled:
            found.setdefault((one.trace_id, one.span_id), one)
            if len(found) == MOST_LINKS:
                break
    return list(found.values())


class IncidentTraces:
    """Spans of incidents: a trace for each, a span for each change that is told, with links to anomalies it shows."""

    def __init__(self, traces: Traces, feed: str, incidents: str) -> None:
        self._traces, self._feed, self._incidents = traces, feed, incidents
        self._anomalies = dict[str, SpanContext]()  # by id, the latest

    def note(self, messages: Iterable[Any]) -> None:
        """Remember which spans notices are of."""
        for message in messages:
            if (context := producer_of(message.headers())) is not None:
                self._anomalies[orjson.loads(message.value())["id"]] = context
        while len(self._anomalies) > _MOST_REMEMBERED:
            del self._anomalies[next(iter(self._anomalies))]

    def headers(self, report: Report) -> Headers:
        """What the message on a change says of its span."""
        return as_headers(_context_of(report))

    def told(self, reports: Iterable[Report], took_s: float) -> None:
        """Changes were committed, by a transaction that began so long ago."""
        now_ns = self._traces.now_ns()
        for report in reports:
            links = [self._anomalies[one.id] for one in report.examples if one.id in self._anomalies]
            self._traces.add(
                f"send {self._incidents}", _context_of(report), None, now_ns - int(took_s * 1e9), now_ns,
                kind=SpanKind.PRODUCER, links=links, must_keep=True,
                attributes=messaging("send", self._incidents) | {
                    "offbeat.incident.id": report.id, "offbeat.incident.change": report.change,
                    "offbeat.incident.revision": report.revision, "offbeat.severity": report.severity,
                },
            )  # fmt: skip


def _context_of(report: Report) -> SpanContext:
    return named("send", f"{report.id}/{report.revision}", trace=report.id)


class DeliveryTraces:
    """Spans of alerts: one for each attempt, below what it tells of, or linked to all of that."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    def attempted(self, message: Message, outcome: Outcome, told: Iterable[str], took_ms: int) -> None:
        """A request has ended just now; `told` are the `traceparent`s of the changes, empty where they had none."""
        contexts = [producer_of([("traceparent", text.encode())]) for text in dict.fromkeys(told)]
        known = [context for context in contexts if context is not None]
        parent, now_ns = known[0] if len(known) == len(message.changes) == 1 else None, self._traces.now_ns()
        self._traces.add(
            f"deliver {message.receiver}", self._traces.context(parent), parent, now_ns - took_ms * 1_000_000, now_ns,
            kind=SpanKind.CLIENT, links=[] if parent else known, must_keep=True,
            failed=None if outcome.kind == "delivered" else outcome.detail,
            attributes={
                "offbeat.alert.receiver": message.receiver, "offbeat.alert.id": message.id,
                "offbeat.alert.changes": len(message.changes), "offbeat.alert.outcome": outcome.kind,
                "offbeat.alert.is_repeat": message.is_repeat, "http.response.status_code": outcome.status,
            },
        )  # fmt: skip
