"""Sessions as a model takes them, kept as a few long arrays, in memory or mapped from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.values import held, told

IGNORED = -100  # torch's mark for a target that counts nothing


@dataclass(frozen=True)
class Sequence:
    """One session: (T, F + I) int32 tokens, (T,) float32 log gaps, whether its end was seen, and perhaps values.

    `values` are (T, C) float32 in spreads, NaN where missing.
    """

    tokens: NDArray[np.int32]
    log_gap: NDArray[np.float32]
    ended: bool
    values: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Sequences:
    """S sessions of N events in all, one after the other.

    A list of arrays would cost an object a session and could not lie in a file; these can (`numpy.memmap`).

    Attributes
    ----------
    tokens, log_gap
        (N, F + I) int32 and (N,) float32.
    starts
        (S + 1,) int64: where each session begins, and N.
    ended
        (S,) bool: whether the session's end was seen.
    values
        (N, C) float32 in spreads, NaN where missing; None where no numbers are forecast.
    """

    tokens: NDArray[np.int32]
    log_gap: NDArray[np.float32]
    starts: NDArray[np.int64]
    ended: NDArray[np.bool_]
    values: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, sequences: Iterable[Sequence]) -> Sequences:
        """Copies of single ones."""
        given = list(sequences)
        if not given:
            return cls(
                np.empty((0, 0), np.int32), np.empty(0, np.float32), np.zeros(1, np.int64), np.empty(0, np.bool_)
            )
        return cls(
            np.concatenate([s.tokens for s in given]), np.concatenate([s.log_gap for s in given]),
            np.cumsum([0, *(len(s.log_gap) for s in given)], dtype=np.int64), np.array([s.ended for s in given]),
            None if given[0].values is None else np.concatenate([s.values for s in given if s.values is not None]),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ended)

    def __getitem__(self, number: int) -> Sequence:
        part = slice(int(self.starts[number]), int(self.starts[number + 1]))
        values = None if self.values is None else self.values[part]
        return Sequence(self.tokens[part], self.log_gap[part], bool(self.ended[number]), values)

    def __iter__(self) -> Iterator[Sequence]:
        return map(self.__getitem__, range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(S,) events of each session."""
        return np.diff(self.starts)


class Batch(NamedTuple):
    """B sessions side by side, padded by one column more than the longest; also the arguments of a loss.

    Attributes
    ----------
    tokens, log_gap, targets
        (B, T + 1, F + I) int64, (B, T + 1) float32, (B, T + 1, F) int64: target t is event t; after the last event
        comes the end symbol in field 0 where the end was seen. All else is IGNORED, so padding adds nothing to a loss.
    """

    tokens: Tensor
    log_gap: Tensor
    targets: Tensor


def pad(batch: list[Sequence], sizes: tuple[int, ...]) -> Batch:
    """Put sessions side by side; `sizes` are the numbers of ids of the F fields that are predicted."""
    longest = max(len(s.log_gap) for s in batch) + 1
    tokens = np.zeros((len(batch), longest, batch[0].tokens.shape[1]), np.int64)
    log_gap = np.zeros((len(batch), longest), np.float32)
    targets = np.full((len(batch), longest, len(sizes)), IGNORED, np.int64)
    for b, sequence in enumerate(batch):
        n = len(sequence.log_gap)
        tokens[b, :n] = sequence.tokens
        log_gap[b, :n] = sequence.log_gap
        targets[b, :n] = sequence.tokens[:, : len(sizes)]
        if sequence.ended and sizes:
            targets[b, n, 0] = sizes[0]
    return Batch(torch.from_numpy(tokens), torch.from_numpy(log_gap), torch.from_numpy(targets))


class Numbers(NamedTuple):
    """The values of such a batch; in padding all of them are missing.

    Attributes
    ----------
    told
        (B, T + 1, 2C) float32 what the model is given of each event.
    last, came
        (B, T + 1, C) float32 in spreads: what was known before each event, and what came; NaN where nothing.
    real
        (B, T + 1) bool: whether there is an event.
    """

    told: Tensor
    last: Tensor
    came: Tensor
    real: Tensor


def pad_values(batch: list[Sequence]) -> Numbers | None:
    """Put the values of sessions side by side, as `pad` does the rest; None where there are none."""
    given = [s.values for s in batch if s.values is not None]
    if not given:
        return None
    longest, channels = max(map(len, given)) + 1, given[0].shape[1]
    of_model = np.zeros((len(given), longest, 2 * channels), np.float32)
    last, came = np.full((2, len(given), longest, channels), np.nan, np.float32)
    real = np.zeros((len(given), longest), np.bool_)
    for b, values in enumerate(given):
        n, known = len(values), held(values)
        of_model[b, :n], came[b, :n], real[b, :n] = told(values, known), values, True
        last[b, 1 : n + 1] = known
    return Numbers(*map(torch.from_numpy, (of_model, last, came, real)))


def batches(
    lengths: NDArray[np.int64], drawn: NDArray[np.int64], batch_tokens: int, shuffle: np.random.Generator | None
) -> Iterator[NDArray[np.int64]]:
    """Numbers of sessions of like length, so that little is padding; the batches' order is shuffled.

    Parameters
    ----------
    lengths
        (S,) events of each session.
    drawn
        Numbers of the sessions to hand out, some perhaps more than once.
    batch_tokens
        Events in one batch, padding included; a longer session is a batch of its own.
    """
    order = drawn[np.argsort(lengths[drawn], kind="stable")]
    cuts, low = [], 0
    for high, length in enumerate(lengths[order].tolist()):
        if high > low and (length + 1) * (high - low + 1) > batch_tokens:
            cuts.append(high)
            low = high
    found = np.split(order, cuts)
    turns = range(len(found)) if shuffle is None else shuffle.permutation(len(found))
    return (found[int(i)] for i in turns)
