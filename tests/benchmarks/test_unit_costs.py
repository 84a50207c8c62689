"""What `offbeat plan` multiplies can be measured, and stages are told apart rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.slice_workloads import KINDS, learn, one_of_each, records_of
from benchmarks.speed import stages
from benchmarks.speed.unit_costs import Run, told_apart
from pipeline.plan_command import Asked, print_plan
from pipeline.unit_costs import read_unit_costs

ROOT = Path(__file__).parents[2]


def test_costs_are_told_apart() -> None:
    """Runs that are sums of known costs give these back; a cost that comes out below 0 is left out of the sum."""

    def spent(records: float, rows: float, kb: float, checkpoints: float) -> Run:
        us = 12 * records + 8 * rows + 3 * kb + 2_000 * checkpoints
        return Run(us, records, rows, kb, checkpoints)

    runs = [spent(1e5, 10, 12, 4), spent(1e5, 9e4, 1e5, 40), spent(2e5, 1.8e5, 5e5, 60), spent(1e5, 4e3, 4e3, 900)]
    found = told_apart(runs)
    assert found == pytest.approx(
        {"record_us": 12, "row_saved_us": 8, "row_saved_kb_us": 3, "checkpoint_us": 2_000}, rel=1e-6
    )
    cheaper = [Run(one.processor_us - 2_500 * one.checkpoints, *(one[1:])) for one in runs]
    assert told_apart(cheaper)["checkpoint_us"] == 0.0


def test_unit_costs_can_be_measured(kafka: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m benchmarks unit-costs --smoke` writes a file that `offbeat plan --costs` plans by."""
    out = tmp_path / "costs.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "unit-costs", "--smoke", "--out", str(out)], capture_output=True,
        text=True, timeout=1800, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    costs = read_unit_costs(out)
    assert costs.record_us > 1
    assert costs.of_core("gru", 64).record_us > 0.1
    assert costs.anomaly_bytes > costs.decision_bytes > 100
    print_plan(Asked(1e5, 10**6), None, None, out, as_json=True)
    assert json.loads(capsys.readouterr().out)["costs"]["machine"] == costs.machine


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_line_judges_each_record(kind: str, tmp_path: Path) -> None:
    """Every kind's records go through decoding, judging and saving, with room for a tenth of the sessions."""
    settings, learned = learn(KINDS[kind], tmp_path)
    line = stages.Line(settings, learned, tmp_path / "rows", 100)
    line.run(one_of_each(KINDS[kind], 300))
    for keys in stages.KEYS:
        line.run(records_of(KINDS[kind], 1, 400, 300, keys, line.state.next_offset))
    assert line.state.records == 1_500
    assert line.state.next_offset == 1_500
    assert all(spent > 0 for stage, spent in line.watch.spent.items() if stage != "judge")
    assert set(line.told) >= {"decisions"}
    line.close()


def test_stages_make_the_total() -> None:
    """A workload's stages add up to about its total, each in microseconds a record."""
    found = stages.run(1_000, 200, 1, Console(quiet=True), kinds=["1 token"], keys=["zipf"], hot=[1.0])
    of = found["1 token, zipf, 100% hot"]
    assert sum(of[stage] for stage in stages.STAGES) == pytest.approx(of["total"])
    assert 1 < of["total"] < 5_000


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["speed-what"], "there is no speed-what; there are speed-whole-path"),
        (["speed-decode", "quality-hdfs"], "go with each other only"),
        (["unit-costs", "quality-hdfs"], "stands alone"),
    ],
)
def test_names_are_held_to_each_other(names: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown names, and names whose results have different forms together, are refused with a sentence."""
    with pytest.raises(SystemExit) as ended:
        main(names)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_scenario_of_speed_runs_by_name(tmp_path: Path) -> None:
    """`python -m benchmarks speed-decode --smoke` runs that alone, and writes its result."""
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "speed-decode", "--smoke", "--out", str(out)], capture_output=True,
        text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [result["benchmark"] for result in json.loads(out.read_text())["results"]] == ["decode"]
