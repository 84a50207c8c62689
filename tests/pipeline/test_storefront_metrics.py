from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from random import Random

import pytest

from pipeline.storefront_metrics import (
    FAULTS,
    HOST,
    LEAK,
    SERVICES,
    SLOW,
    STUCK,
    USUAL,
    Breakdown,
    Sample,
    StorefrontMetrics,
)

START_MS = 1_760_000_000_000
SPAN_MS = 600_000
COUNTERS = {"requests_total", "network_bytes_total"}


def by_instance(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    instances: dict[str, list[Sample]] = {}
    for sample in samples:
        instances.setdefault(sample.session_id, []).append(sample)
    return instances


@pytest.fixture(scope="module")
def healthy() -> list[Sample]:
    return StorefrontMetrics(Random(7)).samples(START_MS, SPAN_MS)[0]


def broken(kind: str, service: str, seed: int = 1) -> tuple[list[Sample], list[Sample]]:
    """The samples of a minute with one breakdown, and those that are wrong by the truth told."""
    breakdown = Breakdown(kind, service, START_MS + 30_000, START_MS + 45_000)
    samples, truth = StorefrontMetrics(Random(seed)).samples(START_MS, 60_000, [breakdown])
    assert [fault.kind for fault in truth] == [kind]
    wrong_ms = truth[0].wrong_from_ms
    assert [s for s in samples if s.session_id in wrong_ms] == truth[0].events
    return samples, [s for s in truth[0].events if s.ts_ms >= wrong_ms[s.session_id]]


def test_same_seed_same_samples(healthy: list[Sample]) -> None:
    """Two generators with equal seeds make the same samples, in one span or in several; another seed makes others."""
    assert StorefrontMetrics(Random(7)).samples(START_MS, SPAN_MS) == (healthy, [])
    assert StorefrontMetrics(Random(8)).samples(START_MS, SPAN_MS)[0] != healthy
    again, parts = StorefrontMetrics(Random(7)), StorefrontMetrics(Random(7))
    for k in range(3):
        span = START_MS + 20_000 * k, 20_000
        assert again.samples(*span) == parts.samples(*span)


def test_every_place_is_sampled_once_a_second(healthy: list[Sample]) -> None:
    """Nine services and three hosts give a sample each second, in order of time, without a gap between instances."""
    assert all(a.ts_ms <= b.ts_ms for a, b in pairwise(healthy))
    for service in USUAL:
        samples = [s for s in healthy if s.service == service]
        assert len(samples) == SPAN_MS // 1_000 * (3 if service == HOST else 1)
        if service != HOST:
            assert {b.ts_ms - a.ts_ms for a, b in pairwise(samples)} == {1_000}


def test_instances_live_a_minute_and_count_from_their_start(healthy: list[Sample]) -> None:
    """An instance lives for 30 to 90 s; its counter grows with every sample, and begins with a second's worth."""
    instances = by_instance(healthy)
    assert len(instances) == pytest.approx(12 * SPAN_MS / 60_000, rel=0.15)
    for samples in instances.values():
        (counter,) = COUNTERS & samples[0].numbers.keys()
        counts = [sample.numbers[counter] for sample in samples]
        usual = USUAL[samples[0].service].per_s * (1e6 if counter == "network_bytes_total" else 1)
        assert 0 < counts[0] < 2 * usual
        assert all(0 < b - a < 2.5 * usual for a, b in pairwise(counts))
        assert len(samples) <= 90
        if samples[-1].ts_ms < healthy[-1].ts_ms - 1_000:
            assert len(samples) >= 30


def test_healthy_numbers_stay_near_what_is_usual(healthy: list[Sample]) -> None:
    """No healthy sample is half or one and a half times its service's usual; percentages are some."""
    for sample in healthy:
        usual, numbers = USUAL[sample.service], sample.numbers
        assert 0.5 < numbers["cpu"] / usual.cpu < 1.5
        assert 0.8 < numbers["memory"] / usual.memory < 1.25
        assert ("latency_ms" in numbers) == (sample.service != HOST)
        if sample.service != HOST:
            assert 0.5 < numbers["latency_ms"] / usual.latency_ms < 1.6


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("service", SERVICES)
def test_breakdown_hits_one_instance_until_it_is_replaced(kind: str, service: str) -> None:
    """All that is wrong is of one instance that lived before; from its end on another, healthy one is there."""
    samples, wrong = broken(kind, service)
    assert len({s.session_id for s in wrong}) == 1
    assert {s.service for s in wrong} == {service}
    assert START_MS + 30_000 <= wrong[0].ts_ms < START_MS + 31_000
    assert START_MS + 44_000 <= wrong[-1].ts_ms < START_MS + 45_000
    mine = [s for s in samples if s.service == service]
    before, after = mine[mine.index(wrong[0]) - 5], mine[mine.index(wrong[-1]) + 1]
    assert before.session_id == wrong[0].session_id
    assert after.session_id != wrong[0].session_id
    assert after.numbers["memory"] < 1.25 * USUAL[service].memory
    assert after.numbers["latency_ms"] < 1.6 * USUAL[service].latency_ms


@pytest.mark.parametrize("service", SERVICES)
def test_each_fault_is_what_its_name_says(service: str) -> None:
    """Memory fills up, answers slow down, and a counter stands still; the other numbers stay as they are."""
    usual = USUAL[service]
    leaking, slow, stuck = ([s.numbers for s in broken(kind, service)[1]] for kind in (LEAK, SLOW, STUCK))
    assert leaking[-1]["memory"] > leaking[0]["memory"] + 30
    assert leaking[-1]["memory"] <= 100
    assert all(n["latency_ms"] > 2 * usual.latency_ms for n in slow)
    assert len({n["requests_total"] for n in stuck}) == 1
    for numbers in (*leaking, *stuck):
        assert numbers["latency_ms"] < 1.6 * usual.latency_ms
    for numbers in (*slow, *stuck):
        assert numbers["memory"] < 1.25 * usual.memory
    for fault in (leaking, slow):
        assert all(b["requests_total"] > a["requests_total"] for a, b in pairwise(fault))


def test_breakdown_outside_the_span_is_none() -> None:
    """What breaks before or after the span is not in it."""
    for from_ms in (START_MS - 30_000, START_MS + 90_000):
        samples, truth = StorefrontMetrics(Random(1)).samples(
            START_MS, 60_000, [Breakdown(SLOW, "web", from_ms, from_ms + 15_000)]
        )
        assert truth == []
        assert len(samples) == 12 * 60


def test_sample_is_json_keyed_by_instance(healthy: list[Sample]) -> None:
    """The value is one JSON object with time, instance, service and numbers; the key is the instance."""
    for sample in healthy[:100]:
        body = json.loads(sample.value)
        assert sample.key.decode() == body["instance"] == sample.session_id
        assert (body["ts"], body["service"]) == (sample.ts_ms, sample.service)
        assert body.keys() - {"ts", "instance", "service"} == sample.numbers.keys()
