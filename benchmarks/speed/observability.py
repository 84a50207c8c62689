"""What metrics and traces cost: processor time of a worker with both, with metrics only, and with neither.

All read the same records, each with a `traceparent`. The promise is the default, .001; each anomaly has its span.
Workers run one after the other, each kind in each round, so what else the machine does meets all of them. Time counts
from "worker starts" until a checkpoint covers the last record. With neither, what counts and measures does nothing, and
no page is fetched; else the page is fetched every second, some fifteen times as often as Prometheus would.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks.stack import Stack, WorkerProcess, send
from benchmarks.workloads import zipf_events
from pipeline.broker import LocalBroker

_WITHOUT_METRICS = """
from prometheus_client import Counter, Gauge, Histogram

for kind in (Counter, Gauge, Histogram):
    kind.labels = lambda self, *_, **__: self
    kind.inc = kind.set = kind.observe = kind.set_function = lambda self, value=1: None
    kind.remove = kind.remove_by_labels = lambda self, *_: None
from pipeline.cli import main
main()
"""
_PLAIN = "from pipeline.cli import main\nmain()\n"
_PROMISE = {"promise": {"false_alarm_rate": 0.001}}
_KINDS = ("neither", "metrics", "both")


def run(records: int, sessions: int, rounds: int, screen: Console) -> dict[str, Any]:
    """Microseconds of processor time a record, and what metrics and traces add, as shares of that with neither."""
    took: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    with (
        tempfile.TemporaryDirectory() as name,
        LocalBroker(Path(name) / "broker", ephemeral=True) as broker,
        _collector() as collector,
    ):
        source = Stack.make(broker.address, Path(name) / "source", "source").source
        send(broker.address, source, zipf_events(1, records, sessions), _headers)
        for i in range(rounds):
            for kind in _KINDS[i % 3 :] + _KINDS[: i % 3]:
                traces = {"traces": {"endpoint": collector, "ratio": 0.01}} if kind == "both" else {}
                app = f"{kind}{i}"
                stack = Stack.make(broker.address, Path(name) / app, app, source=source, stream=_PROMISE, **traces)
                took[kind].append(_once(stack, records, kind) / records * 1e6)
            screen.print("  " + "  ".join(f"{kind} {took[kind][-1]:.2f} us a record" for kind in _KINDS))
    shares = {kind: median(a / b - 1 for a, b in zip(took[kind], took["neither"], strict=True)) for kind in _KINDS[1:]}
    screen.print(f"  metrics add {shares['metrics']:.1%}, metrics and traces {shares['both']:.1%} (goal: under 5 %)")
    return {
        "benchmark": "observability", "records": records, "rounds": rounds, "us_a_record": took,
        "metrics_add": shares["metrics"], "metrics_and_traces_add": shares["both"], "goal": 0.05,
    }  # fmt: skip


def _headers(i: int) -> list[tuple[str, bytes]]:
    return [("traceparent", f"00-{i + 1:032x}-{i + 1:016x}-01".encode())]


def _once(stack: Stack, records: int, kind: str) -> float:
    """Seconds of processor time."""
    code = _WITHOUT_METRICS if kind == "neither" else _PLAIN
    with WorkerProcess(stack, command=[sys.executable, "-P", "-c", code]) as worker:
        worker.wait_started()
        before, looked_at = worker.processor_s(), time.monotonic()

        def is_done() -> bool:
            nonlocal looked_at
            if kind != "neither" and time.monotonic() - looked_at >= 1.0:
                looked_at = time.monotonic()
                worker.metric("offbeat_records_total")
            return stack.saved() >= records

        worker.wait_for(is_done)
        took = worker.processor_s() - before
        worker.stop()
    return took


@contextmanager
def _collector() -> Iterator[str]:
    """One that takes all and keeps nothing; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
