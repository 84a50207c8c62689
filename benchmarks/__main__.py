"""`python -m benchmarks`: runs all that measure speed or go through Kafka, and writes JSON with machine facts.

`python -m benchmarks quality-hdfs` runs a scenario of quality instead, as `benchmarks/quality/scenarios.py` says;
`python -m benchmarks peers` measures other tools beside Offbeat, as `benchmarks/speed/peers.py` says (half an hour).
`--smoke` runs each on a small load, to see that it still works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import loghub
from benchmarks import nezha as nezha_data
from benchmarks.machine import machine
from benchmarks.quality import (
    contamination,
    drift,
    hdfs,
    hdfs_raw,
    hdfs_worker,
    late_answers,
    nezha,
    nezha_incidents,
    promise,
)  # fmt: skip
from benchmarks.quality import templates as template_quality
from benchmarks.quality.scenarios import SCENARIOS, add_options, run_scenarios
from benchmarks.speed import (
    checkpoint,
    cores,
    decode,
    explanations,
    masking,
    memory,
    observability,
    peers,
    recovery,
    text_lines,
    whole_path,
)  # fmt: skip
from benchmarks.speed import templates as template_speed

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small loads, figures without meaning")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results/)")
    add_options(parser)
    options = parser.parse_args()
    screen = Console(highlight=False)
    out = options.out or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    if options.scenarios == ["peers"]:
        _write([_peers(screen, smoke=options.smoke)], out, screen)
        return
    if options.scenarios:
        unknown = set(options.scenarios) - {*SCENARIOS, "quality"}
        if unknown:
            parser.error(f"there is no {unknown.pop()}; there are {', '.join(SCENARIOS)}, quality, and alone peers")
        sys.exit(run_scenarios(options, screen, out))
    _run_all(screen, out, options)


def _run_all(screen: Console, out: Path, options: argparse.Namespace) -> None:
    results = []
    screen.print("whole path: producer, broker, one worker, checkpoints, outputs")
    results.append(whole_path.run(*((20_000, 500, 1) if options.smoke else (2_000_000, 100_000, 3)), screen))
    screen.print("checkpoint: what saving costs, and what exactly_once does")
    results.append(checkpoint.run(*((20_000, 500, 1) if options.smoke else (1_000_000, 100_000, 3)), screen))
    screen.print("observability: what metrics and traces cost")
    results.append(observability.run(*((20_000, 500, 1) if options.smoke else (400_000, 20_000, 7)), screen))
    screen.print("recovery: from the changelog alone, from an intact disk, by a standby")
    results.append(recovery.run(4_000 if options.smoke else 1_000_000, screen))
    screen.print("memory: a million live sessions, few of them in memory")
    results.append(memory.run(*((2_000, 2.0, 500) if options.smoke else (1_000_000, 600.0, 4_000)), screen))
    for what, benchmark, few, many in (
        ("decode: JSON events to columns, one core", decode.run, (2_000, 1), (200_000, 5)),
        ("cores: what serving a model costs, one core", cores.run, (2_000, 1), (100_000, 5)),
        ("masking: what detectors cost, one core", masking.run, (2_000, 1), (100_000, 3)),
        ("text lines: fields out of lines, format by format, one core", text_lines.run, (500, 1), (50_000, 5)),
    ):
        screen.print(what)
        results.append(benchmark(*(few if options.smoke else many), screen))
    screen.print("explanations: what one costs, one core")
    results.append(explanations.run(5 if options.smoke else 500, screen))
    screen.print("templates: lines to templates, one core; and whether they are the right ones")
    if loghub.available():
        systems = loghub.SYSTEMS[:1] if options.smoke else loghub.SYSTEMS
        results += [template_speed.run(screen, systems=systems), template_quality.run(screen, systems)]
    else:
        screen.print("  left out: the labelled data (../shared/data/loghub2k) is not here")
    results += _quality(screen, smoke=options.smoke)
    for result in results:
        shown = {k: v for k, v in result.items() if k not in {"examples", "records_per_s", "runs", "rows"}}
        screen.print("  ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()))
    _write(results, out, screen)


def _peers(screen: Console, *, smoke: bool) -> dict[str, Any]:
    """Offbeat beside other tools; five rounds, over a topic that the quickest do not read to its end."""
    screen.print("peers: the same job by other tools, in turn")
    if smoke:
        return peers.run(4_000, 200, 1, screen, peers.Windows(2.0, 2.0))
    return peers.run(12_000_000, 100_000, 5, screen)


def _write(results: list[dict[str, Any]], out: Path, screen: Console) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
    screen.print(f"written to {out}")


def _quality(screen: Console, *, smoke: bool) -> list[dict[str, Any]]:
    """How good, on made-up and on labelled data."""
    results = []
    screen.print("contamination: bad sessions in the history, with and without leaving them out")
    results.append(contamination.run(200, screen, (1,), (0.02,)) if smoke else contamination.run(6_000, screen))
    screen.print("late_answers: what comes too late, with and without time gaps")
    results.append(late_answers.run(300, screen, (1,), 1) if smoke else late_answers.run(9_700, screen))
    screen.print("drift: how soon it is told and how often in vain, beside river's detectors alone")
    results.append(drift.run(screen, (1,), 3_000, 10.0) if smoke else drift.run(screen))
    screen.print("promise: false alarms promised and kept, under drift and on healthy data")
    results.append(promise.run(100_000, screen, smoke=True) if smoke else promise.run(5_000_000, screen))
    screen.print("hdfs_worker: worker against file, and against labels")
    if hdfs.available():
        less: dict[str, Any] = {"learn": 1_200, "play": 500, "promise": 0.01} if smoke else {}
        results.append(hdfs_worker.run(screen, **less))
    else:
        screen.print("  left out: the labelled data (../shared/data/hdfs) is not here")
    screen.print("hdfs_raw: raw lines against given event ids")
    if hdfs_raw.available():
        fewer: dict[str, Any] = {"blocks": 250, "ways": ["raw"], "promise": 0.1} if smoke else {}
        results.append(hdfs_raw.run(screen, **fewer))
    else:
        screen.print("  left out: the labelled data (../shared/data/hdfs) is not here")
    screen.print("nezha: a microservice system's logs, spans and metrics, and its faults")
    if nezha_data.available():
        first = nezha_data.FIRST_RECORDED_S + 180
        results.append(nezha.run(screen, streams=["traces"], until_s=first) if smoke else nezha.run(screen))
        if not smoke:
            results.append(nezha_incidents.run(screen))
    else:
        screen.print("  left out: the labelled data (../shared/data/nezha) is not here")
    return results


if __name__ == "__main__":
    main()
