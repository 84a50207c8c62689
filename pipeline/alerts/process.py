"""`offbeat alerts`: wires outbox, agent and deliveries, and runs until it is told to stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from aiokafka.errors import KafkaConnectionError
from confluent_kafka.admin import AdminClient

from pipeline.alerts.agent import AlertsApp, Reading, add_agent
from pipeline.alerts.clock import SteadyClock
from pipeline.alerts.delivering import Delivering
from pipeline.alerts.index import Index
from pipeline.alerts.intake import Intake
from pipeline.alerts.outbox import Outbox, OutboxTopics
from pipeline.alerts.sending import Sender
from pipeline.clients import Clients
from pipeline.errors import AlertError, BrokerUnavailableError, ConfigError, OffbeatError, TopicError
from pipeline.faust_worker import execute
from pipeline.first_values import begin_alerts
from pipeline.health import Health
from pipeline.http import Pages
from pipeline.instance import Instance
from pipeline.logs import configure_logs, get_logger
from pipeline.metrics import Metrics
from pipeline.pulse import SESSION_TIMEOUT_S
from pipeline.security import faust_options
from pipeline.settings import Settings
from pipeline.topics import (
    Topic,
    alert_topics,
    alerts_input,
    make_missing,
    output_topic,
    partition_counts,
)
from pipeline.trace_export import tracing
from pipeline.watchdog import LoopGuard

if TYPE_CHECKING:
    from pipeline.traces import Traces

log = get_logger()


def run_alerts(settings: Settings) -> None:
    """Run until SIGTERM or Ctrl-C.

    Raises
    ------
    OffbeatError
        Something a user can mend: no receiver, a secret that is missing, no broker, a topic that is not as it must be.
    """
    configure_logs()
    if not settings.alerts.receivers:
        message = "nobody is to be told: the config has no alerts.receivers; add one, and a route to it"
        raise ConfigError(message)
    asyncio.run(_check_receivers(settings))
    check_alert_topics(Clients(settings).admin(), settings)
    metrics, health = Metrics(), Health()
    begin_alerts(metrics, settings, health)
    with (
        Instance(settings.data_dir / "alerts", settings.instance) as instance,
        Pages(metrics.registry, health, settings.http) as pages,
        tracing(settings, "alerts", instance.name, metrics) as traces,
    ):
        structlog.contextvars.bind_contextvars(instance=instance.name)
        index = Index(instance.folder / f"{settings.app}.sqlite")
        app = build_app(settings, instance.name, index, metrics, health, traces)
        log.info(
            "alerts start", app=settings.app, broker=settings.broker.servers, reads=alerts_input(settings),
            receivers=list(settings.alerts.receivers), metrics=f"{settings.http.scheme}://{settings.http.host}:{pages.port}",
        )  # fmt: skip
        guard = LoopGuard(health)
        guard.start()
        try:
            execute(app)
        except KafkaConnectionError as error:
            servers = settings.broker.servers
            message = f"no Kafka broker answers at {servers} ({error}); start alerts again when it is back"
            raise BrokerUnavailableError(message) from None
        except SystemExit as end:
            if app.fatal is not None:
                raise app.fatal from None
            if end.code:
                raise
        finally:
            guard.stop()
            index.close()
        log.info("alerts stopped")


async def _check_receivers(settings: Settings) -> None:
    """Find out at once whether a secret is missing or a template wrong."""
    await Sender(settings.alerts).close()


def check_alert_topics(admin: AdminClient, settings: Settings) -> None:
    """Make the topics that are missing, and see to it that the others fit together.

    Raises
    ------
    TopicError
        One is missing and may not be made, or has another number of partitions than what alerts are about.
    """
    existing, source = partition_counts(admin), alerts_input(settings)
    own = settings.topics
    outputs = [Topic(name, "output", own.partitions) for name in (source, output_topic(settings, "dead-letters"))]
    wanted = [*outputs, *alert_topics(settings, existing)]
    existing = make_missing(admin, settings, wanted)
    for topic in wanted:
        found = existing[topic.name]
        if topic not in outputs and found != existing[source]:
            message = (
                f"topic {topic.name} has {found} partitions, but {source} has {existing[source]}: changes would lie in "
                "the wrong one. Let alerts deliver what waits, then delete the topic and start again"
            )
            raise TopicError(message)


def build_app(
    settings: Settings, instance: str, index: Index, metrics: Metrics, health: Health, traces: Traces | None = None
) -> AlertsApp:
    """Make the Faust app, with all that it drives."""
    clients, clock, group = Clients(settings), SteadyClock(), f"{settings.app}.alerts"
    source, requests = alerts_input(settings), settings.alert_requests
    topics = OutboxTopics(
        settings.alert_outbox, (source, requests), output_topic(settings, "dead-letters"), group,
        frozenset({source} if settings.alerts.start == "latest" else ()),
    )  # fmt: skip
    delivering: Delivering

    def end(error: BaseException) -> None:
        app.end(error if isinstance(error, OffbeatError) else _fault(error))

    outbox = Outbox(topics, clients, index, health, clock, lambda: delivering.look(), end)  # noqa: PLW0108 (it is below)
    delivering = Delivering(settings.alerts, outbox, clock, metrics, end, traces)
    intake = Intake(settings.alerts, requests, clock, metrics)
    reading = Reading(outbox, intake, end)
    app = AlertsApp(
        group, clients=clients, instance=instance, outbox=outbox, reading=reading, health=health,
        delivering=delivering,
        **faust_options(settings.broker),
        web_enabled=False, topic_disable_leader=True, stream_wait_empty=False, stream_recovery_delay=0.0,
        broker_session_timeout=SESSION_TIMEOUT_S, topic_allow_declare=False,
        datadir=str(settings.data_dir / "alerts" / instance / "faust"), key_serializer="raw", value_serializer="raw",
    )  # fmt: skip
    add_agent(app, (source, requests))
    return app


def _fault(error: BaseException) -> AlertError:
    log.error("alerts failed", why=repr(error)[:500], exc_info=error)
    return AlertError(f"alerts cannot be delivered: {error!r}")
