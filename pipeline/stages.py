"""How long each stage of a slice takes: told once a slice, so that a record costs nothing."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Histogram

STAGES = ("wait", "decode", "score", "emit")


class StageClock:
    """A stopwatch with laps for one partition; a slice's laps of one stage add up.

    Parameters
    ----------
    histogram
        With the labels stream and stage.
    monotonic
        In seconds.
    """

    def __init__(self, histogram: Histogram, stream: str, monotonic: Callable[[], float]) -> None:
        self._of = {stage: histogram.labels(stream, stage) for stage in STAGES}
        self._monotonic = monotonic
        self._since = 0.0
        self._spent = dict.fromkeys(STAGES, 0.0)

    def begin(self, at: float) -> None:
        """Start at this moment; laps that belong to no slice (sessions ended by silence, say) are dropped."""
        self._since = at
        self._spent = dict.fromkeys(STAGES, 0.0)

    def lap(self, stage: str) -> None:
        """Time since the last lap was spent on this stage."""
        now = self._monotonic()
        self._spent[stage] += now - self._since
        self._since = now

    def end(self) -> None:
        """Tell what the slice took."""
        for stage, histogram in self._of.items():
            histogram.observe(self._spent[stage])
