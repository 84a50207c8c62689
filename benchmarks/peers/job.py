"""What all peers share: the job as a file, the model in plain torch, when to stop, and scores that can be checked.

The job: read JSON records keyed by session from a topic of 4 partitions, keep of each session the hidden state of a GRU
and the time of its last event, say how surprising each record is under the state before it, write what is at least as
strange as the threshold (about 1 %) to an output topic. No session ends within a run. A peer is started by
`python -m benchmarks.peers.NAME JOB.json`, reads until it has taken in `records` or `seconds` have passed, sees to it
that all it has written is acknowledged, and writes how it went to `result`; then it may be killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

PARTITIONS = 4
RATE = 0.01  # the promise: so many of the records are anomalies
OOV = 0  # id of an action that the vocabulary does not have
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """What one run of a peer is told.

    Attributes
    ----------
    address, source, group
        The broker, the topic that is read from its beginning, and by which consumer group.
    outputs, changelog
        Topics made for this run: what is strange, and the hand-written loop's rows.
    bundle, model
        Folder of the bundles of Offbeat's stream; the same weights as arrays, written by `write_model`.
    folder
        Where state may be kept on disk; empty.
    records, seconds
        When to stop: whichever comes first.
    result
        The file to write at the end.
    scores
        Where to write the score of every record; None: nowhere.
    """

    address: str
    source: str
    group: str
    outputs: str
    changelog: str
    bundle: str
    model: str
    folder: str
    records: int
    seconds: float
    result: str
    scores: str | None = None

    def write(self, path: Path) -> None:
        """For `read`."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """What `write` wrote."""
        return cls(**json.loads(Path(path).read_text()))

    @classmethod
    def of_this_process(cls) -> Self:
        """The one whose file stands on the command line."""
        return cls.read(sys.argv[1])


class Meter:
    """Counts what a peer takes in, from the first record fetched until all that it wrote is acknowledged."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._records, self._began, self._processor_s = 0, 0.0, 0.0
        self._scores: list[tuple[int, int, float]] = []
        self.done = False

    @property
    def keeps_scores(self) -> bool:
        """Whether `score` is to be told every score."""
        return self._job.scores is not None

    def begin(self) -> None:
        """The first records are there; again is nothing."""
        if not self._began:
            self._began, self._processor_s = time.monotonic(), time.process_time()

    def saw(self, records: int) -> bool:
        """Take in some records that were dealt with; whether it is time to flush and to finish, once."""
        if self.done or records == 0:
            return False
        self.begin()
        self._records += records
        self.done = self._records >= self._job.records or time.monotonic() - self._began >= self._job.seconds
        return self.done

    def score(self, partition: int, offset: int, score: float) -> None:
        """Note the score of a record."""
        self._scores.append((partition, offset, score))

    def score_many(self, partitions: Iterable[int], offsets: Iterable[int], scores: F32) -> None:
        """Note those of many."""
        self._scores.extend(zip(partitions, offsets, scores.tolist(), strict=True))

    def finish(self, **more: Any) -> None:
        """Write the result: everything is acknowledged now."""
        took = {"seconds": time.monotonic() - self._began, "processor_s": time.process_time() - self._processor_s}
        if self._job.scores is not None:
            np.save(self._job.scores, np.array(self._scores, np.float64))
        # Renamed, so that whoever waits for the file finds it whole.
        unfinished = Path(f"{self._job.result}.part")
        unfinished.write_text(json.dumps({"records": self._records, **took, **more}))
        unfinished.rename(self._job.result)


@dataclass(frozen=True)
class Model:
    """Weights as a bundle has them, under their names there; ids of actions; the least score that is an anomaly."""

    weights: dict[str, F32]
    ids: dict[str, int]
    threshold: float

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """What `write_model` wrote."""
        with np.load(path) as arrays:
            found = dict(arrays)
        actions, threshold = found.pop("actions").tolist(), float(found.pop("threshold"))
        return cls(found, {action: i for i, action in enumerate(actions)}, threshold)


def write_model(path: Path, weights: dict[str, F32], actions: list[str], threshold: float) -> None:
    """Write a model for `Model.read`; `actions` stand in order of their ids, reserved ones included."""
    np.savez(path, allow_pickle=False, **weights, actions=np.array(actions), threshold=np.array(threshold))


class TorchGru:
    """The model in torch, as its documentation has it: embedding, GRU cell, linear head; on one thread.

    Peers share the machine with the broker, and batches of a GRU this small do not gain from a second thread.
    """

    def __init__(self, model: Model) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        weights = {name: torch.from_numpy(array) for name, array in model.weights.items()}
        hidden, (symbols, width) = len(weights["start"]), weights["embeddings.0.weight"].shape
        self.start = weights["start"].numpy()
        self._embedding = torch.nn.Embedding(symbols, width)
        self._cell = torch.nn.GRUCell(width + 1, hidden)
        self._head = torch.nn.Linear(hidden, symbols + 1)
        self._embedding.load_state_dict({"weight": weights["embeddings.0.weight"]})
        self._cell.load_state_dict(
            {name: weights[f"core.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        )
        self._head.load_state_dict({"weight": weights["head.weight"], "bias": weights["head.bias"]})

    def score_and_step(self, ids: list[int], gaps_ms: list[int], hidden: F32) -> tuple[F32, F32]:
        """Say how surprising events are, then step.

        Parameters
        ----------
        ids, gaps_ms
            (B,) of one event each of B sessions: the action's id, and how long ago the session's last event was.
        hidden
            (B, H) float32; left untouched.

        Returns
        -------
        surprise, hidden
            (B,) nats under the states before; (B, H) after.
        """
        torch = self._torch
        with torch.inference_mode():
            before, came = torch.from_numpy(hidden), torch.tensor(ids)
            logits = self._head(before)
            surprise = logits.logsumexp(1) - logits.gather(1, came[:, None])[:, 0]
            gap = torch.log1p(torch.tensor(gaps_ms, dtype=torch.float64) / 1000.0).float()
            after = self._cell(torch.cat([self._embedding(came), gap[:, None]], 1), before)
        return surprise.numpy(), after.numpy()


def output(
    session: str, partition: int, offset: int, time_ms: int, score: float, *, anomaly: bool = True
) -> dict[str, Any]:  # fmt: skip
    """What is written of a record, a strange one as a rule."""
    return {
        "id": f"{partition}/{offset}", "session": session, "time_ms": time_ms, "score": score, "anomaly": anomaly,
    }  # fmt: skip


def result_of(job: Job) -> dict[str, Any] | None:
    """What a peer wrote at its end; None while it still runs."""
    return json.loads(Path(job.result).read_text()) if os.path.exists(job.result) else None
