"""What cannot be learned from is refused before hours go into it; what can be learned badly is said."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detectors.history import History
from detectors.learned_fields import MAX_VOCABULARY, LearnedFields
from detectors.parts import Parts
from features.events import Events
from features.numbers import LOW, MISSING
from features.tokens import OOV, RARE
from models.errors import UnsuitableDataError
from models.sequences import Sequences


def refuse_nothing(history: list[Events]) -> None:
    """Whether there is anything at all.

    Raises
    ------
    UnsuitableDataError
        No record could be read.
    """
    if not any(map(len, history)):
        rejected = sum(len(events.rejects) for events in history)
        tried = f"none of its {rejected:,} records could be read" if rejected else "there is no record in it"
        message = f"the history is empty, for {tried}: give another file or time span"
        raise UnsuitableDataError(message)


def refuse_hopeless(learning: Sequences, parts: Parts) -> None:
    """Whether the sessions to learn from hold any order, and anything that varies.

    Raises
    ------
    UnsuitableDataError
        All sessions are of one event, or no field says anything.
    """
    if int(learning.lengths.max(initial=1)) == 1:
        message = (
            "every session holds one event only, so there is no order to learn: check session.by, and whether "
            "session.gap is as long as sessions are silent"
        )
        raise UnsuitableDataError(message)
    columns = _of_fields(learning, parts)
    first, always = columns[0], _never_varies(columns)
    if always.all():
        said = [_of_constant(parts, f, int(first[f])) for f in range(len(parts.fields))]
        message = f"there is nothing to learn, for {', '.join(said)}: add other fields to tokens or numbers"
        raise UnsuitableDataError(message)


def doubts(history: History, learning: Sequences, fields: LearnedFields, parts: Parts) -> list[str]:
    """Sentences about what a model can be learned from, but less than the user may think."""
    said = []
    first_ms, last_ms = history.first_ms.min(), max(p.events.time_ms.max() for p in history.partitions)
    if first_ms == last_ms:
        said.append(
            "all events have the same time, so silence and speed tell nothing, and sessions are split by their order "
            "alone: check the stream's `time`"
        )
    columns = _of_fields(learning, parts)
    always = _never_varies(columns)
    for f in np.flatnonzero(always[parts.shape.fields :]) + parts.shape.fields:
        what = _of_constant(parts, int(f), int(columns[0, f]))
        said.append(f"{what}: any other value will be strange, so leave it out of numbers unless that is meant")
    for name, counts in fields.vocabulary.summary().items():
        several = counts.get("tokens", 0) + counts.get("rare", 0)
        if several > MAX_VOCABULARY:
            said.append(
                f"the field {name} has at least {several:,} different values: the {counts['tokens']:,} most frequent "
                "are told apart, the others all count as <rare>; give it `buckets`, or leave it out if it names single "
                "things"
            )
    return said


def _of_fields(learning: Sequences, parts: Parts) -> NDArray[np.int32]:
    """(n, F + N) ids; of a number without bins whether it is missing, as its first known value, or another."""
    if learning.values is None:
        return learning.tokens[:, : len(parts.fields)]
    values = learning.values
    usual = values[np.argmax(~np.isnan(values), axis=0), np.arange(values.shape[1])]
    numbers = np.where(np.isnan(values), MISSING, np.where(values == usual, LOW, LOW + 1)).astype(np.int32)
    return np.hstack([learning.tokens[:, : parts.shape.fields], numbers])


def _never_varies(columns: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(F,) whether all of (n, F) ids are the same."""
    return np.asarray((columns == columns[0]).all(axis=0))


def _of_constant(parts: Parts, field: int, value: int) -> str:
    """What a field looks like that has one id throughout."""
    name = parts.fields[field]
    if field >= parts.shape.fields:
        return f"the number {name} is {'missing throughout' if value == MISSING else 'always the same'}"
    return f"the field {name} {'hardly ever repeats a value' if value in (OOV, RARE) else 'has one value only'}"
