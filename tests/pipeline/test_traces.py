"""Traces: a real worker on a real broker, and a collector that listens, or does not."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from benchmarks.kafka import new_producer
from pipeline.errors import ConfigError
from pipeline.metrics import Metrics
from pipeline.settings import parse_settings
from pipeline.trace_export import _MOST, SpanExport, tracing
from pipeline.traces import MOST_LINKS, Traces, as_headers, named, producer_of, producers_of
from tests.alerting import Alerts, Answer, incident, receiver
from tests.collector import Collector, Context, attributes_of, context_of, links_of, parent_of, said_by
from tests.kafka import PATIENCE_S, Stack, WorkerProcess, as_records, by_id, shop_events, wait_until

Headers = list[tuple[str, bytes]]
WRONG = ["", "00-0-0-00", f"00-{'0' * 32}-{'1' * 16}-01", f"ff-{'1' * 32}-{'2' * 16}-01", "ü" * 55, "00" * 5_000]


def context(i: int) -> Context:
    """What the producer of record `i` was doing."""
    return f"{i + 1:032x}", f"{i + 7:016x}"


def headers_of(i: int) -> Headers:
    """Of four records one was not recorded by its producer, and one has no headers, or wrong ones."""
    if i % 4 == 3:
        return [] if i % 8 == 3 else [("traceparent", WRONG[i % len(WRONG)].encode())]
    trace, span = context(i)
    return [("traceparent", f"00-{trace}-{span}-0{i % 4 != 2:d}".encode()), ("tracestate", f"shop={i}".encode())]


def produce(stack: Stack, records: Iterable[tuple[bytes, bytes]]) -> None:
    producer = new_producer(stack.address, partitioner="murmur2_random")
    for i, (key, value) in enumerate(records):
        producer.produce(stack.source, value, key=key, headers=headers_of(i))
        producer.poll(0)
    assert producer.flush(60) == 0


def run_with(stack: Stack, collector: Collector, ratio: float, **settings: Any) -> WorkerProcess:
    """A worker that has scored 60 sessions and was stopped, with traces going to the collector."""
    token = stack.folder / "token"
    token.write_text("Bearer of-no-one\n")
    traces = {"endpoint": collector.url, "ratio": ratio, "headers": {"Authorization": f"file:{token}"}}
    stack.configure(traces=traces, **settings)
    produce(stack, as_records(shop_events(3, 60)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        wait_until(lambda: stack.read_json("incidents"), "an incident")
        # One that ends waits for its last spans three seconds at most.
        wait_until(lambda: contexts_told(stack) <= set(map(context_of, collector.spans)), "the spans of what was told")
        whole = sum(stack.ends().values()) if ratio == 1.0 else 0
        wait_until(lambda: sum(map(records_of, collector.spans)) >= whole, "the spans of all slices")
        assert worker.stop() == 0
    return worker


def contexts_told(stack: Stack) -> set[Context | None]:
    """Of each message about an anomaly or an incident the span it names."""
    return {said_by(m.headers()) for topic in ("anomalies", "incidents") for m in stack.read(f"{stack.name}.{topic}")}


def records_of(span: Span) -> int:
    """How many a slice's span stands for."""
    return int(attributes_of(span).get("messaging.batch.message_count", 0))


