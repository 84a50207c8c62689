"""A collector of traces that listens on this machine and reads OTLP over HTTP, as OpenTelemetry defines it."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Context = tuple[str, str]  # ids of trace and span, in hexadecimal


class Collector(ThreadingHTTPServer):
    """Takes spans; answers with `status`, and `late_s` after it was asked."""

    daemon_threads = True

    def __init__(self, status: int = 200, late_s: float = 0.0) -> None:
        self.status, self.late_s, self.requests = status, late_s, list[ExportTraceServiceRequest]()
        self.asked = list[dict[str, str]]()  # headers of requests
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """What the config names."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def spans(self) -> list[Span]:
        """All that it took."""
        return [
            span for request in list(self.requests) for of in request.resource_spans for scope in of.scope_spans
            for span in scope.spans
        ]  # fmt: skip

    def named(self, prefix: str) -> list[Span]:
        """Spans whose names begin so."""
        return [span for span in self.spans if span.name.startswith(prefix)]

    def handle_error(self, request: object, client_address: object) -> None:
        """Workers are killed here."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Collector
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take spans down and answer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()} | {"path": self.path})
        time.sleep(self.server.late_s)
        if self.server.status == 200:
            self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def context_of(span: Span) -> Context:
    """A span's own."""
    return span.trace_id.hex(), span.span_id.hex()


def parent_of(span: Span) -> Context | None:
    """Its parent's; None for the first of a trace."""
    return (span.trace_id.hex(), span.parent_span_id.hex()) if span.parent_span_id else None


def links_of(span: Span) -> set[Context]:
    """What it links to."""
    return {(link.trace_id.hex(), link.span_id.hex()) for link in span.links}


def attributes_of(span: Span) -> dict[str, Any]:
    """Its attributes, of which none is a list."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def said_by(headers: Any) -> Context | None:
    """The context that a message's `traceparent` says; it has one at most."""
    found = [value.decode() for name, value in headers or () if name == "traceparent"]
    assert len(found) <= 1
    if not found:
        return None
    version, trace, span, flags = found[0].split("-")
    assert (version, flags) == ("00", "01")
    return trace, span
