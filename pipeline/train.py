"""`offbeat train` between history and bundle: the training with its progress, its memory and its saved state."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from detectors.fit import Fit, fit
from detectors.parts import Parts
from detectors.teaching import Host
from features.events import Events
from models.memory import Estimate
from models.scratch import Scratch
from models.training import Epoch, Progress, TrainingOptions
from models.training_state import TrainingState
from pipeline.free_memory import free_memory
from pipeline.history import History
from pipeline.lineage import lineage
from pipeline.registry import Registry
from pipeline.screen import progress_bar, screen
from pipeline.serving import certificate, make_parts
from pipeline.settings import Settings
from pipeline.stream_settings import ModelSettings
from pipeline.training_folder import NAME, TrainingFolder, training_folder

OF_JOBS = ".retraining"
_GB = 1_000_000_000


def learn_bundle(
    settings: Settings, registry: Registry, history: History, options: TrainingOptions, *,
    source: str, why: str | None, resumes: bool = False, job: str | None = None,
) -> tuple[str, Fit]:  # fmt: skip
    """Fit and write a bundle; whether it serves is another question.

    Parameters
    ----------
    source
        What it is trained on, in words.
    resumes
        Go on with a training that was interrupted, if one was.
    job
        The job that asked for it, which stands in the lineage. Its training is saved apart from that of people.
    """
    name, parent = registry.stream, registry.serving_if_known()
    directory, own = states_of(settings, name), NAME if job is None else OF_JOBS
    with training_folder(directory, own, resumes=resumes) as folder:
        parts = make_parts(settings, name, None)
        learned = train_on(history.events, parts, options, settings.stream(name).buckets, folder, screen)
        certified = json.dumps(certificate(settings, name, learned.vocabulary, learned.templates), indent=1).encode()
        files = learned.files | {"certificate.json": certified}
        told = lineage(settings, parent=parent, source=source, reason=why) | ({} if job is None else {"job": job})
        digest = registry.save(learned.content, files, told)
        folder.remove()
    return digest, learned


def options_of(model: ModelSettings, *, seed: int = 0, contamination: float | None = None) -> TrainingOptions:
    """How a stream's model is trained; `contamination` None: as its settings have it."""
    share = model.contamination if contamination is None else contamination
    return TrainingOptions(seed=seed, contamination=share, max_epochs=model.max_epochs)


def states_of(settings: Settings, stream: str) -> Path:
    """The folder in which a stream's trainings save where they stand."""
    bundles = settings.bundles_dir
    return (bundles if isinstance(bundles, Path) else settings.data_dir / "training") / stream


def train_on(
    events: list[Events], parts: Parts, options: TrainingOptions, buckets: Mapping[str, int],
    folder: TrainingFolder, screen: Console,
) -> Fit:  # fmt: skip
    """Fit a history and show how it goes: loss, loss held back, speed, seconds left at most."""
    held_back = ""
    records = sum(map(len, events))
    with progress_bar(f"training on {records:,} records", options.max_epochs) as update:

        def on_epoch(epoch: Epoch) -> None:
            nonlocal held_back
            held_back = f", held back {epoch.validation_loss:.4f}, gradient {epoch.gradient_norm:.2f}"
            update(epoch.number, f"loss {epoch.loss:.4f}{held_back}, {epoch.events_per_s:,.0f} events/s")

        def watch(progress: Progress) -> None:
            update(
                progress.epochs,
                f"loss {progress.loss:.4f}{held_back}, {progress.events_per_s:,.0f} events/s, "
                f"at most {progress.seconds_left:,.0f} s left",
            )

        def on_estimate(estimate: Estimate) -> None:
            warning = too_large(estimate, free_memory())
            if warning is not None:
                screen.print(f"warning: {warning}", style="yellow")

        def load(name: str) -> TrainingState | None:
            state = folder.load(name)
            if folder.resumes:
                screen.print(_where(state), style="yellow")
            return state

        host = Host(on_estimate, watch, load, folder.keep, Scratch(folder.path))
        return fit(events, parts, options.seed, on_epoch, time.monotonic, buckets, options=options, host=host)


def _where(state: TrainingState | None) -> str:
    if state is None:
        return "nothing was saved of an earlier training, so this one begins with its first epoch"
    return f"going on after epoch {len(state.plain['epochs'])}"


def too_large(estimate: Estimate, free: int | None) -> str | None:
    """A sentence if a training would take more memory than is free; `free` is None where nobody knows."""
    if free is None or estimate.total <= free:
        return None
    return (
        f"training will take about {estimate.total / _GB:.1f} GB of memory, and {free / _GB:.1f} GB are free, so it "
        "may be killed: hash fields of many values into `buckets`, make model.hidden smaller, or train where more is"
    )
