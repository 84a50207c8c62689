"""The benchmarks of templates still run."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.quality.templates import grouping_accuracy
from benchmarks.speed import templates as speed


def test_speed_is_measured(shared_data: Path) -> None:
    """Each kind of lines is matched, and the slowest rate is no higher than the overall one."""
    result = speed.run(Console(quiet=True), systems=["Apache", "BGL"], repeats=1)
    for kind in ("messages", "whole_lines"):
        assert [row["system"] for row in result["runs"][kind]] == ["Apache", "BGL"]
        assert 0 < result[f"{kind}_real_slowest"] <= result[f"{kind}_real"]


def test_grouping_accuracy_counts_whole_groups_only() -> None:
    """A group that lacks one of its lines, or has one too many, counts for nothing."""
    truth = [1, 1, 2, 2, 2, 3]
    assert grouping_accuracy("aabbbc", truth) == 1
    assert grouping_accuracy("aabbcd", truth) == pytest.approx(3 / 6)
    assert grouping_accuracy("aabbbb", truth) == pytest.approx(2 / 6)
    assert grouping_accuracy([None] * 6, truth) == 0
