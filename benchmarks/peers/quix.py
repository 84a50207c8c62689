"""The job with Quix Streams: a StreamingDataFrame with a stateful `apply`, its RocksDB and changelog, torch by record.

Settings: state as bytes, for JSON would cost more; else its own: at least once, a checkpoint every 5 s. A checkpoint
writes what changed to the changelog, commits offsets and then writes RocksDB, so a crash loses nothing and a checkpoint
that is cut short applies some events twice. What it leaves out of an Offbeat worker's work: the last events of a
session, p-values, explanations, samples of decisions, ends of sessions, bad records.
"""

from __future__ import annotations

from typing import Any

from quixstreams import Application, State, message_context

from benchmarks.peers.job import OOV, Came, Job, Meter, Model, TorchGru, one_thread, output, pack_state, unpack_state


def run(job: Job) -> None:
    """Do the job."""
    one_thread()
    meter, model = Meter(job), Model.read(job.model)
    gru = TorchGru(model)
    app = Application(
        job.address, consumer_group=job.group, auto_offset_reset="earliest", state_dir=job.folder, loglevel="WARNING"
    )
    events = app.topic(job.source, key_deserializer="str", value_deserializer="json")
    anomalies = app.topic(job.outputs, key_serializer="str", value_serializer="json")

    def score(event: dict[str, Any], state: State) -> dict[str, Any] | None:
        meter.begin()
        place = message_context()
        came = Came(event["session"], event["ts"], event["action"], place.partition, place.offset)
        saved = state.get_bytes("state")
        hidden, last_ms = (gru.start, came.time_ms) if saved is None else unpack_state(saved)
        surprise, after = gru.score_one(model.ids.get(came.action, OOV), came.time_ms - last_ms, hidden)
        state.set_bytes("state", pack_state((after, came.time_ms)))
        meter.score(came.partition, came.offset, surprise)
        if meter.saw(1):
            app.stop()  # after this record, with a last checkpoint
        return output(came, surprise) if surprise >= model.threshold else None

    frame = app.dataframe(events).apply(score, stateful=True)
    frame.filter(lambda found: found is not None).to_topic(anomalies)
    app.run()
    meter.finish()


if __name__ == "__main__":
    run(Job.of_this_process())
