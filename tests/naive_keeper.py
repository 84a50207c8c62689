"""The promise kept online, record by record: slow, obvious, and of nothing of the fast path."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from detectors.calibration import Calibration
from detectors.parts import Parts


@dataclass
class NaiveThreshold:
    """One threshold, in nats."""

    rate: float
    calibration: Calibration
    nats: float = 0.0
    waiting: float = 0.0
    held: int = 0
    recent: list[int] = field(default_factory=lambda: [0, 0, 0])  # decided, counted, near

    def __post_init__(self) -> None:
        self.start = self.nats = -math.log(self.rate)
        self.span = min(math.log(10), self.start / 2)
        self.ceiling = math.inf
        if self.calibration.tail is None:
            self.ceiling = max(self.start, -math.log(self.calibration.smallest_p_value))

    def learn(self, p_values: list[float], patience: int, pace: float = 1.0) -> None:
        """From a block's adapted p-values; `pace` times the usual alarms are due."""
        if not p_values:
            return
        wide = max(1.0, self.start / self.nats)
        counted = sum(self.rate * min(self.rate, 0.01) ** wide < p <= self.rate for p in p_values)
        near = sum(self.rate < p <= self.rate * 10.0**wide for p in p_values)
        due = min(self.rate * pace, 0.5) * (1.0 - min(self.rate, 0.01)) * len(p_values)
        if self.waiting + counted > 3 + 3 * due and self.held < patience:
            self.waiting, self.held = min(3 + 3 * due, 4 * due), self.held + 1
            return
        self.recent = [a + b for a, b in zip(self.recent, (len(p_values), counted, near), strict=True)]
        if self.recent[0] * self.rate > 40:
            self.recent = [count // 2 for count in self.recent]
        decade = min(10, 1 / self.rate)
        if self.recent[1] <= 3 + self.recent[2] / (decade ** (1 / 1.5) - 1):
            at_once = max(1, 4 * due) * (4 if self.held >= patience else 1)
            moved = min(self.waiting + counted, at_once)
            self.waiting = min(3 + 3 * due, self.waiting + counted - moved)
        else:
            moved, self.waiting = min(near / (decade - 1), max(1, 4 * due)), 0.0
        if self.waiting < 1:
            self.held = 0
        step = min(1 / 20, 1 / (5_000 * self.rate))
        lowest, highest = self.start - self.span, min(self.start + self.span, self.ceiling)
        self.nats = min(max(self.nats + step * (moved - due), lowest), highest)


@dataclass
class NaiveKeeper:
    """Both of a partition, and what its blocks have seen."""

    filled: int = 0
    records: NaiveThreshold | None = None
    sessions: NaiveThreshold | None = None
    in_block: list[float] = field(default_factory=list)
    ended: list[list[float]] = field(default_factory=lambda: [[]])  # of the last blocks
    marks: list[int] = field(default_factory=list)  # watermarks at the ends of all blocks
    in_force: float = 0.0  # of sessions that end in this block

    def adapt(self, p_value: float, kind: str, parts: Parts, *, late: bool = False) -> float:
        """The p-value under the threshold in force, which is remembered for the block's end."""
        if parts.keeping is None or parts.learned is None:
            return p_value
        if self.records is None or self.sessions is None:
            self.records = NaiveThreshold(parts.rate, parts.learned.records)
            self.sessions = NaiveThreshold(parts.rate, parts.learned.sessions)
            self.in_force = self.sessions.nats
        nats = self.records.nats if kind == "records" else self.in_force
        adapted = p_value ** (-math.log(parts.rate) / nats)
        if not late:
            (self.in_block if kind == "records" else self.ended[-1]).append(adapted)
        return adapted

    def count_record(self, parts: Parts, watermark_ms: int) -> None:
        """A record has been judged, and all that it ends."""
        self.filled += 1
        if parts.keeping is None or self.filled < parts.keeping.block:
            return
        assert self.records is not None
        assert self.sessions is not None
        self.marks.append(watermark_ms)
        pace, usual_ms, last = 1.0, parts.keeping.usual_ms, self.marks[-parts.keeping.lag :]
        if usual_ms is not None and len(last) > 1:
            steps = [min((last[i] - last[i - 1]) / usual_ms, 10.0) for i in range(1, len(last))]
            pace = max(math.fsum(steps) / len(steps), 0.1)
        self.records.learn(self.in_block, parts.keeping.frozen, pace)
        self.in_block, self.filled = [], 0
        if len(self.ended) == parts.keeping.lag:
            self.sessions.learn(self.ended.pop(0), parts.keeping.frozen, pace)
        self.in_force = self.sessions.nats
        self.ended.append([])
