"""From history to a bundle: sessions, a split in time, training, and calibration on sessions the model never saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from operator import methodcaller
from typing import Any

import numpy as np

from detectors.calibration import Calibration
from detectors.crossfit import is_worthwhile, of_everything, splits_by_time
from detectors.guards import refuse_nothing
from detectors.held_back import HeldBack
from detectors.history import data_span, read_history
from detectors.packing import CLASSES, joined, pack
from detectors.parts import Parts
from detectors.splits import LEARN, VALIDATE, split_by_time
from detectors.teaching import ALONE, Clock, Host, OnEpoch, Taught, Trained, scores_of, train_split
from features.events import Events
from features.numbers import NumberBins
from features.templates import Templates
from features.tokens import Vocabulary
from models.augmentation import SHARE
from models.errors import UnsuitableDataError
from models.runtime import Runtime
from models.training import TrainingOptions

_CURVE = ("loss", "validation_loss", "learning_rate", "gradient_norm")  # what a manifest tells of each epoch


@dataclass(frozen=True)
class Fit:
    """A trained bundle not yet written, and what the user should know about it."""

    content: dict[str, Any]
    files: dict[str, bytes]
    warnings: list[str]
    templates: Templates
    vocabulary: Vocabulary
    numbers: NumberBins


def fit(
    history: list[Events], parts: Parts, seed: int, on_epoch: OnEpoch, clock: Clock,
    buckets: Mapping[str, int] | None = None, *, options: TrainingOptions | None = None, host: Host = ALONE,
) -> Fit:  # fmt: skip
    """Learn a stream's grammar from its history.

    Parameters
    ----------
    history
        The events of each partition, in offset order.
    parts
        The stream's rules and fields; `learned` is ignored.
    buckets
        Fields whose tokens are hashed, and into how many buckets.
    options
        How to train; the seed there gives way to `seed`.
    host
        What the training may use.

    Raises
    ------
    UnsuitableDataError
        Too few sessions, or nothing to learn.
    ResumeError
        `host.load` gives the state of a training that was another.
    """
    refuse_nothing(history)
    if "linear" in parts.cores and options is not None and options.contamination:
        message = "the linear core cannot leave bad sessions out: leave contamination away, or choose another core"
        raise UnsuitableDataError(message)
    read = read_history(history, parts)
    options = replace(TrainingOptions() if options is None else options, seed=seed, **_recipe(parts))
    teach = partial(
        train_split, read, parts=parts, options=options, on_epoch=on_epoch, clock=clock, buckets=buckets, host=host
    )  # fmt: skip
    forecasts = parts.model.values > 0  # of numbers, whose sessions may never end
    few = is_worthwhile(len(read.first_ms), parts.rate, 1 - LEARN - VALIDATE) and (read.ended > 0 or forecasts)
    taught = teach(of_everything(read.first_ms) if forecasts and few else split_by_time(read.first_ms))
    folds: list[Taught] = []
    if "linear" in parts.cores or few:
        folds = [teach(split, name=f"fold-{n}") for n, split in enumerate(splits_by_time(read.first_ms), start=1)]
    ask = partial(_ask, taught, folds, options.contamination)
    if parts.ensemble:
        members = [Calibration.learn(ask(methodcaller("core", k)).records) for k in range(len(parts.cores))]
        held_back = ask(methodcaller("ensemble", members))
    else:
        members, held_back = [], ask(methodcaller("core", 0))
    records, sessions = held_back.calibrations()
    segments = held_back.by_segment(parts.rate)
    fields, weights = taught.fields, [trained.weights for trained in taught.cores]
    again = ask(methodcaller("core", len(parts.cores))).calibrations() if parts.second else None
    files = pack(
        fields.vocabulary, joined(weights[: len(parts.cores)], *weights[len(parts.cores) :]), records, sessions,
        fields.templates, fields.numbers, segments, members, again,
    )  # fmt: skip
    content = _content(taught, options, records, sessions)
    if any(segments):
        content["calibration"]["segments"] = {"records": len(segments[0]), "sessions": len(segments[1])}
    warnings = [*taught.doubts, *_warnings(records, sessions, parts.rate)]
    return Fit(content, files | _usual_fields(taught), warnings, fields.templates, fields.vocabulary, fields.numbers)


def _recipe(parts: Parts) -> dict[str, Any]:
    """How sessions of events are learned otherwise than numbers measured one after another.

    Most sessions are alike, so the rare ones are drawn more often; and where their order is loose, others that could
    have been are learned too (docs/quality-experiments.md has what both bring).
    """
    gaps = int(parts.measures.gaps)
    drawn = {} if len(parts.number_fields) > gaps else {"by_square_root": True}
    return drawn | {"gaps": gaps} | ({"delayed": SHARE} if parts.order == "loose" else {})


def _ask(taught: Taught, folds: Sequence[Taught], bad: float, model: Callable[[Taught], Runtime]) -> HeldBack:
    """Scores that calibrate a model, less the share of sessions that is bad: of what it never saw, or of all.

    With folds every session is scored by the model of others, and no milder than the one that serves scores them.
    """
    if not folds:
        return scores_of(taught, model(taught), taught.split.calibrate).without_the_strangest(bad)
    of_folds = HeldBack.concatenate([scores_of(fold, model(fold), fold.split.calibrate) for fold in folds])
    own = scores_of(taught, model(taught), np.ones_like(taught.split.learn))
    return of_folds.without_the_strangest(bad).raised_to(own.without_the_strangest(bad))


def _content(taught: Taught, options: TrainingOptions, records: Calibration, sessions: Calibration) -> dict[str, Any]:
    """What the manifest says."""
    parts, fields = taught.parts, taught.fields
    softmax = {"softmax": CLASSES} if any(fields.spec(parts).class_widths) else {}
    return {
        "stream": parts.stream,
        "schema": parts.schema | {"seasonal": list(fields.seasonal)} | softmax,
        "rules": {"gap_ms": parts.rules.gap_ms, "max_events": parts.rules.max_events},
        "data": data_span(taught.history),
        "training": {
            "seed": options.seed, "sessions": int(taught.split.learn.sum()), "contamination": options.contamination,
            "tempered": not options.delayed, **_of_core(taught.cores[0], parts),
        } | _of_others(taught, parts),
        "templates": len(fields.templates.templates),
        "vocabulary": {"digest": fields.vocabulary.digest, "fields": fields.vocabulary.summary()},
        "calibration": {
            "records": records.count, "sessions": sessions.count,
            "vouches_for": {"records": records.smallest_p_value, "sessions": sessions.smallest_p_value},
            "promise": parts.rate, "supports_promise": records.supports(parts.rate) and sessions.supports(parts.rate),
        },
        "versions": {name: version(name) for name in ("offbeat", "torch", "numpy", "numba")},
    }  # fmt: skip


def _of_others(taught: Taught, parts: Parts) -> dict[str, Any]:
    """How the trainings beside the first went, where there are any."""
    others = [_of_core(trained, parts) for trained in taught.cores[1:]]
    found: dict[str, Any] = {"ensemble": others[: len(parts.ensemble)]} if parts.ensemble else {}
    return found | ({"second_stage": others[-1]} if parts.second else {})


def _of_core(trained: Trained, parts: Parts) -> dict[str, Any]:
    """How its training went."""
    epochs = trained.epochs
    return {
        "epochs": len(epochs),
        "best_validation_loss": min((e.validation_loss for e in epochs), default=None),
        "left_out": epochs[-1].left_out if epochs else 0,
        "curve": {name: [getattr(epoch, name) for epoch in epochs] for name in _CURVE},
        **trained.rounding,
        "heads": {name: h.to_json() for name, h in zip(parts.fields, trained.heads, strict=False) if h is not None},
    }


def _usual_fields(taught: Taught) -> dict[str, bytes]:
    """How often fields are missing, of a wrong type or unknown, for workers to compare with."""
    parts = taught.parts
    if parts.watch is None:
        return {}
    found = []
    for p in taught.history.partitions:
        # In the order of arrival, in which workers count; events that were put in order are found by their offsets.
        taught_by = np.isin(p.arrived.offsets, p.events.offsets[p.records(taught.split.learn)])
        found.append((p.arrived, parts.encoder.ids(p.arrived.tokens, len(p.arrived)), ~taught_by))
    usual = replace(parts.watch, usual={}).learn(found)
    return {"schema.json": json.dumps(usual, indent=1, sort_keys=True).encode()}


def _warnings(records: Calibration, sessions: Calibration, rate: float) -> list[str]:
    """Say where the data is too little for the promise."""
    doubts = (
        part.doubt(rate, what, 1 - LEARN - VALIDATE) for what, part in (("records", records), ("sessions", sessions))
    )
    return [doubt for doubt in doubts if doubt is not None]
