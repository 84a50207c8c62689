"""Streams of four kinds, seeded and made offline, as slices of records: for what is timed without a broker.

Their models are trained for a moment, on a small history of the same kind: what a record costs does not depend on how
well it is predicted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from benchmarks.workloads import START_MS, VOCABULARY
from detectors.parts import Learned
from models.training import TrainingOptions
from pipeline.history import from_file
from pipeline.registry import Registry
from pipeline.serving import load_bundle, make_decoder
from pipeline.settings import Settings, parse_settings
from pipeline.train import learn_bundle

Keys = Literal["uniform", "zipf", "one hot"]
KEYS: tuple[Keys, ...] = ("uniform", "zipf", "one hot")
STREAM = "s"
_HOT_SHARE = 0.9  # of the records are of one session, where that is hot
_HISTORY = (300, 12)  # sessions, and events of each
_EPOCHS = 2
_STATUS, _COUNTRY = ("ok", "ok", "ok", "failed"), ("DK", "SE", "NO", "FI", "IS")


@dataclass(frozen=True)
class Record:
    """As a fetch brings it (`features.events.Record`)."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes


@dataclass(frozen=True)
class Kind:
    """A kind of stream: its section of a config, and what an event holds beside session and time."""

    section: dict[str, Any]
    event: Callable[[random.Random], dict[str, Any]]


def _token(rng: random.Random) -> dict[str, Any]:
    return {"action": rng.choice(VOCABULARY), "host": "host-042", "path": "/api/v1/items", "duration_ms": 13}


def _fields(rng: random.Random) -> dict[str, Any]:
    return {
        "action": rng.choice(VOCABULARY), "status": rng.choice(_STATUS), "country": rng.choice(_COUNTRY),
        "amount": round(rng.random() * 100, 2), "age": rng.randrange(18, 90), "took_ms": rng.randrange(5_000),
    }  # fmt: skip


def _log(rng: random.Random) -> dict[str, Any]:
    number = rng.randrange(100_000)
    message = rng.choice(
        (
            f"Query {number} took {number % 97} ms", f"Connection from 10.0.0.{number % 256} accepted",
            f"Cache miss for key user:{number}", f"Retry {number % 5} of upload part {number % 31}",
            "Flushing buffers to disk", f"Session token refreshed for account {number}",
        )
    )  # fmt: skip
    return {"level": rng.choice(("INFO", "INFO", "WARN")), "message": message}


def _metric(rng: random.Random) -> dict[str, Any]:
    return {"cpu": rng.gauss(40, 8), "memory": rng.gauss(2e9, 1e8), "io": rng.expovariate(0.01)}


BASE = {"topic": "t", "time": "ts", "session": {"by": "session", "gap": "1d"}}
KINDS = {
    "1 token": Kind({**BASE, "tokens": ["action"]}, _token),
    "3 tokens, 3 numbers": Kind(
        {**BASE, "tokens": ["action", "status", "country"], "numbers": ["amount", "age", "took_ms"]}, _fields
    ),
    "logs": Kind({**BASE, "kind": "logs", "message": "message", "tokens": ["level"]}, _log),
    "metrics": Kind({**BASE, "kind": "metrics", "numbers": ["cpu", "memory", "io"]}, _metric),
}


def learn(kind: Kind, folder: Path) -> tuple[Settings, Learned]:
    """A config of such a stream and a bundle for it, both below a folder."""
    settings = parse_settings({"data_dir": str(folder), "streams": {STREAM: kind.section}}, {})
    path, rng = folder / "history.jsonl", random.Random(3)
    sessions, length = _HISTORY
    with path.open("wb") as file:
        for at in range(sessions * length):
            event = {"session": f"h-{at % sessions}", "ts": START_MS + at, **kind.event(rng)}
            file.write(orjson.dumps(event) + b"\n")
    history = from_file(path, settings.stream(STREAM), make_decoder(settings, STREAM), lambda _: None)
    options = TrainingOptions(max_epochs=_EPOCHS)
    registry = Registry(settings, STREAM)
    digest, _ = learn_bundle(settings, registry, history, options, source="made up", why="a benchmark")
    return settings, load_bundle(settings, STREAM, digest)


def records_of(kind: Kind, seed: int, count: int, sessions: int, keys: Keys, first: int = 0) -> list[Record]:
    """So many records, offsets from `first` on; each `sessions` records later by as many milliseconds."""
    drawn, rng = np.random.default_rng(seed), random.Random(seed)
    if keys == "one hot":
        numbers = np.where(drawn.random(count) < _HOT_SHARE, 0, drawn.integers(0, sessions, count))
    elif keys == "zipf":
        edges = np.cumsum(1.0 / np.arange(1, sessions + 1) ** 1.1)
        numbers = np.searchsorted(edges, drawn.random(count) * edges[-1])
    else:
        numbers = drawn.integers(0, sessions, count)
    return [_record(kind, rng, first + i, number) for i, number in enumerate(numbers.tolist())]


def one_of_each(kind: Kind, sessions: int) -> list[Record]:
    """A record of every session, so that each is open."""
    rng = random.Random(1)
    return [_record(kind, rng, i, i) for i in range(sessions)]


def _record(kind: Kind, rng: random.Random, offset: int, session: int) -> Record:
    name = f"session-{session:08d}"
    value = orjson.dumps({"session": name, "ts": START_MS + 1_000_000 + offset, **kind.event(rng)})
    return Record(offset, START_MS + 1_000_000 + offset, name.encode(), value)


def sliced(records: list[Record], size: int = 1_000) -> Iterator[list[Record]]:
    """Pieces as fetches bring them."""
    for start in range(0, len(records), size):
        yield records[start : start + size]
