"""Watchdogs: stalls by a clock the test advances, stuck loops in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipeline.errors import StalledError
from pipeline.health import Health
from pipeline.watchdog import STALL_S, STUCK_S, LoopGuard, Stall
from tests.clock import Clock
from tests.kafka import PATIENCE_S

EVERY_S = 10.0


def told(observations: list[tuple[int, int | None]], every_s: float = EVERY_S) -> list[StalledError | None]:
    """What `observe` says to (next offset, end), one after the other."""
    clock = Clock()
    stall, said = Stall(clock), []
    for next_offset, end in observations:
        said.append(stall.observe("orders", 3, next_offset, end))
        clock.now += every_s
    return said


# --- Stall


def test_a_stall_is_a_sentence_after_a_minute() -> None:
    """An offset that stands while the end grows is told when that has been seen for `STALL_S`, and not before."""
    said = told([(5, 10 + n) for n in range(8)])
    assert said[:7] == [None] * 7
    assert str(said[7]) == (
        "partition 3 of stream orders has stood at offset 5 for 60 s while its source grew to 17; the worker ends so "
        "that its supervisor starts it anew"
    )
    assert said[7] is not None
    assert said[7].exit_code == 1


@pytest.mark.parametrize(
    "observations",
    [
        [(5 + n, 100 + n) for n in range(30)],  # moves, if slowly
        [(5 + n // 5, 100 + n) for n in range(30)],  # moves every 50 s
        [(5, 10)] * 30,  # behind, but the end stands as well: markers, or a source that is silent
        [(5, 10)] * 5 + [(5, 11)] * 25,  # one more marker
        [(10, 10)] * 30,  # idle
        [(10, 10)] * 30 + [(10, 11), (11, 12), (11, 13), (13, 13)] * 5,  # wakes after a long silence
        [(5, None)] * 30,  # the broker does not answer
        [(5, 10 + n if n % 6 else None) for n in range(60)],  # or does not always
        [(5, 100 - n) for n in range(30)],  # a source that was made anew
        [(20, n) for n in range(12)],  # an end that is not beyond the offset
    ],
)
def test_these_are_no_stalls(observations: list[tuple[int, int | None]]) -> None:
    """Whatever moves, waits, sleeps or cannot be asked is no stall."""
    assert told(observations) == [None] * len(observations)


def test_only_growth_counts() -> None:
    """Time in which the end stood, too, does not add to a stall: it begins with the first growth seen."""
    said = told([(5, 5)] * 20 + [(5, 6 + n) for n in range(8)])
    assert [n for n, one in enumerate(said) if one is not None] == [26, 27]


def test_slow_growth_counts_as_well() -> None:
    """A source that gets a record now and then shows a stall at the next one after the minute."""
    said = told([(5, 5), (5, 6), *[(5, 6)] * 9, (5, 7)])
    assert [n for n, one in enumerate(said) if one is not None] == [11]


def test_a_smaller_end_starts_over() -> None:
    """A source that was made anew is watched from its new end on, not only beyond its old one."""
    said = told([(5, 1_000)] + [(5, 10 + n) for n in range(8)])
    assert [n for n, one in enumerate(said) if one is not None] == [8]


def test_a_process_that_slept_starts_over() -> None:
    """Observations far apart mean that the process was stopped, not that it stalled."""
    assert told([(5, 10 + n) for n in range(20)], every_s=STALL_S) == [None] * 20


def test_a_partition_opened_anew_starts_over() -> None:
    """Forgotten partitions begin again; others go on."""
    clock = Clock()
    stall = Stall(clock)
    for n in range(7):
        for partition in (0, 1):
            assert stall.observe("orders", partition, 5, 10 + n) is None
        clock.now += EVERY_S
    stall.forget("orders", 0)
    stall.forget("orders", 9)
    assert stall.observe("orders", 0, 5, 18) is None
    assert stall.observe("orders", 1, 5, 18) is not None


# --- LoopGuard


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_loop_without_beats_is_stuck(clock: Clock) -> None:
    """The guard says so once the last beat is `STUCK_S` old."""
    health = Health(clock)
    guard = LoopGuard(health, clock, tick_s=5.0)
    for _ in range(100):
        clock.now += 5
        health.beat()
        assert guard.stuck_for_s() is None
    found = []
    for _ in range(25):
        clock.now += 5
        found.append(guard.stuck_for_s())
    assert found == [None] * 23 + [STUCK_S, STUCK_S + 5]


def test_a_woken_process_gets_its_time_anew(clock: Clock) -> None:
    """After a stop of any length a beat may be missing for `STUCK_S` more, and then no longer."""
    health = Health(clock)
    guard = LoopGuard(health, clock, tick_s=5.0)
    clock.now += 3_600
    found = []
    for _ in range(25):
        found.append(guard.stuck_for_s())
        clock.now += 5
    assert found[:24] == [None] * 24
    assert found[24] == STUCK_S


PROGRAM = textwrap.dedent(
    """
    import asyncio, logging, signal, sys, threading, time
    import structlog
    from pipeline.health import Health
    from pipeline.logs import configure_logs
    from pipeline.watchdog import LoopGuard

    how = sys.argv[1]
    configure_logs()
    structlog.contextvars.bind_contextvars(instance="w7")
    health = Health()
    LoopGuard(health, stuck_s=2.0, tick_s=0.2).start()

    def hang_here():
        if how == "with the log's lock":
            logging.getLogger().handlers[0].acquire()
        time.sleep(60)

    async def main():
        hang = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, hang.set)
        print("ready", flush=True)
        while not hang.is_set():
            health.beat()
            await asyncio.sleep(0.05)
        hang_here()

    asyncio.run(main())
    """
)


@contextmanager
def program(how: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process whose loop beats, and hangs on SIGUSR1."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def last_words(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Wait for the end by the guard; the log lines."""
    assert process.wait(PATIENCE_S) == 1
    assert process.stderr is not None
    return [json.loads(line) for line in process.stderr.read().splitlines()]


def test_a_blocked_loop_ends_the_process() -> None:
    """A loop that hangs is one log line, which says where, and exit code 1; while it beats, nothing happens."""
    with program() as process:
        time.sleep(3)
        assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        (line,) = last_words(process)
    assert (line["event"], line["level"]) == ("event loop is stuck, the worker ends", "error")
    assert line["instance"] == "w7"
    assert 2 <= line["still_s"] < 20
    assert line["where"].startswith("hang_here (")


def test_a_hanging_log_does_not_save_the_process() -> None:
    """Even if the loop hangs with the log's lock in its hands, the process ends."""
    with program("with the log's lock") as process:
        process.send_signal(signal.SIGUSR1)
        assert last_words(process) == []


def test_a_zombie_is_not_stuck() -> None:
    """Stopped for longer than the limit and woken, a process lives on; and is still guarded."""
    with program() as process:
        for _ in range(2):
            process.send_signal(signal.SIGSTOP)
            time.sleep(4)
            process.send_signal(signal.SIGCONT)
            time.sleep(2.5)
            assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        assert len(last_words(process)) == 1
