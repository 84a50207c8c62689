"""`python -m tests.chaos`: one storm, told while it rages; the last line is its result."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.failpoints import POINTS
from tests.chaos.schedule import FAULTS, make_schedule
from tests.chaos.storm import Plan, Report, Storm

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "chaos.md"


def main() -> int:
    """Run a storm; returns 1 where something did not hold."""
    asked = _arguments()
    kinds = dict.fromkeys(asked.only, 1) or FAULTS
    commit = _commit()  # before the storm: what was changed meanwhile was not in it
    faults = make_schedule(asked.seed, asked.seconds, asked.delivery, POINTS, kinds)
    plan = Plan(asked.seed, asked.seconds, asked.delivery, faults)
    with tempfile.TemporaryDirectory(prefix="offbeat-storm-") as scratch:
        folder = asked.keep or Path(scratch)
        report = asyncio.run(Storm(plan, folder, lambda line: print(line, flush=True)).run())
    if asked.record:
        with RESULTS.open("a") as results:
            results.write(table_row(report, commit))
    if not report.passed:
        print(report)
    print(report.line())
    return 0 if report.passed else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=180.0, help="of faults; calm and comparison come on top")
    parser.add_argument("--delivery", choices=["at_least_once", "exactly_once"], default="at_least_once")
    parser.add_argument("--record", action="store_true", help=f"append the result to {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--keep", type=Path, help="a folder in which to leave the workers' logs and rows")
    parser.add_argument("--only", nargs="+", default=[], choices=FAULTS, help="these kinds of faults")
    return parser.parse_args()


def _commit() -> str:
    """The commit the storm runs on, marked where files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    return told.stdout.strip() or "unknown"


def table_row(report: Report, commit: str) -> str:
    """A result as a row of the table at the end of docs/chaos.md."""
    cells = (
        report.plan.seed, f"{report.plan.seconds:g}", report.plan.delivery, commit, f"{report.records:,}",
        report.done.total(), report.openings, f"{100 * report.doubled:.2f} %", "pass" if report.passed else "FAIL",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |\n"


if __name__ == "__main__":
    sys.exit(main())
