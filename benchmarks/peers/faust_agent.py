"""The job as a Faust agent, as its documentation writes one: `async for`, a table in RocksDB, torch for each record.

Settings: one worker; the table's partitions are the topic's; values as bytes, for JSON would cost more; no web server;
else Faust's own. State is as safe as Faust makes it: each change goes to the changelog topic, offsets are committed
every 2.8 s, so after a crash some events are applied twice. What it leaves out of an Offbeat worker's work: the last
events of a session, p-values, explanations, samples of decisions, ends of sessions, bad records.
"""

from __future__ import annotations

from pathlib import Path

import faust

from benchmarks.peers.job import (
    OOV,
    PARTITIONS,
    Came,
    Job,
    Meter,
    Model,
    TorchGru,
    one_thread,
    output,
    pack_state,
    unpack_state,
)  # fmt: skip


class Event(faust.Record):
    """The fields that are read of a record."""

    ts: int
    session: str
    action: str


def came_of(event: faust.Event) -> Came:
    """What Faust hands over."""
    value: Event = event.value
    return Came(value.session, value.ts, value.action, event.message.partition, event.message.offset)


def make_app(job: Job) -> faust.App:
    """An app without agents."""
    return faust.App(
        job.group, broker=f"kafka://{job.address}", store="rocksdb://", datadir=Path(job.folder),
        topic_partitions=PARTITIONS, web_enabled=False, consumer_auto_offset_reset="earliest",
    )  # fmt: skip


def make_table(app: faust.App) -> faust.Table:
    """States by session."""
    return app.Table("states", key_type=str, value_type=bytes)


async def finish(app: faust.App, meter: Meter) -> None:
    """Wait for what was written, and commit what was read."""
    await app.producer.flush()
    await app.consumer.commit()
    meter.finish()


def run(job: Job) -> None:
    """Do the job."""
    one_thread()
    meter, model = Meter(job), Model.read(job.model)
    gru = TorchGru(model)
    app = make_app(job)
    events, anomalies = app.topic(job.source, key_type=str, value_type=Event), app.topic(job.outputs, key_type=str)
    states = make_table(app)

    @app.agent(events)
    async def score(stream: faust.Stream) -> None:
        async for event in stream.events():
            meter.begin()
            came = came_of(event)
            saved = states.get(came.session)
            hidden, last_ms = (gru.start, came.time_ms) if saved is None else unpack_state(saved)
            surprise, after = gru.score_one(model.ids.get(came.action, OOV), came.time_ms - last_ms, hidden)
            states[came.session] = pack_state((after, came.time_ms))
            if surprise >= model.threshold:
                await anomalies.send(key=came.session, value=output(came, surprise))
            meter.score(came.partition, came.offset, surprise)
            if meter.saw(1):
                await finish(app, meter)

    faust.Worker(app, loglevel="WARN", quiet=True).execute_from_commandline()


if __name__ == "__main__":
    run(Job.of_this_process())
