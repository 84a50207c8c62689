"""A storm of deliveries: changes of incidents, a receiver that fails, stalls and throttles, and kills of the process.

`python -m tests.chaos.alert_storm` runs it at full size on a broker of its own.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.broker import LocalBroker
from tests.alerting import Alerts, Answer, Receiver, configure, incident, tell
from tests.kafka import Stack

REVISIONS = 10  # of each incident
TIMEOUT_S = 3.0  # less, and a busy machine is late so often that the stalls told apart here drown in it
_LOOK_S = 0.2
_STANDSTILL_S = 120.0


@dataclass(frozen=True)
class Plan:
    """All that a storm depends on, but for how fast the machine is."""

    seed: int = 1
    changes: int = 10_000
    kills: int = 3
    fails: float = 0.30
    stalls: float = 0.05
    throttles: float = 0.05
    parallel: int = 32  # requests at once: a kill doubles so many at most


@dataclass
class Report:
    """How it went."""

    plan: Plan
    requests: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    delivered: int = 0
    doubled: int = 0
    kills: int = 0
    rss_mb: list[tuple[float, float]] = field(default_factory=list)  # of each life: after its start, and the most
    took_s: float = 0.0
    complaints: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        answers = ", ".join(f"{status or 'none'} {count:,}" for status, count in sorted(self.answers.items()))
        memory = "; ".join(f"{began:.0f} to at most {most:.0f} MB" for began, most in self.rss_mb)
        lines = [
            f"{'FAIL' if self.complaints else 'PASS'} seed {self.plan.seed}: {self.plan.changes:,} changes, "
            f"{self.requests:,} requests (answers: {answers}), {self.kills} kills, {self.doubled:,} delivered twice "
            f"({100 * self.doubled / self.plan.changes:.2f} %), memory {memory}, {self.took_s:.0f} s",
            *self.complaints,
        ]
        return "\n".join(lines)


class Weather:
    """What the receiver answers: by chance, but a message that was refused long enough is taken in the end."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._random, self._lock = plan, random.Random(plan.seed), threading.Lock()

    def __call__(self, _name: str) -> Answer:
        """The next answer."""
        with self._lock:
            chance = self._random.random()
        for share, answer in (
            (self._plan.fails, Answer(500)),
            (self._plan.stalls, Answer(0, late_s=2 * TIMEOUT_S)),
            (self._plan.throttles, Answer(429, {"Retry-After": "1"})),
        ):
            if chance < share:
                return answer
            chance -= share
        return Answer(204)


def run(plan: Plan, stack: Stack, say: Callable[[str], None] = lambda _: None) -> Report:
    """Run one to its end, and look at what the receiver got."""
    report, began = Report(plan), time.monotonic()
    incidents = plan.changes // REVISIONS
    expected = {f"i{n}/{r}" for n in range(incidents) for r in range(1, REVISIONS + 1)}
    hook = Receiver(Weather(plan))
    # As many attempts as it takes: what is shown is that none is lost, not when one is given up.
    section = hook.settings(timeout=f"{TIMEOUT_S}s", retries=["100ms"] * 100, parallel=plan.parallel)
    configure(stack, {"ops": section})
    try:
        _live(plan, stack, hook, incidents, report, say)
    finally:
        hook.close()
        report.took_s = time.monotonic() - began
    _compare(hook, expected, report)
    letters = len(stack.read_json("dead-letters"))
    if letters:
        report.complaints.append(f"{letters} dead letters")
    return report


def _live(plan: Plan, stack: Stack, hook: Receiver, incidents: int, report: Report, say: Callable[[str], None]) -> None:
    """Tell all changes, a first one of all incidents at once, and kill the process at even steps of the way."""
    kill_at = [plan.changes * (k + 1) // (plan.kills + 1) for k in range(plan.kills)]
    told, moved_at, seen = False, time.monotonic(), -1
    while True:
        with Alerts(stack, forked=False) as alerts:
            alerts.wait_ready(stack.partitions)
            if not told:
                tell(stack, [incident(f"i{n}", r, size=500) for r in range(1, REVISIONS + 1) for n in range(incidents)])
                told = True
            time.sleep(2.0)
            first = most = alerts.rss_mb()
            report.rss_mb.append((first, most))
            while (done := _distinct(hook)) < plan.changes:
                if alerts.process.poll() is not None:
                    report.complaints.append(f"the process ended: {alerts.log_path.read_text()[-2000:]}")
                    return
                most = max(most, alerts.rss_mb())
                report.rss_mb[-1] = (first, most)
                if done != seen:
                    moved_at, seen = time.monotonic(), done
                    say(f"{done:,} of {plan.changes:,}, {alerts.rss_mb():.0f} MB")
                if time.monotonic() - moved_at > _STANDSTILL_S:
                    report.complaints.append(
                        f"deliveries stand still at {done:,}: {alerts.log_path.read_text()[-2000:]}"
                    )
                    return
                if kill_at and done >= kill_at[0]:
                    break
                time.sleep(_LOOK_S)
            else:
                time.sleep(2.0)  # what should not come would come now
                if alerts.stop() != 0:
                    report.complaints.append(f"it did not end well: {alerts.log_path.read_text()[-2000:]}")
                return
            alerts.kill()
            kill_at.pop(0)
            report.kills += 1


def _distinct(hook: Receiver) -> int:
    return len(set(hook.changes()))


def _compare(hook: Receiver, expected: set[str], report: Report) -> None:
    report.requests, report.answers = len(hook.got), Counter(got.answered for got in hook.got)
    changes = hook.changes()
    report.delivered, report.doubled = len(set(changes)), len(changes) - len(set(changes))
    if lost := expected - set(changes):
        report.complaints.append(f"{len(lost)} changes never came, such as {min(lost)}")
    if strange := set(changes) - expected:
        report.complaints.append(f"{len(strange)} came that nobody told, such as {min(strange)}")
    named = {(got.name, *got.changes) for got in hook.got}
    if not len(named) == len({name for name, *_ in named}) == len({tuple(of) for _, *of in named}):
        report.complaints.append("an id names two messages, or a message has two ids")
    if report.doubled > 0.05 * report.plan.changes:
        report.complaints.append("more than 5 % were delivered twice")
    last: dict[str, int] = {}
    for change in dict.fromkeys(changes):
        name, revision = change.split("/")
        if int(revision) != last.get(name, 0) + 1:
            report.complaints.append(f"{change} came after {name}/{last.get(name, 0)}")
        last[name] = int(revision)
    if any(most > first + 40 for first, most in report.rss_mb):
        report.complaints.append("memory grew by more than 40 MB")


def main(arguments: list[str]) -> int:
    """Run one as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.alert_storm")
    parser.add_argument("--changes", type=int, default=Plan.changes)
    parser.add_argument("--kills", type=int, default=Plan.kills)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "kafka", ephemeral=True) as broker:
        stack = Stack(broker.address, Path(folder) / "stack")
        report = run(Plan(asked.seed, asked.changes, asked.kills), stack, lambda text: print(text, flush=True))
    print(report)
    return 1 if report.complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
