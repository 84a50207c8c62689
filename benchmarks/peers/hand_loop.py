"""The leanest program that does an Offbeat worker's work: what a careful engineer would write for this one job.

One loop fetches, decodes, scores by Offbeat's own kernel and judges; every 250 ms a thread of its own saves what has
changed: rows to a compacted changelog, outputs and the group's offsets in one Kafka transaction, then the same rows to
RocksDB. A row is a hidden state and the last 32 events, as of an Offbeat session. Outputs are anomalies and 1 % of
decisions.

What it leaves out, all of which a worker does of the same records: explanations of anomalies, notices for incidents and
ids by which a message is found again; ends of sessions and their verdicts, event time, late events, timers, state that
is dropped when it is old; rows beyond what fits into memory; profiles, drift, changed schemas, rates, thresholds that
follow the stream; dead letters (one bad record ends it); recovery from the changelog, standbys, rebalances, fencing
partition by partition (one transaction covers all); new models while it runs; metrics, traces, health.
"""

from __future__ import annotations

import gc
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import orjson
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from numba import njit
from numpy.typing import NDArray

from benchmarks.peers.job import OOV, RATE, Came, Job, Meter, Model, output
from detectors.packing import learned_of
from features.sessions import log_gaps
from features.tokens import stable_hash
from models.bundle import read_bundle, serving_digest
from models.kernels import STEP
from models.runtime import F32, make_kernel
from models.spec import ModelSpec
from pipeline.cold_rows import ColdRows

_CONTEXT = 32  # events, as `model.context` has it
_INTERVAL_S = 0.25
_SLICE = 4_000  # records fetched at a time
_SAMPLE = 100  # one decision in so many is written
_WAIT_S = 0.05

I64 = NDArray[np.int64]


class _Event(msgspec.Struct, gc=False):
    """The fields that are read of a record; others are skipped."""

    ts: int
    session: str
    action: str


