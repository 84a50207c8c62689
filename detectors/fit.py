"""From history to a bundle: sessions, a split in time, training, and calibration on sessions the model never saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import Calibration
from detectors.crossfit import is_worthwhile, splits_by_time
from detectors.guards import doubts, refuse_hopeless, refuse_nothing
from detectors.held_back import HeldBack, score_held_back
from detectors.history import Chosen, History, data_span, measured, read_history, sequences
from detectors.learned_fields import LearnedFields, learn_fields
from detectors.parts import CLASSES, Parts, make_runtime, pack
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
from models.temperature import HeadCheck
from models.tempering import temper
from models.training import Epoch, Progress, TrainingOptions, train
from models.training_state import TrainingState

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
    """What one split taught: the fields, the history read by them, the weights as stored, and how the epochs went.

    `doubts` are sentences for whoever trains; `rounding` is what storing weights so costs, `heads` how
    sure and how right each token field's softmax is, for the manifest.
    """

    split: Split
    fields: LearnedFields
    history: History
    parts: Parts
    weights: dict[str, NDArray[Any]]
    epochs: list[Epoch]
    doubts: list[str]
    rounding: dict[str, float] = field(default_factory=dict)
    heads: list[HeadCheck | None] = field(default_factory=list)

    @property
    def model(self) -> Runtime | LinearRuntime:
        """The weights, ready to score."""
        return make_runtime(self.fields.spec(self.parts), widened(self.weights), self.parts.shape.fields)


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
    if parts.model.core == "linear" and options is not None and options.contamination:
        message = "the linear core cannot leave bad sessions out: leave contamination away, or choose another core"
        raise UnsuitableDataError(message)
    read = read_history(history, parts)
    options = replace(TrainingOptions() if options is None else options, seed=seed, **_recipe(parts))
    trained = train_split(read, split_by_time(read.first_ms), parts, options, on_epoch, clock, buckets, host=host)
    few = read.ended > 0 and is_worthwhile(len(read.first_ms), parts.rate, 1 - LEARN - VALIDATE)
    bad = options.contamination
    if parts.model.core == "linear" or few:
        of_folds = _cross_fit(read, parts, options, on_epoch, clock, buckets, host)
        own = scores_of(trained, np.ones_like(trained.split.learn))
        held_back = of_folds.without_the_strangest(bad).raised_to(own.without_the_strangest(bad))
    else:
        held_back = scores_of(trained, trained.split.calibrate).without_the_strangest(bad)
    records, sessions = Calibration.learn(held_back.records), Calibration.learn(held_back.sessions)
    segments = held_back.by_segment(parts.rate)
    fields = trained.fields
    files = pack(fields.vocabulary, trained.weights, records, sessions, fields.templates, fields.numbers, segments)
    content = _content(trained, options, records, sessions)
    if any(segments):
        content["calibration"]["segments"] = {"records": len(segments[0]), "sessions": len(segments[1])}
    warnings = [*trained.doubts, *_warnings(records, sessions, parts.rate)]
    return Fit(content, files | _usual_fields(trained), warnings, fields.templates, fields.vocabulary, fields.numbers)


def _recipe(parts: Parts) -> dict[str, Any]:
    """How sessions of events are learned otherwise than numbers measured one after another.

    Most sessions are alike, so the rare ones are drawn more often; and where their order is loose, others that could
    have been are learned too (docs/quality-experiments.md has what both bring).
    """
    drawn = {} if parts.number_fields else {"by_square_root": True}
    return drawn | ({"delayed": SHARE} if parts.order == "loose" else {})


def _cross_fit(
    history: History, parts: Parts, options: TrainingOptions, on_epoch: OnEpoch, clock: Clock,
    buckets: Mapping[str, int] | None, host: Host,
) -> HeldBack:  # fmt: skip
    """Scores of every session by a model of others, for the one that serves."""
    found = []
    for number, split in enumerate(splits_by_time(history.first_ms), start=1):
        name = f"fold-{number}"
        trained = train_split(history, split, parts, options, on_epoch, clock, buckets, host=host, name=name)
        found.append(scores_of(trained, split.calibrate))
    return HeldBack.concatenate(found)


def train_split(
    history: History, split: Split, parts: Parts, options: TrainingOptions, on_epoch: OnEpoch, clock: Clock,
    buckets: Mapping[str, int] | None = None, *, host: Host = Host(), name: str = SERVED,
) -> Trained:  # fmt: skip
    """Learn fields and a model from one split's sessions; those held back for calibration teach nothing of either.

    Parameters
    ----------
    name
        Under which the training's state is kept; of several splits each needs its own.
    """
    fields, history = learn_fields(history, split.learn, parts, buckets)
    learning = sequences(history, split.learn, fields.knowing(parts, learning=True), host.scratch)
    parts = fields.knowing(parts)
    if name == SERVED:  # a fold may happen to hold too little; what it says of others still counts
        refuse_hopeless(learning, parts)
    validation = sequences(history, split.validate, parts, host.scratch)
    epochs: list[Epoch] = []

    def progress(epoch: Epoch) -> None:
        epochs.append(epoch)
        on_epoch(epoch)

    options = replace(options, unknown=fields.unknown(parts))
    spec, keep = fields.spec(parts), None if host.keep is None else partial(host.keep, name)
    if spec.core == "linear":
        # It needs nothing to tell it when to stop; and folds calibrate it, so what serves learns from everything.
        chosen = np.ones_like(split.learn) if name == SERVED else ~split.calibrate
        forecasts = Autoregression.fit(measured(history, chosen)).to_arrays()
        return Trained(split, fields, history, parts, {**forecasts}, epochs, doubts(history, learning, fields, parts))
    host.on_estimate(estimate(spec, options, learning))
    weights = train(
        learning, validation, spec, options, progress, clock, watch=host.watch, resume=host.load(name), keep=keep
    )  # fmt: skip
    # Where orders that could have been were learned, a head is unsure on purpose.
    weights, heads = temper(weights, spec, validation, parts.shape.fields, mends=not options.delayed)
    stored, rounding = store_weights(weights, parts.weights, spec, validation)
    said = doubts(history, learning, fields, parts)
    return Trained(split, fields, history, parts, stored, epochs, said, rounding, heads)


def scores_of(trained: Trained, sessions: Chosen) -> HeldBack:
    """What the model says of those of the history's (S,) sessions."""
    learned = trained.parts.learned
    assert learned is not None, "vocabulary and bins are known by now"
    parts = replace(trained.parts, learned=replace(learned, model=trained.model))
    return score_held_back(trained.history, sessions, parts)


