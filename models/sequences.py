"""Sessions as a model takes them, kept as a few long arrays, in memory or mapped from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100  # torch's mark for a target that counts nothing


@dataclass(frozen=True)
class Sequence:
    """One session: (T, F + I) int32 tokens, (T,) float32 log gaps, and whether its end was seen."""

    tokens: NDArray[np.int32]
    log_gap: NDArray[np.float32]
    ended: bool


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
    """

    tokens: NDArray[np.int32]
    log_gap: NDArray[np.float32]
    starts: NDArray[np.int64]
    ended: NDArray[np.bool_]

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
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ended)

    def __getitem__(self, number: int) -> Sequence:
        part = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return Sequence(self.tokens[part], self.log_gap[part], bool(self.ended[number]))

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
        if sequence.ended:
            targets[b, n, 0] = sizes[0]
    return Batch(torch.from_numpy(tokens), torch.from_numpy(log_gap), torch.from_numpy(targets))


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
