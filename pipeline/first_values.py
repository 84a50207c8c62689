"""Series that are known before anything happens, at 0.

A rate over a counter that is not there yet misses its first step, and a rule over it says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import get_args, get_type_hints

from prometheus_client import Counter

from detectors.drift_events import DriftType
from features.errors import RecordError
from pipeline.alerts.change import Outcome
from pipeline.health import Health
from pipeline.metrics import Metrics
from pipeline.settings import CostSettings, Settings

_ENDS_OF_TRAININGS = ("offered", "promoted", "kept", "refused", "failed")
_STREAM_CHANGES = ("topic_recreated", "offset_reset", "records_lost", "sessions_lost")
_FIRST_TRAININGS = ("promoted", "failed", "superseded")
_GIVEN_UP = ("exhausted", "rejected", "gone", "disabled")
_SECONDS_AN_HOUR = 3_600


def begin_worker(metrics: Metrics, settings: Settings, health: Health, partitions: Mapping[str, int]) -> None:
    """All that a worker may count, and what it says of itself.

    Parameters
    ----------
    partitions
        By topic, how many each stream is read from.
    """
    begin_process(metrics, settings.costs, health)
    for name, stream in settings.streams.items():
        _begin_stream(metrics, name)
        metrics.source_partitions.labels(name).set(partitions.get(settings.topic_of(name), 0))
        for field in stream.word_fields:
            metrics.unknown_tokens.labels(name, field)
            metrics.rare_tokens.labels(name, field)
    for change in ("opened", "updated", "merged", "closed") if settings.incidents.enabled else ():
        metrics.incident_changes.labels(change)
    for outcome in ("counted", "suppressed", "doubled", "unreadable") if settings.incidents.enabled else ():
        metrics.notices.labels(outcome)


def begin_trainer(metrics: Metrics, settings: Settings, health: Health) -> None:
    """All that a trainer may count."""
    begin_process(metrics, settings.costs, health)
    for name in settings.streams:
        metrics.retraining.labels(name).set(0)
        metrics.retrain_waits.labels(name).set(0)
        for outcome in _ENDS_OF_TRAININGS:
            metrics.retrain_jobs.labels(name, outcome)


def begin_alerts(metrics: Metrics, settings: Settings, health: Health) -> None:
    """All that a process of alerts may count."""
    begin_process(metrics, settings.costs, health)
    for outcome in ("routed", "unrouted", "unreadable"):
        metrics.alert_changes.labels(outcome)
    for receiver in settings.alerts.receivers:
        metrics.alert_seconds.labels(receiver)
        for outcome in get_args(get_type_hints(Outcome)["kind"]):
            metrics.alert_deliveries.labels(receiver, outcome)
        for reason in _GIVEN_UP:
            metrics.alerts_given_up.labels(receiver, reason)


def begin_process(metrics: Metrics, costs: CostSettings, health: Health) -> None:
    """What every process of ours says of itself."""
    metrics.build.labels(version("offbeat")).set(1)
    metrics.ready.set_function(lambda: float(health.ready()[0]))
    metrics.beat_age.set_function(health.beat_age_s)
    if costs.cpu_core_hour is not None:
        metrics.cpu_price.labels(costs.currency).set(costs.cpu_core_hour / _SECONDS_AN_HOUR)


def _begin_stream(metrics: Metrics, name: str) -> None:
    of_stream: tuple[Counter, ...] = (
        metrics.records, metrics.tombstones, metrics.late_records, metrics.early_records, metrics.dropped_samples,
        metrics.duplicates, metrics.infinite_numbers, metrics.absolved, metrics.restored, metrics.rebuilds,
        metrics.lost_records, metrics.lost_sessions, metrics.failures, metrics.warming_up,
    )  # fmt: skip
    for counter in of_stream:
        counter.labels(name)
    by_label: tuple[tuple[Counter, tuple[str, ...]], ...] = (
        (metrics.dead_letters, tuple(sorted({kind.reason for kind in RecordError.__subclasses__()}))),
        (metrics.drifts, get_args(DriftType)), (metrics.changes, _STREAM_CHANGES),
        (metrics.explained, ("full", "window", "budget", "none")), (metrics.row_lookups, ("hot", "cold", "new")),
        (metrics.auto_trainings, _FIRST_TRAININGS),
    )  # fmt: skip
    for counter, values in by_label:
        for value in values:
            counter.labels(name, value)
    for kind in ("record", "session"):
        for anomaly in ("true", "false"):
            metrics.verdicts.labels(name, kind, anomaly)
