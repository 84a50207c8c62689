"""Parameters: which places of a template hold numbers that a model can learn. Only training asks.

A place is a token of the template with a wildcard. It holds numbers if nearly all of training's lines have one there
(features/quantities.py), and if these do not just grow: the numbers of requests or processes, say, are names, and all
that come after training would lie beyond all that it saw.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from features.quantities import Quantities, has_unit
from features.shapes import WILDCARD
from features.templates import Matcher, Templates

_NUMERIC = 0.95  # share of a place's values that are numbers
_GROWING = 0.95  # share of numbers larger than that half a history before; of measurements it is about a half
_LEAST = 20  # fewer numbers tell nothing


def with_parameters(templates: Templates, lines: Iterable[str], columns: int) -> Templates:
    """The templates with the first places, at most `columns` of each, that hold numbers in lines given in time order.

    >>> lines = [f"job {n} took {n % 7} ms" for n in range(99)]
    >>> with_parameters(Templates.of(["job <*> took <*> ms"]), lines, 2).numbers
    {'job <*> took <*> ms': (3,)}
    """
    if not columns:
        return templates
    places = {t.text: [i for i, token in enumerate(t.shape) if WILDCARD in token] for t in templates.templates}
    values = {text: [array("d") for _ in own] for text, own in places.items()}
    readers = {scaled: Quantities(scaled=scaled) for scaled in (False, True)}
    for text, tokens in Matcher(templates).tokens(lines):
        for place, column in zip(places[text], values[text], strict=True):
            column.append(readers[not has_unit(text.split()[place])][tokens[place]])
    chosen = {
        text: tuple(p for p, column in zip(own, values[text], strict=True) if _is_quantity(np.array(column)))[:columns]
        for text, own in places.items()
    }
    return replace(templates, numbers={text: own for text, own in chosen.items() if own})


def _is_quantity(values: NDArray[np.float64]) -> bool:
    """Whether (n,) float64 values, NaN where there was no number, are measurements."""
    x = values[~np.isnan(values)]
    if len(x) < max(_LEAST, _NUMERIC * len(values)):
        return False
    half = len(x) // 2
    return float(np.mean(x[-half:] > x[:half])) < _GROWING
