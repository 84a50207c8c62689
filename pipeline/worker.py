"""`offbeat worker`: checks first, then runs the Faust app until it is told to stop."""

from __future__ import annotations

import gc
from pathlib import Path

import structlog
from aiokafka.errors import KafkaConnectionError

from pipeline.app import build_app
from pipeline.auto_train import AutoTrain
from pipeline.clients import Clients
from pipeline.errors import BrokerUnavailableError
from pipeline.faust_worker import execute
from pipeline.first_values import begin_worker
from pipeline.health import Health
from pipeline.http import Pages
from pipeline.instance import Instance
from pipeline.logs import configure_logs, get_logger
from pipeline.metrics import Metrics
from pipeline.serving import load_serving
from pipeline.settings import Settings
from pipeline.topics import check_topics
from pipeline.trace_export import tracing
from pipeline.watchdog import LoopGuard

log = get_logger()


def run_worker(
    settings: Settings,
    *,
    accepts_reset: bool = False,
    auto_train: int | None = None,
    config: Path = Path("offbeat.yaml"),
) -> None:
    """Run until SIGTERM or Ctrl-C.

    Parameters
    ----------
    accepts_reset
        Follow a group's offset that was moved on purpose: sessions close, and reading goes on from there.
    auto_train, config
        After how many healthy sessions a first bundle is trained, and the config file for that; None: never.

    Raises
    ------
    OffbeatError
        Something a user can mend: no broker, a missing topic, a taken port, state that does not fit the config.
    """
    configure_logs()
    learned = {name: load_serving(settings, name) for name in settings.streams}
    counts = check_topics(Clients(settings).admin(), settings)
    metrics, health = Metrics(), Health()
    begin_worker(metrics, settings, health, counts)
    with (
        Instance(settings.data_dir, settings.instance) as instance,
        Pages(metrics.registry, health, settings.http) as pages,
        tracing(settings, "worker", instance.name, metrics) as traces,
    ):
        structlog.contextvars.bind_contextvars(instance=instance.name)
        for name, bundle in learned.items():
            digest = "none" if bundle is None else bundle.digest
            runtime = "none" if bundle is None else bundle.runtime.name
            log.info("stream", stream=name, topic=settings.streams[name].topic, bundle=digest[:12], runtime=runtime)
            if settings.streams[name].is_repartitioned:
                log.info(
                    "stream is repartitioned", stream=name, through=settings.topic_of(name),
                    cost="each record is written and read once more, and comes some 100 ms later",
                )  # fmt: skip
        app = build_app(
            settings, learned, instance, metrics, health, counts, accepts_reset=accepts_reset,
            auto_train=None if auto_train is None else AutoTrain(auto_train, config, metrics),
            traces=traces,
        )  # fmt: skip
        log.info(
            "worker starts",
            app=settings.app,
            broker=settings.broker.servers,
            metrics=f"{settings.http.scheme}://{settings.http.host}:{pages.port}",
        )
        gc.freeze()  # what was imported stays for good; not looking at it again is worth a fifth of the speed
        guard = LoopGuard(health)
        guard.start()
        try:
            execute(app)
        except KafkaConnectionError as error:  # the broker went away while we were starting
            servers = settings.broker.servers
            message = f"no Kafka broker answers at {servers} ({error}); start the worker again when it is back"
            raise BrokerUnavailableError(message) from None
        except SystemExit as end:
            fatal = app.consumer.assignment_of_slices.fatal
            if fatal is not None:
                raise fatal from None
            if end.code:
                raise
        finally:
            guard.stop()
        log.info("worker stopped")