def contexts_at(stack: Stack) -> dict[tuple[int, int], Context | None]:
    """By partition and offset, the context a right header says."""
    found = dict[tuple[int, int], Context | None]()
    for m in stack.read(stack.source):
        known = producer_of(m.headers())
        at = (m.partition(), m.offset())
        found[at] = None if known is None else (f"{known.trace_id:032x}", f"{known.span_id:016x}")
    return found


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_each_anomaly_has_its_spans_though_no_slice_has(delivery: str, stack: Stack) -> None:
    """At ratio 0: a span in the producer's trace that its message names, a checkpoint; attributes as agreed on."""
    with Collector() as collector:
        run_with(stack, collector, 0.0, delivery=delivery)
        spans = {context_of(span): span for span in collector.spans}
        asked = collector.asked
    produced, messages = contexts_at(stack), stack.read(f"{stack.name}.anomalies")
    assert len({m.key() for m in messages}) > 10
    continued, process = 0, list[Context]()
    for message in messages:
        body = json.loads(message.value())
        span = spans[said_by(message.headers()) or ("", "")]
        process.append(context_of(span))
        assert (span.name, span.kind) == (f"process {stack.source}", Span.SPAN_KIND_CONSUMER)
        assert span.start_time_unix_nano < span.end_time_unix_nano
        source = body["source"]
        about = attributes_of(span)
        assert about.pop("offbeat.p_value") == pytest.approx(body["p_value"])
        assert about == {
            "messaging.system": "kafka", "messaging.operation.name": "process", "messaging.operation.type": "process",
            "messaging.destination.name": stack.source, "messaging.consumer.group.name": stack.name,
            "messaging.destination.partition.id": str(source["partition"]), "messaging.kafka.offset": source["offset"],
            "offbeat.stream": "orders", "offbeat.anomaly.id": body["id"], "offbeat.anomaly.type": body["type"],
            "offbeat.severity": body["severity"],
        }  # fmt: skip
        producer = produced[source["partition"], source["offset"]]
        if body["type"] == "record" or parent_of(span) is not None:
            assert parent_of(span) == producer
            continued += producer is not None
        state = dict(message.headers()).get("tracestate")
        assert (state is not None) == (parent_of(span) is not None)
        assert span.trace_state.encode() == (state or b"")
    assert continued > 10
    checkpoints = [span for span in spans.values() if span.name == "checkpoint"]
    reached = {parent_of(span) for span in checkpoints}.union(*(links_of(span) for span in checkpoints))
    assert set(process) & reached
    assert all(len(span.links) <= MOST_LINKS for span in checkpoints)
    names = {f"process {stack.source}", "checkpoint", f"send {stack.name}.incidents"}
    assert {span.name for span in spans.values()} == names
    check_incidents(stack, spans, {json.loads(m.value())["id"]: said_by(m.headers()) for m in messages})
    assert {(a["authorization"], a["path"]) for a in asked} == {("Bearer of-no-one", "/v1/traces")}


def check_incidents(stack: Stack, spans: dict[Context, Span], told: dict[str, Context | None]) -> None:
    """Each change of an incident is a span of the incident's trace, and links to the anomalies that it shows."""
    traces = dict[str, set[str]]()
    for message in stack.read(f"{stack.name}.incidents"):
        body, said = json.loads(message.value()), said_by(message.headers())
        span = spans[said or ("", "")]
        assert parent_of(span) is None
        traces.setdefault(body["id"], set()).add(span.trace_id.hex())
        assert links_of(span) == {told[example["id"]] for example in body["examples"]}
        about = attributes_of(span)
        assert (about["offbeat.incident.id"], about["offbeat.incident.change"]) == (body["id"], body["type"])
    assert traces
    assert all(len(ids) == 1 for ids in traces.values())


def test_slices_have_spans_that_link_to_producers(stack: Stack) -> None:
    """At ratio 1 each record is in one slice's span; its steps are below it, and a checkpoint is after it."""
    with Collector() as collector:
        worker = run_with(stack, collector, 1.0)
        spans = collector.spans
        resource = collector.requests[0].resource_spans[0].resource
    produced = contexts_at(stack)
    slices = [s for s in spans if "messaging.batch.message_count" in attributes_of(s)]
    assert sum(map(records_of, slices)) == len(produced)
    recorded = {c for i, c in ((int(c[0], 16) - 1, c) for c in produced.values() if c is not None) if i % 4 != 2}
    for span in slices:
        about, links = attributes_of(span), links_of(span)
        low, last = about["offbeat.offset.first"], about["offbeat.offset.last"]
        p = int(about["messaging.destination.partition.id"])
        here = {c for (at, offset), c in produced.items() if at == p and low <= offset <= last} & recorded
        assert links <= here
        assert len(links) == len(span.links) == min(MOST_LINKS, len(here))
        below = {s.name for s in spans if parent_of(s) == context_of(span)}
        assert {"score", "emit"} <= below
        assert parent_of(span) is None
    covered = set[Context]()
    for span in spans:
        if span.name == "checkpoint":
            covered |= links_of(span) | {parent_of(span) or ("", "")}
    assert {context_of(s) for s in slices} <= covered
    anomalies = [s for s in spans if "messaging.kafka.offset" in attributes_of(s)]
    of_slices = {context_of(s) for s in slices}
    assert sum(bool(links_of(s) & of_slices) for s in anomalies) > 10
    about = {a.key: a.value.string_value for a in resource.attributes}
    assert (about["service.name"], about["service.instance.id"]) == (stack.name, "worker/w0")
    assert any(line["event"] == "traces are exported" for line in worker.log())


