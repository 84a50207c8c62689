"""Help for tests of `offbeat alerts`: receivers that listen on this machine, changes to tell, and the process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.kafka import Child, Stack, wait_until

SECRET = "whsec_" + "b2ZmYmVhdC10ZXN0cy1vZmZiZWF0LXRlc3RzLTEyMzQ="  # nobody's
FAST = {"timeout": "10s", "retries": ["100ms"] * 20, "rate_limit": "100000/s"}


@dataclass(frozen=True)
class Got:
    """A request as it came."""

    name: str  # webhook-id
    body: dict[str, Any]
    at: float
    answered: int

    @property
    def changes(self) -> list[str]:
        """Ids of what it tells."""
        return [change["id"] for change in self.body["data"]["changes"]]


@dataclass(frozen=True)
class Answer:
    """What to answer; `late_s` before it. Status 0 says nothing at all."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    late_s: float = 0.0


class Receiver(ThreadingHTTPServer):
    """Takes webhooks; `answer` decides by the name of the message."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[str], Answer] = lambda _: Answer()) -> None:
        self.answer, self.got, self.lock = answer, list[Got](), threading.Lock()
        self.opened = 0
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    def settings(self, **more: Any) -> dict[str, Any]:
        """Its section in a config."""
        of = {"type": "webhook", "url": self.url, "secrets": ["env:HOOK_SECRET"], "allow_networks": ["127.0.0.0/8"]}
        return of | FAST | more

    @property
    def delivered(self) -> list[Got]:
        """What it took, in its order."""
        with self.lock:
            return [got for got in self.got if 200 <= got.answered < 300]

    def changes(self) -> list[str]:
        """Ids of the changes that it took, in order."""
        return [change for got in self.delivered for change in got.changes]

    def close(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients are killed here."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Take it down and answer."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.headers["webhook-id"]
        answer = self.server.answer(name)
        got = Got(name, body, time.monotonic(), answer.status)
        if answer.late_s:
            time.sleep(answer.late_s)
        with self.server.lock:
            self.server.got.append(got)
        if answer.status == 0:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def receiver(answer: Callable[[str], Answer] = lambda _: Answer()) -> Iterator[Receiver]:
    """One that listens meanwhile."""
    made = Receiver(answer)
    try:
        yield made
    finally:
        made.close()


def incident(name: str, revision: int, kind: str = "", *, stream: str = "orders", size: int = 0) -> dict[str, Any]:
    """A message of the incidents topic."""
    return {
        "type": kind or ("opened" if revision == 1 else "updated"), "id": name, "revision": revision,
        "severity": "high", "start_ms": 1_700_000_000_000, "last_ms": 1_700_000_000_000 + revision,
        "end_ms": None, "merged_into": None, "anomalies": revision, "suppressed": 0, "withheld": 0,
        "streams": [stream], "segments": [], "sessions": 1, "session_names": ["s" * size], "contributors": [],
        "causes": [], "examples": [], "summary": f"{name} has changed {revision} times.", "scope": "",
        "detected_ms": 1_700_000_000_000,
    }  # fmt: skip


def configure(stack: Stack, receivers: dict[str, dict[str, Any]], **more: Any) -> None:
    """A config that tells all receivers all, or as `routes` say."""
    alerts = {"start": "earliest", "receivers": receivers, "routes": [{"receivers": list(receivers)}]} | more
    stack.configure(alerts=alerts)


def tell(stack: Stack, messages: list[dict[str, Any]]) -> None:
    """Write to the incidents topic, keyed as workers do."""
    stack.produce([(m["id"].encode(), json.dumps(m).encode()) for m in messages], f"{stack.name}.incidents")


class Alerts(Child):
    """`offbeat alerts`."""

    STARTS, OPENS = "alerts start", "outbox opened"

    def __init__(self, stack: Stack, instance: str = "a0", *, forked: bool = True) -> None:
        super().__init__(stack, instance, ["alerts"], {"HOOK_SECRET": SECRET}, forked=forked)

    def value(self, series: str) -> float:
        """A metric's value; 0 where there is none."""
        found = [line.rsplit(" ", 1)[1] for line in self.metrics().splitlines() if line.startswith(series + " ")]
        return float(found[0]) if found else 0.0

    def wait_for(self, series: str, value: float) -> None:
        """Wait until a metric has that value: it follows what a receiver saw, once the outbox has it."""
        wait_until(lambda: self.value(series) == value, f"{series} to be {value}")

    def rss_mb(self) -> float:
        """Resident memory."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024
