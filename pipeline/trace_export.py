"""Spans on their way to a collector: a bounded queue and a thread, so that no collector holds up a worker.

Nothing of OpenTelemetry is imported before the config is known to ask for traces.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.logs import get_logger
from pipeline.metrics import Metrics
from pipeline.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from pipeline.traces import Traces

_MOST = 4_096  # spans that wait, some 10 MB; from half of it on only those that must be kept are taken
_BATCH = 512
_LONGEST = 100  # characters of a traceparent; today's have 55
_EVERY_S = 1.0
_TIMEOUT_S = 5.0  # for a batch, tries again included
_STOP_S = 3.0

log = get_logger()


def trace_of(headers: Iterable[tuple[str, bytes | None]] | None) -> str:
    """A message's `traceparent` as it stands there, to be kept; empty where there is none that could be right."""
    found = [value for name, value in headers or () if name == "traceparent" and value is not None]
    return found[-1].decode() if found and len(found[-1]) <= _LONGEST and found[-1].isascii() else ""


@contextmanager
def tracing(settings: Settings, role: str, instance: str, metrics: Metrics) -> Iterator[Traces | None]:
    """What makes spans while the process runs; None where the config asks for none.

    Raises
    ------
    ConfigError
        OpenTelemetry is not installed, or a header's secret is missing.
    """
    wanted = settings.traces
    if wanted.endpoint is None:
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from pipeline.traces import Traces
    except ImportError as error:
        message = (
            f"the config has traces.endpoint, but OpenTelemetry is not installed ({error.name} is missing): run "
            "pip install 'offbeat[traces]', or leave traces out"
        )
        raise ConfigError(message) from None
    headers = {name: secret.read(os.environ) for name, secret in wanted.headers.items()}
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it reports each try; we say when it begins and ends
    url = f"{wanted.endpoint.rstrip('/')}/v1/traces"
    export = SpanExport(OTLPSpanExporter(url, headers=headers, timeout=_TIMEOUT_S), metrics, wanted.endpoint)
    service = {
        "service.name": settings.app, "service.namespace": "offbeat", "service.instance.id": f"{role}/{instance}",
        "service.version": version("offbeat"),
    }  # fmt: skip
    export.start()
    log.info("traces are exported", endpoint=wanted.endpoint, ratio=wanted.ratio)
    try:
        yield Traces(export.put, service, wanted.ratio)
    finally:
        export.stop()


class SpanExport:
    """Takes spans at any pace, and exports them at the collector's; what finds no room is dropped and counted."""

    def __init__(self, exporter: SpanExporter, metrics: Metrics, endpoint: str) -> None:
        self._exporter, self._endpoint = exporter, endpoint
        counts = metrics.spans
        self._exported, self._dropped, self._failed = (counts.labels(o) for o in ("exported", "dropped", "failed"))
        self._waiting: deque[ReadableSpan] = deque()
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    def start(self) -> None:
        """Export from now on."""
        self._thread.start()

    def put(self, span: ReadableSpan, *, must_keep: bool = False) -> None:
        """Take a span, or drop it; never waits."""
        if len(self._waiting) >= (_MOST if must_keep else _MOST // 2):
            self._dropped.inc()
            return
        self._waiting.append(span)
        if len(self._waiting) >= _BATCH:
            self._wanted.set()

    def stop(self) -> None:
        """Export what waits, bounded in time."""
        self._stopped.set()
        self._wanted.set()
        self._thread.join(_STOP_S)
        self._exporter.shutdown()  # ends tries under way
        self._dropped.inc(len(self._waiting))

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wanted.wait(_EVERY_S)
            self._wanted.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                if not self._export(batch) and self._stopped.is_set():
                    return

    def _export(self, batch: list[ReadableSpan]) -> bool:
        try:
            exported = self._exporter.export(batch).name == "SUCCESS"
        except Exception as error:  # spans are worth no worker
            log.warning("spans could not be encoded", why=repr(error)[:200])
            exported = False
        (self._exported if exported else self._failed).inc(len(batch))
        if exported is self._is_failing:
            self._is_failing = not exported
            if exported:
                log.info("traces are exported again", endpoint=self._endpoint)
            else:
                log.warning("traces cannot be exported", endpoint=self._endpoint, lost="counted in offbeat_spans_total")
        return exported
