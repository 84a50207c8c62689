"""The job with Bytewax in batches: `flat_map_batch` decodes what one poll brought, `stateful_batch` gives it to torch.

A stateful step sees the values of one key, so the key is the record's partition, and its state the states of that
partition's sessions; keyed by session there would be no batches. The events of a batch are put together by session, in
their order, and scored as packed runs. Settings: polls of 4,000 records, recovery switched on with its own epochs of
10 s, so every 10 s each partition's states are written whole to SQLite; one worker, for there is one interpreter lock.
What it leaves out of an Offbeat worker's work: a changelog that another machine could recover from, the last events of
a session, p-values, explanations, samples of decisions, ends of sessions, bad records.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import numpy as np
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.inputs import StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from benchmarks.peers.job import Came, Job, Meter, Model, State, TorchGru, one_thread, output, score_batch

_POLL = 4_000
_EPOCH = timedelta(seconds=10)


class _UntilDone(KafkaSource):
    """Kafka, which ends once the job is done: so Bytewax saves all, and the process goes on."""

    def __init__(self, job: Job, meter: Meter) -> None:
        super().__init__([job.address], [job.source], batch_size=_POLL)
        self._meter = meter

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Partition:
        """As Bytewax wants it."""
        return _Partition(super().build_part(step_id, for_part, resume_state), self._meter)


class _Partition(StatefulSourcePartition):
    """One partition of it."""

    def __init__(self, partition: Any, meter: Meter) -> None:
        self._partition, self._meter = partition, meter

    def next_batch(self) -> list[KafkaSourceMessage]:
        """What one poll brings."""
        if self._meter.done:
            raise StopIteration
        found: list[KafkaSourceMessage] = self._partition.next_batch()
        if found:
            self._meter.begin()
        return found

    def snapshot(self) -> int | None:
        """Where to go on."""
        offset: int | None = self._partition.snapshot()
        return offset

    def close(self) -> None:
        """Close the consumer."""
        self._partition.close()


class _Score(StatefulBatchLogic):
    """The sessions of one partition."""

    def __init__(self, gru: TorchGru, model: Model, meter: Meter, states: dict[str, State] | None) -> None:
        self._gru, self._model, self._meter = gru, model, meter
        self._states = {} if states is None else states

    def on_batch(self, values: list[Came]) -> tuple[Iterable[KafkaSinkMessage], bool]:
        """Score what came of the partition."""
        states, threshold = self._states, self._model.threshold
        scored, surprise = score_batch(self._model, self._gru, values, states.get, states.__setitem__)
        strange = [(scored[i], float(surprise[i])) for i in np.flatnonzero(surprise >= threshold).tolist()]
        self._meter.score_many([came.partition for came in scored], [came.offset for came in scored], surprise)
        self._meter.saw(len(scored))
        found = [KafkaSinkMessage(came.session.encode(), orjson.dumps(output(came, score))) for came, score in strange]
        return found, StatefulBatchLogic.RETAIN

    def snapshot(self) -> dict[str, State]:
        """All there is to save."""
        return dict(self._states)


def _decode(messages: list[KafkaSourceMessage]) -> list[tuple[str, Came]]:
    """Records by partition."""
    read = [(message, orjson.loads(message.value)) for message in messages]
    return [
        (
            str(message.partition),
            Came(event["session"], event["ts"], event["action"], message.partition, message.offset),
        )
        for message, event in read
    ]


def run(job: Job) -> None:
    """Do the job."""
    one_thread()
    meter, model = Meter(job), Model.read(job.model)
    gru = TorchGru(model)
    flow = Dataflow("peer")
    records = op.input("read", flow, _UntilDone(job, meter))
    events = op.flat_map_batch("decode", records, _decode)
    anomalies = op.stateful_batch("score", events, lambda states: _Score(gru, model, meter, states))
    op.output("write", op.key_rm("by_session", anomalies), KafkaSink([job.address], job.outputs))
    init_db_dir(Path(job.folder), 1)
    cli_main(flow, epoch_interval=_EPOCH, recovery_config=RecoveryConfig(Path(job.folder)))
    meter.finish()


if __name__ == "__main__":
    run(Job.of_this_process())
