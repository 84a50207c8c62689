"""Tokens that training never met: news until they are common, and no surprise from then on.

To a model every unknown token is the same one, `<oov>`, and stays as unlikely as it was in training: after a release
a template that comes a thousand times an hour would alarm for ever. So each is counted by itself, by its hash. It is
news while it has come in fewer than 3 % of the partition's blocks, or 16 of them, and made up less than 1 % of its
records: by blocks, so that a burst counts once, and by records, so that a flood ends. What is no news any more adds
nothing to a score.

A record with news is an anomaly where held-back records rarely brought any: a share of the promise as large as their
rate is set aside for news, and the rest is for scores (a weighted Bonferroni correction, which holds however the two
depend on each other). Fields that are full of unknown tokens, such as names of users, are left to the model. What is
counted there is each new token once, so the promise is one of pieces of news: while one of them comes again and again,
more records are alarmed than it says, until the token is absorbed.

It works where records come in the order in which they count; where they wait to be put in order, or are gathered in
windows, that order depends on when somebody looks, and nothing is news. A token that comes back after it was forgotten
is news once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from detectors.online_kernels import fill_index, find
from features.profiles import token_key

NAME = "novelty"
KNOWN, NEWS, ABSORBED = 0, 1, 2
BLOCK = 256  # records
HEAD = 10_000  # records without it that each token's history begins with
OF_BLOCKS, OF_RECORDS = 0.03, 0.01  # shares from which on a token is no news
LEAST_BLOCKS = 16  # that a token has come in before it can be no news by these
TOKENS = 1_024  # that a partition counts; others are no news
_FORGOTTEN = 4_096  # blocks after which a token gives way to another
_HALVED_EVERY = 1 << 20  # records: what came long ago counts less and less
_RATES = "novelty.rates"
_ENTRIES, _SEEN, _TOTAL = range(3)  # places in `sizes`


@dataclass(frozen=True, eq=False)
class NoveltyState:
    """What a partition has counted since its bundle serves: less than 33 KB.

    Attributes
    ----------
    bundle
        The bundle's number: to another one other tokens are unknown.
    sizes
        (3,) int64: tokens counted, records (halved now and then), all records.
    keys, records, blocks, last
        (TOKENS,) uint64 key, int64 how many records and blocks had it (halved likewise), int64 the last block that did.
    """

    bundle: int
    sizes: NDArray[np.int64]
    keys: NDArray[np.uint64]
    records: NDArray[np.int64]
    blocks: NDArray[np.int64]
    last: NDArray[np.int64]

    @classmethod
    def empty(cls, bundle: int) -> NoveltyState:
        """Nothing counted yet."""
        counts = (np.zeros(TOKENS, np.int64) for _ in range(3))
        return cls(bundle, np.zeros(3, np.int64), np.zeros(TOKENS, np.uint64), *counts)

    def copy(self) -> NoveltyState:
        """A copy that shares nothing."""
        return NoveltyState(
            self.bundle, self.sizes.copy(), self.keys.copy(), self.records.copy(), self.blocks.copy(), self.last.copy()
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoveltyState) and self.pack() == other.pack()

    def __hash__(self) -> int:
        return hash(self.pack())

    def pack(self) -> bytes:
        """Bundle, sizes and the four columns, little endian."""
        head = np.array([self.bundle], "<u8").tobytes() + self.sizes.astype("<i8").tobytes()
        entries = int(self.sizes[_ENTRIES])
        columns = (self.records, self.blocks, self.last)
        return head + self.keys[:entries].astype("<u8").tobytes() + b"".join(c[:entries].tobytes() for c in columns)

    @classmethod
    def unpack(cls, packed: bytes) -> NoveltyState:
        """What `pack` gave. ValueError: it is something else."""
        state = cls.empty(int.from_bytes(packed[:8], "little"))
        state.sizes[:] = np.frombuffer(packed[8:32], "<i8")
        entries = int(state.sizes[_ENTRIES])
        state.keys[:entries] = np.frombuffer(packed[32 : 32 + 8 * entries], "<u8")
        counts = np.frombuffer(packed[32 + 8 * entries :], "<i8").reshape(3, entries)
        state.records[:entries], state.blocks[:entries], state.last[:entries] = counts
        return state


@dataclass(frozen=True)
class Novelty:
    """Unknown tokens of each field, each counted once, by held-back records: (F,) rates above 0, less than 2 KB."""

    rates: tuple[float, ...]

    @classmethod
    def learn(cls, unknown: NDArray[np.int64], records: int) -> Novelty:
        """From (F,) counts of different unknown tokens in so many records that did not teach the vocabulary."""
        return cls(tuple(((1.0 + unknown) / (1.0 + records)).tolist()))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Novelty | None:
        """What `to_arrays` gave; None from what was saved before."""
        return cls(tuple(arrays[_RATES].tolist())) if _RATES in arrays else None

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays to save."""
        return {_RATES: np.array(self.rates)}

    def share(self, promise: float) -> tuple[NDArray[np.bool_], float]:
        """(F,) fields whose news are anomalies, and the part of the promise set aside for them: half of it at most.

        >>> Novelty((0.0001, 0.02, 0.0004)).share(0.001)
        (array([ True, False,  True]), 0.5)
        """
        watched, spent = np.zeros(len(self.rates), np.bool_), 0.0
        for field in np.argsort(self.rates, kind="stable").tolist():
            if spent + self.rates[field] > promise / 2:
                break
            watched[field] = True
            spent += self.rates[field]
        return watched, spent / promise


