"""Base against head: real processes over two commits of a repository made here, whose benchmarks know their figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.compare import figures_of, held_together, main

QUIET = Console(quiet=True)
MAIN = """
import argparse, json
from pathlib import Path
from benchmarks.speed.scenarios import SPEED
parser = argparse.ArgumentParser()
parser.add_argument("name")
parser.add_argument("--out", type=Path)
parser.add_argument("--smoke", action="store_true")
options = parser.parse_args()
options.out.write_text(json.dumps({"results": [SPEED[options.name]()]}))
"""
OF_BASE = """
SPEED = {
    "speed-decode": lambda: {"benchmark": "decode", "records": 100, "us": 4.0, "gone": 1.0, "ok": True},
    "speed-old": lambda: {},
}
"""
OF_HEAD = """
SPEED = {
    "speed-decode": lambda: {"benchmark": "decode", "records": 100, "us": 3.0, "come": {"p50": 2.0}, "ok": True},
    "speed-new": lambda: {"benchmark": "new", "us": 1.0},
    "speed-fails": lambda: 1 / 0,
}
"""


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits, the first of them tagged `before`."""
    root = tmp_path / "repository"
    speed = root / "benchmarks" / "speed"
    speed.mkdir(parents=True)
    (root / "benchmarks" / "__init__.py").touch()
    (speed / "__init__.py").touch()
    (root / "benchmarks" / "__main__.py").write_text(MAIN)
    git(root, "init", "--quiet")
    for content, tag in ((OF_BASE, "before"), (OF_HEAD, "after")):
        (speed / "scenarios.py").write_text(content)
        git(root, "add", "-A")
        git(root, "commit", "--quiet", "-m", tag)
        git(root, "tag", tag)
    return root


def test_both_sides_run_their_own_code(repository: Path, tmp_path: Path) -> None:
    """Medians and ratios are of each side's own figures; what one lacks is named, and no worktree is left."""
    out = tmp_path / "compared.json"
    assert main(["before", "speed-decode", "speed-new", "--out", str(out)], repository, QUIET) == 0
    found = json.loads(out.read_text())
    of = found["figures"]["speed-decode: decode.us"]
    assert (of["base"], of["head"]) == ([4.0] * 5, [3.0] * 5)
    assert (of["base_median"], of["head_median"], of["ratio"], of["least"], of["most"]) == (4.0, 3.0, 0.75, 0.75, 0.75)
    assert set(found["figures"]) == {"speed-decode: decode.us"}  # numbers of records never differ
    assert found["only_base"] == ["speed-decode: decode.gone"]
    assert found["only_head"] == ["speed-decode: decode.come.p50", "speed-new: new.us"]
    assert found["base"] == git(repository, "rev-parse", "before")
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_changed_tree_is_what_is_compared(repository: Path, tmp_path: Path) -> None:
    """The head is the tree as it stands, changes that nobody committed included, and says so."""
    (repository / "benchmarks" / "speed" / "scenarios.py").write_text(OF_HEAD.replace("3.0", "8.0"))
    out = tmp_path / "compared.json"
    assert main(["before", "speed-decode", "--smoke", "--times", "1", "--out", str(out)], repository, QUIET) == 0
    found = json.loads(out.read_text())
    assert found["figures"]["speed-decode: decode.us"]["ratio"] == 2.0
    assert found["head"].endswith("with changes")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nowhere", "speed-decode"], 2, "there is no such commit"),
        (["before", "speed-what"], 2, "there is no speed-what; there are speed-decode, speed-fails, speed-new"),
        (["before", "speed-new"], 2, "only the head knows speed-new: name benchmarks that both know"),
        (["after", "speed-fails"], 1, "speed-fails failed in"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_told(
    arguments: list[str], code: int, sentence: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown commit or name, a name of one side only and a run that fails each end with a sentence."""
    assert main(arguments, repository, QUIET) == code
    assert sentence in capsys.readouterr().err
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_too_few_rounds_are_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer than five rounds are no medians."""
    with pytest.raises(SystemExit):
        main(["before", "--times", "3"], repository, QUIET)
    assert "take 5 or more" in capsys.readouterr().err


def test_figures_have_the_names_of_their_keys() -> None:
    """Nested numbers are named by their keys, and results of quality by scenario and core; texts and runs are none."""
    results = [
        {"scenario": "quality-x", "setup": {"core": "gru", "seed": 0}, "measures": {"f1": 0.5}, "warnings": ["w"]},
        {"benchmark": "b", "text": "t", "rates": [1.0], "none": None},
    ]
    assert figures_of(results) == {"quality-x/gru.measures.f1": 0.5}


def test_a_figure_that_a_round_lacks_is_not_compared() -> None:
    """A figure that one side has in fewer rounds stands with those that only one has; a base of 0 has no ratio."""
    found = held_together({"a": [1.0, 2.0], "b": [0.0, 0.0]}, {"a": [1.0], "b": [1.0, 1.0], "c": [3.0, 3.0]})
    assert (found["only_base"], found["only_head"]) == (["a"], ["a", "c"])
    assert (found["figures"]["b"]["ratio"], found["figures"]["b"]["least"]) == (None, None)
