"""What is learned online, slowly: dictionaries and lists where `detectors/online_kernels.py` has arrays.

It shares with it where the trees split, and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detectors.parts import Parts
from features.tokens import stable_hash

START = 0  # the token before a session's first
Named = tuple[int, str | None]  # a number: its column, and its name where it has one


@dataclass
class Session:
    """What a session keeps for it."""

    tokens: tuple[int, ...] | None = None
    numbers: tuple[float, ...] = ()
    smallest_p: float = 0.0  # 0: no record was scored yet
    confidence: float = 0.0


@dataclass
class NaiveOnline:
    """One partition's counts, means, trees and scores."""

    records: int = 0
    counts: dict[Any, float] = field(default_factory=dict)
    moments: dict[Any, tuple[float, float, float]] = field(default_factory=dict)
    before: list[dict[int, int]] | None = None  # the trees' last window: how many went through each node
    now: list[dict[int, int]] = field(default_factory=list)
    in_window: int = 0
    scores: list[float] = field(default_factory=list)

    def score_one(
        self,
        tokens: tuple[str | None, ...],
        numbers: tuple[float, ...],
        session: Session,
        parts: Parts,
        *,
        learns: bool,
    ) -> dict[str, Any]:
        """Judge a record, then learn it."""
        rules, hashes = parts.online, tuple(map(stable_hash, tokens))
        knows, last = self.records >= rules.first, session.tokens or (START,) * len(tokens)
        nats, newest = [], 0.0
        for f, (before, token) in enumerate(zip(last, hashes, strict=True)):
            nats.append(self._token(f, before, token))
            total = self._of(("all", f))
            newest = max(newest, self._of(("new", f)) / total if total else 1.0)
            if learns:
                self._learn_token(f, before, token, rules.counts)
        point, column = self._point(tokens, numbers, session, parts, learns=learns)
        of_numbers = [0.0] * len(numbers)
        found = self._numbers(point, parts, learns=learns)
        if found is not None:
            of_numbers[column] = found
        judged: dict[str, Any] = {"score": None, "p_value": None, "anomaly": False}
        if knows and (tokens or found is not None):
            score = np.float32(0)
            for value in nats + of_numbers:
                score = np.float32(score + np.float32(value))
            kept = self.scores[-rules.scores :]
            p_value = (1.0 + sum(s >= score for s in kept)) / (1.0 + len(kept))
            confidence = len(kept) / (len(kept) + 1.0 / parts.rate) * (1.0 - newest)
            judged = {"score": float(score), "p_value": p_value, "anomaly": p_value <= parts.rate and learns}
            judged |= {"confidence": confidence}
            if learns:
                self.scores.append(score)
                p = float(np.float32(p_value))
                session.smallest_p = min(session.smallest_p or p, p)
                session.confidence = float(np.float32(confidence))
        if learns:
            session.tokens, session.numbers = hashes, numbers
            self.records += 1
            if self.records % rules.halved_every == 0:
                self._halve()
        return judged

    # --- counts --------------------------------------------------------------------------------------------------

    def _of(self, key: Any) -> float:
        return self.counts.get(key, 0.0)

    def _token(self, f: int, before: int, token: int) -> float:
        total, new = self._of(("all", f)), self._of(("new", f)) + 0.5
        p = (self._of(("token", f, token)) or new) / (total + new)
        pairs, new_after = self._of(("pair", f, before, token)), self._of(("new", f, before)) + 0.5
        rest = self._of(("all", f, before)) + new_after
        return -math.log(pairs / rest if pairs else new_after / rest * p)

    def _learn_token(self, f: int, before: int, token: int, room: int) -> None:
        is_new, is_new_after = not self._of(("token", f, token)), not self._of(("pair", f, before, token))
        keys = [("new", f)] * is_new + [("all", f), ("token", f, token)]
        keys += [("new", f, before)] * is_new_after + [("all", f, before), ("pair", f, before, token)]
        for key in keys:
            if key not in self.counts and len(self.counts) == room:
                while len(self.counts) > 0.75 * room:
                    self._halve()
            self.counts[key] = self._of(key) + 1.0

    def _halve(self) -> None:
        self.counts = {key: count / 2 for key, count in self.counts.items() if count / 2 >= 0.5}

    # --- numbers -------------------------------------------------------------------------------------------------

    def _point(
        self,
        tokens: tuple[str | None, ...],
        numbers: tuple[float, ...],
        session: Session,
        parts: Parts,
        *,
        learns: bool,
    ) -> tuple[list[float], int]:
        """Coordinates of the numbers and of their changes, and the column of the one furthest from its mean."""
        point, strangest, largest = [], 0, -1.0
        for c, value in enumerate(numbers):
            by = parts.measures.named_by[c] if parts.measures.named_by else None
            name = None if by is None else (tokens[by] or "missing",)
            change = math.nan if session.tokens is None or name is not None else value - session.numbers[c]
            for which, x in enumerate((value, change)):
                at, z = self._coordinate((c, name, which), x, parts.online.numbers, learns=learns)
                point.append(at)
                if z > largest:
                    strangest, largest = c, z
        return point, strangest

    def _coordinate(self, key: Any, x: float, room: int, *, learns: bool) -> tuple[float, float]:
        if math.isnan(x):
            return math.nan, math.nan
        if key not in self.moments:
            if learns and len(self.moments) < room:
                self.moments[key] = (1.0, x, 0.0)
            return math.nan, math.nan
        count, mean, variance = self.moments[key]
        off = x - mean
        if learns:
            count = min(count + 1.0, 1_000.0)
            share = 1.0 / count
            self.moments[key] = (count, mean + share * off, (1.0 - share) * (variance + share * off * off))
        if variance == 0.0:
            return (0.5, 0.0) if off == 0.0 else (float(off > 0.0), math.inf)
        z = off / math.sqrt(variance)
        return 0.5 + 0.5 * (z / (3.0 + abs(z))), abs(z)

    def _numbers(self, point: list[float], parts: Parts, *, learns: bool) -> float | None:
        """Nats of a point by the mass around it; None where there is no point, or no window before."""
        rules, trees = parts.online, parts.trees
        if all(map(math.isnan, point)):
            return None
        assert trees is not None
        self.now = self.now or [{} for _ in range(rules.trees)]
        mass, window = 0, rules.window
        for t in range(rules.trees):
            now, last = self.now[t], {} if self.before is None else self.before[t]
            path = [0]
            while path[-1] < len(trees.feature[t]):
                node = path[-1]
                x = point[trees.feature[t, node]]
                left, right = 2 * node + 1, 2 * node + 2
                goes_right = now.get(left, 0) < now.get(right, 0) if math.isnan(x) else x >= trees.threshold[t, node]
                path.append(right if goes_right else left)
            for depth, node in enumerate(path):
                mass += last.get(node, 0) * 2**depth
                if last.get(node, 0) < 0.1 * window:
                    break
            for node in path if learns else ():
                now[node] = now.get(node, 0) + 1
        ready = self.before is not None
        self.in_window += learns
        if self.in_window == window:
            self.before, self.now, self.in_window = self.now, [], 0
        return -math.log(mass / (rules.trees * window * (2 ** (rules.height + 1) - 1))) if ready else None
