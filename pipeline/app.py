"""Wires everything: settings, clients, parts, partitions, and the Faust app that drives them."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaProducer

from detectors.parts import Learned
from pipeline.agents.score import add_scoring_agent
from pipeline.clients import Clients
from pipeline.instance import Instance
from pipeline.metrics import Metrics
from pipeline.outputs import Output
from pipeline.partition import StreamContext
from pipeline.recovery import Recovery
from pipeline.serving import make_decoder, make_parts, state_fingerprint
from pipeline.settings import Settings, StreamSettings
from pipeline.topics import OUTPUTS, changelog_topic, output_topic
from pipeline.transport import SESSION_TIMEOUT_S, SliceApp

_LEAST_HOT = 64  # rows a partition may always keep, however many partitions share the budget
_STOP_TIMEOUT_S = 3.0
_COMMITS_PER_S = 50  # of a worker at most: each is a transaction, and brokers feel them


class Outbox:
    """The producer of outputs, shared by all partitions of a worker."""

    def __init__(self, settings: Settings, clients: Clients, metrics: Metrics) -> None:
        self._clients, self._metrics = clients, metrics
        self._topics = {what: output_topic(settings, what) for what in OUTPUTS}
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect; again is nothing."""
        if self._producer is None:
            producer = self._clients.output_producer()
            await producer.start()
            self._producer = producer

    async def stop(self) -> None:
        """Flush and disconnect, bounded in time."""
        if self._producer is not None:
            await asyncio.wait([asyncio.create_task(self._producer.stop())], timeout=_STOP_TIMEOUT_S)
            self._producer = None

    async def send(self, output: Output) -> asyncio.Future[Any]:
        """Hand a message over; waits while the producer's buffer is full. The future is done when the broker has it."""
        assert self._producer is not None, "start comes first"
        topic = self._topics[output.topic]
        acknowledged = self._metrics.outputs.labels(topic)
        future: asyncio.Future[Any] = await self._producer.send(
            topic, output.value, key=output.key, headers=output.headers
        )

        def count(done: asyncio.Future[Any]) -> None:
            if not done.cancelled() and done.exception() is None:
                acknowledged.inc()

        future.add_done_callback(count)
        return future


def build_app(
    settings: Settings, learned: dict[str, Learned | None], instance: Instance, metrics: Metrics, partitions: int
) -> SliceApp:
    """Make the Faust app of a worker.

    Parameters
    ----------
    learned
        By stream, the bundle that serves it.
    partitions
        Source partitions of all streams together; a worker may be assigned all of them, so the budget of hot rows is
        divided by that.
    """
    clients = Clients(settings)
    recovery, outbox = Recovery(clients), Outbox(settings, clients, metrics)
    capacity = max(_LEAST_HOT, settings.state.hot_sessions // max(1, partitions))
    interval_s = max(settings.checkpoint_interval / 1000, partitions / _COMMITS_PER_S)

    def context(name: str, stream: StreamSettings) -> StreamContext:
        return StreamContext(
            name=name, group=settings.app, fingerprint=state_fingerprint(stream),
            changelog=changelog_topic(settings, name), starts_latest=stream.start == "latest", capacity=capacity,
            checkpoint_interval_s=interval_s, folder=instance.folder / settings.app,
            decoder=make_decoder(stream), make_parts=lambda: make_parts(name, stream, learned[name]),
            sample=settings.decisions.sample, make_producer=clients.transactional_producer, recovery=recovery,
            send=outbox.send, metrics=metrics,
        )  # fmt: skip

    async def start() -> None:
        await recovery.start()
        await outbox.start()

    async def stop() -> None:
        await outbox.stop()
        await recovery.stop()

    app = SliceApp(
        settings.app, contexts={stream.topic: context(name, stream) for name, stream in settings.streams.items()},
        clients=clients, recovery=recovery, instance=instance.name, start=start, stop=stop,
        broker=[f"kafka://{server.strip()}" for server in settings.broker.split(",")],
        web_enabled=False, topic_disable_leader=True, stream_wait_empty=False, stream_recovery_delay=0.0,
        stream_buffer_maxsize=16, broker_session_timeout=SESSION_TIMEOUT_S, topic_allow_declare=False,
        datadir=str(instance.folder / "faust"), key_serializer="raw", value_serializer="raw",
    )  # fmt: skip
    for name, stream in settings.streams.items():
        add_scoring_agent(app, stream.topic, name)
    return app
