"""Labels that `offbeat backtest` judges by: a CSV file of one of three kinds, which its first line tells."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.errors import BadTimeError
from features.event_time import parse_time_ms
from pipeline.errors import UsageError

_WORDS: dict[str, bool | None] = {"1": True, "0": False, "true": True, "false": False, "": None}


@dataclass(frozen=True)
class Range:
    """A span of event time in which something was wrong, of one session or of all; both ends belong to it."""

    begin_ms: int
    end_ms: int
    session: str | None


@dataclass
class Labels:
    """What was wrong. What is not named is normal; None says that nobody knows, and is not judged.

    Attributes
    ----------
    kind
        `sessions`, `lines` or `ranges`; only what belongs to it is filled.
    """

    kind: str
    sessions: dict[str, bool | None] = field(default_factory=dict)
    lines: dict[int, bool | None] = field(default_factory=dict)
    ranges: list[Range] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sessions) + len(self.lines) + len(self.ranges)


def read_labels(path: Path) -> Labels:
    """Labels of a CSV file, plain or .gz.

    Raises
    ------
    UsageError
        It cannot be read, or a row of it cannot be understood: the sentence says which, and why.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            return _labels(csv.reader(file, strict=True), path)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        message = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UsageError(message) from error


def _labels(rows: Iterator[list[str]], path: Path) -> Labels:
    columns = tuple(name.strip().lower() for name in next(rows, []))
    if columns not in _READERS:
        message = (
            f"the first line of {path} is {','.join(columns)!r}; it names the columns: write session,label or "
            "line,label or start,end or start,end,session"
        )
        raise UsageError(message)
    kind, read = _READERS[columns]
    labels = Labels(kind)
    for number, row in enumerate(rows, 2):
        if not any(value.strip() for value in row):
            continue
        try:
            if len(row) != len(columns):
                message = f"it has {len(row)} values for the {len(columns)} columns {','.join(columns)}"
                raise ValueError(message)
            read(labels, [value.strip() for value in row])
        except (ValueError, BadTimeError) as error:
            message = f"row {number} of {path} is no label: {error}; correct it or take it out"
            raise UsageError(message) from None
    return labels


def _read_session(labels: Labels, row: list[str]) -> None:
    _add(labels.sessions, row[0], row[1], "session")


def _read_line(labels: Labels, row: list[str]) -> None:
    if not row[0].isdecimal() or int(row[0]) < 1:
        message = f"{row[0]!r} is no number of a line, which count from 1"
        raise ValueError(message)
    _add(labels.lines, int(row[0]), row[1], "line")


def _read_range(labels: Labels, row: list[str]) -> None:
    begin, end = (parse_time_ms(text) for text in row[:2])
    if end < begin:
        message = f"it ends, {row[1]}, before it begins, {row[0]}"
        raise ValueError(message)
    labels.ranges.append(Range(begin, end, row[2] if len(row) > 2 and row[2] else None))


def _add(found: dict[Any, bool | None], key: str | int, word: str, what: str) -> None:
    if word.lower() not in _WORDS:
        message = f"the label {word!r} is none of 1 (anomalous), 0 (normal) and nothing (not known)"
        raise ValueError(message)
    label = _WORDS[word.lower()]
    if found.setdefault(key, label) is not label:
        message = f"{what} {key} has another label above"
        raise ValueError(message)


_READERS: dict[tuple[str, ...], tuple[str, Callable[[Labels, list[str]], None]]] = {
    ("session", "label"): ("sessions", _read_session),
    ("line", "label"): ("lines", _read_line),
    ("start", "end"): ("ranges", _read_range),
    ("start", "end", "session"): ("ranges", _read_range),
}
