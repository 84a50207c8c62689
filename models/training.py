"""Training by truncated back-propagation, with early stopping on sessions the weights never saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import UnsuitableDataError
from models.family import SequenceModel, make_model
from models.spec import ModelSpec

LEAST_GAIN = 1e-3  # share of the validation loss an epoch must win to count as progress
IGNORED = -100  # torch's mark for a target that counts nothing


@dataclass(frozen=True)
class Sequence:
    """One session: (T, F + I) int32 tokens, (T,) float32 log gaps, and whether its end was seen."""

    tokens: NDArray[np.int32]
    log_gap: NDArray[np.float32]
    ended: bool


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how hard; the defaults suit from a thousand sessions up."""

    seed: int = 0
    max_epochs: int = 40
    patience: int = 4  # epochs without a better validation loss before we stop
    batch_tokens: int = 2_048  # events in one batch, padding included
    chunk: int = 64  # events between two truncations
    learning_rate: float = 4e-3
    unknown: tuple[tuple[int, ...], ...] = ()  # of each input, ids for what is not known, or hardly; absent: <oov>
    unknown_rate: float = 0.01  # inputs replaced by each of these: embeddings are trained, and states survive them


@dataclass(frozen=True)
class Epoch:
    """Progress: nats per event on both parts, and whether this epoch is the best so far."""

    number: int
    loss: float
    validation_loss: float
    best: bool
    events_per_s: float


def train(
    sequences: list[Sequence], validation: list[Sequence], spec: ModelSpec, options: TrainingOptions,
    on_epoch: Callable[[Epoch], None], clock: Callable[[], float],
) -> dict[str, NDArray[np.float32]]:  # fmt: skip
    """Fit a model to sessions and return the weights that did best on `validation`.

    Parameters
    ----------
    clock
        Seconds, for the speed shown in progress; it changes nothing else.

    Raises
    ------
    UnsuitableDataError
        There are no sessions, or the loss is not finite.
    """
    if not sequences or not validation:
        message = "training needs sessions to learn from and sessions to check against; give it more data"
        raise UnsuitableDataError(message)
    # One thread: with more, OpenMP's workers spin for each other, and beside one busy process (a broker, say) training
    # was seen 50 times slower. On idle cores one thread is as fast for models of this size. It also fixes the bits.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    shuffle = np.random.default_rng(options.seed)
    model = make_model(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=1e-4)
    # The learning rate halves after two epochs that bring nothing, so a small data set still ends in a fine minimum.
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    best, best_loss, stale = model.weights(), math.inf, 0
    for number in range(1, options.max_epochs + 1):
        began = clock()
        loss, events = _epoch(model, sequences, options, shuffle, optimizer)
        with torch.no_grad():
            validation_loss, _ = _epoch(model, validation, options, None, None)
        if not math.isfinite(loss + validation_loss):
            message = "the loss is not finite; the data holds sessions this model cannot learn"
            raise UnsuitableDataError(message)
        schedule.step(validation_loss)
        improved = validation_loss < best_loss * (1 - LEAST_GAIN)
        if improved:
            best, best_loss, stale = {k: v.copy() for k, v in model.weights().items()}, validation_loss, 0
        else:
            stale += 1
        on_epoch(Epoch(number, loss, validation_loss, improved, events / max(clock() - began, 1e-9)))
        if stale >= options.patience:
            break
    return best


def _epoch(
    model: SequenceModel, sequences: list[Sequence], options: TrainingOptions,
    shuffle: np.random.Generator | None, optimizer: torch.optim.Optimizer | None,
) -> tuple[float, int]:  # fmt: skip
    """One pass; learns when there is an optimizer. Returns nats per event and the number of events."""
    total, events = 0.0, 0
    model.train(optimizer is not None)
    for batch in _batches(sequences, options.batch_tokens, shuffle):
        tokens, log_gap, targets = pad(batch, model.spec.sizes)
        state = model.start_state(len(batch))
        events += sum(len(s.log_gap) for s in batch)
        for low in range(0, tokens.shape[1], options.chunk):
            part = slice(low, low + options.chunk)
            inputs = tokens[:, part]
            if optimizer is not None and shuffle is not None:
                inputs = _forget_some(inputs, options, shuffle)
            after, next_state = model(inputs, log_gap[:, part], state)
            before = torch.cat([state[:, None, : model.spec.hidden], after[:, :-1]], dim=1)
            loss = loss_of(model, before, targets[:, part])
            total += float(loss.detach())
            if optimizer is not None:
                optimizer.zero_grad()
                (loss / max(1, int((targets[:, part, 0] != IGNORED).sum()))).backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            state = next_state.detach()
    return total / max(events, 1), events


def pad(batch: list[Sequence], sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, log gaps and targets of sessions, padded by one column more than the longest.

    Returns
    -------
    tokens, log_gap, targets
        (B, T + 1, F + I) int64, (B, T + 1) float32, (B, T + 1, F) int64: target t is event t; after the last event
        comes the end symbol in field 0 where the end was seen. All else is IGNORED, so padding adds nothing to a loss.
    """
    longest = max(len(s.log_gap) for s in batch) + 1
    tokens = np.zeros((len(batch), longest, batch[0].tokens.shape[1]), np.int64)
    log_gap = np.zeros((len(batch), longest), np.float32)
    targets = np.full((len(batch), longest, len(sizes)), IGNORED, np.int64)
    for b, sequence in enumerate(batch):
        n = len(sequence.log_gap)
        tokens[b, :n] = sequence.tokens
        log_gap[b, :n] = sequence.log_gap
        targets[b, :n] = sequence.tokens[:, : len(sizes)]
        if sequence.ended:
            targets[b, n, 0] = sizes[0]
    return torch.from_numpy(tokens), torch.from_numpy(log_gap), torch.from_numpy(targets)


def loss_of(model: SequenceModel, outputs: Tensor, targets: Tensor) -> Tensor:
    """Summed surprise in nats of (B, T, F) targets under (B, T, H) outputs."""
    parts = model.log_probabilities(outputs)
    losses = [
        torch.nn.functional.nll_loss(
            part.flatten(0, 1), targets[..., f].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        for f, part in enumerate(parts)
    ]
    return torch.stack(losses).sum()


def _batches(
    sequences: list[Sequence], batch_tokens: int, shuffle: np.random.Generator | None
) -> Iterator[list[Sequence]]:
    """Sessions of like length together, so that little is padding; the batches' order is shuffled."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].log_gap))
    batches: list[list[Sequence]] = [[]]
    for i in order:
        if batches[-1] and (len(sequences[i].log_gap) + 1) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(sequences[i])
    turns = range(len(batches)) if shuffle is None else shuffle.permutation(len(batches))
    return (batches[int(i)] for i in turns)


def _forget_some(tokens: Tensor, options: TrainingOptions, generator: np.random.Generator) -> Tensor:
    """Inputs with a share replaced by each unknown id; padding too, which counts nothing."""
    draw = torch.from_numpy(generator.random(tokens.shape))
    columns = []
    for f in range(tokens.shape[-1]):
        column = tokens[..., f]
        for turn, token in enumerate(options.unknown[f] if options.unknown else (0,)):
            low, high = turn * options.unknown_rate, (turn + 1) * options.unknown_rate
            column = column.masked_fill((draw[..., f] >= low) & (draw[..., f] < high), token)
        columns.append(column)
    return torch.stack(columns, dim=-1)
