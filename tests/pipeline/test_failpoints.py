"""Fail points: a named one kills, by a signal and at the time asked for; a wrong name is told."""

from __future__ import annotations

import subprocess
import sys

import pytest

PASS_BY = "from pipeline.failpoints import passed; [(passed('close/begun'), print(i, flush=True)) for i in range(4)]"


def run(point: str | None, code: str = PASS_BY) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))} | ({} if point is None else {"FAIL_POINT": point})
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("point", "lived"), [(None, 4), ("close/begun", 0), ("close/begun:3", 2), ("close/begun:9", 4), ("close/saved", 4)]
)
def test_it_dies_where_it_is_told(point: str | None, lived: int) -> None:
    """By SIGKILL, at the Nth passing; not elsewhere."""
    done = run(point)
    assert done.stdout.split() == [str(i) for i in range(lived)]
    assert done.returncode == (0 if lived == 4 else -9)


def test_a_wrong_name_is_told() -> None:
    """A point that does not exist would never be reached, so it is refused with those there are."""
    done = run("close/soon")
    assert done.returncode == 1
    assert "FAIL_POINT names no point: close/soon; there are open/fenced" in done.stderr
