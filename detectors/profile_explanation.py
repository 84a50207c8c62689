"""Why a session was strange as a whole: what it had too much or too little of, and which two counts do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from detectors.parts import Parts
from detectors.process import SessionEnds
from detectors.profiles import PAIRED, KnownProfiles
from features.profiles import token_key
from features.tokens import stable_hash

SHOWN = 5  # differences to the nearest known profile, the largest
OTHER, EVENTS, DURATION = "<other>", "@events", "@duration"
DETECTORS = ("surprise", "nearest", "pairs")


def explain_profile(ends: SessionEnds, end: int, parts: Parts) -> dict[str, Any] | None:
    """What the profile of the session verdict number `end` says; None where there is none. Work: a few lookups."""
    learned = parts.learned
    if learned is None or learned.profiles is None or learned.combined is None or ends.by_profile is None:
        return None
    chosen, known, found = np.array([end]), learned.profiles, ends.by_profile
    nats = learned.combined.nats(ends.detectors[chosen])[0].tolist()
    absorbed = bool(ends.absorbed is not None and ends.absorbed[end])
    told = {"nats": dict(zip(DETECTORS, nats, strict=True)), "absorbed": absorbed}
    if np.isnan(found.pairs[end]):  # it is known by now, or was not counted from its beginning
        return told | {"differences": [], "pair": None}
    table = known.table(ends.profiles.take(chosen))[0]
    usual = known.known[found.neighbour[end]].astype(np.int64)
    apart = np.abs(np.log1p(table) - np.log1p(usual))
    largest = [column for column in np.argsort(-apart, kind="stable")[:SHOWN].tolist() if apart[column] > 0]
    names = _names(known, parts)
    return told | {
        "differences": [names[c] | {"count": int(table[c]), "usual": int(usual[c])} for c in largest],
        "pair": _pair(ends, end, known, names, table.tolist()),
    }


def _pair(
    ends: SessionEnds, end: int, known: KnownProfiles, names: list[dict[str, Any]], table: list[int]
) -> dict[str, Any]:
    """The two counts that fit each other least, and how often the second is so where the first is."""
    assert ends.by_profile is not None, "asked for only then"
    counted = min(len(table), PAIRED)
    values = [*table[:counted], int(ends.profiles.events[end]), int(ends.profiles.duration_ms[end])]
    named = [*names[:counted], {"field": EVENTS, "token": None}, {"field": DURATION, "token": None}]
    given, then = ends.by_profile.pair[end].tolist()
    return {
        "given": named[given] | {"count": values[given]},
        "then": named[then] | {"count": values[then]},
        "probability": float(np.exp(-ends.by_profile.pairs[end])),
    }


def _names(known: KnownProfiles, parts: Parts) -> list[dict[str, Any]]:
    """Field and token of each column."""
    assert parts.learned is not None, "there are profiles"
    vocabulary = parts.learned.vocabulary
    wanted = {key: column for column, key in enumerate(known.keys.tolist(), start=1)}
    names: list[dict[str, Any]] = [{"field": None, "token": OTHER} for _ in range(1 + len(wanted))]
    for field, tokens in enumerate(vocabulary.tokens):
        for token in (None, *tokens):
            column = wanted.get(int(token_key(field, np.uint64(stable_hash(token)))))
            if column is not None:
                names[column] = {"field": vocabulary.fields[field], "token": token}
    return names
