"""Health by a clock the test advances."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pipeline.health import ALIVE_S, Health
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


def states(health: Health) -> list[str]:
    """The state of each assigned partition."""
    return [row["state"] for row in health.ready()[1]["partitions"]]


def only_row(health: Health) -> dict[str, Any]:
    """The one partition of /ready."""
    (row,) = health.ready()[1]["partitions"]
    return row


def test_alive_while_the_loop_beats(health: Health, clock: Clock) -> None:
    """A worker is alive for a bounded time after each beat, its start included."""
    assert health.alive() == (True, {"alive": True, "beat_age_s": 0.0})
    clock.now += ALIVE_S - 1
    assert health.alive()[0]
    health.beat()
    clock.now += ALIVE_S - 1
    assert health.alive() == (True, {"alive": True, "beat_age_s": ALIVE_S - 1})
    clock.now += 1
    assert health.alive() == (False, {"alive": False, "beat_age_s": ALIVE_S})
    health.beat()
    assert health.alive()[0]


def test_ready_when_all_that_was_assigned_is_open(health: Health) -> None:
    """Neither before an assignment nor while any partition of it is shut is a worker ready."""
    assert health.ready() == (False, {"ready": False, "assigned": False, "partitions": []})
    health.assigned([("orders", 1), ("orders", 0)])
    assert states(health) == ["opening", "opening"]
    health.opened("orders", 0)
    health.recovering("orders", 1, 0, 10)
    assert (health.ready()[0], states(health)) == (False, ["open", "recovering"])
    health.opened("orders", 1)
    assert (health.ready()[0], states(health)) == (True, ["open", "open"])
    health.closed("orders", 0)
    assert (health.ready()[0], states(health)) == (False, ["opening", "open"])


def test_a_worker_with_nothing_to_do_is_ready(health: Health) -> None:
    """One of more workers than partitions is assigned nothing, and that is all open."""
    health.assigned([])
    assert health.ready() == (True, {"ready": True, "assigned": True, "partitions": []})


def test_a_rebalance_keeps_what_stays_open(health: Health) -> None:
    """During a rebalance a worker is not ready; afterwards partitions that stayed are open, others start over."""
    health.assigned([("orders", 0), ("orders", 1)])
    for partition in (0, 1):
        health.opened("orders", partition)
    health.revoked()
    assert not health.ready()[0]
    health.assigned([("orders", 0)])
    assert health.ready()[0]
    health.revoked()
    health.opened("orders", 2)  # an opener of before, too late; but the next assignment has it
    health.assigned([("orders", 0), ("orders", 1), ("orders", 2)])
    assert states(health) == ["open", "opening", "open"]


def test_a_late_opener_of_a_lost_partition_does_not_show(health: Health) -> None:
    """What is not assigned is no line of /ready."""
    health.assigned([("orders", 0)])
    health.opened("orders", 7)
    assert [row["partition"] for row in health.ready()[1]["partitions"]] == [0]


def test_recovery_has_a_rate_and_an_end(health: Health, clock: Clock) -> None:
    """Rows a second count from the first report; seconds left follow from them, and are unknown without a rate."""
    health.assigned([("orders", 0)])
    expected = {"stream": "orders", "partition": 0, "state": "opening", "rows": 0, "rows_per_s": 0.0}
    assert only_row(health) == expected | {"seconds_left": None}
    health.recovering("orders", 0, 0, 1_000)
    assert only_row(health) == expected | {"state": "recovering", "seconds_left": None}
    clock.now += 2
    health.recovering("orders", 0, 100, 1_000)
    expected |= {"state": "recovering", "rows": 100, "rows_per_s": 50.0}
    assert only_row(health) == expected | {"seconds_left": 18.0}
    clock.now += 2
    health.recovering("orders", 0, 1_100, 1_000)  # the total was an estimate
    assert only_row(health)["seconds_left"] == 0.0
    health.opened("orders", 0)
    assert only_row(health) == expected | {"state": "open", "rows": 1_100, "rows_per_s": 275.0, "seconds_left": 0.0}


def test_a_second_recovery_starts_over(health: Health, clock: Clock) -> None:
    """Opened anew after a failure, a partition's rate is that of the new recovery."""
    health.assigned([("orders", 0)])
    health.recovering("orders", 0, 0, 100)
    clock.now += 1
    health.recovering("orders", 0, 100, 100)
    health.opened("orders", 0)
    clock.now += 50
    health.recovering("orders", 0, 0, 500)
    assert only_row(health)["state"] == "recovering"
    assert only_row(health)["rows_per_s"] == 0.0
    clock.now += 10
    health.recovering("orders", 0, 100, 500)
    assert only_row(health)["rows_per_s"] == 10.0
    health.recovering("orders", 0, 0, 500)  # it failed half-way, and begins again
    assert (only_row(health)["rows"], only_row(health)["seconds_left"]) == (0, None)
    clock.now += 1
    health.recovering("orders", 0, 50, 500)
    assert only_row(health)["rows_per_s"] == 50.0


def test_an_open_partition_can_recover_again(health: Health) -> None:
    """Recovery makes an open partition not ready, also if nobody said that it was closed."""
    health.assigned([("orders", 0)])
    health.opened("orders", 0)
    health.recovering("orders", 0, 0, 500)
    assert (health.ready()[0], states(health)) == (False, ["recovering"])


def test_it_may_be_asked_while_it_is_told(health: Health) -> None:
    """Threads that ask during changes see each partition once, in a state that has a name."""
    done, found = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            _, body = health.ready()
            found.append([(row["partition"], row["state"]) for row in body["partitions"]])

    asking = threading.Thread(target=ask)
    asking.start()
    for turn in range(300):
        health.assigned([("orders", p) for p in range(turn % 5, 5)])
        for partition in range(5):
            health.recovering("orders", partition, turn, 300)
            health.opened("orders", partition)
            health.closed("orders", partition)
        health.revoked()
    done.set()
    asking.join()
    for rows in found:
        numbers = [partition for partition, _ in rows]
        assert numbers == sorted(set(numbers))
        assert {state for _, state in rows} <= {"opening", "recovering", "open"}
