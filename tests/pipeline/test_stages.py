"""A slice's time, stage by stage."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from pipeline.metrics import Metrics
from pipeline.stages import STAGES, StageClock


def test_laps_add_up_to_the_slice() -> None:
    """Each stage is told once a slice, pieces of a slice add up, and what lies between slices is nobody's."""
    registry, now = CollectorRegistry(), 0.0
    clock = StageClock(Metrics(registry).stages, "orders", lambda: now)
    now = 50.0
    clock.lap("score")  # sessions that silence ended, before any slice
    clock.begin(now)
    for seconds, stage in ((1, "wait"), (2, "decode"), (3, "score"), (4, "emit"), (5, "score"), (6, "emit")):
        now += seconds
        clock.lap(stage)
    clock.end()
    found = {
        stage: [
            registry.get_sample_value(f"offbeat_stage_seconds_{part}", {"stream": "orders", "stage": stage})
            for part in ("sum", "count")
        ]
        for stage in STAGES
    }
    assert found == {"wait": [1, 1], "decode": [2, 1], "score": [8, 1], "emit": [10, 1]}
