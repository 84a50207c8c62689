"""`offbeat storefront`: a made-up storefront that sells around the clock, and breaks when it is told to."""

from __future__ import annotations

import heapq
import signal
import sys
import threading
from collections.abc import Iterator
from random import Random

from pipeline.clients import Clients
from pipeline.demo_traffic import Sender, now_ms
from pipeline.logs import configure_logs, get_logger
from pipeline.settings import Settings
from pipeline.storefront import FAULTS, Event, Storefront

STREAM = "orders"
FAULT_SESSIONS, FAULT_SPREAD_MS = 8, 10_000  # of each kind
_LEAD_MS = 15_000  # sessions are healthy at first, and need some time to get to the fault
_TURN_S = 0.05

log = get_logger()


class Feed:
    """Visits by their time: healthy ones at a steady rate, and faulty ones among them once it is broken.

    Two of the same seed, start and breaks make the same events.
    """

    def __init__(self, seed: int, start_ms: int, sessions_per_s: float) -> None:
        self._faults = Storefront(Random(f"{seed}/faults"))  # noqa: S311 (shoppers are no secret)
        healthy = Storefront(Random(f"{seed}/feed"))  # noqa: S311
        self._healthy = healthy.healthy(start_ms, sys.maxsize, sessions_per_s)
        self._next = next(self._healthy)
        self._broken: list[tuple[int, int, Event]] = []
        self._put = 0  # settles ties in order of arrival

    def break_it(self, at_ms: int) -> int:
        """Let each kind of fault hit some sessions from a little later on; returns when the last of them is over."""
        for kind in FAULTS:
            visits = self._faults.faulty(kind, at_ms + _LEAD_MS, FAULT_SPREAD_MS, FAULT_SESSIONS, opens_ms=at_ms)
            for event in visits.events:
                self._put += 1
                heapq.heappush(self._broken, (event.ts_ms, self._put, event))
        return max(event.ts_ms for _, _, event in self._broken)

    def until(self, ts_ms: int) -> Iterator[Event]:
        """Take out the events up to that time, in order of time."""
        while True:
            is_broken = bool(self._broken) and self._broken[0][0] < self._next.ts_ms
            event = self._broken[0][2] if is_broken else self._next
            if event.ts_ms > ts_ms:
                return
            if is_broken:
                heapq.heappop(self._broken)
            else:
                self._next = next(self._healthy)
            yield event


def run_storefront(settings: Settings, *, seed: int, sessions_per_s: float) -> None:
    """Send events to the stream `orders` as their times come, until SIGTERM or Ctrl-C; SIGUSR1 breaks the storefront.

    Raises
    ------
    OffbeatError
        The config has no such stream, or the broker does not take events.
    """
    configure_logs()
    topic, clients = settings.stream(STREAM).topic, Clients(settings)
    clients.admin()
    sender, stopped, broken = Sender(clients, {STREAM: topic}), threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopped.set())
    signal.signal(signal.SIGUSR1, lambda _number, _frame: broken.set())
    feed = Feed(seed, now_ms(), sessions_per_s)
    log.info("storefront opens", topic=topic, sessions_per_s=sessions_per_s)
    while not stopped.wait(_TURN_S):
        if broken.is_set():
            broken.clear()
            over_ms = feed.break_it(now_ms())
            log.info("storefront breaks", faults=list(FAULTS), over_after_s=round((over_ms - now_ms()) / 1000))
        for event in feed.until(now_ms()):
            sender.send(STREAM, event)
    sender.flush()
    log.info("storefront closes")
