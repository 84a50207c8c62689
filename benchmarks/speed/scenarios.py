"""`python -m benchmarks speed-whole-path speed-decode`: what measures speed, by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks import loghub
from benchmarks.machine import machine
from benchmarks.quality import templates as template_quality
from benchmarks.speed import (
    checkpoint,
    cores,
    decode,
    explanations,
    latency,
    loads,
    masking,
    memory,
    observability,
    recovery,
    stages,
    templates,
    text_lines,
    whole_path,
)

Results = list[dict[str, Any]]
_UNDER_WAY = 40_000  # records: fewer may be scored before a worker is looked at first


class Speed(NamedTuple):
    """What is measured, and how: on a small load where it only has to run."""

    about: str
    run: Callable[[bool, Console], Results]


def _stages(smoke: bool, screen: Console) -> Results:
    if smoke:
        return [stages.run(1_000, 200, 1, screen, kinds=["1 token"], keys=["zipf"])]
    return [stages.run(20_000, 20_000, 5, screen)]


def _templates(smoke: bool, screen: Console) -> Results:
    if not loghub.available():
        screen.print("  left out: the labelled data (../shared/data/loghub2k) is not here")
        return []
    systems = loghub.SYSTEMS[:1] if smoke else loghub.SYSTEMS
    return [templates.run(screen, systems=systems), template_quality.run(screen, systems)]


def _loads(smoke: bool, screen: Console) -> Results:
    if smoke:
        names = ("3 tokens, 3 numbers", "few sessions")
        return [loads.run(_UNDER_WAY, 500, 1, screen, names)]
    return [loads.run(1_000_000, 100_000, 5, screen)]


def _sized(
    benchmark: Callable[..., dict[str, Any]], few: Sequence[float], many: Sequence[float]
) -> Callable[[bool, Console], Results]:
    return lambda smoke, screen: [benchmark(*(few if smoke else many), screen)]


SPEED = {
    "speed-whole-path": Speed(
        "whole path: producer, broker, one worker, checkpoints, outputs",
        _sized(whole_path.run, (20_000, 500, 1), (2_000_000, 100_000, 5)),
    ),
    "speed-checkpoint": Speed(
        "checkpoint: what saving costs, and what exactly_once does",
        _sized(checkpoint.run, (_UNDER_WAY, 500, 1), (1_000_000, 100_000, 5)),
    ),
    "speed-loads": Speed(
        "loads: more fields, and a million sessions of which few are in memory",
        _loads,
    ),
    "speed-observability": Speed(
        "observability: what metrics and traces cost",
        _sized(observability.run, (20_000, 500, 1), (400_000, 20_000, 7)),
    ),
    "speed-latency": Speed(
        "latency: from a record produced to its anomaly consumed", _sized(latency.run, (500, 4.0), (20_000, 60.0))
    ),
    "speed-recovery": Speed(
        "recovery: from the changelog alone, from an intact disk, by a standby",
        _sized(recovery.run, (4_000,), (1_000_000,)),
    ),
    "speed-memory": Speed(
        "memory: a million live sessions, few of them in memory",
        _sized(memory.run, (2_000, 2.0, 500), (1_000_000, 600.0, 4_000)),
    ),
    "speed-decode": Speed("decode: JSON events to columns, one core", _sized(decode.run, (2_000, 1), (200_000, 5))),
    "speed-cores": Speed("cores: what serving a model costs, one core", _sized(cores.run, (2_000, 1), (100_000, 5))),
    "speed-masking": Speed("masking: what detectors cost, one core", _sized(masking.run, (2_000, 1), (100_000, 3))),
    "speed-text-lines": Speed(
        "text lines: fields out of lines, format by format, one core", _sized(text_lines.run, (500, 1), (50_000, 5))
    ),
    "speed-stages": Speed("stages: what each stage of a record's way costs, one core", _stages),
    "speed-explanations": Speed("explanations: what one costs, one core", _sized(explanations.run, (5,), (500,))),
    "speed-templates": Speed(
        "templates: lines to templates, one core; and whether they are the right ones", _templates
    ),
}
QUICK = ("speed-decode", "speed-text-lines", "speed-stages")  # few minutes, and no broker


def run_speed(names: Sequence[str], screen: Console, *, smoke: bool) -> Results:
    """Run some, one after the other."""
    results: Results = []
    for name in names:
        screen.print(SPEED[name].about)
        results += SPEED[name].run(smoke, screen)
    return results


def write_results(results: Results, out: Path, screen: Console) -> None:
    """Print their figures in a line each, and write all with the machine's facts."""
    for result in results:
        shown = {k: v for k, v in result.items() if k not in {"examples", "records_per_s", "runs", "rows"}}
        screen.print("  ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
    screen.print(f"written to {out}")
