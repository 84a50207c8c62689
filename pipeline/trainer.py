"""`offbeat trainer`: asks for trainings where a guard agrees, and does those that are asked for, one at a time.

Trainers share the streams by Kafka's group protocol: who is assigned a partition of the retrain topic asks and trains
for the streams whose messages lie there. A job belongs to whoever said last that it has started, for as long as that
one is a member of the group; so a training goes on while partitions move, and a dead trainer's job is free as soon as
Kafka has noticed. Should two do one job all the same, both come to the same bundle, and the first end of it counts.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiokafka.partitioner import murmur2
from confluent_kafka import KafkaException

from detectors.retrain_guard import NotYet
from models.errors import ModelError
from pipeline.clients import Clients
from pipeline.errors import OffbeatError
from pipeline.first_values import begin_trainer
from pipeline.health import Health
from pipeline.http import Pages
from pipeline.label_drift import LabelDrift
from pipeline.logs import configure_logs, get_logger
from pipeline.metrics import Metrics
from pipeline.promotions import tell_workers
from pipeline.registry import Registry
from pipeline.retrain_feed import Feed
from pipeline.retrain_log import Job, Message, RetrainLog, encode, end_of, ensure_topic, parse, retrain_key
from pipeline.retraining import Signals, ask
from pipeline.sending import send_one
from pipeline.settings import Settings
from pipeline.topics import output_topic
from pipeline.wire import RetrainJob

TURN_S = 0.25
ASK_S = 5.0  # between two looks at what asks
AGAIN_S = 5.0  # after what failed because somebody did not answer
SESSION_TIMEOUT_MS = 10_000
MOST_TRIES = 5  # trainers that may die over a job
_STOP_S = 10.0
_CALL_S = 10.0

log = get_logger()


class Membership:
    """Our place among the trainers. It reads nothing: what it is assigned says what is ours."""

    def __init__(self, clients: Clients, group: str, name: str, topic: str) -> None:
        self.name, self._group = name, group
        self._admin = clients.unchecked_admin()
        self._consumer = clients.trainer_consumer(group, name, SESSION_TIMEOUT_MS)
        self._owned: set[int] | None = None
        self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    @property
    def owned(self) -> set[int] | None:
        """Our partitions; None while the group shares them out."""
        return self._owned

    def turn(self) -> None:
        """Stay a member."""
        self._consumer.poll(0)

    def is_member(self, name: str) -> bool:
        """Whether a trainer is in the group now; one that died is, until Kafka misses its heartbeats."""
        found = self._admin.describe_consumer_groups([self._group], request_timeout=_CALL_S)[self._group].result()
        return any(member.client_id == name for member in found.members)

    def leave(self) -> None:
        """Let others have what is ours, at once."""
        self._consumer.close()

    def _assigned(self, consumer: Any, partitions: Any) -> None:
        consumer.assign(partitions)
        consumer.pause(partitions)
        self._owned = {tp.partition for tp in partitions}

    def _revoked(self, _consumer: Any, _partitions: Any) -> None:
        self._owned = None


class Training:
    """The process that does a job, and what it said last."""

    def __init__(self, job: RetrainJob, command: Sequence[str]) -> None:
        self.job = job
        # Its stderr is ours: the progress for people at a terminal, a traceback for those who read logs.
        self._process = subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._result: dict[str, Any] | None = None

    def result(self) -> dict[str, Any] | None:
        """What it came to, None while it runs; of one that broke off `failed` says how."""
        if self._result is None and self._process.poll() is not None:
            said = self._process.communicate()[0].strip().splitlines()
            try:
                self._result = dict(json.loads(said[-1]))
            except (ValueError, TypeError, IndexError):
                why = f"its process ended with {self._process.returncode}; the trainer's log may say why"
                self._result = {"failed": why}
        return self._result

    def stop(self) -> None:
        """End it; what it has saved stays. Never raises."""
        self._process.terminate()
        try:
            self._process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class Trainer:
    """One trainer. `turn` is to be called again and again; nothing in it waits for a training.

    Parameters
    ----------
    command
        Gives the process for a job; else `pipeline.retrain_job`.
    """

    def __init__(
        self, settings: Settings, config: Path, name: str, metrics: Metrics, *,
        command: Callable[[RetrainJob], Sequence[str]] | None = None,
        clock: Callable[[], float] = time.monotonic, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:  # fmt: skip
        self._settings, self._config, self._metrics, self.name = settings, config.absolute(), metrics, name
        self._command = self._of_job if command is None else command
        self._clock, self._now_ms = clock, now_ms
        self._clients = Clients(settings)
        self._topic = ensure_topic(settings, self._clients)
        self._log, self._signals = RetrainLog(), Signals(settings)
        self._label_drift, self._drift_topic = LabelDrift(settings.streams), output_topic(settings, "drift")
        takers = {
            self._topic: self._take, self._drift_topic: self._take_drift,
            output_topic(settings, "incidents"): self._signals.take_incident,
            output_topic(settings, "labels"): self._take_label,
        }  # fmt: skip
        self._feed = Feed(self._clients, takers)
        self._membership = Membership(self._clients, f"{settings.app}.trainer", name, self._topic)
        self._training: Training | None = None
        self._asked_at: float | None = None
        self._not_before = 0.0
        self._waits: dict[str, str] = {}

    # --- what the process around it calls ----------------------------------------------------------------------

    def turn(self) -> bool:
        """Do what is due; says whether there is nothing left that could be done now."""
        self._membership.turn()
        ready = self._feed.read(TURN_S)
        if not ready or self._clock() < self._not_before:
            return False
        try:
            return self._do()
        except (OffbeatError, ModelError, KafkaException) as error:
            log.warning("the trainer tries again", why=str(error)[:500], after_s=AGAIN_S)
            self._not_before = self._clock() + AGAIN_S
            return False

    def stop(self) -> None:
        """End a training under way, and leave the group, so that another may take the job. Never raises."""
        if self._training is not None:
            self._training.stop()
        self._membership.leave()
        self._feed.close()

    # --- within --------------------------------------------------------------------------------------------------

    def _do(self) -> bool:
        if self._training is not None:
            result = self._training.result()
            if result is None:
                return False
            self._answer(self._training.job, result)
            self._metrics.retraining.labels(self._training.job.stream).set(0)
            self._training = None
        owned = self._membership.owned
        if owned is None:
            return False
        ours = [name for name in self._settings.streams if self._partition_of(name) in owned]
        if self._asked_at is None or self._clock() - self._asked_at >= ASK_S:
            for name in ours:
                self._tell_drift(name)
                self._ask(name)
            self._asked_at = self._clock()
        left = [job for job in self._log.open_jobs() if job.asked.stream in ours]
        for job in left:
            if self._is_free(job):
                self._begin(job)
                break
        return not left

    def _partition_of(self, stream: str) -> int:
        """Where a stream's messages lie: as all clients of ours place a key."""
        return int((int(murmur2(retrain_key(stream))) & 0x7FFFFFFF) % max(1, self._feed.partitions_of(self._topic)))

    def _take(self, message: Any) -> None:
        found = parse(message.key(), message.value())
        if found is not None:
            self._log.take(found)

    def _take_drift(self, message: Any) -> None:
        self._signals.take_drift(message)
        self._label_drift.take_drift(message)

    def _take_label(self, message: Any) -> None:
        self._signals.take_label(message)
        self._label_drift.take_label(message)

    def _tell_drift(self, stream: str) -> None:
        """Say what labels say of verdicts, unless the topic does; it comes back, and may ask for a training."""
        output = self._label_drift.due(stream, self._now_ms())
        if output is None or not self._feed.partitions_of(self._drift_topic):
            return
        assert output.key is not None, "drift has one"
        send_one(self._clients, self._drift_topic, (output.key, output.value, output.headers), "drift")
        self._label_drift.was_told(stream)

    def _say(self, message: Message) -> None:
        send_one(self._clients, self._topic, encode(message), "retrain message")
        self._log.take(message)  # it comes back, too, and changes nothing then

    def _ask(self, stream: str) -> None:
        section = self._settings.stream(stream).retrain
        if not section.triggers:
            return
        served_ms = None
        if "schedule" in section.triggers:
            registry = Registry(self._settings, stream)
            served_ms = None if registry.serving_if_known() is None else registry.promoted_ms()
        topic = self._settings.stream(stream).topic
        found = ask(
            self._settings, stream, self._signals, self._log, served_ms, self._now_ms(),
            lambda moment_ms: self._feed.records_since(topic, moment_ms),
        )  # fmt: skip
        self._metrics.retrain_waits.labels(stream).set(int(isinstance(found, NotYet)))
        if isinstance(found, RetrainJob):
            self._say(found)
            log.info("retraining asked for", stream=stream, job=found.id, why=found.detail)
        why = found.why if isinstance(found, NotYet) else ""
        if why and why != self._waits.get(stream):
            log.info("retraining waits", stream=stream, why=why)
        self._waits[stream] = why

    def _is_free(self, job: Job) -> bool:
        """Whether nobody else does it."""
        holder = job.taken[-1].trainer if job.taken else None
        return holder is None or holder == self.name or not self._membership.is_member(holder)

    def _begin(self, job: Job) -> None:
        asked = job.asked
        if not job.taken or job.taken[-1].trainer != self.name:
            if len(job.taken) >= MOST_TRIES:
                self._end(asked, "failed", f"{len(job.taken)} trainers have begun it, and none came to its end", {})
                return
            self._say(end_of(asked, "started", self.name, f"attempt {len(job.taken) + 1}", self._now_ms()))
        log.info("retraining begins", stream=asked.stream, job=asked.id, attempt=len(job.taken))
        self._metrics.retraining.labels(asked.stream).set(1)
        self._training = Training(asked, self._command(asked))

    def _of_job(self, job: RetrainJob) -> Sequence[str]:
        return (
            sys.executable,
            "-P",
            "-m",
            "pipeline.retrain_job",
            str(self._config),
            job.model_dump_json(),
            str(os.getpid()),
        )

    def _answer(self, job: RetrainJob, result: dict[str, Any]) -> None:
        """Say how a job ended, unless somebody has, and let a better bundle serve where that is wanted."""
        known = self._log.job(job.id)
        if known is not None and not known.is_open:
            log.info("retraining ended elsewhere", stream=job.stream, job=job.id)
            return
        if "again" in result:  # somebody did not answer, or the process of a trainer that has died has not yet ended
            log.warning("the trainer tries again", why=str(result["again"])[:500], after_s=AGAIN_S)
            self._not_before = self._clock() + AGAIN_S
        elif "failed" in result:
            self._end(job, "failed", str(result["failed"]), {})
        elif "refused" in result:
            self._end(job, "refused", str(result["refused"]), {})
        elif not result["better"]:
            self._end(job, "kept", result["why"], result)
        elif self._settings.stream(job.stream).retrain.auto_promote:
            self._promote(job, result)
        else:
            self._end(job, "offered", result["why"], result)

    def _promote(self, job: RetrainJob, result: dict[str, Any]) -> None:
        """Let the bundle serve, if what it was compared with still does."""
        registry, why = Registry(self._settings, job.stream), result["why"]
        serving = registry.serving_if_known()
        if serving not in {result["serving"], result["digest"]}:
            self._end(job, "offered", f"{why}; another bundle was promoted meanwhile, so this one waits", result)
            return
        try:
            registry.promote(result["digest"], f"retraining: {job.detail}")
        except ModelError as error:
            if error.retriable:  # the store is away
                raise
            self._end(job, "offered", f"{why}; it could not be promoted: {error}", result)
            return
        tell_workers(self._settings, registry)
        self._end(job, "promoted", why, result)

    def _end(self, job: RetrainJob, kind: str, detail: str, told: dict[str, Any]) -> None:
        self._say(end_of(job, kind, self.name, detail, self._now_ms(), told))
        self._metrics.retrain_jobs.labels(job.stream, kind).inc()
        log.info("retraining ended", stream=job.stream, job=job.id, outcome=kind, why=detail, bundle=told.get("digest"))


def run_trainer(settings: Settings, config: Path, *, once: bool = False) -> None:
    """Run until SIGTERM or Ctrl-C; or once through what is asked for and what asks now.

    Raises
    ------
    OffbeatError
        No broker, a missing topic, a taken port.
    """
    configure_logs()
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
    metrics, health, stopped = Metrics(), Health(), threading.Event()
    begin_trainer(metrics, settings, health)
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopped.set())
    with Pages(metrics.registry, health, settings.http) as pages:
        trainer = Trainer(settings, config, name, metrics)
        log.info("trainer starts", trainer=name, metrics=f"{settings.http.scheme}://{settings.http.host}:{pages.port}")
        health.assigned(())
        try:
            while not stopped.is_set():
                health.beat()
                if trainer.turn() and once:
                    break
        except KeyboardInterrupt:
            pass
        finally:
            trainer.stop()
    log.info("trainer stopped")
