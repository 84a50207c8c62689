"""Seeded workloads, made offline: the same numbers on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice

import numpy as np
import orjson

VOCABULARY = tuple(f"action-{i:02d}" for i in range(62))  # with <oov> and <missing> 64 ids
START_MS = 1_700_000_000_000
_DRAWN = 10_000  # at a time


def zipf_events(seed: int, records: int, sessions: int) -> Iterator[tuple[bytes, bytes]]:
    """The first records of `keyed_events`."""
    return islice(keyed_events(seed, sessions), records)


def keyed_events(seed: int, sessions: int, *, uniform: bool = False) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of records of about 150 bytes, without end.

    A few sessions have most of the events (Zipf, s = 1.1), or all have alike.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones(sessions) if uniform else 1.0 / np.arange(1, sessions + 1) ** 1.1
    edges = np.cumsum(weights / weights.sum())
    previous = np.zeros(sessions, np.int64)
    for low in count(0, _DRAWN):
        keys = np.minimum(np.searchsorted(edges, rng.random(_DRAWN)), sessions - 1)
        jumps = rng.integers(0, 6, _DRAWN)
        for i, (key, jump) in enumerate(zip(keys.tolist(), jumps.tolist(), strict=True)):
            previous[key] = (previous[key] * 7 + jump) % len(VOCABULARY)  # a grammar a GRU could learn
            session = f"session-{key:08d}"
            value = orjson.dumps(
                {
                    "ts": START_MS + low + i, "session": session, "action": VOCABULARY[previous[key]],
                    "host": f"host-{key % 97:03d}", "path": "/api/v1/items", "duration_ms": int(jump) * 13,
                }
            )  # fmt: skip
            yield session.encode(), value
