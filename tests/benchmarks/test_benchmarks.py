"""Benchmarks still run, and worker and file agree on real sessions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.quality import hdfs, hdfs_raw, hdfs_worker


def test_the_comparison_can_fail() -> None:
    """A verdict that differs in one bit of its score, or is missing on one side, is a difference."""
    verdict = {"id": "a", "type": "record", "score": 1.0}
    assert hdfs_worker.compare([verdict], [verdict]) == []
    assert hdfs_worker.compare([verdict], [verdict | {"score": 1.0000000000000002}]) == ["a"]
    assert hdfs_worker.compare([verdict], []) == ["a"]
    assert hdfs_worker.compare([], [verdict]) == ["a"]


def test_smoke(kafka: None, tmp_path: Path) -> None:
    """`python -m benchmarks --smoke` runs every benchmark and writes its results with machine facts.

    On real sessions the worker's decisions equal `offbeat score`'s, bit by bit, and some are anomalies.
    """
    out = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", "--out", str(out)], capture_output=True, text=True,
        timeout=1_800, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] >= 1
    assert found["results"][0]["records_per_s_median"] > 0
    results = {result["benchmark"]: result for result in found["results"]}
    assert ("hdfs_worker" in results) == hdfs.available()
    assert ("hdfs_raw" in results) == hdfs_raw.available()
    if given := results.get("hdfs_worker"):
        assert given["differences"] == 0, given["examples"]
        assert given["decisions"] > 5_000
        assert given["recall"] > 0.3
        assert given["false_alarm_rate"] < 0.5 * given["recall"]
    if raw := results.get("hdfs_raw"):
        assert raw["raw_differences"] == 0, raw["raw_examples"]
