"""Numbers as records hold them, JSON's and those of texts, to columns of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import WrongTypeError
from features.json_fields import Kinds
from features.paths import parse_path

NUMBER: Kinds = frozenset({str, int, float})
_PLAIN = {float, int, type(None)}


def read_numbers(columns: Sequence[tuple[str, list[Any]]], n: int) -> tuple[NDArray[np.float64], int]:
    """Turn what n records hold in N number fields into columns.

    A number is JSON's, or a text that Python's `float` reads and that has no underscore; so lines of text, whose fields
    are all texts, have numbers too. Missing are null, an absent field, the empty text and `nan` in any spelling.
    Infinite numbers (`inf`, `1e999`, whole numbers of hundreds of digits) are no measurement: missing too, but counted.

    Parameters
    ----------
    columns
        The name of each field, and its n values.

    Returns
    -------
    numbers
        (n, N) float64; NaN where a number is missing.
    infinite
        How many were infinite.

    Raises
    ------
    WrongTypeError
        A value is another text, a truth value, an object or a list.
    """
    numbers = np.empty((n, len(columns)))
    for column, (name, found) in enumerate(columns):
        numbers[:, column] = _column(name, found)
    is_infinite = np.isinf(numbers)
    infinite = int(is_infinite.sum())
    if infinite:
        numbers[is_infinite] = np.nan
    return numbers, infinite


def _column(name: str, found: list[Any]) -> NDArray[np.float64]:
    if set(map(type, found)) <= _PLAIN:
        try:
            return np.array(found, np.float64)  # it takes None for NaN
        except OverflowError:
            pass
    return np.array([_number(name, value) for value in found], np.float64)


def _number(name: str, value: Any) -> float:
    if value is None or value == "":
        return math.nan
    if isinstance(value, str):
        return _number_of_text(name, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        message = f"the number field {name} holds {_WORDS.get(type(value), 'no number')}"
        raise WrongTypeError(message, ".".join(map(str, parse_path(name))))
    try:
        return float(value)
    except OverflowError:
        return math.inf


_WORDS = {bool: "a truth value", dict: "an object", list: "a list"}


def _number_of_text(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = None
    if number is None or "_" in text:  # Python's way to group digits, which no program writes
        shown = text if len(text) <= 60 else text[:60] + "..."
        message = f"the number field {name} holds {shown!r}, which is no number"
        raise WrongTypeError(message, ".".join(map(str, parse_path(name))))
    return number
