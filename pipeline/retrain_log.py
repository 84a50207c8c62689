"""The retrain topic: jobs and what became of them, written and read. What it holds of a stream is all there is to know.

A stream's messages lie in one partition, in order. A job that is asked for twice is one, for its id says what asked;
of its ends the first counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from pydantic import TypeAdapter, ValidationError

from pipeline.clients import Clients
from pipeline.errors import TopicError
from pipeline.logs import get_logger
from pipeline.outputs import Headers, event_headers
from pipeline.settings import Settings
from pipeline.topics import create_topics, partition_counts, retrain_topic
from pipeline.wire import RetrainJob, RetrainOutcome

Message = RetrainJob | RetrainOutcome

log = get_logger()
_parse = TypeAdapter[Message](Message)


def retrain_key(stream: str) -> bytes:
    """The record key: a stream's messages stay in order."""
    return stream.encode()


def encode(message: Message) -> tuple[bytes, bytes, Headers]:
    """Key, value and CloudEvents headers of a message."""
    moment = message.asked_ms if isinstance(message, RetrainJob) else message.at_ms
    headers = event_headers(message.stream, message.id, "retrain", moment)
    return retrain_key(message.stream), orjson.dumps(message.model_dump()), headers


def parse(key: bytes | None, value: bytes | None) -> Message | None:
    """A message from the topic, or None with a warning: what others wrote there must never stop a trainer."""
    if value is None:
        return None
    try:
        message = _parse.validate_json(value)
    except ValidationError as error:
        why = error.errors()[0]["msg"]
    else:
        if retrain_key(message.stream) == key:
            return message
        why = "its key is not its stream"
    shown = None if key is None else key[:200].decode("utf-8", "replace")
    log.warning("retrain message passed over: it is not ours, damaged, or of a later version", key=shown, why=why)
    return None


@dataclass
class Job:
    """A job, the trainers that took it, in order, and how it ended, if it has."""

    asked: RetrainJob
    taken: list[RetrainOutcome] = field(default_factory=list)
    end: RetrainOutcome | None = None

    @property
    def is_open(self) -> bool:
        """Whether somebody has still to do it."""
        return self.end is None


class RetrainLog:
    """What the topic holds, read so far. Reading a message again changes nothing."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def take(self, message: Message) -> None:
        """Read the next message of a partition; of what is not about a known job nothing is kept."""
        if isinstance(message, RetrainJob):
            self._jobs.setdefault(message.id, Job(message))
            return
        job = self._jobs.get(message.job)
        if job is None:  # its beginning was deleted by age
            return
        if message.type == "started":
            if all(message.id != taken.id for taken in job.taken):
                job.taken.append(message)
        elif job.end is None:
            job.end = message

    def job(self, name: str) -> Job | None:
        """A job by its id."""
        return self._jobs.get(name)

    def of(self, stream: str) -> list[Job]:
        """A stream's jobs, in the order in which they were asked for."""
        return [job for job in self._jobs.values() if job.asked.stream == stream]

    def open_jobs(self) -> list[Job]:
        """Those that somebody has still to do, the earliest first."""
        return [job for job in self._jobs.values() if job.is_open]


def ensure_topic(settings: Settings, clients: Clients) -> str:
    """The topic's name; it is made where it is missing and may be.

    Raises
    ------
    TopicError, BrokerUnavailableError
        It is not there and may not be made, or nobody answers.
    """
    admin, topic = clients.admin(), retrain_topic(settings)
    if topic.name not in partition_counts(admin):
        if not settings.topics.create:
            message = f"topic {topic.name} does not exist and topics.create is off: run `offbeat topics --create`"
            raise TopicError(message)
        create_topics(admin, settings, [topic])
    return topic.name


def end_of(
    job: RetrainJob, kind: str, trainer: str, detail: str, at_ms: int, told: Mapping[str, object] | None = None
) -> RetrainOutcome:  # fmt: skip
    """What a trainer says of a job; `told` may have digest, serving and figures."""
    identity = f"{job.id}/{kind}" + (f"/{trainer}" if kind == "started" else "")
    about = {"digest": None, "serving": None, "figures": None} | {
        key: value for key, value in (told or {}).items() if key in {"digest", "serving", "figures"}
    }
    return RetrainOutcome.model_validate(
        {
            "type": kind, "id": identity, "job": job.id, "stream": job.stream, "trainer": trainer,
            "detail": detail, "at_ms": at_ms, **about,
        }
    )  # fmt: skip
