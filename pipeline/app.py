"""Wires everything: settings, clients, parts, partitions, and the Faust app that drives them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer

from detectors.parts import Learned
from models.errors import BundleError
from pipeline.agents.score import add_scoring_agent
from pipeline.auto_train import AutoTrain
from pipeline.budgets import checkpoint_interval_s, hot_rows
from pipeline.clients import Clients
from pipeline.cold_rows import Memory
from pipeline.consuming import ConsumingThread
from pipeline.context import StreamContext, wall_clock_ms
from pipeline.control_reader import ControlReader
from pipeline.health import Health
from pipeline.incident_stage import IncidentStage, stage_route
from pipeline.instance import Instance
from pipeline.loading import load_served, make_served
from pipeline.metrics import Metrics
from pipeline.notices import FEED
from pipeline.outputs import Output
from pipeline.promotion_reader import PromotionReader
from pipeline.pulse import SESSION_TIMEOUT_S
from pipeline.recovery import Recovery
from pipeline.registry import Registry
from pipeline.repartition import Repartitioner, Route
from pipeline.security import faust_options
from pipeline.serving import make_parts, make_session_decoder, state_fingerprint
from pipeline.settings import Settings
from pipeline.standby import Standbys
from pipeline.stream_settings import StreamSettings
from pipeline.topic_ids import TopicIds
from pipeline.topics import OUTPUTS, changelog_topic, controls_topic, models_topic, output_topic
from pipeline.transport import SliceApp
from pipeline.unmatched_lines import UnmatchedLines

if TYPE_CHECKING:
    from pipeline.traces import Traces

_STOP_TIMEOUT_S = 3.0
_LEAST_IDLE_MS = 60_000


class Outbox:
    """The producer of outputs, shared by all partitions of a worker."""

    def __init__(self, settings: Settings, clients: Clients, metrics: Metrics) -> None:
        self._clients, self._metrics = clients, metrics
        self._topics = {what: output_topic(settings, what) for what in OUTPUTS} | {FEED: settings.incident_feed}
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

    def topic(self, what: str) -> str:
        """Name of an output's topic."""
        return self._topics[what]

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
    settings: Settings, learned: dict[str, Learned | None], instance: Instance, metrics: Metrics, health: Health,
    partitions: Mapping[str, int], *, accepts_reset: bool = False, auto_train: AutoTrain | None = None,
    traces: Traces | None = None,
) -> SliceApp:  # fmt: skip
    """Make the Faust app of a worker.

    Parameters
    ----------
    learned
        By stream, the bundle that serves it by its `serving` file.
    partitions
        By topic, how many each stream is read from; a worker may be assigned all of them, so the budget of hot rows is
        divided by their sum. Budgets of alarms are shared by those of their stream.
    accepts_reset
        Whether a group's offset that an operator has moved is followed; sessions close then.
    auto_train
        Trains the first bundles.
    traces
        Makes spans.
    """
    clients = Clients(settings)
    topic_ids, outbox = TopicIds(clients), Outbox(settings, clients, metrics)
    recovery = Recovery(clients, topic_ids, wall_clock_ms)
    rows_folder = instance.folder / settings.app
    unmatched = UnmatchedLines(rows_folder, [name for name, stream in settings.streams.items() if stream.message])
    controls, memory = ControlReader(clients, controls_topic(settings)), Memory()
    promotions = PromotionReader(
        clients,
        models_topic(settings),
        {name: make_served(settings, name, bundle, unmatched.of.get(name)) for name, bundle in learned.items()},
        {name: _promoted_ms(settings, name) for name in learned},
        lambda name, digest: load_served(settings, name, digest, unmatched.of.get(name)),
        metrics,
    )
    together = sum(partitions.values())
    capacity = hot_rows(settings.state.hot_sessions, together)
    interval_s = checkpoint_interval_s(settings.checkpoint_interval, together)

    repartitioners = {
        name: Repartitioner(_route(settings, name, outbox), clients, instance.name, topic_ids, metrics, health)
        for name, stream in settings.streams.items() if stream.is_repartitioned
    }  # fmt: skip

    threads: list[ConsumingThread] = [*repartitioners.values()]
    if settings.incidents.enabled:
        threads.append(IncidentStage(stage_route(settings), clients, instance.name, metrics, traces=traces))

    def context(name: str, stream: StreamSettings) -> StreamContext:
        idle_ms = stream.session.idle or max(_LEAST_IDLE_MS, stream.session.gap)
        return StreamContext(
            name=name, group=settings.app, fingerprint=state_fingerprint(settings, name),
            changelog=changelog_topic(settings, name), 
            # What is in an internal topic was chosen when it was brought there.
            starts_latest=stream.start == "latest" and name not in repartitioners,
            exactly_once=settings.delivery == "exactly_once", accepts_reset=accepts_reset, capacity=capacity,
            checkpoint_interval_s=interval_s, idle_s=idle_ms / 1000, folder=rows_folder,
            memory=memory, promotions=promotions,
            make_parts=lambda bundle: make_parts(settings, name, bundle, partitions.get(stream.topic)),
            sample=settings.decisions.sample, make_producer=clients.transactional_producer, recovery=recovery,
            controls=controls, topic_ids=topic_ids, send=outbox.send, output_topic=outbox.topic, metrics=metrics,
            health=health, auto_train=auto_train,
            incidents_by=settings.incidents.by if settings.incidents.enabled else None,
            traces=traces, source_is_copied=repartitioners[name].source_is_copied if name in repartitioners else None,
        )  # fmt: skip

    contexts = {settings.topic_of(name): context(name, stream) for name, stream in settings.streams.items()}
    standbys = Standbys(contexts, clients)
    metrics.standbys.set_function(lambda: len(standbys.followed))

    async def start() -> None:
        await recovery.start()
        await outbox.start()
        await controls.start()
        await promotions.start()
        await unmatched.start()
        for thread in threads:
            thread.start()

    async def stop() -> None:
        await asyncio.gather(*(asyncio.to_thread(thread.stop) for thread in threads))
        if auto_train is not None:
            await asyncio.to_thread(auto_train.stop)
        await unmatched.stop()
        await promotions.stop()
        await controls.stop()
        await outbox.stop()
        await recovery.stop()

    app = SliceApp(
        settings.app, contexts=contexts, clients=clients, recovery=recovery, instance=instance.name,
        standbys=standbys, standby_replicas=settings.state.standby_replicas, health=health,
        threads=threads, start=start, stop=stop,
        **faust_options(settings.broker),
        web_enabled=False, topic_disable_leader=True, stream_wait_empty=False, stream_recovery_delay=0.0,
        stream_buffer_maxsize=16, broker_session_timeout=SESSION_TIMEOUT_S, topic_allow_declare=False,
        datadir=str(instance.folder / "faust"), key_serializer="raw", value_serializer="raw",
    )  # fmt: skip
    for name in settings.streams:
        add_scoring_agent(app, settings.topic_of(name), name)
    return app


def _promoted_ms(settings: Settings, name: str) -> int:
    """Since when a stream's bundle serves; 0 where nobody can tell, for the store is away."""
    try:
        return Registry(settings, name).promoted_ms()
    except BundleError:
        return 0


def _route(settings: Settings, name: str, outbox: Outbox) -> Route:
    stream, target = settings.streams[name], settings.repartition_topic(name)
    return Route(
        stream=name, source=stream.topic, target=target, group=target, scored_by=settings.app,
        starts_latest=stream.start == "latest", decoder=make_session_decoder(stream), drift_topic=outbox.topic("drift"),
        of_exports=stream.format == "otlp_metrics",
    )  # fmt: skip
