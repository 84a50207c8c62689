"""A storm finds what is broken: each mutant is caught, and the same faults leave the whole worker unharmed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

from tests.chaos.mutants import MUTANTS
from tests.chaos.schedule import SESSION_TIMEOUT_S, Fault
from tests.chaos.storm import Plan, Report, Storm
from tests.chaos.workers import worker_command

ENTRY = Path(__file__).with_name("mutants.py")
# Longer than a checkpoint's way to its commit, so that one whose outputs nobody awaits commits before them.
SLOW = {"SLOW_OUTPUTS": "0.8"}
RECORDS_PER_S = 600
AT_ONCE = 3  # storms; each is mostly waiting
TRIES = 3  # a fault shows its mutant only if others are quick enough to take over, as on a busy machine they may not be
# For each mutant the fault that must show it.
FAULTS = {
    "unfenced": Fault(4.0, "stop-at-point", 0, SESSION_TIMEOUT_S + 4.0, "checkpoint/0:3"),
    "rocksdb-first": Fault(4.0, "point", 1, 0.0, "checkpoint/2:3"),
    "outputs-not-awaited": Fault(4.0, "point", 1, 0.0, "checkpoint/3:4"),
    "offsets-first": Fault(4.0, "point", 1, 0.0, "checkpoint/2:3"),
    "rows-saved-late": Fault(4.0, "point", 1, 0.0, "checkpoint/4:4"),
}

# And what it must be caught by: another failure would prove nothing.
EVIDENCE = {
    "unfenced": "offset of partition . fell|somebody reset it|the row of session|no row|has a row",
    "rocksdb-first": "somebody reset it",
    "outputs-not-awaited": "is missing",
    "offsets-first": "somebody reset it",
    "rows-saved-late": "offset of partition . fell|the row of session|no row|has a row|two contents|, not ",
}


def run_storms(kafka_address: str, folder: Path, storms: Mapping[str, list[Fault]]) -> dict[str, Report]:
    """A storm over each mutant with its faults."""

    async def rage() -> dict[str, Report]:
        room = asyncio.Semaphore(AT_ONCE)

        async def one(mutant: str, faults: list[Fault]) -> Report:
            seconds = max(fault.at_s + fault.seconds for fault in faults) + 8.0
            command = worker_command(ENTRY, mutant)
            plan = Plan(1, seconds, "at_least_once", faults, command, SLOW, rate=RECORDS_PER_S)
            async with room:
                return await Storm(plan, folder / mutant, address=kafka_address).run()

        found = await asyncio.gather(*(one(mutant, faults) for mutant, faults in storms.items()))
        return dict(zip(storms, found, strict=True))

    return asyncio.run(rage())


def test_each_mutant_has_its_fault() -> None:
    """There is no mutant without a fault that must show it."""
    assert FAULTS.keys() == MUTANTS.keys()


def test_mutants_are_caught_and_the_whole_worker_passes(kafka_address: str, tmp_path: Path) -> None:
    """With one thing broken its fault makes the storm fail, by its own evidence; the whole worker suffers them all."""
    each = {point.point: point for point in FAULTS.values()}.values()
    left = {mutant: [fault] for mutant, fault in FAULTS.items()}
    reports = run_storms(kafka_address, tmp_path / "0", {"none": list(each)} | left)
    whole = reports.pop("none")
    assert whole.passed, str(whole)
    assert whole.reached == {fault.point.partition(":")[0] for fault in FAULTS.values()}
    for number in range(1, TRIES):
        left = {mutant: faults for mutant, faults in left.items() if not is_caught(mutant, reports[mutant])}
        reports |= run_storms(kafka_address, tmp_path / str(number), left)
    for mutant, report in reports.items():
        assert is_caught(mutant, report), f"{mutant}\n{report}"


def is_caught(mutant: str, report: Report) -> bool:
    """Whether the storm complains of what the mutant does."""
    return any(re.search(EVIDENCE[mutant], complaint) for complaint in report.complaints)
