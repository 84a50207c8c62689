"""Grouping accuracy of mined templates on seven systems, against Drain3's own.

Ours is what a user gets: mined from the 2,000 messages, then matched. Drain3's is the group it puts each message into
as it reads them, with each of two published settings: those for each system by Drain's authors, with patterns written
for that system (github.com/logpai/logparser, Drain/benchmark.py), and the one example that comes with Drain3
(examples/drain3.ini).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from drain3.drain import Drain  # type: ignore[import-untyped]
from rich.console import Console

from benchmarks.loghub import SYSTEMS, load
from features.template_mining import mine
from features.templates import Matcher

_IP = r"(\d+\.){3}\d+"
_HOST = r"([\w-]+\.){2,}[\w-]+"


class _Published(NamedTuple):
    patterns: Sequence[str]
    similarity: float
    depth: int


_PER_SYSTEM = {
    "Apache": _Published([_IP], 0.5, 4),
    "BGL": _Published([r"core\.\d+"], 0.5, 4),
    "HDFS": _Published([r"blk_-?\d+", rf"{_IP}(:\d+)?"], 0.5, 4),
    "Hadoop": _Published([_IP], 0.5, 4),
    "OpenSSH": _Published([_IP, _HOST], 0.6, 5),
    "OpenStack": _Published([r"((\d+\.){3}\d+,?)+", r"/.+?\s", r"\d+"], 0.5, 5),
    "Spark": _Published([_IP, r"\b[KGTM]?B\b", _HOST], 0.5, 4),
}
_BEFORE, _AFTER = r"((?<=[^A-Za-z0-9])|^)", r"((?=[^A-Za-z0-9])|$)"
_EXAMPLE = {
    f"{_BEFORE}(([0-9a-f]{{2,}}:){{3,}}([0-9a-f]{{2,}})){_AFTER}": "<:ID:>",
    f"{_BEFORE}(\\d{{1,3}}\\.\\d{{1,3}}\\.\\d{{1,3}}\\.\\d{{1,3}}){_AFTER}": "<:IP:>",
    f"{_BEFORE}([0-9a-f]{{6,}} ?){{3,}}{_AFTER}": "<:SEQ:>",
    f"{_BEFORE}([0-9A-F]{{4}} ?){{4,}}{_AFTER}": "<:SEQ:>",
    f"{_BEFORE}(0x[a-f0-9A-F]+){_AFTER}": "<:HEX:>",
    f"{_BEFORE}([\\-\\+]?\\d+){_AFTER}": "<:NUM:>",
    '(?<=executed cmd )(".+?")': "<:CMD:>",
}


def run(screen: Console, systems: Sequence[str] = SYSTEMS) -> dict[str, Any]:
    """Print the table; means over the systems."""
    found = rows(systems)
    for row in found:
        screen.print("  " + "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{v:10}" for k, v in row.items()))
    ways = [key for key in found[0] if key != "system"]
    return {"benchmark": "templates", "runs": found} | {w: sum(row[w] for row in found) / len(found) for w in ways}


def rows(systems: Sequence[str] = SYSTEMS) -> list[dict[str, Any]]:
    """For each system ours, and Drain3's with either setting."""
    found = []
    for system in systems:
        _, _, messages, truth = load(system)
        published = _PER_SYSTEM[system]
        masks = dict.fromkeys(published.patterns, "<*>")
        per_system = Drain(depth=published.depth, sim_th=published.similarity)
        example = Drain(depth=4, sim_th=0.4, max_clusters=1_024, extra_delimiters=("_",), param_str="<:*:>")
        found.append({
            "system": system,
            "offbeat": grouping_accuracy(Matcher(mine(messages)).match(messages).ids, truth),
            "drain3_per_system": grouping_accuracy(_drain3(per_system, masks, messages), truth),
            "drain3_example": grouping_accuracy(_drain3(example, _EXAMPLE, messages), truth),
        })  # fmt: skip
    return found


def grouping_accuracy(found: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """Share of lines whose group, as a set of lines, is exactly a true one.

    References
    ----------
    Zhu et al. 2019, "Tools and benchmarks for automated log parsing", ICSE-SEIP, where it is called parsing accuracy.

    Examples
    --------
    >>> grouping_accuracy("aab", "xxy"), grouping_accuracy("abb", "xxy"), grouping_accuracy("abc", "xxy")
    (1.0, 0.0, 0.3333333333333333)
    """
    true_groups = set(_groups(truth))
    return sum(len(group) for group in _groups(found) if group in true_groups) / len(truth)


def _groups(names: Sequence[Hashable]) -> list[tuple[int, ...]]:
    members: dict[Hashable, list[int]] = defaultdict(list)
    for line, name in enumerate(names):
        members[name].append(line)
    return [tuple(lines) for lines in members.values()]


def _drain3(drain: Drain, masks: dict[str, str], messages: Sequence[str]) -> list[int]:
    groups = []
    for message in messages:
        masked = message
        for pattern, text in masks.items():
            masked = re.sub(pattern, text, masked)
        groups.append(drain.add_log_message(masked)[0].cluster_id)
    return groups
