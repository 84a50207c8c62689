"""From history to a bundle: sessions, a split in time, training, and calibration on sessions the model never saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from operator import methodcaller
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import Calibration
from detectors.crossfit import is_worthwhile, of_everything, splits_by_time
from detectors.ensemble import Ensemble
from detectors.guards import doubts, refuse_hopeless, refuse_nothing
from detectors.held_back import HeldBack, score_held_back
from detectors.history import Chosen, History, data_span, measured, read_history, sequences
from detectors.learned_fields import LearnedFields, learn_fields
from detectors.parts import CLASSES, Model, Parts, joined, make_ensemble, make_runtime, pack, row_width
from detectors.splits import LEARN, VALIDATE, Split, split_by_time
from features.events import Events
from features.numbers import NumberBins
from features.templates import Templates
from features.tokens import Vocabulary
from models.augmentation import SHARE
from models.autoregression import Autoregression
from models.errors import UnsuitableDataError
from models.linear import LinearRuntime
from models.memory import Estimate, estimate
from models.rounding import store_weights
from models.runtime import Runtime, widened
from models.scratch import IN_MEMORY, Scratch
from models.sequences import Sequences
from models.spec import ModelSpec
from models.temperature import HeadCheck
from models.tempering import temper
from models.training import Epoch, Progress, TrainingOptions, train
from models.training_state import TrainingState
from models.usual_errors import with_values
from models.values import Values

_CURVE = ("loss", "validation_loss", "learning_rate", "gradient_norm")  # what a manifest tells of each epoch
SERVED = "model"  # the name of the training whose weights serve
OnEpoch = Callable[[Epoch], None]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Host:
    """What whoever starts a training lends it; none of it changes what comes out.

    Attributes
    ----------
    on_estimate
        Told how much memory each model's training will take, before it begins.
    watch
        Told of progress after each batch.
    load, keep
        Where the training of a name stood, and what replaces that after each epoch; without `keep` nothing is saved.
    scratch
        Room for the sequences.
    """

    on_estimate: Callable[[Estimate], None] = lambda _: None
    watch: Callable[[Progress], None] = lambda _: None
    load: Callable[[str], TrainingState | None] = lambda _: None
    keep: Callable[[str, TrainingState], None] | None = None
    scratch: Scratch = IN_MEMORY


@dataclass(frozen=True)
class Fit:
    """A trained bundle not yet written, and what the user should know about it."""

    content: dict[str, Any]
    files: dict[str, bytes]
    warnings: list[str]
    templates: Templates
    vocabulary: Vocabulary
    numbers: NumberBins


@dataclass(frozen=True)
class Trained:
    """What one core learned: the weights as stored, and how the epochs went.

    `rounding` is what storing weights so costs, `heads` how sure and how right each token field's softmax is.
    """

    spec: ModelSpec
    weights: dict[str, NDArray[Any]]
    epochs: list[Epoch] = field(default_factory=list)
    rounding: dict[str, float] = field(default_factory=dict)
    heads: list[HeadCheck | None] = field(default_factory=list)

    def ready(self, fields: int) -> Runtime | LinearRuntime:
        """The weights, ready to score; of the fields so many are tokens."""
        return make_runtime(self.spec, widened(self.weights), fields)


@dataclass(frozen=True)
class Taught:
    """What one split taught: the fields, the history read by them, and each core, last that of a second stage.

    `doubts` are sentences for whoever trains.
    """

    split: Split
    fields: LearnedFields
    history: History
    parts: Parts
    cores: list[Trained]
    doubts: list[str]

    def core(self, k: int) -> Runtime | LinearRuntime:
        """The core number k, ready to score."""
        return self.cores[k].ready(self.parts.shape.fields)

    def ensemble(self, records: Sequence[Calibration]) -> Ensemble:
        """Those that judge together, each with the calibration of its own records."""
        ready = [self.core(k) for k in range(len(records))]
        return make_ensemble([t.spec for t in self.cores[: len(records)]], ready, records, self.parts.shape.fields)


def fit(
    history: list[Events], parts: Parts, seed: int, on_epoch: OnEpoch, clock: Clock,
    buckets: Mapping[str, int] | None = None, *, options: TrainingOptions | None = None, host: Host = Host(),
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


def _ask(taught: Taught, folds: Sequence[Taught], bad: float, model: Callable[[Taught], Model]) -> HeldBack:
    """Scores that calibrate a model, less the share of sessions that is bad: of what it never saw, or of all.

    With folds every session is scored by the model of others, and no milder than the one that serves scores them.
    """
    if not folds:
        return scores_of(taught, model(taught), taught.split.calibrate).without_the_strangest(bad)
    of_folds = HeldBack.concatenate([scores_of(fold, model(fold), fold.split.calibrate) for fold in folds])
    own = scores_of(taught, model(taught), np.ones_like(taught.split.learn))
    return of_folds.without_the_strangest(bad).raised_to(own.without_the_strangest(bad))


def train_split(
    history: History, split: Split, parts: Parts, options: TrainingOptions, on_epoch: OnEpoch, clock: Clock,
    buckets: Mapping[str, int] | None = None, *, host: Host = Host(), name: str = SERVED,
) -> Taught:  # fmt: skip
    """Learn fields and cores from one split's sessions; those held back for calibration teach nothing of either.

    Parameters
    ----------
    name
        Under which the training's state is kept; of several splits each needs its own.
    """
    fields, history = learn_fields(history, split.learn, parts, buckets)
    values = Values.fit(measured(history, split.learn)) if parts.model.values else None
    learning = sequences(history, split.learn, fields.knowing(parts, learning=True), host.scratch, values)
    parts = fields.knowing(parts)
    if name == SERVED:  # a fold may happen to hold too little; what it says of others still counts
        refuse_hopeless(learning, parts)
    validation = sequences(history, split.validate, parts, host.scratch, values)
    trained = []
    for k, core in enumerate([*parts.cores, parts.second] if parts.second else parts.cores):
        own = replace(options, seed=options.seed + k, unknown=fields.unknown(parts))
        state_name = f"{name}-{k + 1}" if k else name
        spec = fields.spec(parts.of_core(core))
        if core == "linear":
            # It needs nothing to tell it when to stop; and folds calibrate it, so what serves learns from everything.
            chosen = np.ones_like(split.learn) if name == SERVED else ~split.calibrate
            trained.append(Trained(spec, {**Autoregression.fit(measured(history, chosen)).to_arrays()}))
        else:
            one = _train_core(spec, parts, learning, validation, own, on_epoch, clock, host, state_name)
            weights = one.weights if values is None else with_values(one.weights, spec, values, validation)
            trained.append(replace(one, weights=weights))
    return Taught(split, fields, history, parts, trained, doubts(history, learning, fields, parts))


def _train_core(
    spec: ModelSpec, parts: Parts, learning: Sequences, validation: Sequences, options: TrainingOptions,
    on_epoch: OnEpoch, clock: Clock, host: Host, name: str,
) -> Trained:  # fmt: skip
    epochs: list[Epoch] = []

    def progress(epoch: Epoch) -> None:
        epochs.append(epoch)
        on_epoch(epoch)

    keep = None if host.keep is None else partial(host.keep, name)
    host.on_estimate(estimate(spec, options, learning))
    weights = train(
        learning, validation, spec, options, progress, clock, watch=host.watch, resume=host.load(name), keep=keep
    )  # fmt: skip
    # Where orders that could have been were learned, a head is unsure on purpose.
    weights, heads = temper(weights, spec, validation, parts.shape.fields, mends=not options.delayed)
    stored, rounding = store_weights(weights, parts.weights, spec, validation)
    return Trained(spec, stored, epochs, rounding, heads)


def scores_of(taught: Taught, model: Model, sessions: Chosen) -> HeldBack:
    """What the model says of those of the history's (S,) sessions."""
    learned = taught.parts.learned
    assert learned is not None, "vocabulary and bins are known by now"
    shape = taught.parts.shape
    width = max(shape.hidden, *(row_width(trained.spec, shape.fields) for trained in taught.cores))
    parts = replace(taught.parts, learned=replace(learned, model=model), shape=replace(shape, hidden=width))
    return score_held_back(taught.history, sessions, parts)


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
