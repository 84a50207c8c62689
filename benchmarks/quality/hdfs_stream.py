"""Raw Hadoop lines as they came, learned for a while and judged from then on.

The blocks stand in the order in which each was over, or in which each began. The first 30 % of them teach, those
labelled normal alone; the others are judged, a block by all its sessions. A block is written, and hours later deleted:
with a gap of an hour these are two sessions, with one of twelve hours one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.quality.hdfs_raw import RAW, available, lines_of, table
from benchmarks.quality.outcome import Outcome, mean_of
from benchmarks.quality.trial import Event, Measures, Setup, Trial, attempts

__all__ = ["available", "run"]

_LEARNED = 0.3
_PARTS = {"ends, 1h": ("ends", "1h"), "begins, 1h": ("begins", "1h"), "begins, 12h": ("begins", "12h")}
_PROMISE = 0.01  # some 800 sessions teach
_VARIANTS: dict[str, Event] = {"": {}, ", nothing absorbed": {"detectors.absorb": 0}}


def run(setup: Setup) -> Outcome:
    """Train, score with and without absorbing profiles, judge."""
    labels = {row["block_id"]: int(row["label"]) for row in table("raw_labels.csv.gz")}
    parts, cost, warnings = dict[str, Measures](), dict[str, float](), list[str]()
    for part in setup.parts(_PARTS)[: 1 if setup.smoke else None]:
        order, gap = _PARTS[part]
        blocks = _blocks(order)
        learned = set(blocks[: int((0.5 if setup.smoke else 1.0) * _LEARNED * len(blocks))])
        normal = {block for block in learned if labels[block] == 0}
        judged = set(blocks[: len(blocks) // 3]) - learned if setup.smoke else set(blocks) - learned
        section = {
            "topic": "hdfs.events", "start": "earliest", "session": {"by": "block", "gap": gap},
            "promise": {"false_alarm_rate": _PROMISE},
        } | RAW  # fmt: skip
        trials = attempts(setup, section, _of(normal), _of(judged), list(_VARIANTS.values()))
        parts[part] = {
            f"{name}{what}": value
            for what, trial in zip(_VARIANTS, trials, strict=True)
            for name, value in _judge(trial, labels).items()
        }
        cost, warnings = trials[0].cost, warnings + trials[0].warnings
    whole = not setup.smoke and not setup.only
    return Outcome("quality-hdfs-stream", setup.core, mean_of([*parts.values()]), cost, parts, warnings, whole)


def _blocks(order: str) -> list[str]:
    """All blocks, as each began or was over."""
    blocks = [row["block_id"] for row in table("raw_index.csv.gz")]
    return list(dict.fromkeys(blocks)) if order == "begins" else list(dict.fromkeys(blocks[::-1]))[::-1]


def _of(blocks: set[str]) -> Iterator[dict[str, Any]]:
    return (line for line in lines_of("raw") if line["_key"] in blocks)


def _judge(trial: Trial, labels: dict[str, int]) -> Measures:
    from evalkit.sessions import session_metrics

    alarmed: dict[str | None, bool] = {}
    for name, anomaly in zip(trial.sessions.session, trial.sessions.anomaly.tolist(), strict=True):
        alarmed[name] = alarmed.get(name, False) or anomaly
    judged = session_metrics(list(alarmed.values()), [labels[str(name)] for name in alarmed])
    names = {"f1": "f1", "precision": "precision", "recall": "recall", "kept": "fpr"}
    return {name: judged[of] for name, of in names.items()}
