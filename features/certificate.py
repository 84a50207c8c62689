"""The feature certificate: what training's features make of made-up records, for serving to compare with its own.

A model is only as good as the features it is given, and those come from code, config and a secret that may all differ
between the machine that trained and the one that serves. The records are made from the bundle's own words by a fixed
seed, so a certificate holds no user's data and can be computed anywhere.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.decode import Decoder
from features.paths import parse_path
from features.shapes import WILDCARD
from features.tokens import TokenEncoder, Vocabulary

_RECORDS = 256
_KNOWN, _ENDING = 0.7, 0.5  # shares of values that are the field's own words, and of records that may end a session
_TIMES: tuple[Any, ...] = (
    1_767_323_045, 1_767_323_045_678, 1_767_323_045_678_901, 1_767_323_045.25, "1767323045",
    "2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05+02:00", "2026-01-02 03:04:05", None, "no time", True,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, "", "never seen", 200, -1, 2**70, True, False, 1.5, ["list"], "Ünïcode\u2028", "x" * 2_000,
)  # fmt: skip

_NUMBERS: tuple[Any, ...] = (None, "", "NaN", "1.5", "-2e3", "0x10", "1_000", 7, -0.0, 1e308, 2**70, True, ["list"])


@dataclass(frozen=True)
class _Made:
    """A made-up record."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes


def certify(
    decoder: Decoder, vocabulary: Vocabulary, session: str | Sequence[str], time: str | None,
    ends: Sequence[tuple[str, Any]], numbers: Sequence[str] = (),
) -> dict[str, str]:  # fmt: skip
    """Fingerprints of what the features make of the records.

    Parameters
    ----------
    decoder
        As it serves: with masks, and with messages read by the bundle's templates.
    session, time, ends
        Paths of session (one or several) and time, and the values of `end_when`.
    numbers
        Paths of the number fields.

    Returns
    -------
    fingerprints
        16 hexadecimal digits each, for `session`, `time`, `end`, for records set aside (`rejects`), for each field
        under `field NAME`, and for the numbers in messages (`parameters`), if there are any.
    """
    events = decoder.decode(_records(vocabulary, session, time, ends, numbers), check_key=False)
    encoder = TokenEncoder(len(vocabulary.fields), vocabulary)
    ids, hashes = encoder.ids(events.tokens, len(events)), encoder.hashes(events.tokens, len(events))
    found = {
        "session": _digest(events.sessions, events.session.tolist()),
        "time": _digest(events.time_ms.tolist()),
        "end": _digest(events.ends.tolist()),
        "rejects": _digest([(reject.index, reject.error.reason) for reject in events.rejects]),
    }
    for f, field in enumerate(vocabulary.fields):
        found[f"field {field}"] = _digest(ids[:, f].tolist(), hashes[:, f].tolist())
    for n, number in enumerate(numbers):
        found[f"field {number}"] = _digest(_exactly(events.numbers[:, n]))
    if events.numbers.shape[1] > len(numbers):
        found["parameters"] = _digest(_exactly(events.numbers[:, len(numbers) :].ravel()))
    return found


def _exactly(values: NDArray[np.float64]) -> list[str]:
    """Every bit, in JSON."""
    return [value.hex() for value in values.tolist()]


def _digest(*parts: Any) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _records(
    vocabulary: Vocabulary,
    session: str | Sequence[str],
    time: str | None,
    ends: Sequence[tuple[str, Any]],
    numbers: Sequence[str],
) -> list[_Made]:
    draw = random.Random(_RECORDS).random  # noqa: S311 (no secret; Python promises this sequence for ever)

    def one_of(values: Sequence[Any]) -> Any:
        return values[int(draw() * len(values))]

    made = []
    for i in range(_RECORDS):
        event: dict[str, Any] = {}
        for field, tokens in zip(vocabulary.fields, vocabulary.tokens, strict=True):
            # A word of the field, a line of a template, or something that a field may hold by mistake.
            known = tokens and draw() < _KNOWN
            value = one_of(tokens).replace(WILDCARD, str(int(draw() * 10**6))) if known else one_of(_VALUES)
            _put(event, field, value)
        for field, value in ends:
            if draw() < _ENDING:
                _put(event, field, value)
        for field in numbers:
            _put(event, field, 1e4 * draw() - 1e3 if draw() < _KNOWN else one_of(_NUMBERS))
        if time is not None:
            _put(event, time, one_of(_TIMES))
        name = f"session {int(draw() * 40)}"
        for field in [session] if isinstance(session, str) else session:
            if field != "@key":
                _put(event, field, name if draw() < _KNOWN else int(draw() * 40))
        made.append(_Made(i, 1_767_323_045_000 + i, name.encode(), json.dumps(event).encode()))
    return made


def _put(event: dict[str, Any], field: str, value: Any) -> None:
    """Set a field, with the objects and lists around it."""
    path = parse_path(field)
    node: Any = event
    for part, below in pairwise(path):
        node = _at(node, part, [] if isinstance(below, int) else {})
    if isinstance(node, dict):
        node[path[-1]] = value
    else:
        _at(node, path[-1], value)
        node[int(path[-1])] = value


def _at(node: Any, part: str | int, missing: Any) -> Any:
    """What stands at a key or position; `missing` where nothing does."""
    if isinstance(node, dict):
        return node.setdefault(part, missing)
    at = int(part)
    node.extend([None] * (at + 1 - len(node)))
    if node[at] is None:
        node[at] = missing
    return node[at]
