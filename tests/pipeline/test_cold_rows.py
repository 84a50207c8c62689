"""Rows on disk: what a process that is killed leaves of them, and one that ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cold_rows import ColdRows
from tests.kafka import PATIENCE_S

WRITES, ROWS = 3_000, 20
# Each write has rows of its own, sets a timer and takes the one before away; then the process is killed, or closes.
WRITER = """\
import os, sys
from pathlib import Path
from pipeline.cold_rows import ColdRows, timer_key
folder, writes, rows, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
cold = ColdRows(folder)
cold.begin("changelog")
for n in range(1, writes + 1):
    changes = {b"s%d.%d" % (n, row): os.urandom(1_000) for row in range(rows)}
    cold.write(changes, n, n, [timer_key((n, str(n)))], [timer_key((n - 1, str(n - 1)))])
if end == "kill":
    os._exit(9)
cold.close()
"""


def left_by(folder: Path, writes: int, end: str) -> tuple[int, set[int], list[int]]:
    """The position of what a process left, of which writes there are rows, and which timers."""
    subprocess.run(
        [sys.executable, "-c", WRITER, str(folder), str(writes), str(ROWS), end], check=False, timeout=PATIENCE_S
    )
    cold = ColdRows(folder)
    try:
        found = [name.split(".") for name, _ in cold.sessions()]
        timers, _ = cold.timers(b"", 2**62, None)
        assert len(found) == ROWS * len({n for n, _ in found}), "a write is there with all its rows, or not at all"
        assert cold.changelog_id == "changelog"
        assert cold.in_step_ms == cold.position
        return cold.position, {int(n) for n, _ in found}, [due for due, _ in timers]
    finally:
        cold.close()


@pytest.mark.parametrize(("writes", "is_flushed"), [(WRITES, True), (3, False)])
def test_a_kill_leaves_rows_and_timers_of_one_position(tmp_path: Path, writes: int, is_flushed: bool) -> None:
    """What was flushed is whole: every row up to the position, none beyond, and the timers of that moment."""
    position, rows, timers = left_by(tmp_path / "rows", writes, "kill")
    assert (position > 0) == is_flushed
    assert position < writes, "else this shows nothing"
    assert rows == set(range(1, position + 1))
    assert timers == [position] * (position > 0)


def test_a_closed_database_lacks_nothing(tmp_path: Path) -> None:
    """What was not flushed yet is when it closes, so that nothing has to be replayed."""
    assert left_by(tmp_path / "rows", 3, "close") == (3, {1, 2, 3}, [3])
