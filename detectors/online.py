"""Online detectors: what scores a partition's records until a bundle serves, learned from these records alone.

Tokens are counted, by themselves and after the token before them in their session; numbers go through half-space
trees. A record's score is its surprise in nats, its p-value the share of the partition's last scores that reach it. All
is learned in the order of offsets, each record after its score, so a slice's bounds change nothing.

It works where records come in the order in which they count. Where they wait to be put in order, or are gathered in
windows, that order depends on when somebody looks, and there is no online score. It fails where anomalies are as
frequent as the promise, and for tokens that never come twice; `confidence` says so.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.half_space_trees import Trees
from detectors.online_kernels import CONFIDENCE, ENTRIES, MOMENTS, SMALLEST_P, fill_index, score_and_learn
from features.sessions import Walk

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class OnlineRules:
    """How much is kept and how fast it fades.

    Attributes
    ----------
    first
        Records learned before the first is scored.
    counts
        Counts kept; where more are needed, all are halved until a quarter of them has gone. A power of two.
    halved_every
        Records after which all counts are halved in any case.
    scores
        Last scores that a p-value is a rank among. A power of two. One beyond 1 / rate can keep the promise.
    numbers
        Means and variances kept: two for each number, by its name where it has one. A power of two.
    trees, height, window
        Half-space trees, their splits on a path, and records of a window.
    """

    first: int = 256
    counts: int = 16_384
    halved_every: int = 32_768
    scores: int = 16_384
    numbers: int = 512
    trees: int = 25
    height: int = 8
    window: int = 256


ONLINE = OnlineRules()


@dataclass(frozen=True, eq=False)
class OnlineState:
    """What a partition has learned since it began to warm up: plain numbers.

    Attributes
    ----------
    sizes
        (7,) int64: records learned, those since counts were halved, entries of counts, scores ever kept, records of
        the trees' window under way, windows before it, entries of moments.
    keys, counts
        uint64 names of what is counted, in order of arrival, and float64 how often it came.
    number_keys, moments
        uint64 names of numbers, and (., 3) float64: how many counted (at most 1,000), mean, variance.
    before, now
        (T, nodes) uint16 of the trees; no rows where a stream has no numbers.
    scores
        float32 ring of the last scores: number k stands at k modulo its length.
    index, number_index
        Where keys are; follows from them.
    """

    sizes: NDArray[np.int64]
    keys: NDArray[np.uint64]
    counts: NDArray[np.float64]
    number_keys: NDArray[np.uint64]
    moments: NDArray[np.float64]
    before: NDArray[np.uint16]
    now: NDArray[np.uint16]
    scores: F32
    index: NDArray[np.int32]
    number_index: NDArray[np.int32]

    @classmethod
    def empty(cls, rules: OnlineRules, numbers: int) -> OnlineState:
        """Nothing learned yet, for records with so many numbers."""
        masses = (rules.trees if numbers else 0, 2 ** (rules.height + 1) - 1)
        kept = rules.numbers if numbers else 1
        return cls(
            np.zeros(7, np.int64), np.zeros(rules.counts, np.uint64), np.zeros(rules.counts),
            np.zeros(kept, np.uint64), np.zeros((kept, 3)), np.zeros(masses, np.uint16), np.zeros(masses, np.uint16),
            np.zeros(rules.scores, np.float32), np.full(2 * rules.counts, -1, np.int32),
            np.full(2 * kept, -1, np.int32),
        )  # fmt: skip

    def copy(self) -> OnlineState:
        """A copy that shares nothing."""
        return OnlineState(*(getattr(self, f.name).copy() for f in fields(self)))

    def indexed(self) -> OnlineState:
        """The same with its index made anew, after the arrays it follows from were read."""
        fill_index(self.keys, self.sizes[ENTRIES], self.index)
        fill_index(self.number_keys, self.sizes[MOMENTS], self.number_index)
        return self


class OnlineScores(NamedTuple):
    """Of n records and m operations; NaN where nothing is known yet.

    Attributes
    ----------
    surprise
        (n, F + N) float32 nats. What the trees find in all numbers together stands at the one furthest from its mean.
    p_value, confidence
        (n,) float64: the share of the last scores that reach the record's, itself counted; and how much that says, in
        [0, 1): k / (k + 1 / rate) x (1 - v), k scores kept, v the share of tokens that were new when they came.
    end_p_value, end_confidence
        (m,) of sessions that ended: the least p-value of its records times their number (Bonferroni), which holds
        whenever somebody looks; and the confidence at its last record.
    hidden
        (S, H) float32: what rows keep for that.
    """

    surprise: F32
    p_value: NDArray[np.float64]
    confidence: NDArray[np.float64]
    end_p_value: NDArray[np.float64]
    end_confidence: NDArray[np.float64]
    hidden: F32


def score_online(
    state: OnlineState, rules: OnlineRules, trees: Trees | None, rate: float, walk: Walk,
    tokens: NDArray[np.uint64], numbers: F32, names: NDArray[np.uint64],
    last_tokens: NDArray[np.uint64], last_numbers: F32, hidden: F32,
) -> tuple[OnlineScores, OnlineState]:  # fmt: skip
    """Score a slice's records in the order of the walk, each before it is learned; arguments are left untouched.

    Parameters
    ----------
    rate
        The promise.
    tokens, numbers, names, last_tokens, last_numbers, hidden
        As in `detectors.online_kernels.score_and_learn`.

    References
    ----------
    Counts: Moffat 1990, Implementing the PPM data compression scheme (method C; here of order 1, with half a novelty
    more, and without exclusion). P-values: Vovk, Gammerman, Shafer 2005, over a sliding window.
    """
    assert hidden.shape[1] > max(SMALLEST_P, CONFIDENCE), "the smallest model's state has room for these two"
    if len(walk.first):
        state = state.copy()
    (n, f), m, columns = tokens.shape, len(walk.kind), numbers.shape[1]
    out = OnlineScores(
        np.empty((n, f + columns), np.float32), np.empty(n), np.empty(n), np.full(m, np.nan), np.full(m, np.nan),
        hidden.copy(),
    )  # fmt: skip
    trees = _NO_TREES if trees is None else trees
    learned: tuple[Any, ...] = (
        state.sizes, state.keys, state.counts, state.index, state.number_keys, state.moments, state.number_index,
        state.before, state.now, state.scores,
    )  # fmt: skip
    score_and_learn(
        walk.kind, walk.row, walk.record, walk.first, walk.ended_events, tokens, numbers, names, last_tokens.copy(),
        last_numbers.copy(), out.hidden, rate, rules.first, rules.halved_every, rules.window,
        trees.feature, trees.threshold, trees.most(rules.window), *learned,
        out.surprise, out.p_value, out.confidence, out.end_p_value, out.end_confidence,
    )  # fmt: skip
    return out, state


_NO_TREES = Trees(np.zeros((0, 1), np.int64), np.zeros((0, 1)))
