"""The demo's script: its config, the history of its streams, and what flows live, faults at secret moments included."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Iterator
from random import Random

from pipeline import storefront_logs, storefront_metrics
from pipeline.storefront import FAULTS, Event, Storefront
from pipeline.storefront_logs import Line, ServiceLogs
from pipeline.storefront_metrics import SERVICES, Breakdown, StorefrontMetrics
from pipeline.storefront_records import FaultySessions, Record

ORDERS, LOGS, METRICS = STREAMS = ("orders", "logs", "metrics")
FAULTS_OF = {ORDERS: FAULTS, LOGS: storefront_logs.FAULTS, METRICS: storefront_metrics.FAULTS}
CONFIG = r"""broker: {broker}
app: demo
data_dir: {folder}/state
http: {{host: 127.0.0.1, port: {port}}}
topics: {{partitions: 2}}
incidents: {{by: segment, false_per_day: 1000, together: 2s, quiet: 2s}}
streams:
  orders:
    kind: events
    topic: shop.orders
    session: {{by: session_id, gap: 10s, end_when: {{action: session_closed}}}}
    time: ts
    tokens: [service, action, status]
    segment: service
    model: {{core: gru, hidden: 32}}
    promise: {{false_alarm_rate: 0.001}}
  logs:
    kind: logs
    topic: shop.logs
    format: text
    pattern: '(?P<time>\S+) (?P<level>[A-Z]+) (?P<service>\S+) req=(?P<request>\S+) (?P<message>(?P<step>\S+).*)'
    session: {{by: request, gap: 3s, end_when: {{step: answered}}}}
    time: time
    message: message
    tokens: [service]
    segment: service
    model: {{core: gru, hidden: 32}}
    promise: {{false_alarm_rate: 0.001}}
  metrics:
    kind: metrics
    topic: shop.metrics
    session: {{by: instance, gap: 10s}}
    time: ts
    tokens: [service]
    numbers: [cpu, memory, latency_ms, requests_total, network_bytes_total]
    counters: [requests_total, network_bytes_total]
    segment: service
    model: {{core: linear}}
    promise: {{false_alarm_rate: 0.001}}
"""

HISTORY_MS = 600_000
# 9,700 sessions in all. A fifth is calibrated on, just under 2,000: at a promise of one in a thousand, a session is an
# anomaly when it is stranger than every one of those. More would take longer to learn, and tell no more before 3,000.
HISTORY_SESSIONS_PER_S = 16.1
# An instance tells one thing a second whatever the load: as long again gives 18,000 samples of 300 instances.
METRICS_HISTORY_MS = 1_500_000
HISTORY_AGE_MS = 120_000  # its last session ended before this, so nothing of it reaches into the live stream
LIVE_SESSIONS_PER_S = 150.0  # about 1,100 events/s: enough to count false alarms, few enough to read them

FAULT_SESSIONS = 5
FAULT_SPREAD_MS = 1_500
# Shares of a round: the first fault needs sessions that began after the start, the last one time to be found.
FIRST_FAULT, LAST_FAULT = 0.25, 0.92
# One incident must be over before the next of its stream begins, or the two are one: they may share their service. The
# sessions are wrong within the spread, go on for two seconds, and two seconds later their incident is closed.
CALM_MS = 6_500
# One of an instance lasts, and may need seconds to show.
LAST_BREAKDOWN, BREAKDOWN_MS = 0.55, 15_000
# Faults of the other streams show in the other services; two at once in one service would be one incident.
BREAKING = tuple(service for service in SERVICES if service not in {"cart", "checkout", "payment", "billing"})

Flow = Iterator[tuple[str, Record]]  # records with their streams
Plan = Callable[[str, FaultySessions[Record]], None]  # told of a fault, and in which stream it shows


def history(seed: int, now_ms: int) -> Flow:
    """Yield healthy minutes of all streams, which ended a while ago; each stream by time."""
    end_ms = now_ms - HISTORY_AGE_MS
    shop = _storefront(seed, "history").healthy(end_ms - HISTORY_MS, HISTORY_MS, HISTORY_SESSIONS_PER_S)
    yield from _with_lines(shop, ServiceLogs(_random(seed, "history of logs")))
    metrics = StorefrontMetrics(_random(seed, "history of metrics"))
    for sample in metrics.samples(end_ms - METRICS_HISTORY_MS, METRICS_HISTORY_MS)[0]:
        yield METRICS, sample


def _with_lines(events: Iterable[Event], logs: ServiceLogs) -> Flow:
    """Yield events and the lines that services write for them, merged by time."""
    later = _Later()
    for event in events:
        yield from later.until(event.ts_ms)
        yield ORDERS, event
        later.put(LOGS, logs.lines(event))
    yield from later.until(sys.maxsize)


def live_records(seed: int, start_ms: int, round_ms: int, plan: Plan) -> Flow:
    """Yield a healthy shop's records and, in each round, all faults at moments drawn from the seed; endless, by time.

    Parameters
    ----------
    plan
        Told of each fault and its stream before the first record of its round.
    """
    healthy = _storefront(seed, "live").healthy(start_ms, sys.maxsize, LIVE_SESSIONS_PER_S)
    logs, faults, later, next_round_ms = ServiceLogs(_random(seed, "logs")), _Faults(seed), _Later(), start_ms
    for event in healthy:
        while event.ts_ms >= next_round_ms:
            yield from later.until(next_round_ms)
            faults.add_round(next_round_ms, round_ms, later, plan)
            next_round_ms += round_ms
        yield from later.until(event.ts_ms)
        yield ORDERS, event
        later.put(LOGS, logs.lines(event))


class _Later:
    """Records whose time has not come."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str, Record]] = []
        self._put = 0  # settles ties in order of arrival

    def put(self, stream: str, records: Iterable[Record]) -> None:
        for record in records:
            self._put += 1
            heapq.heappush(self._heap, (record.ts_ms, self._put, stream, record))

    def until(self, ts_ms: int) -> Flow:
        """Take out those up to that time."""
        while self._heap and self._heap[0][0] <= ts_ms:
            yield heapq.heappop(self._heap)[2:]