def count_tokens(
    state: NoveltyState, hashes: NDArray[np.uint64], unknown: NDArray[np.bool_], watched: NDArray[np.bool_]
) -> tuple[NDArray[np.int8], NoveltyState]:
    """Tell news, record by record, each before it is counted.

    Parameters
    ----------
    hashes, unknown, watched
        (n, F) stable hashes of tokens, (n, F) whether the bundle does not know them, (F,) fields to look at.

    Returns
    -------
    found, state
        (n, F) `KNOWN`, `NEWS` or `ABSORBED`; and the state after.
    """
    found = np.zeros(hashes.shape, np.int8)
    if not len(hashes):
        return found, state
    state, index = state.copy(), np.empty(2 * TOKENS, np.int32)
    fill_index(state.keys, state.sizes[_ENTRIES], index)
    _count(
        hashes, unknown & watched, state.sizes, state.keys, state.records, state.blocks, state.last, index, found
    )  # fmt: skip
    return found, state


def of_scores(p_values: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """(n,) p-values of scores, which have the promise but for that share."""
    weighted: NDArray[np.float64] = np.minimum(p_values / (1.0 - share), 1.0)
    return weighted


def with_news(p_values: NDArray[np.float64], found: NDArray[np.int8], promise: float) -> NDArray[np.float64]:
    """(n,) p-values of scores and of news, whose own is the promise itself."""
    combined = p_values.copy()
    news = (found == NEWS).any(axis=1)
    combined[news] = np.minimum(combined[news], promise)
    return combined


@njit(cache=True)
def _count(hashes, unknown, sizes, keys, records, blocks, last, index, found):
    for i in range(len(hashes)):
        block = sizes[_TOTAL] // BLOCK
        for f in range(hashes.shape[1]):
            if not unknown[i, f]:
                continue
            key = token_key(f, hashes[i, f])
            at = find(keys, index, key)
            if at < 0 and sizes[_ENTRIES] == len(keys):
                _forget(sizes, keys, records, blocks, last, index, block)
                at = find(keys, index, key)
            if at < 0 and sizes[_ENTRIES] == len(keys):
                found[i, f] = ABSORBED
                continue
            if at < 0:
                entry = sizes[_ENTRIES]
                index[-1 - at] = entry
                keys[entry], records[entry], blocks[entry], last[entry] = key, 0, 0, -1
                sizes[_ENTRIES] += 1
                at = entry
            before = blocks[at] - (1 if last[at] == block else 0)
            is_rare = before < max(LEAST_BLOCKS, OF_BLOCKS * (HEAD + sizes[_SEEN]) / BLOCK)
            found[i, f] = NEWS if is_rare and records[at] < OF_RECORDS * (HEAD + sizes[_SEEN]) else ABSORBED
            if last[at] != block:
                blocks[at] += 1
                last[at] = block
            records[at] += 1
        sizes[_SEEN] += 1
        sizes[_TOTAL] += 1
        if sizes[_SEEN] == _HALVED_EVERY:
            sizes[_SEEN] //= 2
            records[:] //= 2
            blocks[:] //= 2


@njit(cache=True)
def _forget(sizes, keys, records, blocks, last, index, block):
    """Leave out tokens that have not come for long; the order of the others stays."""
    kept = 0
    for at in range(sizes[_ENTRIES]):
        if block - last[at] < _FORGOTTEN:
            keys[kept], records[kept], blocks[kept], last[kept] = keys[at], records[at], blocks[at], last[at]
            kept += 1
    sizes[_ENTRIES] = kept
    fill_index(keys, kept, index)
