"""Verdicts of a file as columns: what a judge needs of them, in a fraction of the memory that messages take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.outputs import Json


@dataclass(frozen=True)
class Verdicts:
    """Verdicts of one kind, records or sessions, as columns in the file's order; NaN where there is no score.

    Attributes
    ----------
    line
        int64, counted from 1; 0 where a session ended with the file.
    first_ms, last_ms
        int64: times of a session's first and last event; of a record both its own. 0 where a record has none.
    rescored
        p-values of a second stage; NaN where it did not look.
    """

    session: list[str | None]
    line: NDArray[np.int64]
    first_ms: NDArray[np.int64]
    last_ms: NDArray[np.int64]
    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    anomaly: NDArray[np.bool_]
    rescored: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.session)

    def of(self, session: str | None) -> NDArray[np.int64]:
        """Positions of a session's verdicts; of all for None."""
        return np.arange(len(self)) if session is None else self._positions.get(session, np.empty(0, np.int64))

    @cached_property
    def _positions(self) -> dict[str | None, NDArray[np.int64]]:
        return positions_of(self.session)


@dataclass
class _Columns:
    session: list[str | None] = field(default_factory=list)
    numbers: list[tuple[int, int, int, float, float, bool, float]] = field(default_factory=list)

    def frozen(self) -> Verdicts:
        columns = zip(*self.numbers, strict=True) if self.numbers else ((),) * 7
        line, first, last, score, p_value, anomaly, rescored = columns
        whole, real = (np.int64, np.float64)
        return Verdicts(
            self.session, np.array(line, whole), np.array(first, whole), np.array(last, whole),
            np.array(score, real), np.array(p_value, real), np.array(anomaly, np.bool_),
            np.array(rescored, real),
        )  # fmt: skip


def gather(verdicts: Iterable[Json]) -> tuple[Verdicts, Verdicts]:
    """Verdicts on records, and on sessions; those on rates are about neither."""
    kinds = {"record": _Columns(), "session": _Columns()}
    for v in verdicts:
        if v["type"] == "rate":
            continue
        columns, last_ms = kinds[v["type"]], int(v["time_ms"] or 0)
        columns.session.append(v["session"])
        columns.numbers.append((
            int(v.get("line") or 0), int(v.get("first_ms", last_ms)), last_ms, _or_nan(v["score"]),
            _or_nan(v["p_value"]), bool(v["anomaly"]), (v.get("rescored") or {"p_value": np.nan})["p_value"],
        ))  # fmt: skip
    return kinds["record"].frozen(), kinds["session"].frozen()


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def positions_of(names: Sequence[str | None]) -> dict[str | None, NDArray[np.int64]]:
    """Positions of each name."""
    groups: dict[str | None, list[int]] = {}
    for position, name in enumerate(names):
        groups.setdefault(name, []).append(position)
    return {name: np.array(positions, np.int64) for name, positions in groups.items()}
