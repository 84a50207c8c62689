"""Half-space trees: river's scores, walk for walk."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from river.anomaly import HalfSpaceTrees

from detectors.half_space_trees import Trees, score_and_learn


def rivers(trees: Trees, window: int, dimensions: int) -> HalfSpaceTrees:
    """River's detector with our splits."""
    theirs = HalfSpaceTrees(n_trees=len(trees.feature), height=trees.height, window_size=window, seed=1)
    theirs.learn_one(dict.fromkeys(range(dimensions), 0.5))  # grows its trees
    theirs.counter = 0
    for t, root in enumerate(theirs.trees):
        _split_alike(root, trees, t, 0)
    return theirs


def _split_alike(node: Any, trees: Trees, t: int, k: int) -> None:
    node.l_mass = node.r_mass = 0
    if k < trees.feature.shape[1]:
        node.feature, node.threshold = int(trees.feature[t, k]), float(trees.threshold[t, k])
        for side, child in enumerate(node.children):
            _split_alike(child, trees, t, 2 * k + 1 + side)


@settings(max_examples=40, deadline=None)
@given(
    trees=st.integers(1, 4), height=st.integers(1, 6), dimensions=st.integers(1, 3), window=st.sampled_from([3, 20]),
    seed=st.integers(0, 1_000), missing=st.sampled_from([0.0, 0.3]),
)  # fmt: skip
def test_scores_are_rivers(trees: int, height: int, dimensions: int, window: int, seed: int, missing: float) -> None:
    """Over any stream, missing numbers among it, 1 - mass / most is what river's detector gives, to the last bit."""
    ours = Trees.grow(trees, height, dimensions)
    theirs = rivers(ours, window, dimensions)
    before = np.zeros((trees, ours.nodes), np.uint16)
    now, windows = before.copy(), 0
    rng = np.random.default_rng(seed)
    points = rng.beta(2, 5, (5 * window, dimensions))
    points[rng.random(points.shape) < missing] = math.nan
    for n, point in enumerate(points, 1):
        known = {d: float(x) for d, x in enumerate(point) if not math.isnan(x)}
        mass = score_and_learn(ours.feature, ours.threshold, before, now, window, point, True)
        assert (1 - mass / ours.most(window) if windows else 0) == theirs.score_one(known)
        theirs.learn_one(known)
        if n % window == 0:
            before, now, windows = now, np.zeros_like(now), windows + 1


def test_scoring_alone_counts_nothing() -> None:
    """A point that is only scored has the mass it would have, and leaves the counts as they were."""
    trees = Trees.grow(3, 4, 2)
    before = np.random.default_rng(1).integers(0, 20, (3, trees.nodes)).astype(np.uint16)
    now, point = before.copy(), np.array([0.3, math.nan])
    scored = score_and_learn(trees.feature, trees.threshold, before, now, 20, point, False)
    assert (now == before).all()
    assert scored == score_and_learn(trees.feature, trees.threshold, before, now, 20, point, True)
    assert now.sum() == before.sum() + 3 * 5


def test_trees_are_the_same_for_ever() -> None:
    """Saved counts belong to these splits: another release must grow the same."""
    trees = Trees.grow(2, 2, 3)
    assert trees.feature.tolist() == GOLDEN[0]
    np.testing.assert_array_equal(trees.threshold, GOLDEN[1])


GOLDEN = (
    [[2, 0, 0], [0, 0, 1]],
    [
        [0.45206959793395696, 0.8296173847076799, 0.379128034952688],
        [0.6900825894320969, 0.5633982517173719, 0.6827240951393388],
    ],
)
