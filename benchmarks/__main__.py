"""`python -m benchmarks`: runs all that measure speed or go through Kafka, and writes JSON with machine facts.

`python -m benchmarks speed-decode speed-cores` runs some instead: those of `benchmarks/speed/scenarios.py`, or, as
quality-hdfs, those of `benchmarks/quality/scenarios.py`. `python -m benchmarks unit-costs --out FILE` measures what
`offbeat plan --costs FILE` goes by, and `python -m benchmarks peers` other tools beside Offbeat, as
`benchmarks/speed/peers.py` says (half an hour). `--smoke` runs each on a small load, to see that it still works; its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import nezha as nezha_data
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
from benchmarks.quality.scenarios import SCENARIOS, add_options, run_scenarios
from benchmarks.speed import peers, unit_costs
from benchmarks.speed.scenarios import SPEED, run_speed, write_results

RESULTS = Path(__file__).parent / "results"
_UNIT_COSTS, _PEERS = "unit-costs", "peers"
_SMALL = {"hidden": 16, "max_epochs": 6}  # of smoke runs
_ALONE = {_UNIT_COSTS, _PEERS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small loads, figures without meaning")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results/)")
    add_options(parser)
    options = parser.parse_args(arguments)
    screen = Console(highlight=False)
    out = options.out or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    wanted = set(options.scenarios)
    if unknown := wanted - {*SCENARIOS, *SPEED, "quality", *_ALONE}:
        there_are = ", ".join([*SPEED, *SCENARIOS, "quality", *sorted(_ALONE)])
        parser.error(f"there is no {unknown.pop()}; there are {there_are}")
    if wanted == {_UNIT_COSTS}:
        measured = unit_costs.run(unit_costs.SMOKE if options.smoke else unit_costs.Size(), screen)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(measured.model_dump_json(indent=1) + "\n")
        screen.print(f"written to {out}")
    elif wanted == {_PEERS}:
        write_results([_beside_peers(screen, smoke=options.smoke)], out, screen)
    elif wanted & SPEED.keys():
        if not wanted <= SPEED.keys():
            parser.error("scenarios of speed go with each other only: their results have another form")
        write_results(run_speed(options.scenarios, screen, smoke=options.smoke), out, screen)
    elif wanted:
        if with_others := wanted & _ALONE:
            parser.error(f"{with_others.pop()} stands alone: what it writes has a form of its own")
        sys.exit(run_scenarios(options, screen, out))
    else:
        results = run_speed(list(SPEED), screen, smoke=options.smoke) + _quality(screen, smoke=options.smoke)
        write_results(results, out, screen)


def _beside_peers(screen: Console, *, smoke: bool) -> dict[str, Any]:
    """Offbeat beside other tools; five rounds, over a topic that the quickest do not read to its end."""
    screen.print("peers: the same job by other tools, in turn")
    if smoke:
        return peers.run(4_000, 200, 1, screen, peers.Windows(2.0, 2.0))
    return peers.run(12_000_000, 100_000, 5, screen)


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
        less: dict[str, Any] = {"learn": 500, "play": 300, "promise": 0.1, "model": _SMALL} if smoke else {}
        results.append(hdfs_worker.run(screen, **less))
    else:
        screen.print("  left out: the labelled data (../shared/data/hdfs) is not here")
    screen.print("hdfs_raw: raw lines against given event ids")
    if hdfs_raw.available():
        fewer: dict[str, Any] = {"blocks": 250, "ways": ["raw"], "promise": 0.1, "model": _SMALL} if smoke else {}
        results.append(hdfs_raw.run(screen, **fewer))
    else:
        screen.print("  left out: the labelled data (../shared/data/hdfs) is not here")
    screen.print("nezha: a microservice system's logs, spans and metrics, and its faults")
    if nezha_data.available():
        first = nezha_data.FIRST_RECORDED_S + 180
        part: dict[str, Any] = {"streams": ["traces"], "until_s": first, "promise": 0.1, "model": _SMALL}
        results.append(nezha.run(screen, **part if smoke else {}))
        if not smoke:
            results.append(nezha_incidents.run(screen))
    else:
        screen.print("  left out: the labelled data (../shared/data/nezha) is not here")
    return results


if __name__ == "__main__":
    main()
