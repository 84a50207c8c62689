"""Benchmarks still run, and worker and file agree on real sessions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.quality import hdfs_raw, hdfs_worker


def test_worker_and_file_agree_on_hadoop_sessions(kafka_address: str, shared_data: Path) -> None:
    """500 real block sessions: the worker's decisions equal `offbeat score`'s, bit by bit, and some are anomalies."""
    result = hdfs_worker.run(Console(quiet=True), learn=1_200, play=500, promise=0.01)
    assert result["differences"] == 0, result["examples"]
    assert result["decisions"] > 5_000
    assert result["recall"] > 0.3
    assert result["false_alarm_rate"] < 0.05


def test_the_comparison_can_fail() -> None:
    """A verdict that differs in one bit of its score, or is missing on one side, is a difference."""
    verdict = {"id": "a", "type": "record", "score": 1.0}
    assert hdfs_worker.compare([verdict], [verdict]) == []
    assert hdfs_worker.compare([verdict], [verdict | {"score": 1.0000000000000002}]) == ["a"]
    assert hdfs_worker.compare([verdict], []) == ["a"]
    assert hdfs_worker.compare([], [verdict]) == ["a"]


def test_smoke(kafka_address: str, tmp_path: Path) -> None:
    """`python -m benchmarks --smoke` runs every benchmark and writes its results with machine facts."""
    out = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", "--out", str(out)], capture_output=True, text=True, timeout=300,
        check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] >= 1
    assert found["results"][0]["records_per_s_median"] > 0
    raw = [result for result in found["results"] if result["benchmark"] == "hdfs_raw"]
    assert len(raw) == hdfs_raw.available()
    assert all(result["raw_differences"] == 0 for result in raw)
