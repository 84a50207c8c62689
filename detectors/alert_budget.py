"""A budget of alarms a day, as a rate: what share of a stream's decisions may be alarms, so that so many come of them.

The history says how many decisions a stream makes in a day. Records and sessions share the budget by their numbers,
so one rate holds for both. Where the volume changes later, `detectors.promise_keeper` follows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DAY_MS = 86_400_000
USUAL_RATE = 0.001  # where nothing else is promised, and until a history tells a budget's rate
_MOST = 0.5  # as of any promise


@dataclass(frozen=True)
class Volume:
    """What a history held in a day, over all of its partitions.

    Attributes
    ----------
    records, sessions
        A day, of event time.
    partitions
        Over how many these came.
    """

    records: float
    sessions: float
    partitions: int = 1

    @classmethod
    def of(cls, data: Mapping[str, Any] | None) -> Volume | None:
        """By what a manifest says of the data; None where that is nothing.

        >>> Volume.of({"records": 600, "sessions": 20, "first_ms": 0, "last_ms": DAY_MS // 2, "partitions": 3})
        Volume(records=1200.0, sessions=40.0, partitions=3)
        """
        if not data:
            return None
        days = max(1, int(data["last_ms"]) - int(data["first_ms"])) / DAY_MS
        return cls(data["records"] / days, data["sessions"] / days, max(1, int(data.get("partitions", 1))))

    def rate(self, budget: float) -> float:
        """The share of decisions that makes `budget` alarms a day; at most one half.

        >>> Volume(records=9_000.0, sessions=1_000.0).rate(20.0)
        0.002
        """
        decisions = self.records + self.sessions
        return min(_MOST, budget / decisions) if decisions > 0.0 else _MOST

    def block_ms(self, records: int, partitions: int | None = None) -> float:
        """How long so many records of one partition take, in event time; of as many partitions as came, if not told.

        >>> Volume(records=86_400.0, sessions=0.0, partitions=2).block_ms(256)
        512000.0
        """
        return records * (partitions or self.partitions) * DAY_MS / max(self.records, 1e-9)


def rate_of(budget: float | None, false_alarm_rate: float | None, volume: Volume | None) -> float:
    """What a stream is held to: its budget as a rate, where it has one and its volume is known."""
    if budget is None:
        return USUAL_RATE if false_alarm_rate is None else false_alarm_rate
    return USUAL_RATE if volume is None else volume.rate(budget)
