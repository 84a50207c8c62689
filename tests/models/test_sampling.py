"""What an epoch is drawn from: kinds of sessions, their square roots, swaps, and who is left out."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.sampling import draw_by_square_root, kinds, without_the_strangest
from models.sequences import Sequence, Sequences

TOKENS = st.lists(st.integers(2, 4), min_size=1, max_size=3)
SESSIONS = st.lists(st.tuples(TOKENS, st.booleans()), min_size=1, max_size=40)


def sequence(tokens: list[int], ended: bool = True, gap: float = 0.0) -> Sequence:
    return Sequence(np.array(tokens, np.int32)[:, None], np.full(len(tokens), gap, np.float32), ended)


@given(SESSIONS)
def test_kinds_are_equal_tokens_and_ends(given_: list[tuple[list[int], bool]]) -> None:
    """Two sessions are of one kind just when their tokens and their ends agree, whatever their time gaps."""
    found = kinds(Sequences.of(sequence(t, e, gap) for gap, (t, e) in enumerate(given_)))
    names = [(tuple(t), e) for t, e in given_]
    assert [[a == b for b in found] for a in found] == [[a == b for b in names] for a in names]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(0, 9))
def test_each_kind_is_drawn_by_its_square_root(given_: list[int], seed: int) -> None:
    """Of c sessions of a kind the square root comes, rounded up, and no session twice."""
    kind = np.unique(given_, return_inverse=True)[1]
    drawn = draw_by_square_root(kind, np.random.default_rng(seed))
    assert len(set(drawn.tolist())) == len(drawn)
    wanted = {k: math.ceil(math.sqrt(c)) for k, c in Counter(kind.tolist()).items()}
    assert Counter(kind[drawn].tolist()) == wanted


def test_a_kind_gives_other_sessions_each_time() -> None:
    """Over a few draws all sessions of a kind come, so that all their time gaps are learned from."""
    random, kind = np.random.default_rng(0), np.zeros(9, np.int64)
    assert set(np.concatenate([draw_by_square_root(kind, random) for _ in range(30)]).tolist()) == set(range(9))


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=50), st.floats(0, 0.9))
def test_the_strangest_share_is_left_out(surprise: list[float], share: float) -> None:
    """So many are left out as the share says, and none that is kept is stranger than one that is not."""
    values = np.array(surprise)
    kept = without_the_strangest(values, share)
    assert (~kept).sum() == math.floor(share * len(values))
    if not kept.all():
        assert values[kept].max(initial=-np.inf) <= values[~kept].min()
