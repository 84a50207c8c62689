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
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import log1p
from pathlib import Path
from typing import Any, NamedTuple, Self

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
        """Whether every score is wanted."""
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
        if self.keeps_scores:
            self._scores.append((partition, offset, score))

    def score_many(self, partitions: Iterable[int], offsets: Iterable[int], scores: F32) -> None:
        """Note those of many."""
        if self.keeps_scores:
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
    """The model in torch.

    One record at a time costs what calling torch costs, so there it is called as seldom as can be: what the embedding
    adds to the gates is looked up, head and recurrent weights are one matrix. Many records are runs of events, one for
    each session, which `nn.GRU` takes packed.
    """

    def __init__(self, model: Model) -> None:
        import torch

        self._torch = torch
        weights = {name: torch.from_numpy(array) for name, array in model.weights.items()}
        hidden, (symbols, width) = len(weights["start"]), weights["embeddings.0.weight"].shape
        self.start: F32 = weights["start"].numpy()
        self._embedding, self._head = torch.nn.Embedding(symbols, width), torch.nn.Linear(hidden, symbols + 1)
        self._gru = torch.nn.GRU(width + 1, hidden)
        self._embedding.load_state_dict({"weight": weights["embeddings.0.weight"]})
        self._head.load_state_dict({"weight": weights["head.weight"], "bias": weights["head.bias"]})
        self._gru.load_state_dict({name[5:]: array for name, array in weights.items() if name.startswith("core.")})
        for module in (self._embedding, self._head, self._gru):
            module.requires_grad_(False)
        from_input = weights["core.weight_ih_l0"]
        self._table = list(weights["embeddings.0.weight"] @ from_input[:, :width].T + weights["core.bias_ih_l0"])
        self._of_gap = from_input[:, width].clone()
        self._from_hidden = torch.cat([weights["head.weight"], weights["core.weight_hh_l0"]])
        self._from_hidden_bias = torch.cat([weights["head.bias"], weights["core.bias_hh_l0"]])
        self._parts = [symbols + 1, hidden, hidden, hidden]

    def score_one(self, action: int, gap_ms: int, hidden: F32) -> tuple[float, F32]:
        """Surprise of one event in nats under the state (H,) before, which is left untouched; and the state after."""
        torch = self._torch
        before = torch.from_numpy(hidden)
        logits, r, z, n = torch.addmv(self._from_hidden_bias, self._from_hidden, before).split(self._parts)
        from_input = torch.add(self._table[action], self._of_gap, alpha=log1p(gap_ms / 1000.0))
        input_r, input_z, input_n = from_input.chunk(3)
        candidate = torch.tanh(torch.addcmul(input_n, torch.sigmoid(input_r + r), n))
        after = torch.lerp(candidate, before, torch.sigmoid(input_z + z))
        return float(logits.logsumexp(0) - logits[action]), after.numpy()

    def score_runs(self, lengths: list[int], actions: list[int], gaps_ms: list[int], hidden: F32) -> tuple[F32, F32]:
        """Score the events of B sessions, then step; each under the state before it.

        Parameters
        ----------
        lengths
            (B,) how many events each session has, at least 1.
        actions, gaps_ms
            (N,) the first session's events in their order, then the second's.
        hidden
            (B, H) float32; left untouched.

        Returns
        -------
        surprise, hidden
            (N,) nats; (B, H) after each session's last event.
        """
        torch = self._torch
        of_run = np.array(lengths)
        order = np.argsort(-of_run, kind="stable")  # as packed sequences want them: the longest first
        sizes = len(of_run) - np.searchsorted(of_run[order][::-1], np.arange(of_run.max()), side="right")
        begins = np.cumsum(sizes) - sizes
        step = np.repeat(np.arange(len(sizes)), sizes)
        place = np.arange(len(actions)) - begins[step]  # among the sessions that have so many events
        event = (np.cumsum(of_run) - of_run)[order[place]] + step
        state = np.where(step == 0, place, len(of_run) + begins[step - 1] + place)

        came = torch.tensor(actions)[event]
        gap = torch.log1p(torch.tensor(gaps_ms, dtype=torch.float64)[event] / 1000.0).float()
        x = torch.cat([self._embedding(came), gap[:, None]], 1)
        first = torch.from_numpy(hidden[order])
        packed = torch.nn.utils.rnn.PackedSequence(x, torch.from_numpy(sizes))
        outputs, last = self._gru(packed, first[None])
        logits = self._head(torch.cat([first, outputs.data])[state])
        surprise, after = np.empty(len(actions), np.float32), np.empty_like(hidden)
        surprise[event] = (logits.logsumexp(1) - logits.gather(1, came[:, None])[:, 0]).numpy()
        after[order] = last[0].numpy()
        return surprise, after


class Came(NamedTuple):
    """What is read of a record, and where it was."""

    session: str
    time_ms: int
    action: str
    partition: int
    offset: int


State = tuple[F32, int]  # of a session: (H,) float32, and when its last event was


def score_batch(
    model: Model, gru: TorchGru, batch: Iterable[Came], load: Callable[[str], State | None],
    save: Callable[[str, State], None],
) -> tuple[list[Came], F32]:  # fmt: skip
    """Score a batch at once: the events of each session in their order; a state is loaded and saved once for each.

    Returns
    -------
    events, surprise
        Session by session.
    """
    runs: dict[str, list[Came]] = {}
    for came in batch:
        runs.setdefault(came.session, []).append(came)
    events = [came for run in runs.values() for came in run]
    hidden, gaps_ms = [], []
    for session, run in runs.items():
        state, last_ms = load(session) or (gru.start, run[0].time_ms)
        hidden.append(state)
        gaps_ms += [after - before for before, after in pairwise([last_ms, *(came.time_ms for came in run)])]
    actions = [model.ids.get(came.action, OOV) for came in events]
    surprise, after = gru.score_runs([len(run) for run in runs.values()], actions, gaps_ms, np.stack(hidden))
    for (session, run), state in zip(runs.items(), after, strict=True):
        save(session, (state, run[-1].time_ms))
    return events, surprise


def one_thread() -> None:
    """For the process of a peer: it shares the machine, and a GRU this small gains nothing from a second thread."""
    import torch

    torch.set_num_threads(1)


def pack_state(state: State) -> bytes:
    """A session's state as bytes."""
    hidden, last_ms = state
    return hidden.tobytes() + last_ms.to_bytes(8, "little")


def unpack_state(value: bytes) -> State:
    """What `pack_state` made."""
    return np.frombuffer(value[:-8], np.float32).copy(), int.from_bytes(value[-8:], "little")


def output(came: Came, score: float, *, anomaly: bool = True) -> dict[str, Any]:
    """What is written of a record, a strange one as a rule."""
    return {
        "id": f"{came.partition}/{came.offset}", "session": came.session, "time_ms": came.time_ms, "score": score,
        "anomaly": anomaly,
    }  # fmt: skip


def result_of(job: Job) -> dict[str, Any] | None:
    """What a peer wrote at its end; None while it still runs."""
    return json.loads(Path(job.result).read_text()) if os.path.exists(job.result) else None
