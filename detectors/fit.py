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

from detectors.alert_budget import Volume
from detectors.calibration import Calibration
from detectors.crossfit import is_worthwhile, of_everything, splits_by_time
from detectors.drift_fit import as_arrived, usual_drift
from detectors.guards import refuse_nothing
from detectors.held_back import HeldBack
from detectors.history import data_span, extent, read_history
from detectors.novelty import Novelty
from detectors.packing import CLASSES, joined, pack
from detectors.parts import Parts
from detectors.profile_fit import fit_profiles
from detectors.rate_fit import usual_rates
from detectors.splits import LEARN, VALIDATE, split_by_time
from detectors.teaching import ALONE, Clock, Host, OnEpoch, Taught, Trained, scores_of, train_split
from features.events import Events
from features.numbers import NumberBins
from features.templates import Templates
from features.tokens import OOV, TokenEncoder, Vocabulary
from models.augmentation import SHARE
from models.errors import UnsuitableDataError
from models.runtime import Runtime
from models.spec import BY_NUMBERS
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
    alone = [core for core in parts.cores if core in BY_NUMBERS]
    if alone and options is not None and options.contamination:
        message = f"the {alone[0]} core cannot leave bad sessions out: leave contamination away, or choose another core"
        raise UnsuitableDataError(message)
    read = read_history(history, parts)
    parts = replace(parts, rate=parts.promised_by(Volume.of(extent(read))))
    options = replace(TrainingOptions() if options is None else options, seed=seed, **_recipe(parts))
    teach = partial(
        train_split, read, parts=parts, options=options, on_epoch=on_epoch, clock=clock, buckets=buckets, host=host
    )  # fmt: skip
    forecasts = parts.model.values > 0  # of numbers, whose sessions may never end
    few = is_worthwhile(len(read.first_ms), parts.rate, 1 - LEARN - VALIDATE) and (read.ended > 0 or forecasts)
    foreknows = set(parts.cores) != {"seasonal"}  # that one scores all before it learns it, so all can calibrate it
    split = of_everything(read.first_ms) if (forecasts and few) or not foreknows else split_by_time(read.first_ms)
    taught = teach(split if foreknows else replace(split, calibrate=np.ones_like(split.learn)))
    folds: list[Taught] = []
    if foreknows and ("linear" in parts.cores or few):
        folds = [teach(split, name=f"fold-{n}") for n, split in enumerate(splits_by_time(read.first_ms), start=1)]
    ask = partial(_ask, taught, folds, options.contamination)
    if parts.ensemble:
        members = [Calibration.learn(ask(methodcaller("core", k)).records) for k in range(len(parts.cores))]
        held_back = ask(methodcaller("ensemble", members))
    else:
        members, held_back = [], ask(methodcaller("core", 0))
    profiles = fit_profiles(taught.history, held_back, taught.parts)
    held_back = held_back if profiles is None else profiles.held_back
    records, sessions = held_back.calibrations()
    segments = held_back.by_segment(parts.rate)
    fields, weights = taught.fields, [trained.weights for trained in taught.cores]
    again = ask(methodcaller("core", len(parts.cores))).calibrations() if parts.second else None
    files = pack(
        fields.vocabulary, joined(weights[: len(parts.cores)], *weights[len(parts.cores) :]), records, sessions,
        fields.templates, fields.numbers, segments, members, again,
        None if profiles is None else (profiles.known, profiles.combined), _novelty(folds or [taught]),
    )  # fmt: skip
    content = _content(taught, options, records, sessions)
    if any(segments):
        content["calibration"]["segments"] = {"records": len(segments[0]), "sessions": len(segments[1])}
    warnings = [*taught.doubts, *_warnings(records, sessions, parts)]
    files |= _usual_fields(taught) | usual_drift(taught, held_back, records, segments[0]) | usual_rates(taught)
    return Fit(content, files, warnings, fields.templates, fields.vocabulary, fields.numbers)


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


def _novelty(taught: Sequence[Taught]) -> Novelty | None:
    """How often a session that a vocabulary was not learned from brings it a token that it does not know.

    However often the same one comes, that is one piece of news: its records lie together, and are one alarm to people.
    """
    unknown, records = np.zeros(taught[0].parts.shape.fields, np.int64), 0
    for part in taught:
        encoder = TokenEncoder(len(unknown), part.fields.vocabulary)
        for partition in part.history.partitions:
            held_back = partition.events.take(partition.records(part.split.calibrate).astype(np.intp))
            is_unknown = encoder.ids(held_back.tokens, len(held_back)) == OOV
            hashes = encoder.hashes(held_back.tokens, len(held_back))
            different = [len(np.unique(hashes[of, field])) for field, of in enumerate(is_unknown.T)]
            unknown += np.array(different, np.int64)
            records += len(held_back)
    return Novelty.learn(unknown, records) if len(unknown) else None


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
    usual = replace(parts.watch, usual={}).learn(as_arrived(taught))
    return {"schema.json": json.dumps(usual, indent=1, sort_keys=True).encode()}


def _warnings(records: Calibration, sessions: Calibration, parts: Parts) -> list[str]:
    """Say where the data is too little for the promise."""
    setting = "promise.false_alarm_rate" if parts.budget is None else "promise.alert_budget"
    doubts = (
        part.doubt(parts.rate, what, 1 - LEARN - VALIDATE, setting)
        for what, part in (("records", records), ("sessions", sessions))
    )
    return [doubt for doubt in doubts if doubt is not None]
