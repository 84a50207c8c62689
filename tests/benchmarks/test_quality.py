"""The scenarios of quality still run, and a measure that falls is told."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.quality import bgl, hdfs, nab, smd
from benchmarks.quality.outcome import Outcome, failures, mean_of, read_tolerances, table
from benchmarks.quality.scenarios import SCENARIOS
from benchmarks.quality.trial import Setup, cores

# One small training each: a smaller promise would take four, to have enough to calibrate with.
QUICK = {"model.hidden": 16, "model.max_epochs": 4, "promise.false_alarm_rate": 0.1}


def outcome(**measures: float) -> Outcome:
    return Outcome("quality-hdfs", "gru", measures, {"train_s": 1.0})


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_a_scenario_runs(name: str, shared_data: Path) -> None:
    """On a few rows of its data each scenario gives every measure that its floors are about."""
    found = SCENARIOS[name].run(Setup(smoke=True, changes=QUICK))
    assert found.scenario == name
    assert not found.whole
    assert found.cost["scored"] > 100
    assert all(math.isfinite(value) for value in found.measures.values())
    for floors in read_tolerances().get(name, {}).values():
        assert floors.keys() <= found.measures.keys()


def test_the_command_writes_and_compares(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A result carries measures, setup and machine, and is the base of the next run, which equals it."""
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    words = ["benchmarks", "quality-hdfs", "--smoke", "--check"]
    words += [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    for out, more in ((first, []), (second, ["--base", str(first)])):
        monkeypatch.setattr("sys.argv", [*words, "--out", str(out), *more])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
    one, other = (json.loads(path.read_text())["results"][0] for path in (first, second))
    assert one["measures"] == other["measures"]
    assert one["setup"]["changes"] == QUICK
    assert json.loads(first.read_text())["machine"]["cores"] >= 1
    assert "gru, base" in capsys.readouterr().out


def test_a_measure_below_its_floor_fails() -> None:
    """Below, missing and NaN are failures; on the floor is not, and a part of a scenario is held to nothing."""
    floors = {"quality-hdfs": {"gru": {"f1": 0.5}}}
    assert failures(outcome(f1=0.5), floors) == []
    assert "f1 is 0.4999, at least 0.5" in failures(outcome(f1=0.4999), floors)[0]
    assert len(failures(outcome(recall=1.0), floors)) == len(failures(outcome(f1=math.nan), floors)) == 1
    assert failures(Outcome("quality-hdfs", "gru", {"f1": 0.1}, {}, whole=False), floors) == []
    assert failures(Outcome("quality-hdfs", "other", {"f1": 0.1}, {}), floors) == []


def test_floors_are_of_scenarios_and_cores_that_exist() -> None:
    """The tolerance table names nothing that is not there."""
    floors = read_tolerances()
    assert floors.keys() <= SCENARIOS.keys()
    assert {core for of in floors.values() for core in of} <= set(cores())


def test_base_stands_beside_head() -> None:
    """Each measure is shown with its base and the change; what the base lacks stays empty."""
    screen = Console(width=100)
    with screen.capture() as shown:
        screen.print(table([outcome(f1=0.75, recall=1.0)], [outcome(f1=0.5).as_json()]))
    text = shown.get()
    assert "+0.25" in text
    assert "gru, base" in text


def test_a_part_that_is_not_there_is_named() -> None:
    """`--only` names parts of the scenario, and those that there are are listed."""
    with pytest.raises(ValueError, match="no part '9-9'; there are 1-1, 1-2"):
        Setup(only=("9-9",)).parts(["1-1", "1-2"])
    assert Setup(only=("1-2",)).parts(["1-1", "1-2"]) == ["1-2"]
    assert mean_of([{"a": 1.0}, {"a": 3.0}]) == {"a": 2.0}


def test_hdfs_is_judged_at_each_promise(shared_data: Path) -> None:
    """Alarms at a promise are the p-values up to it; a normal session stands for many."""
    found = hdfs.judge([0.0004, 0.0008, 0.5, 0.0015], [9.0, 8.0, 1.0, 7.0], [1, 1, 0, 0])
    assert (found["recall@0.0005"], found["recall@0.001"]) == (0.5, 1.0)
    assert found["precision@0.001"] == 1.0
    assert found["kept@0.002"] == 0.5
    assert found["kept low@0.002"] < 0.5 < found["kept high@0.002"]
    assert found["precision@0.002"] < 0.001
    assert found["auc_pr"] == 1.0


def test_smd_takes_the_least_score_where_there_is_none(shared_data: Path) -> None:
    """A machine is judged on every minute, and a perfect score is perfect."""
    labels = np.zeros(400, np.int8)
    labels[200:220] = 1
    scores = labels + np.linspace(0, 0.1, 400)
    scores[:3] = np.nan
    found = smd.judge(scores, labels > 0, np.zeros((400, 1), np.float32), labels)
    assert found["auc_pr"] == found["f1"] == 1.0
    assert found["kept"] == 0.0


def test_bgl_is_judged_by_windows(shared_data: Path) -> None:
    """A window is alarmed if one of its lines is; lines of unknown label are in no window."""
    labels, alarmed = np.zeros(401, np.int8), np.zeros(401, bool)
    labels[[0, 150]] = -1, 1  # line 0 is in no window, so 1 begins the first
    alarmed[[161, 390]] = True
    found = bgl.judge(alarmed.astype(float), alarmed, labels)
    assert (found["precision@20"], found["recall@20"]) == (0.0, 0.0)  # 161 begins the next
    assert (found["precision@100"], found["recall@100"]) == (0.5, 1.0)
    assert found["kept"] == 2 / 399


def test_nab_is_judged_by_the_official_rules(shared_data: Path) -> None:
    """A window hit at its begin is worth 100, silence 0, and alarms in probation do not count."""
    times = [f"t{i}" for i in range(200)]
    series = {"a/x": nab.Series(times, list(range(200)), np.zeros(200), [("t100", "t119")])}
    silent, hit = np.zeros(200), np.zeros(200)
    hit[[5, 100]] = 1.0
    assert series["a/x"].probation == 30
    assert nab.judge(series, {"a/x": (silent, silent > 0)})["calibrated"] == pytest.approx(0)
    found = nab.judge(series, {"a/x": (hit, hit > 0)})
    assert (found["official"], found["calibrated"]) == (pytest.approx(100), pytest.approx(100))
    assert found["alarmed"] == 1 / 170
