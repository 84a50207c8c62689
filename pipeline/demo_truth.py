"""The demo's truth: what was sent and what was wrong with it, and what became of each fault and each promise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.storefront import END_ACTION, Event, FaultySessions


@dataclass(frozen=True)
class Alarm:
    """An anomaly as the demo read it: `time_ms` is its event's time, `read_ms` when we had it."""

    id: str
    type: str
    session: str
    time_ms: int
    read_ms: int
    why: str


@dataclass(frozen=True)
class Found:
    """What became of one injected fault.

    Attributes
    ----------
    at_s
        When its first wrong event was sent, seconds into the stream.
    after_s
        From there until an anomaly of one of its sessions was read; None: never.
    """

    kind: str
    at_s: float
    after_s: float | None
    sessions: int
    sessions_found: int


@dataclass(frozen=True)
class FalseAlarms:
    """How a promise was kept: `count` alarms on `of` healthy records, or on `of` healthy sessions that ended."""

    what: str
    count: int
    of: int
    rate: float

    @property
    def twice(self) -> float:
        """Twice what was promised."""
        return 2 * self.rate * self.of

    @property
    def limit(self) -> int:
        """The most alarms that a rate of twice the promise gives, but for one run in a hundred.

        A count is a throw of dice: where four are promised, nine say little about the rate behind them.
        """
        return chance_limit(self.twice)

    @property
    def kept(self) -> bool:
        """Whether the alarms are no more than that."""
        return self.count <= self.limit


@dataclass(frozen=True)
class Report:
    """The outcome: what was found, and what was found that is none."""

    found: list[Found]
    records: FalseAlarms
    sessions: FalseAlarms

    @property
    def passed(self) -> bool:
        """Whether three of four faults were found, and false alarms were at most twice the promise.

        All false alarms together are held to that to the letter; records and sessions each as far as so few can tell.
        """
        found = sum(fault.after_s is not None for fault in self.found)
        together = self.records.count + self.sessions.count <= self.records.twice + self.sessions.twice
        return 4 * found >= 3 * len(self.found) > 0 and together and self.records.kept and self.sessions.kept


def chance_limit(expected: float, beyond: float = 0.01) -> int:
    """Return the smallest count that a Poisson number of that mean exceeds with a chance of at most `beyond`.

    >>> [chance_limit(expected) for expected in (0.0, 1.0, 8.0, 100.0)]
    [0, 4, 15, 124]
    """
    count, reached = 0, 1.0 if expected == 0.0 else math.exp(-expected)
    while reached < 1.0 - beyond:
        count += 1
        reached += math.exp(count * math.log(expected) - expected - math.lgamma(count + 1))
    return count


class Tally:
    """What was sent, what was wrong with it, and which alarms came: the truth that outcomes are held against.

    Parameters
    ----------
    gap_ms
        A healthy session that sent nothing for longer has ended.
    """

    def __init__(self, gap_ms: int) -> None:
        self.alarms: dict[str, Alarm] = {}
        self.sent = 0
        self._gap_ms = gap_ms
        self._faults: list[FaultySessions] = []
        self._wrong_from_ms: dict[str, int] = {}
        self._wrong_sent_ms: dict[str, int] = {}
        self._first_ms = self._last_ms = 0
        self._healthy_records = self._closed = 0
        self._open: dict[str, int] = {}  # healthy sessions without an end event, with their last event's time

    def plan(self, fault: FaultySessions) -> None:
        """Take note of a fault before its events are sent."""
        self._faults.append(fault)
        self._wrong_from_ms |= fault.wrong_from_ms

    def send(self, event: Event, now_ms: int) -> None:
        """Take note of an event that is being sent."""
        self.sent += 1
        self._first_ms = self._first_ms or event.ts_ms
        self._last_ms = event.ts_ms
        wrong_ms = self._wrong_from_ms.get(event.session_id)
        if wrong_ms is not None and event.ts_ms >= wrong_ms:
            self._wrong_sent_ms.setdefault(event.session_id, now_ms)
            return
        self._healthy_records += 1
        if wrong_ms is not None:
            return
        if event.action == END_ACTION:
            self._open.pop(event.session_id, None)
            self._closed += 1
        else:
            self._open[event.session_id] = event.ts_ms

    def read(self, alarm: Alarm) -> bool:
        """Take in an alarm; False if it came before, as deliveries may repeat."""
        return self.alarms.setdefault(alarm.id, alarm) is alarm

    def latencies_ms(self) -> list[int]:
        """From a record to its alarm in our hands, by size; sessions are left out, for a gap takes its time."""
        return sorted(alarm.read_ms - alarm.time_ms for alarm in self.alarms.values() if alarm.type == "record")

    def report(self, rate: float) -> Report:
        """Hold the alarms against the truth, and the false ones against the promised rate."""
        false = [alarm for alarm in self.alarms.values() if not self._is_due(alarm)]
        records = sum(alarm.type == "record" for alarm in false)
        silent = sum(last_ms + self._gap_ms < self._last_ms for last_ms in self._open.values())
        return Report(
            [self._found(fault) for fault in self._faults if fault.wrong_from_ms.keys() & self._wrong_sent_ms.keys()],
            FalseAlarms("records", records, self._healthy_records, rate),
            FalseAlarms("sessions", len(false) - records, self._closed + silent, rate),
        )

    def _is_due(self, alarm: Alarm) -> bool:
        wrong_ms = self._wrong_from_ms.get(alarm.session)
        return wrong_ms is not None and alarm.time_ms >= wrong_ms

    def _found(self, fault: FaultySessions) -> Found:
        sent_ms = [ms for session, ms in self._wrong_sent_ms.items() if session in fault.wrong_from_ms]
        due = [alarm for alarm in self.alarms.values() if alarm.session in fault.wrong_from_ms and self._is_due(alarm)]
        after_s = (min(alarm.read_ms for alarm in due) - min(sent_ms)) / 1000 if due else None
        at_s = (min(sent_ms) - self._first_ms) / 1000
        return Found(fault.kind, at_s, after_s, len(sent_ms), len({alarm.session for alarm in due}))
