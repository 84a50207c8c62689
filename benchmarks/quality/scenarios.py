"""`python -m benchmarks quality-hdfs --core gru`: permanent scenarios of quality, by name.

`--check` fails where a measure has fallen below its floor in tolerances.json; `--base RESULT.json` shows what changed
since a result of before.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.console import Console

from benchmarks.machine import machine
from benchmarks.quality import bgl, hdfs, hdfs_stream, nab, smd
from benchmarks.quality.outcome import Outcome, failures, read_tolerances, table
from benchmarks.quality.trial import Setup, cores


class Scenario(NamedTuple):
    """A scenario, and whether its data is here."""

    run: Callable[[Setup], Outcome]
    available: Callable[[], bool]


SCENARIOS = {
    "quality-hdfs": Scenario(hdfs.run, hdfs.available),
    "quality-hdfs-stream": Scenario(hdfs_stream.run, hdfs_stream.available),
    "quality-bgl": Scenario(bgl.run, bgl.available),
    "quality-smd": Scenario(smd.run, smd.available),
    "quality-nab": Scenario(nab.run, nab.available),
    "quality-nab-halves": Scenario(nab.run_halves, nab.available),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of scenarios."""
    names = f"{', '.join(SCENARIOS)}, quality for all of these, speed-..., or unit-costs"
    parser.add_argument("scenarios", nargs="*", metavar="NAME", help=names)
    parser.add_argument("--core", action="append", choices=[*cores(), "all"], help="may be given several times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="machines or files, by name")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the stream's section, as model.hidden=32"
    )
    parser.add_argument("--check", action="store_true", help="fail where a measure is below tolerances.json")
    parser.add_argument("--base", type=Path, metavar="RESULT.json", help="print a former result beside")


def run_scenarios(options: argparse.Namespace, screen: Console, out: Path) -> int:
    """Run the scenarios named with each core wanted; the exit code."""
    names = list(SCENARIOS) if "quality" in options.scenarios else options.scenarios
    wanted = options.core or ["gru"]
    base = json.loads(options.base.read_text())["results"] if options.base else []
    changes = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in options.set)}
    results, failed = [], []
    for name in names:
        if not SCENARIOS[name].available():
            screen.print(f"{name}: left out, its labelled data is not in ../shared/data")
            continue
        outcomes = []
        for core in cores() if "all" in wanted else wanted:
            setup = Setup(core, options.seed, changes, tuple(options.only), options.smoke)
            outcome = SCENARIOS[name].run(setup)
            outcomes.append(outcome)
            results.append(outcome.as_json() | {"setup": asdict(setup)})
            failed += failures(outcome, read_tolerances()) if options.check else []
            # After each, for the next may take an hour.
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"machine": machine(), "at": time.strftime("%FT%T%z"), "results": results}))
        screen.print(table(outcomes, base))
    screen.print(f"written to {out}" if results else "nothing was run")
    for sentence in failed:
        screen.print(sentence, style="red", markup=False)
    return 1 if failed else 0
