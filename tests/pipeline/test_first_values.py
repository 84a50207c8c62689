"""Series that stand on /metrics before anything has happened."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from pipeline.errors import ConfigError
from pipeline.first_values import begin_trainer, begin_worker
from pipeline.health import Health
from pipeline.metrics import Metrics
from pipeline.settings import CostSettings, Settings, parse_settings

STREAMS = {"orders": {"topic": "t", "session": {"by": "k"}, "tokens": ["action"]}}


def settings(**more: Any) -> Settings:
    return parse_settings({"broker": "localhost:9092", "streams": STREAMS} | more, {})


def test_a_worker_begins_at_zero() -> None:
    """Counters whose labels are known are 0, gauges of the process say what it is."""
    registry, health = CollectorRegistry(), Health(lambda: 7.0)
    begin_worker(Metrics(registry), settings(costs={"cpu_core_hour": 0.036}), health, {"t": 6})
    wanted: list[tuple[str, dict[str, str], float]] = [
        ("offbeat_records_total", {}, 0), ("offbeat_dead_letters_total", {"reason": "not_json"}, 0),
        ("offbeat_unknown_tokens_total", {"field": "action"}, 0), ("offbeat_lost_records_total", {}, 0),
        ("offbeat_verdicts_total", {"type": "record", "anomaly": "true"}, 0),
        ("offbeat_explained_total", {"outcome": "full"}, 0), ("offbeat_row_lookups_total", {"place": "cold"}, 0),
        ("offbeat_drift_total", {"type": "input_drift"}, 0), ("offbeat_source_partitions", {}, 6),
    ]  # fmt: skip
    for name, labels, value in wanted:
        assert registry.get_sample_value(name, {"stream": "orders"} | labels) == value, name
    assert registry.get_sample_value("offbeat_ready") == 0
    assert registry.get_sample_value("offbeat_build_info", {"version": version("offbeat")}) == 1
    assert registry.get_sample_value("offbeat_cpu_second_price", {"currency": "USD"}) == pytest.approx(1e-5)
    health.assigned(())
    assert registry.get_sample_value("offbeat_ready") == 1


def test_a_trainer_begins_at_zero() -> None:
    """Each end that a training can have is 0; without a price there is none."""
    registry = CollectorRegistry()
    begin_trainer(Metrics(registry), settings(), Health())
    for outcome in ("offered", "promoted", "kept", "refused", "failed"):
        labels = {"stream": "orders", "outcome": outcome}
        assert registry.get_sample_value("offbeat_retrain_jobs_total", labels) == 0
    assert registry.get_sample_value("offbeat_retraining", {"stream": "orders"}) == 0
    assert registry.get_sample_value("offbeat_cpu_second_price", {"currency": "USD"}) is None


def test_a_wrong_price() -> None:
    """A price below nothing and a currency that is none are refused by their keys."""
    with pytest.raises(ConfigError, match=r"costs\.cpu_core_hour is -1; expected"):
        settings(costs={"cpu_core_hour": -1})
    with pytest.raises(ConfigError, match=r"costs\.currency is 'dollars'; expected text that matches"):
        settings(costs={"cpu_core_hour": 1, "currency": "dollars"})
    with pytest.raises(ValidationError):
        CostSettings(cpu_core_hour=float("nan"))
