"""Patterns that people have called normal: what shows one of these again is no anomaly.

Scores and p-values stay as they are; only what is alarmed changes, from a label's checkpoint on
(docs/adr/0038). A pure step after `process_batch`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from detectors.parts import Parts
from detectors.patterns import pattern_of_record, pattern_of_session
from detectors.process import Verdicts
from detectors.rows import SessionRows

MOST_ABSOLVED = 1_000  # patterns remembered; of more the oldest are forgotten
_BYTES = 8


@dataclass(frozen=True)
class Absolved:
    """Patterns of a slice's anomalies, and which of these are none any more, by the numbers of records and sessions."""

    records: dict[int, int] = field(default_factory=dict)
    sessions: dict[int, int] = field(default_factory=dict)
    normal_records: frozenset[int] = frozenset()
    normal_sessions: frozenset[int] = frozenset()


def absolve(verdicts: Verdicts, rows: SessionRows, absolved: bytes, parts: Parts) -> tuple[Verdicts, Absolved]:
    """Name a slice's anomalies, and take back those whose pattern was called normal.

    Parameters
    ----------
    rows
        Those before the slice.
    absolved
        As in `PartitionState`.
    """
    records = {
        i: pattern_of_record(verdicts, i, rows, parts) for i in np.flatnonzero(verdicts.anomaly).tolist()
    }  # fmt: skip
    sessions = {
        e: pattern_of_session(verdicts, e, rows, parts) for e in np.flatnonzero(verdicts.ends.anomaly).tolist()
    }  # fmt: skip
    known = frozenset(np.frombuffer(absolved, "<u8").tolist())
    found = Absolved(records, sessions, _among(records, known), _among(sessions, known))
    if not (found.normal_records or found.normal_sessions):
        return verdicts, found
    ends = replace(verdicts.ends, anomaly=_without(verdicts.ends.anomaly, found.normal_sessions))
    return replace(verdicts, anomaly=_without(verdicts.anomaly, found.normal_records), ends=ends), found


def with_label(absolved: bytes, pattern: int, *, is_normal: bool) -> tuple[bytes, int]:
    """What is absolved after a label, the latest last, and how many of the oldest were forgotten for it."""
    kept = [known for known in np.frombuffer(absolved, "<u8").tolist() if known != pattern]
    kept += [pattern] if is_normal else []
    forgotten = max(0, len(kept) - MOST_ABSOLVED)
    return np.array(kept[forgotten:], "<u8").tobytes(), forgotten


def count_of(absolved: bytes) -> int:
    """How many patterns."""
    return len(absolved) // _BYTES


def _among(patterns: dict[int, int], known: frozenset[int]) -> frozenset[int]:
    return frozenset(number for number, pattern in patterns.items() if pattern in known)


def _without(anomaly: NDArray[np.bool_], numbers: frozenset[int]) -> NDArray[np.bool_]:
    left = anomaly.copy()
    left[sorted(numbers)] = False
    return left
