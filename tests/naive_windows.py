"""Windows the slow, obvious way: each sample in the list of each of its windows, looked at after every sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from features.windows import WindowRules


@dataclass(frozen=True)
class Sample:
    """One sample."""

    session: str
    time_ms: int
    offset: int
    tokens: tuple[str | None, ...]
    is_end: bool
    numbers: tuple[float, ...]


@dataclass
class Session:
    """What is open of one session: lists of samples with their numbers by the end of their window."""

    mark_ms: int = -1
    newest_ms: int | None = None
    windows: dict[int, list[tuple[Sample, list[float]]]] = field(default_factory=dict)
    counters: dict[int, tuple[float, int]] = field(default_factory=dict)


@dataclass
class NaiveWindows:
    """All sessions of a partition, and what came of them."""

    rules: WindowRules
    sessions: dict[str, Session] = field(default_factory=dict)
    given: list[dict[str, Any]] = field(default_factory=list)
    too_late: list[int] = field(default_factory=list)
    dropped: int = 0

    def take(self, sample: Sample, watermark_ms: int) -> None:
        """Close what the sample makes due, then take it in."""
        rules, session = self.rules, self.sessions.setdefault(sample.session, Session())
        session.mark_ms = max(session.mark_ms, watermark_ms)
        self._close_until(sample.session, session.mark_ms)
        nearest = (session.mark_ms // rules.every_ms + 1) * rules.every_ms
        still_open = [nearest + k * rules.every_ms for k in range(rules.size_ms // rules.every_ms)]
        mine = [end for end in still_open if end - rules.size_ms <= sample.time_ms < end]
        if not mine:
            self.too_late.append(sample.offset)
            return
        if session.newest_ms is not None:
            last = session.newest_ms // rules.every_ms * rules.every_ms + rules.size_ms - 1
            if last + rules.keep_ms < nearest - 1:
                session.counters, session.newest_ms = {}, None
        session.newest_ms = max(sample.time_ms, -1 if session.newest_ms is None else session.newest_ms)
        pane = sample.time_ms // rules.every_ms
        beside = [s for s, _ in session.windows.get(mine[0], []) if s.time_ms // rules.every_ms == pane]
        if len(beside) < rules.max_samples // (rules.size_ms // rules.every_ms):
            numbers = [
                self._grown(session, c, sample) if c in rules.counters else v for c, v in enumerate(sample.numbers)
            ]
            for end in mine:
                session.windows.setdefault(end, []).append((sample, numbers))
        else:
            self.dropped += 1
        if sample.is_end:
            self._close_until(sample.session, math.inf)
            self.given[-1]["ends"] = True
            session.counters, session.newest_ms = {}, None

    def look(self, watermark_ms: float) -> None:
        """Close what is due in any session."""
        for name in self.sessions:
            self._close_until(name, watermark_ms)

    def _close_until(self, name: str, watermark_ms: float) -> None:
        windows = self.sessions[name].windows
        for end in sorted(windows):
            if end <= watermark_ms:
                self.given.append(self._window(name, end, windows.pop(end)))

    def _grown(self, session: Session, counter: int, sample: Sample) -> float:
        value = sample.numbers[counter]
        if math.isnan(value):
            return math.nan
        if counter not in session.counters:
            session.counters[counter] = value, sample.time_ms
            return math.nan
        before, before_ms = session.counters[counter]
        if sample.time_ms <= before_ms:
            return math.nan
        session.counters[counter] = value, sample.time_ms
        return value - before if value >= before else value

    def _window(self, name: str, end: int, samples: list[tuple[Sample, list[float]]]) -> dict[str, Any]:
        samples = sorted(samples, key=lambda taken: taken[0].time_ms)
        last = samples[-1][0]
        numbers: list[float] = []
        for column in range(len(last.numbers)):
            there = [(s.time_ms, n[column]) for s, n in samples if not math.isnan(n[column])]
            numbers += [self._aggregate(name, there, column in self.rules.counters) for name in self.rules.aggregates]
        return {
            "session": name, "end": end, "time_ms": end - 1, "offset": last.offset, "tokens": last.tokens,
            "ends": False, "numbers": [number + 0.0 for number in [*numbers, float(len(samples))]],  # no -0.0
        }  # fmt: skip

    def _aggregate(self, name: str, there: list[tuple[int, float]], is_counter: bool) -> float:
        values = [value for _, value in there]
        if name == "count":
            return float(len(values))
        if not values:
            return math.nan
        total = 0.0
        for value in values:
            total += value
        mean = total / len(values)
        spread = 0.0
        for value in values:
            spread += (value - mean) * (value - mean)
        seconds = (there[-1][0] - there[0][0]) / 1000.0
        slope = (values[-1] - values[0]) / seconds if seconds else math.nan
        if name.startswith("p"):
            at = (len(values) - 1) * (int(name[1:]) / 100)
            low, high = sorted(values)[math.floor(at)], sorted(values)[math.ceil(at)]
            return low + (high - low) * (at - math.floor(at))
        return {
            "mean": mean, "sum": total, "min": min(values), "max": max(values), "last": values[-1],
            "std": math.sqrt(spread / len(values)),
            "rate": total / (self.rules.size_ms / 1000.0) if is_counter else slope,
        }[name]  # fmt: skip
