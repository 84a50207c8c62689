"""Samples of the storefront's services and hosts, one a second from each running instance.

Every service and every host is one instance at a time. It lives for a minute or so and is then replaced by a new one,
whose counters begin at 0: an instance is a session. What a sample holds wavers around what is usual for its service;
it is drawn for itself, not counted from the shop's events, whose few faults no sum over a second would show.

Three faults show here alone: nobody's order goes wrong and no line says so. Each ends when the instance is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import orjson

from pipeline.storefront_records import FaultySessions

INTERVAL_MS = 1_000
HOST = "host"
_HOSTS = 3

LEAK = "an instance leaks memory"
SLOW = "answers take 4 times as long"
STUCK = "request counter stands still"
FAULTS = (LEAK, SLOW, STUCK)

_LIFE_MS = (30_000, 90_000)
_CALM_MS = 5_000  # an instance has lived so long when a fault hits it
_LEAK_A_SECOND, _SLOWER = 3.0, 4.0  # in points; times
_LOAD_KEPT, _LOAD_MOVES = 0.8, 0.02  # from second to second
_CPU_WAVERS, _MEMORY_WAVERS, _LATENCY_WAVERS = 0.05, 0.01, 0.06


@dataclass(frozen=True, slots=True)
class _Usual:
    """CPU and memory in percent of the limits, latency in ms, requests a second; of a host MB a second."""

    cpu: float
    memory: float
    latency_ms: float
    per_s: float


USUAL = {
    "web": _Usual(34, 47, 16, 170), "search": _Usual(46, 55, 34, 200), "catalog": _Usual(40, 51, 19, 310),
    "cart": _Usual(29, 44, 17, 190), "account": _Usual(27, 42, 24, 140), "checkout": _Usual(31, 46, 21, 180),
    "shipping": _Usual(26, 41, 28, 130), "payment": _Usual(37, 49, 35, 150), "billing": _Usual(28, 43, 30, 140),
    HOST: _Usual(43, 57, 0, 24),
}  # fmt: skip
SERVICES = tuple(service for service in USUAL if service != HOST)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one instance measured at one moment; counters count from its start."""

    ts_ms: int
    session_id: str
    service: str
    numbers: dict[str, float]

    @property
    def key(self) -> bytes:
        """The Kafka key: the instance."""
        return self.session_id.encode()

    @property
    def value(self) -> bytes:
        """The Kafka value, JSON."""
        return orjson.dumps({"ts": self.ts_ms, "instance": self.session_id, "service": self.service, **self.numbers})

    @property
    def ends_session(self) -> bool:
        """No instance says that it is its last."""
        return False


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What goes wrong in which service, from when until its instance is replaced."""

    kind: str
    service: str
    from_ms: int
    until_ms: int


@dataclass(slots=True)
class _Instance:
    name: str
    until_ms: int
    memory: float
    load: float = 1.0
    counted: float = 0.0
    leaked: float = 0.0
    breakdown: Breakdown | None = None  # it is to have

    def wrong(self, ts_ms: int) -> str | None:
        """What is broken by then."""
        return None if self.breakdown is None or ts_ms < self.breakdown.from_ms else self.breakdown.kind


class StorefrontMetrics:
    """Makes samples; two with equal generators make the same ones.

    Examples
    --------
    >>> samples, _ = StorefrontMetrics(Random(1)).samples(1_700_000_000_000, 2_000)
    >>> len(samples), sorted(samples[0].numbers)
    (24, ['cpu', 'latency_ms', 'memory', 'requests_total'])
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._places = [*SERVICES, *[HOST] * _HOSTS]
        self._instances: list[_Instance | None] = [None] * len(self._places)

    def samples(
        self, start_ms: int, duration_ms: int, breakdowns: Sequence[Breakdown] = ()
    ) -> tuple[list[Sample], list[FaultySessions[Sample]]]:
        """The samples of a span in order of time, and the truth about each breakdown that was in it.

        A span goes on where the one before has ended. Of a service, breakdowns must not overlap.
        """
        made: list[Sample] = []
        for place, service in enumerate(self._places):
            phase_ms = place * INTERVAL_MS // len(self._places)  # not all at the same moment
            for ts_ms in range(start_ms + phase_ms, start_ms + duration_ms, INTERVAL_MS):
                instance = self._instance(place, service, ts_ms)
                for each in breakdowns:
                    if each.service == service and each.from_ms - _CALM_MS <= ts_ms < each.until_ms:
                        instance.breakdown, instance.until_ms = each, each.until_ms
                made.append(self._sample(instance, service, ts_ms))
        made.sort(key=lambda sample: sample.ts_ms)
        return made, [truth for each in breakdowns if (truth := _truth(each, made)) is not None]

    def _sample(self, instance: _Instance, service: str, ts_ms: int) -> Sample:
        wrong = instance.wrong(ts_ms)
        draw, usual = self._random, USUAL[service]
        instance.load += (1 - _LOAD_KEPT) * (1 - instance.load) + draw.gauss(0, _LOAD_MOVES)
        instance.load = max(instance.load, 0.5)
        instance.leaked += _LEAK_A_SECOND if wrong == LEAK else 0.0
        came = max(0.0, draw.gauss(usual.per_s * instance.load, usual.per_s**0.5))
        instance.counted += 0.0 if wrong == STUCK else came
        latency_ms = usual.latency_ms * instance.load * draw.lognormvariate(0, _LATENCY_WAVERS)
        numbers: dict[str, float] = {
            "cpu": round(min(usual.cpu * instance.load * draw.lognormvariate(0, _CPU_WAVERS), 100.0), 1),
            "memory": round(min(instance.memory * draw.lognormvariate(0, _MEMORY_WAVERS) + instance.leaked, 100.0), 1),
        }
        if service == HOST:
            numbers["network_bytes_total"] = int(instance.counted * 1e6)
        else:
            numbers["latency_ms"] = round(latency_ms * (_SLOWER if wrong == SLOW else 1.0), 2)
            numbers["requests_total"] = int(instance.counted)
        return Sample(ts_ms, instance.name, service, numbers)

    def _instance(self, place: int, service: str, ts_ms: int) -> _Instance:
        """The one that runs in a place; a new one where the last has had its time."""
        instance = self._instances[place]
        if instance is None or ts_ms >= instance.until_ms:
            name = f"{service}-{self._random.getrandbits(32):08x}"
            memory = USUAL[service].memory * self._random.lognormvariate(0, 0.03)
            instance = _Instance(name, ts_ms + self._random.randrange(*_LIFE_MS), memory)
            self._instances[place] = instance
        return instance


def _truth(breakdown: Breakdown, samples: list[Sample]) -> FaultySessions[Sample] | None:
    """All samples of the instance that was hit, and since when they are wrong; None where none is."""
    span_ms = range(breakdown.from_ms, breakdown.until_ms)
    hit = next((s for s in samples if s.service == breakdown.service and s.ts_ms in span_ms), None)
    if hit is None:
        return None
    events = [sample for sample in samples if sample.session_id == hit.session_id]
    return FaultySessions(breakdown.kind, events, {hit.session_id: hit.ts_ms})
