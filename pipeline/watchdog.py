"""Ends a worker that makes no progress, so that its supervisor can start it anew.

`Stall` watches partitions from within the event loop, `LoopGuard` watches the event loop from a thread of its own.
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import StalledError
from pipeline.health import Health
from pipeline.logs import get_logger

STALL_S = 60.0  # four transaction timeouts: what fails by itself has failed by then, and was opened anew
STUCK_S = 120.0  # four times what /healthz calls dead: a supervisor that asks may act first
_TICK_S = 5.0
_LAST_WORDS_S = 3.0  # for logging them: whoever hangs may hold the log's lock

log = get_logger()


@dataclass
class _Watch:
    next_offset: int
    end: int  # when the offset came to stand here; once growth was seen, when it was seen first
    seen_at: float
    grown_at: float | None = None


class Stall:
    """Finds partitions that stand still while their source grows.

    What only lies there is no stall: an end beyond the next offset may be nothing but transaction markers. So the end
    must have been seen to grow `stall_s` ago, and to have grown again since, all with the offset unmoved. It fails
    where a source's producers abort for that long and commit nothing, unless the caller tells offsets that move past
    what was aborted.

    Parameters
    ----------
    clock
        Monotonic, in seconds.
    stall_s
        Seconds. Observations further apart than half of it start over: the process did not run, or was not asked.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, stall_s: float = STALL_S) -> None:
        self._clock, self._stall_s = clock, stall_s
        self._watches: dict[tuple[str, int], _Watch] = {}

    def observe(self, stream: str, partition: int, next_offset: int, end: int | None) -> StalledError | None:
        """Take in where a partition stands; gives the error to end the worker with if it has stalled.

        Call it every few seconds, for open partitions only.

        Parameters
        ----------
        next_offset
            The offset up to which everything is saved.
        end
            Where the source's records end for a read_committed reader; None if nobody could say, which starts over.
        """
        key, now = (stream, partition), self._clock()
        if end is None:
            self.forget(stream, partition)
            return None
        watch = self._watches.get(key)
        asleep = watch is not None and now - watch.seen_at > self._stall_s / 2
        if watch is None or asleep or next_offset != watch.next_offset or end < watch.end:
            self._watches[key] = _Watch(next_offset, end, now)
            return None
        watch.seen_at = now
        if end <= max(watch.end, next_offset):
            return None
        if watch.grown_at is None:
            watch.grown_at, watch.end = now, end
        stood_s = now - watch.grown_at
        if stood_s < self._stall_s:
            return None
        message = (
            f"partition {partition} of stream {stream} has stood at offset {next_offset} for {stood_s:.0f} s while its "
            f"source grew to {end}; the worker ends so that its supervisor starts it anew"
        )
        return StalledError(message)

    def forget(self, stream: str, partition: int) -> None:
        """Start over with a partition: it is closed, recovering or open anew."""
        self._watches.pop((stream, partition), None)


class LoopGuard:
    """A thread that ends the process with exit code 1 when the event loop has stood still for too long.

    The group would not notice: heartbeats come from the consumer's own thread. Nothing orderly can run any more, and
    nothing is lost: it is a crash like any other. It fails where native code keeps Python's lock for good, for then
    this thread does not run either.

    Parameters
    ----------
    health
        Whose beats to watch.
    clock
        Monotonic, in seconds; that of `health`.
    stuck_s, tick_s
        Seconds without a beat that are too many; seconds between looks.
    """

    def __init__(
        self, health: Health, clock: Callable[[], float] = time.monotonic, stuck_s: float = STUCK_S,
        tick_s: float = _TICK_S,
    ) -> None:  # fmt: skip
        self._health, self._clock, self._stuck_s, self._tick_s = health, clock, stuck_s, tick_s
        self._ticked_at = self._awake_since = clock()
        self._stopped = threading.Event()
        self._context = contextvars.copy_context()  # what every log line says, the instance above all

    def start(self) -> None:
        """Watch from now on."""
        self._ticked_at = self._awake_since = self._clock()
        threading.Thread(target=self._watch, name="loop guard", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def stuck_for_s(self) -> float | None:
        """How long the event loop has stood still, if that is too long; to be called every `tick_s`.

        A process that was stopped and woken has not beaten for as long, but neither was this called: then the loop is
        given its time anew.
        """
        age_s = self._health.beat_age_s()  # before the clock: the process may be stopped between the two
        now = self._clock()
        if now - self._ticked_at > 2 * self._tick_s:
            self._awake_since = now
        self._ticked_at = now
        still_s = min(age_s, now - self._awake_since)
        return still_s if still_s >= self._stuck_s else None

    def _watch(self) -> None:
        while not self._stopped.wait(self._tick_s):
            still_s = self.stuck_for_s()
            if still_s is not None:
                self._end(still_s)

    def _end(self, still_s: float) -> None:
        def say() -> None:
            log.error("event loop is stuck, the worker ends", still_s=round(still_s, 1), where=_where())
            logging.shutdown()

        last_words = threading.Thread(target=self._context.run, args=(say,), daemon=True)
        last_words.start()
        last_words.join(_LAST_WORDS_S)
        os._exit(1)


def _where() -> str:
    """The innermost calls of the main thread, in which the event loop runs."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 (there is no other way)
    calls = traceback.extract_stack(frame)[-3:] if frame is not None else []
    return ", ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in reversed(calls))
