"""What one split of a history teaches: its fields, and each core that a stream has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import Calibration
from detectors.cores import make_ensemble, make_runtime, row_width
from detectors.ensemble import Ensemble
from detectors.guards import doubts, refuse_hopeless
from detectors.held_back import HeldBack, score_held_back
from detectors.history import Chosen, History, measured, sequences
from detectors.learned_fields import LearnedFields, learn_fields
from detectors.parts import Parts
from detectors.splits import Split
from models.autoregression import Autoregression
from models.memory import Estimate, estimate
from models.rounding import store_weights
from models.runtime import Runtime, widened
from models.scratch import IN_MEMORY, Scratch
from models.seasonal import seasonal_weights
from models.sequences import Sequences
from models.spec import ModelSpec
from models.temperature import HeadCheck
from models.tempering import temper
from models.training import Epoch, Progress, TrainingOptions, train
from models.training_state import TrainingState
from models.usual_errors import with_values
from models.values import Values

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


ALONE = Host()  # lends nothing


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

    def ready(self, fields: int) -> Runtime:
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

    def core(self, k: int) -> Runtime:
        """The core number k, ready to score."""
        return self.cores[k].ready(self.parts.shape.fields)

    def ensemble(self, records: Sequence[Calibration]) -> Ensemble:
        """Those that judge together, each with the calibration of its own records."""
        ready = [self.core(k) for k in range(len(records))]
        return make_ensemble([t.spec for t in self.cores[: len(records)]], ready, records, self.parts.shape.fields)


def train_split(
    history: History, split: Split, parts: Parts, options: TrainingOptions, on_epoch: OnEpoch, clock: Clock,
    buckets: Mapping[str, int] | None = None, *, host: Host = ALONE, name: str = SERVED,
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
    # The linear core needs nothing to tell it when to stop; and folds calibrate it, so what serves learns from
    # everything. It comes first, for what it refuses it refuses before anything long.
    chosen = np.ones_like(split.learn) if name == SERVED else ~split.calibrate
    forecasts = {**Autoregression.fit(measured(history, chosen)).to_arrays()} if "linear" in parts.cores else {}
    for k, core in enumerate([*parts.cores, parts.second] if parts.second else parts.cores):
        own = replace(options, seed=options.seed + k, unknown=fields.unknown(parts))
        state_name = f"{name}-{k + 1}" if k else name
        spec = fields.spec(parts.of_core(core))
        if core == "linear":
            trained.append(Trained(spec, forecasts))
        elif core == "seasonal":
            trained.append(Trained(spec, {**seasonal_weights(len(parts.number_fields), parts.refractory_ms)}))
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


def scores_of(taught: Taught, model: Runtime, sessions: Chosen) -> HeldBack:
    """What the model says of those of the history's (S,) sessions."""
    learned = taught.parts.learned
    assert learned is not None, "vocabulary and bins are known by now"
    shape = taught.parts.shape
    width = max(shape.hidden, *(row_width(trained.spec, shape.fields) for trained in taught.cores))
    parts = replace(taught.parts, learned=replace(learned, model=model), shape=replace(shape, hidden=width))
    return score_held_back(taught.history, sessions, parts)