@pytest.mark.parametrize("kind", ["dead", "slow", "refusing"])
def test_no_collector_holds_up_or_changes_anything(kind: str, stack: Stack) -> None:
    """Whether it is away, answers too late or with errors: verdicts are those without traces, and it is said once."""
    with Collector(503 if kind == "refusing" else 200, 120.0 if kind == "slow" else 0.0) as collector:
        if kind == "dead":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        else:
            endpoint = collector.url
        stack.configure(traces={"endpoint": endpoint, "ratio": 1.0})
        produce(stack, as_records(shop_events(3, 60)))
        with WorkerProcess(stack) as worker:
            stack.wait_until_scored()
            wait_until(lambda: 'offbeat_spans_total{outcome="failed"}' in worker.metrics(), "the metric")
            wait_until(lambda: failed_of(worker) > 0, "spans that failed")
            began = time.monotonic()
            assert worker.stop() == 0
            assert time.monotonic() - began < 60
    told = [line for line in worker.log() if line["event"] == "traces cannot be exported"]
    assert len(told) == 1
    assert not any("raw" in line for line in worker.log())
    with_traces = by_id(stack.read_json("decisions"))
    stack.run("score", "-s", "orders", "--input", written(stack), "--output", "verdicts.jsonl")
    lines = map(json.loads, (stack.folder / "verdicts.jsonl").read_text().splitlines())
    without = {v["id"]: v for v in lines if v.get("ended") != "input"}
    assert {i: v["p_value"] for i, v in with_traces.items()} == {i: v["p_value"] for i, v in without.items()}


def failed_of(worker: WorkerProcess) -> float:
    line = next(li for li in worker.metrics().splitlines() if li.startswith('offbeat_spans_total{outcome="failed"}'))
    return float(line.rsplit(" ", 1)[1])


def written(stack: Stack) -> str:
    stack.write_back(stack.folder / "records.jsonl")
    return str(stack.folder / "records.jsonl")


def test_a_kill_changes_no_traceparent(stack: Stack) -> None:
    """An anomaly told twice, before and after a kill -9, says the same span of the same trace both times."""
    with Collector() as collector:
        stack.configure(traces={"endpoint": collector.url, "ratio": 0.0}, checkpoint_interval="60s")
        with WorkerProcess(stack) as worker:
            worker.wait_ready(stack.partitions)
            produce(stack, as_records(shop_events(3, 60)))
            wait_until(lambda: len(stack.read_json("anomalies")) > 10, "anomalies")
            worker.kill()
        stack.configure(traces={"endpoint": collector.url, "ratio": 0.0})
        with WorkerProcess(stack) as worker:
            stack.wait_until_scored()
            assert worker.stop() == 0
    found = dict[str, set[Context | None]]()
    for m in stack.read(f"{stack.name}.anomalies"):
        body = json.loads(m.value())
        if body["type"] == "record":
            found.setdefault(body["id"], set()).add(said_by(m.headers()))
    assert len(stack.read(f"{stack.name}.anomalies")) > len(found) > 10
    assert all(len(contexts) == 1 for contexts in found.values())


def send_incidents(stack: Stack, count: int) -> None:
    """So many incidents, in one partition; the first has no context, the others have their number's."""
    producer = new_producer(stack.address)
    for n in range(count):
        trace, span = context(n)
        headers = [("traceparent", f"00-{trace}-{span}-01".encode())] if n else []
        body = json.dumps(incident(f"orders/i{n}", 1)).encode()
        producer.produce(f"{stack.name}.incidents", body, key=b"same", headers=headers)
    assert producer.flush(30) == 0