class _Faults:
    """Draws, round by round, what breaks when, with all that flows because of it."""

    def __init__(self, seed: int) -> None:
        self._draw = _random(seed, "schedule")
        self._shop = _storefront(seed, "faults")
        self._logs = ServiceLogs(_random(seed, "logs of faults"))
        self._metrics = StorefrontMetrics(_random(seed, "metrics"))

    def add_round(self, start_ms: int, round_ms: int, later: _Later, plan: Plan) -> None:
        """Put a round's faults, and the metrics that they may be in, among what comes later."""
        for kind, at_ms in self._moments(FAULTS_OF[ORDERS], start_ms, round_ms, LAST_FAULT):
            visits = self._shop.faulty(kind, at_ms, FAULT_SPREAD_MS, FAULT_SESSIONS, opens_ms=start_ms)
            plan(ORDERS, visits)
            later.put(ORDERS, visits.events)
            later.put(LOGS, self._lines(visits.events))
        for kind, at_ms in self._moments(FAULTS_OF[LOGS], start_ms, round_ms, LAST_FAULT):
            self._add_faulty_requests(kind, at_ms, start_ms, later, plan)
        self._add_metrics(start_ms, round_ms, later, plan)

    def _add_faulty_requests(self, kind: str, at_ms: int, opens_ms: int, later: _Later, plan: Plan) -> None:
        """Healthy visits, and the lines of their requests, of which those that authorise the payment are faulty."""
        visits, paid_ms = self._shop.purchases(at_ms, FAULT_SPREAD_MS, FAULT_SESSIONS, opens_ms)
        paid = [event for event in visits if event.action == "authorise" and event.ts_ms == paid_ms[event.session_id]]
        requests = self._logs.faulty(kind, paid)
        plan(LOGS, requests)
        later.put(ORDERS, visits)
        later.put(LOGS, requests.events)
        later.put(LOGS, self._lines(event for event in visits if event not in paid))

    def _add_metrics(self, start_ms: int, round_ms: int, later: _Later, plan: Plan) -> None:
        """A round's samples, each fault in a service of its own."""
        moments = self._moments(FAULTS_OF[METRICS], start_ms, round_ms, LAST_BREAKDOWN, calm_ms=2_000)
        services = self._draw.sample(BREAKING, len(moments))
        breakdowns = [
            Breakdown(kind, service, at_ms, min(at_ms + BREAKDOWN_MS, start_ms + round_ms))
            for (kind, at_ms), service in zip(moments, services, strict=True)
        ]
        samples, truth = self._metrics.samples(start_ms, round_ms, breakdowns)
        for instance in truth:
            plan(METRICS, instance)
        later.put(METRICS, samples)

    def _lines(self, events: Iterable[Event]) -> list[Line]:
        return [line for event in events for line in self._logs.lines(event)]

    def _moments(
        self, kinds: tuple[str, ...], start_ms: int, round_ms: int, until: float, calm_ms: int = CALM_MS
    ) -> list[tuple[str, int]]:
        """Each kind once, in any order, one in each of the equal parts of the time there is, not near its end."""
        first, last = round_ms * FIRST_FAULT, round_ms * until - FAULT_SPREAD_MS
        slot = (last - first) / len(kinds)
        order = self._draw.sample(kinds, len(kinds))
        free = max(slot - calm_ms, slot / 10)
        return [(kind, int(start_ms + first + slot * k + free * self._draw.random())) for k, kind in enumerate(order)]


def _random(seed: int, what: str) -> Random:
    return Random(f"{seed}/{what}")  # noqa: S311 (shoppers are no secret)


def _storefront(seed: int, what: str) -> Storefront:
    return Storefront(_random(seed, what))
