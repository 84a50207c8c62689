"""`python -m benchmarks`: runs them all, prints a table and writes JSON with machine facts.

`--smoke` runs each on a small load, to see that it still works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import loghub
from benchmarks import nezha as nezha_data
from benchmarks.quality import hdfs, hdfs_raw, nezha
from benchmarks.quality import templates as template_quality
from benchmarks.speed import checkpoint, decode, masking, memory, recovery, text_lines, whole_path
from benchmarks.speed import templates as template_speed

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    packages = ("faust-streaming", "aiokafka", "numba", "numpy", "rocksdict", "torch")
    return {
        "processor": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }  # fmt: skip


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small loads, figures without meaning")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results/)")
    options = parser.parse_args()
    screen = Console(highlight=False)
    results = []
    screen.print("whole path: producer, broker, one worker, checkpoints, outputs")
    results.append(whole_path.run(*((20_000, 500, 1) if options.smoke else (2_000_000, 100_000, 3)), screen))
    screen.print("checkpoint: what saving costs, and what exactly_once does")
    results.append(checkpoint.run(*((20_000, 500, 1) if options.smoke else (1_000_000, 100_000, 3)), screen))
    screen.print("recovery: from the changelog alone, from an intact disk, by a standby")
    results.append(recovery.run(4_000 if options.smoke else 1_000_000, screen))
    screen.print("memory: a million live sessions, few of them in memory")
    results.append(memory.run(*((2_000, 4.0, 500) if options.smoke else (1_000_000, 600.0, 4_000)), screen))
    screen.print("decode: JSON events to columns, one core")
    results.append(decode.run(*((2_000, 1) if options.smoke else (200_000, 5)), screen))
    screen.print("masking: what detectors cost, one core")
    results.append(masking.run(*((2_000, 1) if options.smoke else (100_000, 3)), screen))
    screen.print("text lines: fields out of lines, format by format, one core")
    results.append(text_lines.run(*((500, 1) if options.smoke else (50_000, 5)), screen))
    screen.print("templates: lines to templates, one core; and whether they are the right ones")
    if loghub.available():
        systems = loghub.SYSTEMS[:1] if options.smoke else loghub.SYSTEMS
        results += [template_speed.run(screen, systems=systems), template_quality.run(screen, systems)]
    else:
        screen.print("  left out: the labelled data (../shared/data/loghub2k) is not here")
    screen.print("hdfs: worker against file, and against labels")
    if hdfs.available():
        results.append(hdfs.run(screen, learn=600, play=100, promise=0.01) if options.smoke else hdfs.run(screen))
    else:
        screen.print("  left out: the labelled data (../shared/data/hdfs) is not here")
    screen.print("hdfs_raw: raw lines against given event ids")
    if hdfs_raw.available():
        few: dict[str, Any] = {"blocks": 250, "ways": ["raw"]} if options.smoke else {}
        results.append(hdfs_raw.run(screen, **few))
    else:
        screen.print("  left out: the labelled data (../shared/data/hdfs) is not here")
    screen.print("nezha: a microservice system's logs, spans and metrics, and its faults")
    if nezha_data.available():
        first = nezha_data.FIRST_RECORDED_S + 180
        results.append(nezha.run(screen, streams=["traces"], until_s=first) if options.smoke else nezha.run(screen))
    else:
        screen.print("  left out: the labelled data (../shared/data/nezha) is not here")
    for result in results:
        shown = {k: v for k, v in result.items() if k not in {"examples", "records_per_s", "runs"}}
        screen.print("  ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()))
    out = options.out or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
    screen.print(f"written to {out}")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
