"""What makes training sequences more like those to come: order that wanders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.sequences import Sequence

SHARE, PLACES = 0.2, 5.0  # events that come late, and by how many places on average


def delay_some(
    tokens: NDArray[np.int32], fields: int, generator: np.random.Generator, share: float = SHARE, places: float = PLACES
) -> NDArray[np.int32]:
    """A session in which some events come later than they did.

    Each event is late with probability `share`, by an exponentially distributed number of places; the others keep their
    order. Where several threads or hosts write a session, the order of their events is chance, and a model that has
    seen each sequence in one order only takes every other for as strange as a fault. It is of no use, and does harm,
    where order is all there is, as in numbers measured one after another.

    Parameters
    ----------
    tokens
        (T, F + I) int32; left untouched.
    fields
        Of these the rows change places; the others tell of the time, which goes on as it did.

    Returns
    -------
    tokens
        (T, F + I) int32.

    References
    ----------
    The idea, of training on orders that could have been, is that of Murphy et al. 2019, arXiv:1811.01900; we draw
    orders near the one that was.
    """
    late = generator.random(len(tokens)) < share
    arrival = np.arange(len(tokens)) + np.where(late, generator.exponential(places, len(tokens)), 0.0)
    delayed = tokens.copy()
    delayed[:, :fields] = tokens[np.argsort(arrival, kind="stable"), :fields]
    return delayed


def delayed(sequence: Sequence, fields: int, generator: np.random.Generator, share: float) -> Sequence:
    """The same of a session; each place keeps its time gap."""
    tokens = delay_some(sequence.tokens, fields, generator, share)
    return replace(sequence, tokens=tokens)
