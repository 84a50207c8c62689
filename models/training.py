"""Training by truncated back-propagation, with early stopping on sessions the weights never saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.augmentation import delayed
from models.autoregression import CAP
from models.errors import UnsuitableDataError
from models.family import SequenceModel, make_model
from models.learning_rate import LearningRate
from models.sampling import draw_by_square_root, kinds, without_the_strangest
from models.sequences import IGNORED, Batch, Numbers, Sequence, Sequences, batches, pad, pad_values
from models.spec import ModelSpec
from models.training_state import TrainingState, beginning, check_resumable

LEAST_BATCH = 256
LARGEST_NORM = 1.0  # of a step's gradient, all weights together; longer ones are shortened to that


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how hard; the defaults suit from a thousand sessions up."""

    seed: int = 0
    max_epochs: int = 200  # small histories need many: an epoch of them is few steps
    patience: int = 4  # epochs without a better validation loss before we stop
    batch_tokens: int = 2_048  # events in one batch, padding included, where there is enough for `least_steps`
    least_steps: int = 64  # of an epoch, as far as batches of LEAST_BATCH events allow: few steps learn little
    chunk: int = 64  # events between two truncations
    learning_rate: float = 4e-3
    warm_up: int = 20  # steps until the learning rate is reached
    unknown: tuple[tuple[int, ...], ...] = ()  # of each input, ids for what is not known, or hardly; absent: <oov>
    unknown_rate: float = 0.01  # inputs replaced by each of these: embeddings are trained, and states survive them
    missing_rate: float = 0.3  # values that a forecast must do without, so that it leans on no number too much
    contamination: float = 0.0  # share of the sessions that are taken for bad, and learned nothing from
    trim_after: int = 3  # epochs that tell what is usual, before the strangest are left out
    by_square_root: bool = False  # of c sessions with the same tokens, an epoch draws the square root of c
    gaps: int = 0  # predicted columns, the last ones, that tell of time: they belong to a place, not to its event
    delayed: float = 0.0  # share of the events that are given some places later than they came, where order is chance

    def batch_of(self, sequences: Sequences) -> int:
        """Events in one batch of an epoch over these."""
        return min(self.batch_tokens, max(LEAST_BATCH, len(sequences.log_gap) // self.least_steps))


@dataclass(frozen=True)
class Epoch:
    """One pass over the sessions.

    Attributes
    ----------
    loss, validation_loss
        Nats per event on both parts.
    best
        Whether it has the least validation loss so far.
    events_per_s
        Speed; all else is the same on every machine of one kind.
    learning_rate
        Of its last step.
    gradient_norm, clipped
        Mean length of a step's gradient before it was clipped, and the share of steps that were.
    left_out
        Sessions taken for bad, which it learned nothing from.
    """

    number: int
    loss: float
    validation_loss: float
    best: bool
    events_per_s: float
    learning_rate: float
    gradient_norm: float
    clipped: float
    left_out: int


@dataclass(frozen=True)
class Progress:
    """Where a training stands: epochs done (with a part of one) of at most so many, the loss of the running one so far.

    `seconds_left` is what the epochs left would take; early stopping ends most trainings sooner.
    """

    epochs: float
    of: int
    loss: float
    events_per_s: float
    seconds_left: float


def train(
    sequences: Iterable[Sequence], validation: Iterable[Sequence], spec: ModelSpec, options: TrainingOptions,
    on_epoch: Callable[[Epoch], None], clock: Callable[[], float], *,
    watch: Callable[[Progress], None] = lambda _: None,
    resume: TrainingState | None = None, keep: Callable[[TrainingState], None] | None = None,
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Fit a model to sessions and return the weights that did best on `validation`.

    Parameters
    ----------
    sequences, validation
        `Sequences` are taken as they are; of others copies are made.
    on_epoch
        Told of each epoch, those of before an interruption first.
    clock
        Seconds, for the speed shown in progress; it changes nothing else.
    watch
        Told of progress after each batch.
    resume
        Where an interrupted training stood: the result is that of one that was not.
    keep
        Given the state after each epoch.

    Raises
    ------
    UnsuitableDataError
        There are no sessions, or the loss is not finite.
    ResumeError
        `resume` is of a training with other data, another seed or other options.
    """
    learned, checked = (s if isinstance(s, Sequences) else Sequences.of(s) for s in (sequences, validation))
    if not len(learned) or not len(checked):
        message = "training needs sessions to learn from and sessions to check against; give it more data"
        raise UnsuitableDataError(message)
    began = beginning(learned, checked, spec, options) if resume is not None or keep is not None else {}
    training = _Training(learned, checked, spec, options, clock, watch)
    if resume is not None:
        check_resumable(resume, began)
        training.restore(resume)
    for epoch in training.epochs:
        on_epoch(epoch)
    while not training.is_over:
        epoch = training.run_epoch()
        if keep is not None:
            keep(training.state(began))
        on_epoch(epoch)
    return training.best


class _Training:
    """A training under way, which ends between two epochs and goes on from there to the same weights."""

    def __init__(
        self, sequences: Sequences, validation: Sequences, spec: ModelSpec, options: TrainingOptions,
        clock: Callable[[], float], watch: Callable[[Progress], None],
    ) -> None:  # fmt: skip
        # One thread: with more, OpenMP's workers spin for each other, and beside one busy process (a broker, say)
        # training was seen 50 times slower. On idle cores one thread is as fast for models of this size. It also fixes
        # the bits.
        torch.set_num_threads(1)
        torch.manual_seed(options.seed)
        self._sequences, self._options = sequences, options
        self._clock, self._watch = clock, watch
        self._random = np.random.default_rng(options.seed)
        self._model = make_model(spec)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=options.learning_rate, weight_decay=0.0)
        self._rate = LearningRate(options.learning_rate, options.warm_up)
        self._untimed = len(spec.sizes) - options.gaps  # columns that tell what came, not when
        self._kind = kinds(sequences, self._untimed) if options.by_square_root else None
        self._validation = self._drawn_once(validation)
        self._worst = np.full(len(sequences), -np.inf)  # (S,) nats of each session's strangest event when last seen
        self.best = self._model.weights()
        self.epochs: list[Epoch] = []

    @property
    def is_over(self) -> bool:
        return len(self.epochs) >= self._options.max_epochs or self._rate.stale >= self._options.patience

    def run_epoch(self) -> Epoch:
        """One pass to learn, and one to see what it brought."""
        began, options = self._clock(), self._options
        share = options.contamination if len(self.epochs) >= options.trim_after else 0.0
        kept = without_the_strangest(self._worst, share)
        everything = np.arange(len(self._sequences))
        drawn = everything if self._kind is None else self._draw(self._kind)
        step = _Step(self._model, self._optimizer, self._rate)
        loss = self._learn(drawn, kept, step, began)
        validation_loss = self._validate()
        if not math.isfinite(loss + validation_loss):
            message = "the loss is not finite; the data holds sessions this model cannot learn"
            raise UnsuitableDataError(message)
        improved = step.rate.is_progress(validation_loss)
        if improved:
            self.best = self._model.weights()
        self._rate = step.rate.after_epoch(validation_loss)
        events = int(self._sequences.lengths[drawn].sum())
        epoch = Epoch(
            len(self.epochs) + 1, loss, validation_loss, improved, events / max(self._clock() - began, 1e-9),
            step.rate.rate, step.mean_norm, step.clipped, int((~kept).sum()),
        )  # fmt: skip
        self.epochs.append(epoch)
        return epoch

    def _learn(self, drawn: NDArray[np.int64], kept: NDArray[np.bool_], step: _Step, began: float) -> float:
        """Nats per event of the sessions that were learned from."""
        options, lengths = self._options, self._sequences.lengths
        self._model.train()
        total, counted, seen, of = 0.0, 0, 0, int(lengths[drawn].sum())
        for numbers in batches(lengths, drawn, options.batch_of(self._sequences), self._random):
            given = [self._varied(self._sequences[n], self._random) for n in numbers.tolist()]
            batch = pad(given, self._model.spec.sizes)
            losses = _losses(self._model, batch, pad_values(given), options, self._random, step, kept[numbers])
            self._worst[numbers] = losses.worst
            total += float(losses.total[kept[numbers]].sum())
            counted += int(lengths[numbers[kept[numbers]]].sum())
            seen += int(lengths[numbers].sum())
            self._tell(seen / of, total / max(counted, 1), seen / max(self._clock() - began, 1e-9), of)
        return total / max(counted, 1)

    def _validate(self) -> float:
        """Nats per event held back; the strangest sessions are left out, so that nobody stops later to fit them."""
        lengths, (total, worst) = self._validation.lengths, _losses_of(self._model, self._validation, self._options)
        kept = without_the_strangest(worst, self._options.contamination)
        return float(total[kept].sum() / lengths[kept].sum())

    def _draw(self, kind: NDArray[np.int64]) -> NDArray[np.int64]:
        """About as many sessions as there are, so that an epoch is as long as without drawing."""
        once = draw_by_square_root(kind, self._random)
        more = (draw_by_square_root(kind, self._random) for _ in range(len(kind) // len(once) - 1))
        return np.concatenate([once, *more])

    def _drawn_once(self, validation: Sequences) -> Sequences:
        """What progress is judged by must be drawn and varied as what is learned from, and always the same."""
        random = np.random.default_rng(self._options.seed + 1)
        if self._kind is None:
            return validation
        drawn = draw_by_square_root(kinds(validation, self._untimed), random)
        return Sequences.of(self._varied(validation[n], random) for n in drawn.tolist())

    def _varied(self, sequence: Sequence, random: np.random.Generator) -> Sequence:
        if not self._options.delayed:
            return sequence
        return delayed(sequence, self._untimed, random, self._options.delayed)

    def _tell(self, share: float, loss: float, events_per_s: float, events: int) -> None:
        done, most = len(self.epochs) + share, self._options.max_epochs
        self._watch(Progress(done, most, loss, events_per_s, (most - done) * events / events_per_s))

    def state(self, began: dict[str, Any]) -> TrainingState:
        """All that the next epochs depend on."""
        averages = {
            f"optimizer.{number}.{name}": value.numpy().copy()
            for number, of_weight in self._optimizer.state_dict()["state"].items()
            for name, value in of_weight.items()
        }
        named = {"weights": self._model.weights(), "best": self.best}
        arrays = {f"{of}.{name}": array for of, part in named.items() for name, array in part.items()} | averages
        arrays |= {"torch": torch.get_rng_state().numpy(), "worst": self._worst.copy()}
        plain = {
            "epochs": [asdict(epoch) for epoch in self.epochs], "rate": asdict(self._rate),
            "random": self._random.bit_generator.state,
        }  # fmt: skip
        return TrainingState(began, plain, arrays)

    def restore(self, state: TrainingState) -> None:
        """Inverse of `state`."""
        self.epochs = [Epoch(**epoch) for epoch in state.plain["epochs"]]
        self._rate = LearningRate(**state.plain["rate"])
        self._random.bit_generator.state = state.plain["random"]
        self._model.load_weights(state.part("weights"))
        self.best = state.part("best")
        averages: dict[int, dict[str, Tensor]] = {}
        for key, array in state.part("optimizer").items():
            number, name = key.split(".")
            averages.setdefault(int(number), {})[name] = torch.from_numpy(array.copy())
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": averages})
        self._worst = state.arrays["worst"].copy()
        torch.set_rng_state(torch.from_numpy(state.arrays["torch"].copy()))


class _Step:
    """Takes a gradient's step at the present rate, clipped, and counts."""

    def __init__(self, model: SequenceModel, optimizer: torch.optim.Optimizer, rate: LearningRate) -> None:
        self._model, self._optimizer, self.rate = model, optimizer, rate
        self._norms: list[float] = []

    def take(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._norms.append(float(torch.nn.utils.clip_grad_norm_(self._model.parameters(), LARGEST_NORM)))
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate.rate
        self._optimizer.step()
        self.rate = self.rate.after_step()

    @property
    def mean_norm(self) -> float:
        return float(np.mean(self._norms)) if self._norms else 0.0

    @property
    def clipped(self) -> float:
        return float(np.mean(np.array(self._norms) > LARGEST_NORM)) if self._norms else 0.0


class _Losses(NamedTuple):
    """(B,) nats of each session of a batch, and (B,) those of its strangest event."""

    total: NDArray[np.float64]
    worst: NDArray[np.float64]


def mean_loss(weights: Mapping[str, NDArray[np.float32]], spec: ModelSpec, sessions: Sequences) -> float:
    """What trained weights lose for each event: nats of its tokens, and spreads by which its numbers are off."""
    model = make_model(spec)
    model.load_weights(weights)
    return float(_losses_of(model, sessions, TrainingOptions()).total.sum() / sessions.lengths.sum())


def _losses_of(model: SequenceModel, sessions: Sequences, options: TrainingOptions) -> _Losses:
    """Losses of (S,) sessions; nothing is learned."""
    model.eval()
    lengths = sessions.lengths
    total, worst = np.zeros((2, len(lengths)))
    with torch.no_grad():
        for numbers in batches(lengths, np.arange(len(lengths)), options.batch_tokens, None):
            given = [sessions[n] for n in numbers.tolist()]
            found = _losses(model, pad(given, model.spec.sizes), pad_values(given), options)
            total[numbers], worst[numbers] = found
    return _Losses(total, worst)


def _losses(
    model: SequenceModel, batch: Batch, numbers: Numbers | None, options: TrainingOptions,
    random: np.random.Generator | None = None, step: _Step | None = None, kept: NDArray[np.bool_] | None = None,
) -> _Losses:  # fmt: skip
    """Losses of sessions, their state carried from chunk to chunk; learns where there is a step.

    An event's loss is the nats of its tokens, and the spreads by which forecasts of its numbers are off: the absolute
    error, so that a forecast is a median. What is not kept is scored and adds nothing to a gradient.
    """
    tokens, log_gap, targets = batch
    found = _Losses(np.zeros(len(tokens)), np.full(len(tokens), -np.inf))
    state = model.start_state(len(tokens))
    counts = torch.ones(len(tokens)) if kept is None else torch.from_numpy(kept.astype(np.float32))
    for low in range(0, tokens.shape[1], options.chunk):
        part = slice(low, low + options.chunk)
        inputs = tokens[:, part] if random is None else _forget_some(tokens[:, part], options, random)
        told = None if numbers is None else _miss_some(numbers, part, options, random)
        after, next_state = model(inputs, log_gap[:, part], state, values=told)
        before = torch.cat([state[:, None, : model.spec.hidden], after[:, :-1]], dim=1)
        losses = model.nats(before, targets[:, part], IGNORED)
        if numbers is not None:
            losses = losses + model.off(before, numbers.last[:, part], numbers.came[:, part])
        seen = losses.detach().double()
        found.total[:] += seen.sum(1).numpy()
        np.maximum(found.worst, seen.amax(1).numpy(), out=found.worst)
        real = targets[:, part, 0] != IGNORED if numbers is None or targets.shape[-1] else numbers.real[:, part]
        counted = real.sum(1) * counts
        if step is not None and bool(counted.any()):
            step.take((losses.sum(1) * counts).sum() / counted.sum())
        state = next_state.detach()
    return found


def _miss_some(
    numbers: Numbers, part: slice, options: TrainingOptions, generator: np.random.Generator | None
) -> Tensor:
    """What the model is given of a chunk's numbers, a share of them as if they were missing."""
    told, last = numbers.told[:, part], numbers.last[:, part]
    if generator is None:
        return told
    known, missing = told.chunk(2, dim=-1)
    drawn = torch.from_numpy(generator.random(known.shape) < options.missing_rate)
    known = torch.where(drawn, last.nan_to_num(0.0).clamp(-CAP, CAP), known)
    return torch.cat([known, missing.masked_fill(drawn, 1.0)], dim=-1)


def _forget_some(tokens: Tensor, options: TrainingOptions, generator: np.random.Generator) -> Tensor:
    """Inputs with a share replaced by each unknown id; padding too, which counts nothing."""
    draw_ = torch.from_numpy(generator.random(tokens.shape))
    columns = []
    for f in range(tokens.shape[-1]):
        column = tokens[..., f]
        for turn, token in enumerate(options.unknown[f] if options.unknown else (0,)):
            low, high = turn * options.unknown_rate, (turn + 1) * options.unknown_rate
            column = column.masked_fill((draw_[..., f] >= low) & (draw_[..., f] < high), token)
        columns.append(column)
    return torch.stack(columns, dim=-1) if columns else tokens