def told_by(spans: Iterable[Span]) -> set[Context]:
    """The contexts that they are below, or link to."""
    return set[Context]().union(*(links_of(span) | {parent_of(span) or context(1)} for span in spans))


def test_an_alert_is_in_the_trace_of_what_it_tells(stack: Stack) -> None:
    """Each attempt has a span: below the change's, or linked to all changes of a group; failures say so."""
    moods = [500]
    with (
        Collector() as collector,
        receiver(lambda _: Answer(moods.pop() if moods else 204)) as ops,
        receiver() as many,
    ):
        grouped = {"receivers": ["many"], "group_by": ["stream"], "group_wait": "2s"}
        routes = [{"receivers": ["ops"], "continue": True}, grouped]
        receivers = {"ops": ops.settings(), "many": many.settings()}
        stack.configure(
            alerts={"start": "earliest", "receivers": receivers, "routes": routes},
            traces={"endpoint": collector.url, "ratio": 0.0},
        )
        with Alerts(stack) as process:
            process.wait_ready(stack.partitions)
            send_incidents(stack, 3)
            wait_until(lambda: len(ops.delivered) == 3 and len(many.changes()) == 3, "deliveries")
            wait_until(lambda: len(collector.named("deliver ops")) == 4, "a span of each attempt")
            wait_until(lambda: {context(1), context(2)} <= told_by(collector.named("deliver many")), "those of groups")
            assert process.stop() == 0
        spans, groups = collector.named("deliver ops"), collector.named("deliver many")
    about = [attributes_of(span) for span in spans]
    assert sorted(a["offbeat.alert.outcome"] for a in about) == ["delivered"] * 3 + ["retry"]
    parents = {a["offbeat.alert.id"]: parent_of(span) for a, span in zip(about, spans, strict=True)}
    assert sorted(parents.values(), key=str) == sorted([context(1), context(2), None], key=str)
    assert all(parent_of(span) == parents[a["offbeat.alert.id"]] for a, span in zip(about, spans, strict=True))
    failed = next(span for span, a in zip(spans, about, strict=True) if a["offbeat.alert.outcome"] == "retry")
    assert (failed.status.code, attributes_of(failed)["http.response.status_code"]) == (Status.STATUS_CODE_ERROR, 500)
    assert told_by(groups) == {context(1), context(2)}
    assert any(len(links_of(span)) == 2 for span in groups)


# --- without a broker ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate", "x"]), st.none() | st.binary(max_size=80))))
def test_any_headers_are_read_or_passed_over(headers: list[tuple[str, bytes | None]]) -> None:
    """Whatever stands in headers fails nothing."""
    found = producer_of(headers)
    assert found is None or found.is_valid


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_a_context_is_written_as_it_is_read(trace: int, span: int, sampled: bool) -> None:
    """What was said is read, and what goes on from it is in the same trace, and recorded."""
    read = producer_of([("traceparent", f"00-{trace:032x}-{span:016x}-0{sampled:d}".encode())])
    assert read is not None
    assert (read.trace_id, read.span_id, read.trace_flags.sampled) == (trace, span, sampled)
    after = named("process", "orders/shop/0/7/record", read)
    assert said_by(as_headers(after)) == (f"{trace:032x}", f"{after.span_id:016x}")
    assert after == named("process", "orders/shop/0/7/record", read)
    assert after.span_id != named("process", "orders/shop/0/8/record", read).span_id


def test_wrong_headers_are_none() -> None:
    """Each of them, and several at once of one name: the last counts."""
    assert [producer_of([("traceparent", text.encode())]) for text in WRONG] == [None] * len(WRONG)
    assert producer_of(None) is None


def test_links_are_few_and_different() -> None:
    """A hundred records of one producer's span are one link, and a hundred spans are 32."""

    class Record:
        def __init__(self, i: int) -> None:
            self.headers = [("traceparent", f"00-{1:032x}-{i + 1:016x}-01".encode())]

    assert len(producers_of([Record(1)] * 100)) == 1
    assert len(producers_of([Record(i) for i in range(100)])) == MOST_LINKS


