"""Compiled kernels are kept by the sources they were compiled from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.compiled import digest_of, keep_by_sources
from tests.kafka import PATIENCE_S

# A child that compiles one small kernel.
COMPILE = """\
import pipeline.compiled
import numpy as np
from models.lanes import take_turns
take_turns(np.zeros(1, np.int32), 1)
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for package in ("features", "models", "detectors"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "kernels.py").write_text("one = 1\n")
    return tmp_path


def test_any_change_of_a_source_is_another_digest(sources: Path) -> None:
    """A change that keeps a file's size and time, a new file and a renamed one all tell."""
    path = sources / "models" / "kernels.py"
    before, stat = digest_of(sources), path.stat()
    path.write_text("one = 2\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = digest_of(sources)
    path.rename(path.with_name("others.py"))
    assert len({before, changed, digest_of(sources)}) == 3


@pytest.mark.parametrize("named", [True, False])
def test_kernels_are_kept_there(tmp_path: Path, named: bool) -> None:
    """A process writes what it compiles below the folder it was given, or the user's, under the digest."""
    env = {k: v for k, v in os.environ.items() if k not in {"NUMBA_CACHE_DIR", "XDG_CACHE_HOME"}}
    given = {"NUMBA_CACHE_DIR": str(tmp_path)} if named else {"XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COMPILE], env=env | given, check=True, timeout=PATIENCE_S)
    kept = list(tmp_path.rglob("*take_turns*.nbc"))
    base = tmp_path if named else tmp_path / "offbeat" / "kernels"
    assert kept
    assert all(path.is_relative_to(base / digest_of(Path(__file__).parents[2])) for path in kept)


def test_a_child_keeps_to_its_parents_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The digest is appended once, however many processes deep."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    keep_by_sources()
    first = os.environ["NUMBA_CACHE_DIR"]
    keep_by_sources()
    assert os.environ["NUMBA_CACHE_DIR"] == first


def test_a_user_without_a_home_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set where there is no place; numba finds one of its own."""
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home(cls: type[Path]) -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", classmethod(no_home))
    keep_by_sources()
    assert "NUMBA_CACHE_DIR" not in os.environ
