"""The job as a Faust agent that takes batches, and gives them to torch at once.

As `faust_agent.py`, but for `take_events(1000, within=0.1)`: the events of a batch are put together by session, in
their order, and scored as packed runs; of each session the last state is written. A table must know which partition a
key is of, which Faust reads from the current event, and in batches there is none: so it is set for each session.
"""

from __future__ import annotations

import weakref

import faust
import numpy as np
from faust.streams import _current_event as current_event

from benchmarks.peers.faust_agent import Event, came_of, finish, make_app, make_table
from benchmarks.peers.job import (
    Job,
    Meter,
    Model,
    State,
    TorchGru,
    one_thread,
    output,
    pack_state,
    score_batch,
    unpack_state,
)

_BATCH, _WITHIN_S = 1_000, 0.1


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
        async for batch in stream.take_events(_BATCH, within=_WITHIN_S):
            meter.begin()
            event_of = {event.value.session: event for event in batch}

            def load(session: str, event_of: dict[str, faust.Event] = event_of) -> State | None:
                current_event.set(weakref.ref(event_of[session]))
                saved = states.get(session)
                return None if saved is None else unpack_state(saved)

            def save(session: str, state: State, event_of: dict[str, faust.Event] = event_of) -> None:
                current_event.set(weakref.ref(event_of[session]))
                states[session] = pack_state(state)

            scored, surprise = score_batch(model, gru, map(came_of, batch), load, save)
            for i in np.flatnonzero(surprise >= model.threshold).tolist():
                await anomalies.send(key=scored[i].session, value=output(scored[i], float(surprise[i])))
            meter.score_many([came.partition for came in scored], [came.offset for came in scored], surprise)
            if meter.saw(len(batch)):
                await finish(app, meter)

    faust.Worker(app, loglevel="WARN", quiet=True).execute_from_commandline()


if __name__ == "__main__":
    run(Job.of_this_process())
