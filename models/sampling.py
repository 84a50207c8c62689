"""Which sessions an epoch learns from. Pure: all chance comes from the generator given."""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from models.sequences import Sequences


def kinds(sequences: Sequences, fields: int | None = None) -> NDArray[np.int64]:
    """(S,) a number for each session, the same for those with the same tokens and end; times may differ.

    Parameters
    ----------
    fields
        Only the first so many columns tell what came, the others when; absent: all of them.

    >>> from models.sequences import Sequence
    >>> one, two = (Sequence(np.full((2, 1), token, np.int32), np.zeros(2, np.float32), True) for token in (3, 4))
    >>> kinds(Sequences.of([one, two, one])).tolist()
    [0, 1, 0]
    """
    found: dict[bytes, int] = {}
    numbers = np.empty(len(sequences), np.int64)
    for at, sequence in enumerate(sequences):
        tokens = sequence.tokens[:, :fields]
        told = blake2b(tokens.tobytes(), digest_size=16, key=b"end" if sequence.ended else b"").digest()
        numbers[at] = found.setdefault(told, len(found))
    return numbers


def draw_by_square_root(kind: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Of c sessions of one kind, the square root of c (rounded up), drawn anew at each call; ascending.

    Where a few kinds make up most of the sessions, the others count for more so, and an epoch is shorter.

    Parameters
    ----------
    kind
        (S,) as `kinds` gives them.

    Returns
    -------
    numbers
        Of the sessions drawn, none twice.
    """
    shuffled = random.permutation(len(kind))
    by_kind = shuffled[np.argsort(kind[shuffled], kind="stable")]
    counts = np.bincount(kind)
    wanted = np.ceil(np.sqrt(counts)).astype(np.int64)
    place = np.arange(len(kind)) - np.repeat(np.cumsum(counts) - counts, counts)  # among those of its kind
    return np.sort(by_kind[place < np.repeat(wanted, counts)])


def without_the_strangest(surprise: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """(S,) which sessions are kept when the most surprising share is left out, rounded down; of equals the last go.

    >>> without_the_strangest(np.array([1.0, 9.0, 2.0, 3.0]), 0.25).tolist()
    [True, False, True, True]

    References
    ----------
    Shen, Sanghavi 2019, Learning with bad training data via iterative trimmed loss minimization (arXiv:1810.11874):
    what the present model finds strangest is left out, and the choice is made anew after each round.
    """
    kept = np.ones(len(surprise), np.bool_)
    left_out = math.floor(share * len(surprise))
    if left_out:
        kept[np.argsort(surprise, kind="stable")[-left_out:]] = False
    return kept
