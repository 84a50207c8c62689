"""How many log lines one core matches in a second, the numbers in them included; lines of seven systems.

- `cold`: each distinct line once, nothing remembered before: what a matcher meets after a start.
- `real`: the lines as they come, with their repetitions, nothing remembered before the first. The goal is for these.
- `warm`: the same lines again, every token known: as fast as it gets.

Messages are what a stream's `message` field holds; whole lines carry their time and host as tokens too, and are matched
by templates mined from them. Templates are mined before the clock starts. Time is the processor's, and the best of
some repetitions counts, each with a new matcher: one that another process disturbed says nothing about the matcher.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from benchmarks.loghub import SYSTEMS, load
from features.parameters import with_parameters
from features.template_mining import mine
from features.templates import Matcher, Templates

GOAL = 100_000
PARAMETERS = 4  # as many as a stream may have


def run(screen: Console, *, systems: Sequence[str] = SYSTEMS, repeats: int = 7) -> dict[str, Any]:
    """Lines a second for each system and kind of lines; the slowest of each, and the overall rate."""
    found: dict[str, list[dict[str, Any]]] = {"messages": [], "whole_lines": []}
    for name in systems:
        system = load(name)
        for kind, lines in (("messages", system.messages), ("whole_lines", system.lines)):
            began = time.process_time()
            templates = with_parameters(mine(lines), lines, PARAMETERS)
            mined = len(lines) / (time.process_time() - began)
            row = {"system": name, "mined": mined, **_rates(templates, lines, repeats)}
            found[kind].append(row)
            shown = "  ".join(f"{k} {v:,.0f}" for k, v in row.items() if k != "system")
            screen.print(f"  {name} {kind}: lines/s {shown}")
    result: dict[str, Any] = {"benchmark": "template speed", "goal": GOAL, "runs": found}
    for kind, rows in found.items():
        for way in ("cold", "real"):
            result[f"{kind}_{way}_slowest"] = min(row[way] for row in rows)
            result[f"{kind}_{way}"] = len(rows) / sum(1 / row[way] for row in rows)
    return result


def _rates(templates: Templates, lines: Sequence[str], repeats: int) -> dict[str, float]:
    distinct = list(dict.fromkeys(lines))
    best = dict.fromkeys(("cold", "real", "warm"), 0.0)
    for _ in range(repeats):
        best["cold"] = max(best["cold"], _rate(Matcher(templates), distinct))
        matcher = Matcher(templates)
        best["real"] = max(best["real"], _rate(matcher, lines))
        best["warm"] = max(best["warm"], _rate(matcher, lines))
    return best


def _rate(matcher: Matcher, lines: Sequence[str]) -> float:
    began = time.process_time()
    matcher.read(lines, PARAMETERS)
    return len(lines) / (time.process_time() - began)
