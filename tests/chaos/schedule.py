"""What will go wrong, and when: a schedule made from a seed before the storm begins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

WORKERS = 3  # two that are always wanted, and a third that joins and leaves
SESSION_TIMEOUT_S = 10.0  # after which the group gives a silent worker's partitions to others
QUIET_START_S = 6.0  # until the first workers have opened their partitions
QUIET_END_S = 14.0  # a worker stopped by the last fault wakes before the records end
_BROKER_REST_S = 12.0  # between two faults of the broker, so that workers come to work in between

# Each with its share among the faults that fill a storm, once every one of them has come once.
FAULTS = {
    "kill": 5,  # SIGKILL, at any moment
    "point": 5,  # SIGKILL at a named point of a partition's life
    "term": 2,  # SIGTERM, and a restart
    "stop": 3,  # SIGSTOP for longer than the session timeout, then SIGCONT: a zombie wakes
    "members": 2,  # the third worker joins, or leaves
    "broker": 2,  # the broker is SIGKILLed and restarted
    "slow": 2,  # the broker is SIGSTOPped for some seconds: acknowledgements come very late
    "rows-deleted": 2,  # the RocksDB folder is gone when its worker restarts
    "rows-too-old": 1,  # RocksDB was last in step longer ago than the changelog keeps tombstones
    "row-damaged": 2,  # a byte of a state row in RocksDB has changed
    "disk-full": 2,  # the worker's files cannot grow for some seconds
}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes
    ----------
    at_s
        When, from the storm's beginning.
    worker
        Which one suffers; where that one is down or suffers already, the next that is not.
    seconds
        How long it lasts: a worker is down, stopped or cannot write; the broker is down or stopped.
    point
        For "point": `NAME:N`, as the environment variable FAIL_POINT takes it.
    """

    at_s: float
    kind: str
    worker: int
    seconds: float
    point: str = ""

    def __str__(self) -> str:
        subject = "broker" if self.kind in {"broker", "slow"} else f"w{self.worker}"
        return f"{self.at_s:7.2f} s  {self.kind:<12} {subject:<6} {self.seconds:5.2f} s  {self.point}".rstrip()


def make_schedule(
    seed: int, seconds: float, delivery: str, points: Sequence[str], kinds: dict[str, int] = FAULTS
) -> list[Fault]:
    """Faults in order of time.

    A pure function of its arguments. Each kind and each point comes once, in an order drawn by the seed, before any
    comes again; a storm of three minutes has room for all of them.
    """
    rng = random.Random(f"{seed} {float(seconds)} {delivery}")
    once = [(kind, "") for kind in kinds if kind != "point"]
    once += [("point", point) for point in points] if "point" in kinds else []
    rng.shuffle(once)
    faults: list[Fault] = []
    now, broker_rests_until = QUIET_START_S, 0.0
    while now < seconds - QUIET_END_S:
        kind, point = once.pop() if once else (rng.choices(list(kinds), list(kinds.values()))[0], "")
        if kind in {"broker", "slow"}:
            if now < broker_rests_until:
                once.insert(0, (kind, point))
                if all(k in {"broker", "slow"} for k, _ in once):
                    now += 1.0
                continue
            broker_rests_until = now + _BROKER_REST_S
        faults.append(_fault(rng, round(now, 2), kind, point or rng.choice(points)))
        now += rng.uniform(1.5, 5.5)
    return faults


def _fault(rng: random.Random, at_s: float, kind: str, point: str) -> Fault:
    worker = WORKERS - 1 if kind == "members" else rng.randrange(WORKERS)
    lasts = {
        "stop": (SESSION_TIMEOUT_S + 1.5, SESSION_TIMEOUT_S + 4.0), "broker": (0.0, 4.0), "slow": (3.0, 6.0),
        "disk-full": (2.0, 5.0), "members": (0.0, 0.0),
    }.get(kind, (0.0, 3.0))  # fmt: skip
    seconds = rng.uniform(*lasts)
    if kind == "kill" and rng.random() < 0.25:
        seconds = SESSION_TIMEOUT_S + rng.uniform(1.0, 3.0)  # others take over meanwhile
    if kind != "point":
        return Fault(at_s, kind, worker, round(seconds, 2))
    # Checkpoints come by four times a second and partition; a worker that has one partition opens and closes once.
    times = rng.randint(1, 15) if point.startswith("checkpoint/") else 1
    return Fault(at_s, kind, worker, round(seconds, 2), f"{point}:{times}")
