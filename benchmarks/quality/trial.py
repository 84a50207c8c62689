"""One trial of the product on labelled data: `offbeat train` and `offbeat score`, their own code, in this process.

The labelled data lies beside the repository and is never copied into it; what is made of it lies in a temporary folder
while a trial runs. Thresholds are the calibration's: no label reaches the product.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import orjson

from benchmarks.loghub import SHARED
from pipeline.commands import train_stream
from pipeline.score import verdicts_of
from pipeline.serving import load_serving
from pipeline.settings import Settings, parse_settings
from pipeline.stream_settings import ModelSettings
from pipeline.verdict_columns import Verdicts, gather

DATA = SHARED / "data"
START_MS = 1_700_000_000_000
Event = Mapping[str, Any]
Measures = dict[str, float]

if str(SHARED) not in sys.path:  # where evalkit lies, which judges
    sys.path.append(str(SHARED))


def cores() -> tuple[str, ...]:
    """Every core that the settings accept."""
    return get_args(ModelSettings.model_fields["core"].annotation)


@dataclass(frozen=True)
class Setup:
    """What a trial is made with.

    Attributes
    ----------
    changes
        Dotted keys of the stream's section and the values to put there, such as `model.hidden`.
    only
        Parts to run, machines or files by name; empty: all.
    smoke
        Whether a few rows will do, to see that it still works.
    """

    core: str = "gru"
    seed: int = 0
    changes: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    smoke: bool = False

    def parts(self, known: Iterable[str]) -> list[str]:
        """The parts to run, of those there are."""
        known = list(known)
        unknown = [name for name in self.only if name not in known]
        if unknown:
            message = f"there is no part {unknown[0]!r}; there are {', '.join(known) or 'none'}"
            raise ValueError(message)
        return list(self.only) or known


@dataclass(frozen=True)
class Trial:
    """What came of it: verdicts on the test file, and what it took."""

    records: Verdicts
    sessions: Verdicts
    promise: float
    cost: Measures
    warnings: list[str]


def attempt(setup: Setup, section: Event, training: Iterable[Event], testing: Iterable[Event]) -> Trial:
    """Train on one file and score another."""
    return attempts(setup, section, training, testing, [{}])[0]


def attempts(
    setup: Setup, section: Event, training: Iterable[Event], testing: Iterable[Event], variants: Sequence[Event]
) -> list[Trial]:
    """Train on one file and score another several times, each with changes of the section that need no training."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "train.jsonl", training)
        _write(folder / "test.jsonl", testing)
        section = _changed(section, {"model.core": setup.core, **setup.changes})
        settings = _settings(folder, section)
        began = time.perf_counter()
        told = _train(settings, folder / "train.jsonl", setup.seed)
        train_s, trials = time.perf_counter() - began, []
        learned = load_serving(settings, "s")
        for changes in variants:
            settings, began = _settings(folder, _changed(section, changes)), time.perf_counter()
            records, sessions = gather(verdicts_of(settings, "s", learned, folder / "test.jsonl"))
            cost = {
                "train_s": train_s, "epochs": told["training"]["epochs"], "learned": told["data"]["records"],
                "score_us": 1e6 * (time.perf_counter() - began) / max(1, len(records)), "scored": len(records),
            }  # fmt: skip
            promise = settings.stream("s").promise.rate(None if learned is None else learned.volume)
            trials.append(Trial(records, sessions, promise, cost, told["warnings"]))
    return trials


def _settings(folder: Path, section: Event) -> Settings:
    return parse_settings(
        {"data_dir": str(folder), "models_dir": str(folder / "models"), "streams": {"s": section}}, {}
    )


def _train(settings: Settings, source: Path, seed: int) -> dict[str, Any]:
    """What `offbeat train --json` prints."""
    with redirect_stdout(io.StringIO()) as out:
        train_stream(settings, "s", source=source, since=None, until=None, promoted=True, seed=seed, as_json=True)
    told: dict[str, Any] = json.loads(out.getvalue())
    return told


def _changed(section: Event, changes: Event) -> dict[str, Any]:
    """The section with the values of dotted keys put in."""
    changed: dict[str, Any] = deepcopy(dict(section))
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        inner = changed
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = value
    return changed


def _write(path: Path, events: Iterable[Event]) -> None:
    with path.open("wb") as file:
        file.writelines(orjson.dumps(event) + b"\n" for event in events)
