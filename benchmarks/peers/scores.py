"""What the scores of a topic must be, by Offbeat's kernel alone, record by record; and how far others are off."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import orjson

from benchmarks.kafka import read_topic
from benchmarks.peers.job import OOV, Model
from features.sessions import log_gaps
from models.kernels import STEP
from models.runtime import make_kernel
from models.spec import ModelSpec

Scores = dict[tuple[int, int], float]  # by partition and offset

TOLERANCE = 1e-4  # nats; torch sums in other orders than the kernel, in float32 both


def scores_of_kernel(address: str, topic: str, model: Model) -> Scores:
    """The score of every record of a topic."""
    spec = ModelSpec("gru", len(model.weights["start"]), (len(model.ids),))
    kernel = make_kernel(spec, model.weights)
    found: Scores = {}
    hidden: dict[bytes, np.ndarray] = {}
    last_ms: dict[bytes, int] = {}
    for message in read_topic(address, topic):
        event, key = orjson.loads(message.value() or b""), message.key() or b""
        gap_ms = np.array([event["ts"] - last_ms.get(key, event["ts"])], np.int64)
        scores = kernel.score_and_step(
            np.array([STEP], np.int8), np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([key not in last_ms]),
            np.array([[model.ids.get(event["action"], OOV)]], np.int32), log_gaps(gap_ms),
            hidden.get(key, np.zeros((1, spec.hidden), np.float32)),
        )  # fmt: skip
        hidden[key], last_ms[key] = scores.hidden, event["ts"]
        found[message.partition() or 0, message.offset() or 0] = float(scores.surprise[0, 0])
    return found


def read_scores(path: str) -> Scores:
    """What a peer wrote."""
    return {(int(partition), int(offset)): score for partition, offset, score in np.load(path).tolist()}


def largest_difference(found: Mapping[tuple[int, int], float], expected: Scores) -> float:
    """In nats; infinite where a record has no score, or one was scored that there is not.

    >>> largest_difference({(0, 0): 1.0, (0, 1): 2.5}, {(0, 0): 1.0, (0, 1): 2.0})
    0.5
    >>> largest_difference({(0, 0): 1.0}, {(0, 0): 1.0, (0, 1): 2.0})
    inf
    """
    if found.keys() != expected.keys():
        return float("inf")
    return max((abs(found[place] - expected[place]) for place in expected), default=0.0)