class Stuck(SpanExporter):
    """Takes nothing until it is shut down."""

    def __init__(self) -> None:
        import threading

        self.over, self.asked = threading.Event(), 0

    def export(self, spans: Any) -> SpanExportResult:
        """Wait."""
        self.asked += len(spans)
        self.over.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Wait no more."""
        self.over.set()


def test_the_queue_is_bounded_and_keeps_room_for_anomalies() -> None:
    """Ten times what fits: memory is bounded, slices leave room to anomalies, and each span is counted."""
    registry = CollectorRegistry()
    exporter = Stuck()
    export = SpanExport(exporter, Metrics(registry), "http://nowhere")
    span = ReadableSpan("x")
    for _ in range(10 * _MOST):
        export.put(span)
    assert len(export._waiting) == _MOST // 2
    for _ in range(10 * _MOST):
        export.put(span, must_keep=True)
    assert len(export._waiting) == _MOST
    export.start()
    wait_until(lambda: exporter.asked > 0, "an export")
    export.stop()
    export._thread.join(PATIENCE_S)

    def count(outcome: str) -> float:
        return registry.get_sample_value("offbeat_spans_total", {"outcome": outcome}) or 0.0

    assert count("exported") == 0
    assert count("dropped") + count("failed") == 20 * _MOST


def test_a_share_of_slices_is_sampled() -> None:
    """About the share that was asked for; none at 0, all at 1."""
    for ratio, least, most in ((0.0, 0, 0), (0.2, 1_700, 2_300), (1.0, 10_000, 10_000)):
        traces = Traces(lambda *_, **__: None, {}, ratio)
        assert least <= sum(traces.is_sampled() for _ in range(10_000)) <= most


def settings(**traces: Any) -> Any:
    stream = {"topic": "t", "tokens": ["a"], "session": {"by": "s", "gap": "5s"}}
    return parse_settings({"traces": traces, "streams": {"orders": stream}}, {})


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for traces and lacks OpenTelemetry is told how to get it."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'offbeat\[traces\]'"):
        tracing(settings(endpoint="http://127.0.0.1:4318"), "worker", "w0", Metrics(CollectorRegistry())).__enter__()


@pytest.mark.parametrize(
    ("traces", "sentence"),
    [
        ({"endpoint": "127.0.0.1:4318"}, "a URL such as https://HOST/PATH was expected"),
        ({"endpoint": "http://me:word@host"}, "a URL with a password in it would be shown"),
        ({"ratio": 2}, "traces.ratio is 2; expected"),
        ({"headers": {"Authorization": "Bearer word"}}, "a secret is written as env:NAME or file:PATH"),
    ],
)
def test_wrong_settings_are_told(traces: dict[str, Any], sentence: str) -> None:
    """One sentence each, in which no secret stands."""
    with pytest.raises(ConfigError) as told:
        settings(**traces)
    assert sentence in str(told.value)
    assert "word" not in str(told.value).replace("a password", "")


def test_a_missing_secret_is_told() -> None:
    """The sentence names it before anything runs."""
    wanted = settings(endpoint="http://127.0.0.1:4318", headers={"Authorization": "env:OFFBEAT_NO_SUCH_SECRET"})
    with pytest.raises(ConfigError, match="OFFBEAT_NO_SUCH_SECRET is not set"):
        tracing(wanted, "worker", "w0", Metrics(CollectorRegistry())).__enter__()


def test_without_traces_nothing_is_imported() -> None:
    """A worker's modules, and what it enters without `traces`, bring no module of OpenTelemetry."""
    code = (
        "import sys, pipeline.worker, pipeline.app\n"
        "from prometheus_client import CollectorRegistry\n"
        "from pipeline.metrics import Metrics\nfrom pipeline.settings import parse_settings\n"
        "stream = {'topic': 't', 'tokens': ['a'], 'session': {'by': 's', 'gap': '5s'}}\n"
        "with pipeline.worker.tracing(parse_settings({'streams': {'o': stream}}, {}), 'worker', 'w', "
        "Metrics(CollectorRegistry())) as traces:\n    assert traces is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=PATIENCE_S)