class _Rows(dict[str, int]):
    """Numbers of rows by session, and the rows: one array, so that changed ones are copied by one instruction.

    A row is H float32 of hidden state, then as int64 times and token hashes of the last events, as a ring, how many
    there were, and when the first and the last.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self._hidden = hidden
        self.names: list[bytes] = []
        self.table = np.zeros((1 << 14, hidden + 2 * (2 * _CONTEXT + 3)), np.float32)
        self.changed = np.zeros(len(self.table), np.bool_)

    def __missing__(self, session: str) -> int:
        number = self[session] = len(self.names)
        self.names.append(session.encode())
        return number

    def numbers(self, sessions: list[str]) -> NDArray[np.int32]:
        """Rows of sessions, made where there is none yet."""
        found = np.array([self[session] for session in sessions], np.int32)
        if len(self.names) > len(self.table):
            more = len(self.table)
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
            self.changed = np.concatenate([self.changed, np.zeros(more, np.bool_)])
        return found

    @property
    def hidden(self) -> F32:
        """(S, H) hidden states."""
        return self.table[:, : self._hidden]

    @property
    def past(self) -> I64:
        """(S, ...) what follows the hidden states."""
        past: I64 = self.table.view(np.int64)[:, self._hidden // 2 :]
        return past

    def take_changed(self) -> tuple[list[bytes], list[bytes]]:
        """Names and values of rows that changed since this was called before."""
        changed = np.flatnonzero(self.changed)
        self.changed[changed] = False
        whole, width = self.table[changed].tobytes(), 4 * self.table.shape[1]
        names = self.names
        return (
            [names[i] for i in changed.tolist()],
            [whole[at : at + width] for at in range(0, len(whole), width)],
        )


@njit(cache=True)
def _remember(row, time_ms, hashes, past, changed, gap_ms, first):  # type: ignore[no-untyped-def]
    """Put n events into their rows' rings; out: how long ago each row's last event was, and whether there was none."""
    for i in range(len(row)):
        s = row[i]
        events = past[s, 2 * _CONTEXT]
        first[i] = events == 0
        gap_ms[i] = 0 if events == 0 else max(0, time_ms[i] - past[s, 2 * _CONTEXT + 2])
        past[s, events % _CONTEXT] = time_ms[i]
        past[s, _CONTEXT + events % _CONTEXT] = hashes[i]
        if events == 0:
            past[s, 2 * _CONTEXT + 1] = time_ms[i]
        past[s, 2 * _CONTEXT] = events + 1
        past[s, 2 * _CONTEXT + 2] = max(time_ms[i], past[s, 2 * _CONTEXT + 2])
        changed[s] = True


@dataclass(frozen=True)
class _Changes:
    """What one checkpoint saves."""

    names: list[bytes]
    rows: list[bytes]
    outputs: list[tuple[bytes, bytes]]
    offsets: list[TopicPartition]


class _Saver:
    """Saves changes in a thread of its own, one after the other."""

    def __init__(self, job: Job, consumer: Consumer) -> None:
        self._job, self._consumer = job, consumer
        self._producer = Producer(
            {
                "bootstrap.servers": job.address, "transactional.id": job.group, "partitioner": "murmur2_random",
                "linger.ms": 5, "log_level": 0, "batch.size": 1 << 20, "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 1 << 20,
            }
        )  # fmt: skip
        self._producer.init_transactions(30)
        self._cold = ColdRows(Path(job.folder) / "rows")
        self._queue: queue.Queue[_Changes | None] = queue.Queue(1)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.checkpoints = 0

    @property
    def idle(self) -> bool:
        """Whether changes may be given without waiting."""
        if self._failure is not None:
            raise self._failure
        return self._queue.unfinished_tasks == 0

    def save(self, changes: _Changes) -> None:
        """Begin to save; only one checkpoint is under way."""
        self._queue.put(changes)

    def wait(self) -> None:
        """Until all is saved."""
        self._queue.join()
        assert self.idle

    def close(self) -> None:
        """Flush what RocksDB has in memory; a worker that is killed replays it."""
        self._cold.close()

    def _run(self) -> None:
        while (changes := self._queue.get()) is not None:
            try:
                self._save(changes)
            except BaseException as error:
                self._failure = error
            self._queue.task_done()

    def _save(self, changes: _Changes) -> None:
        producer, topic = self._producer, self._job.changelog
        producer.begin_transaction()
        for name, value in changes.outputs:
            producer.produce(self._job.outputs, value, name)
        for name, row in zip(changes.names, changes.rows, strict=True):
            producer.produce(topic, row, name)
        producer.send_offsets_to_transaction(changes.offsets, self._consumer.consumer_group_metadata())
        producer.commit_transaction()
        self._cold.write(dict(zip(changes.names, changes.rows, strict=True)), 0, None)
        self.checkpoints += 1


class _Loop:
    """Scores slices; what is to be saved gathers until it is taken."""

    def __init__(self, job: Job, meter: Meter) -> None:
        digest = serving_digest(Path(job.bundle))
        assert digest is not None, "the bundle was promoted when it was written"
        learned, model = learned_of(read_bundle(Path(job.bundle) / digest)), Model.read(job.model)
        self._source, self._meter, self._calibration = job.source, meter, learned.records
        spec = ModelSpec("gru", len(model.weights["start"]), learned.vocabulary.sizes)
        self._kernel = make_kernel(spec, model.weights)
        self._rows = _Rows(spec.hidden)
        self._ids = model.ids
        self._hashes = np.array([stable_hash(action) for action in model.ids], np.uint64).view(np.int64)  # by id
        self._decode = msgspec.json.Decoder(list[_Event]).decode
        self._outputs: list[tuple[bytes, bytes]] = []
        self._next: dict[int, int] = {}

    def warm_up(self) -> None:
        """Have everything compiled, before the clock starts."""
        self._score(self._rows.numbers([]), np.empty(0, np.int64), [])

    def take(self, messages: list[Message]) -> None:
        """Score and judge a slice."""
        events = self._decode(b"[" + b",".join([message.value() for message in messages]) + b"]")
        time_ms = np.array([event.ts for event in events], np.int64)
        row = self._rows.numbers([event.session for event in events])
        score = self._score(row, time_ms, [event.action for event in events])
        p_value = self._calibration.p_values(score)
        partitions = [message.partition() for message in messages]
        offsets = [message.offset() for message in messages]
        self._next.update(zip(partitions, offsets, strict=True))  # the last of each partition stays
        anomaly = p_value <= RATE
        for i in np.flatnonzero(anomaly | (np.array(offsets) % _SAMPLE == 0)).tolist():
            event, strange = events[i], bool(anomaly[i])
            body = output(
                Came(event.session, event.ts, event.action, partitions[i], offsets[i]), float(score[i]), anomaly=strange
            )
            value = orjson.dumps(body | {"p_value": float(p_value[i])})
            # A strange record whose decision is sampled is written twice, as a worker does to two topics.
            self._outputs += [(event.session.encode(), value)] * (strange + (offsets[i] % _SAMPLE == 0))
        self._meter.score_many(partitions, offsets, score)

    def changes(self) -> _Changes:
        """What has come together since this was called before."""
        outputs, self._outputs = self._outputs, []
        offsets = [TopicPartition(self._source, partition, offset + 1) for partition, offset in self._next.items()]
        return _Changes(*self._rows.take_changed(), outputs, offsets)

    def _score(self, row: NDArray[np.int32], time_ms: I64, actions: list[str]) -> F32:
        rows, n = self._rows, len(row)
        tokens = np.array([self._ids.get(action, OOV) for action in actions], np.int32)
        hashes = self._hashes[tokens]
        gap_ms, first = np.empty(n, np.int64), np.empty(n, np.bool_)
        _remember(row, time_ms, hashes, rows.past, rows.changed, gap_ms, first)
        touched, own = np.unique(row, return_inverse=True)
        scores = self._kernel.score_and_step(
            np.full(n, STEP, np.int8), own.astype(np.int32), np.arange(n, dtype=np.int32), first, tokens[:, None],
            log_gaps(gap_ms), rows.hidden[touched],
        )  # fmt: skip
        rows.hidden[touched] = scores.hidden
        return scores.surprise[:, 0]


def run(job: Job) -> None:
    """Do the job."""
    meter = Meter(job)
    loop = _Loop(job, meter)
    loop.warm_up()
    consumer = Consumer(
        {
            "bootstrap.servers": job.address, "group.id": job.group, "enable.auto.commit": False, "log_level": 0,
            "auto.offset.reset": "earliest", "queued.min.messages": 200_000, "queued.max.messages.kbytes": 1 << 18,
            "fetch.message.max.bytes": 4 << 20,
        }
    )  # fmt: skip
    consumer.subscribe([job.source])
    saver = _Saver(job, consumer)
    gc.collect()
    gc.freeze()
    due, is_done = 0.0, False
    while not is_done:
        messages = consumer.consume(_SLICE, _WAIT_S)
        if messages:
            meter.begin()
            loop.take(messages)
        is_done = meter.saw(len(messages))
        if is_done:
            saver.wait()
        if is_done or (time.monotonic() >= due and saver.idle):
            due = time.monotonic() + _INTERVAL_S
            saver.save(loop.changes())
    saver.wait()
    saver.close()  # what RocksDB had in memory is on disk before it may be killed: less than a hundredth of a run
    meter.finish(checkpoints=saver.checkpoints)
    consumer.close()


if __name__ == "__main__":
    run(Job.of_this_process())