def _content(trained: Trained, options: TrainingOptions, records: Calibration, sessions: Calibration) -> dict[str, Any]:
    """What the manifest says."""
    parts, fields, epochs = trained.parts, trained.fields, trained.epochs
    softmax = {"softmax": CLASSES} if any(fields.spec(parts).class_widths) else {}
    return {
        "stream": parts.stream,
        "schema": parts.schema | {"seasonal": list(fields.seasonal)} | softmax,
        "rules": {"gap_ms": parts.rules.gap_ms, "max_events": parts.rules.max_events},
        "data": data_span(trained.history),
        "training": {
            "seed": options.seed, "epochs": len(epochs), "sessions": int(trained.split.learn.sum()),
            "best_validation_loss": min((e.validation_loss for e in epochs), default=None),
            "contamination": options.contamination, "left_out": epochs[-1].left_out if epochs else 0,
            "curve": {name: [getattr(epoch, name) for epoch in epochs] for name in _CURVE},
            **trained.rounding,
            "heads": {name: h.to_json() for name, h in zip(parts.fields, trained.heads, strict=False) if h is not None},
            "tempered": not options.delayed,
        },
        "templates": len(fields.templates.templates),
        "vocabulary": {"digest": fields.vocabulary.digest, "fields": fields.vocabulary.summary()},
        "calibration": {
            "records": records.count, "sessions": sessions.count,
            "vouches_for": {"records": records.smallest_p_value, "sessions": sessions.smallest_p_value},
            "promise": parts.rate, "supports_promise": records.supports(parts.rate) and sessions.supports(parts.rate),
        },
        "versions": {name: version(name) for name in ("offbeat", "torch", "numpy", "numba")},
    }  # fmt: skip


def _usual_fields(trained: Trained) -> dict[str, bytes]:
    """How often fields are missing, of a wrong type or unknown, for workers to compare with."""
    parts = trained.parts
    if parts.watch is None:
        return {}
    found = []
    for p in trained.history.partitions:
        # In the order of arrival, in which workers count; events that were put in order are found by their offsets.
        taught = np.isin(p.arrived.offsets, p.events.offsets[p.records(trained.split.learn)])
        found.append((p.arrived, parts.encoder.ids(p.arrived.tokens, len(p.arrived)), ~taught))
    usual = replace(parts.watch, usual={}).learn(found)
    return {"schema.json": json.dumps(usual, indent=1, sort_keys=True).encode()}


def _warnings(records: Calibration, sessions: Calibration, rate: float) -> list[str]:
    """Say where the data is too little for the promise."""
    doubts = (
        part.doubt(rate, what, 1 - LEARN - VALIDATE) for what, part in (("records", records), ("sessions", sessions))
    )
    return [doubt for doubt in doubts if doubt is not None]
