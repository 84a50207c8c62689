"""Topics: their names, what they need, making and deleting them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.clients import MAX_MESSAGE_BYTES
from pipeline.errors import TopicError
from pipeline.settings import Settings

DELETE_RETENTION_MS = 86_400_000  # for how long a changelog keeps tombstones after compaction: Kafka's default
_METADATA_TIMEOUT_S = 20.0
_DAY_MS = 86_400_000
OUTPUTS = ("anomalies", "rescores", "decisions", "dead-letters", "late", "drift", "incidents", "labels")
# A few messages a job; the guards of the next one look back a week, and people further.
_RETRAIN = {"cleanup.policy": "delete", "retention.ms": str(90 * _DAY_MS)}
# A deleted session is gone from a log a day later at most; only closed segments are compacted.
_COMPACTION = {
    "cleanup.policy": "compact",
    "delete.retention.ms": str(DELETE_RETENTION_MS),
    "max.compaction.lag.ms": "86400000",
    "segment.ms": "3600000",
}
# What no checkpoint covers yet must stay, and retention goes by the records' own timestamps, which are years old where
# history is replayed: so nothing is deleted by age, and workers delete what they have scored.
_REPARTITION = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
    "segment.bytes": str(50 << 20),
    "message.timestamp.type": "CreateTime",
    "max.message.bytes": str(MAX_MESSAGE_BYTES),
}


@dataclass(frozen=True)
class Topic:
    """A topic as it should be. `role` is source, output, changelog, repartition, feed or control."""

    name: str
    role: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)


def output_topic(settings: Settings, what: str) -> str:
    """Name of an output topic, such as offbeat.anomalies."""
    return f"{settings.topics.prefix}.{what}"


def controls_topic(settings: Settings) -> str:
    """Name of the topic of controls: what users ask of workers, such as deleting a session."""
    return f"{settings.topics.prefix}.controls"


def models_topic(settings: Settings) -> str:
    """Name of the topic of promotions: which bundle serves each stream."""
    return f"{settings.topics.prefix}.models"


def control_topics(settings: Settings) -> list[Topic]:
    """The topics that workers read whole; one partition each, for their order counts."""
    return [Topic(name, "control", 1, _COMPACTION) for name in (controls_topic(settings), models_topic(settings))]


def incident_topics(settings: Settings, existing: dict[str, int]) -> list[Topic]:
    """The incident stage's: what it reads, and a changelog with as many partitions."""
    feed, own = settings.incident_feed, settings.topics
    partitions = existing.get(feed, own.partitions)
    return [
        Topic(feed, "feed", partitions, {"retention.ms": str(own.retention)}),
        Topic(settings.incident_state, "changelog", partitions, _COMPACTION),
    ]


def alerts_input(settings: Settings) -> str:
    """What alerts are about: incidents, or anomalies where no incidents are made of them."""
    return output_topic(settings, "incidents" if settings.incidents.enabled else "anomalies")


def alert_topics(settings: Settings, existing: dict[str, int]) -> list[Topic]:
    """The outbox of alerts and what is asked of it, with as many partitions as what alerts are about."""
    own = settings.topics
    partitions = existing.get(alerts_input(settings), own.partitions)
    return [
        Topic(settings.alert_outbox, "changelog", partitions, _COMPACTION),
        Topic(settings.alert_requests, "feed", partitions, {"retention.ms": str(own.retention)}),
    ]


def retrain_topic(settings: Settings) -> Topic:
    """The topic of trainings that are asked for, and of what became of them."""
    return Topic(output_topic(settings, "retrain"), "output", settings.topics.partitions, _RETRAIN)


def changelog_topic(settings: Settings, stream: str) -> str:
    """Name of a stream's changelog; the app is in it, because two apps keep two states."""
    return f"{settings.app}.{stream}.changelog"


def partition_counts(admin: AdminClient) -> dict[str, int]:
    """Partitions of each topic there is."""
    return {name: len(t.partitions) for name, t in admin.list_topics(timeout=10).topics.items() if t.error is None}


def wanted_topics(settings: Settings, existing: dict[str, int]) -> list[Topic]:
    """All topics of a config.

    Changelogs and internal topics have their source's partitions; controls and promotions have one.
    """
    own = settings.topics
    topics = [Topic(output_topic(settings, what), "output", own.partitions, _kept(settings, what)) for what in OUTPUTS]
    topics += [*control_topics(settings), retrain_topic(settings)]
    if settings.incidents.enabled:
        topics += incident_topics(settings, existing)
    if settings.alerts.receivers:
        topics += alert_topics(settings, existing)
    for name, stream in settings.streams.items():
        partitions = existing.get(stream.topic, own.partitions)
        topics.append(Topic(stream.topic, "source", partitions))
        topics.append(Topic(changelog_topic(settings, name), "changelog", partitions, _COMPACTION))
        if stream.is_repartitioned:
            topics.append(Topic(settings.repartition_topic(name), "repartition", partitions, _REPARTITION))
    return topics


def _kept(settings: Settings, what: str) -> dict[str, str]:
    """Labels teach as long as there is history, so the latest of each anomaly stays; other outputs go by age."""
    if what == "labels":
        return {"cleanup.policy": "compact"}
    return {"retention.ms": str(settings.topics.retention)}


def make_missing(admin: AdminClient, settings: Settings, wanted: list[Topic]) -> dict[str, int]:
    """Make what is missing, sources apart, if that may be; returns how many partitions each topic has.

    Raises
    ------
    TopicError
        One is missing and may not be made.
    """
    if settings.topics.create:
        create_topics(admin, settings, [topic for topic in wanted if topic.role != "source"])
    existing = partition_counts(admin)
    for topic in wanted:
        if topic.name not in existing:
            message = f"topic {topic.name} does not exist and topics.create is off: run `offbeat topics --create`"
            raise TopicError(message)
    return existing


def create_topics(admin: AdminClient, settings: Settings, topics: list[Topic]) -> list[str]:
    """Create those that are missing; returns their names."""
    existing = partition_counts(admin)
    missing = [t for t in topics if t.name not in existing]
    new = [
        NewTopic(t.name, num_partitions=t.partitions, replication_factor=settings.topics.replication, config=t.config)
        for t in missing
    ]
    for name, future in (admin.create_topics(new, operation_timeout=30) if new else {}).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was quicker
                message = f"topic {name} cannot be created: {error.args[0].str()}"
                raise TopicError(message) from None
    _wait_for(admin, lambda existing: all(t.name in existing for t in missing))
    return [t.name for t in missing]


def delete_topics(admin: AdminClient, topics: list[Topic]) -> list[str]:
    """Delete those that exist; returns their names."""
    existing = partition_counts(admin)
    doomed = [t.name for t in topics if t.name in existing]
    for name, future in (admin.delete_topics(doomed, operation_timeout=30) if doomed else {}).items():
        try:
            future.result()
        except KafkaException as error:
            message = f"topic {name} cannot be deleted: {error.args[0].str()}"
            raise TopicError(message) from None
    _wait_for(admin, lambda existing: not any(name in existing for name in doomed))
    return doomed


def _wait_for(admin: AdminClient, seen: Callable[[dict[str, int]], bool]) -> None:
    """Wait until the brokers' metadata shows a change they have acknowledged; it follows a little later."""
    end = time.monotonic() + _METADATA_TIMEOUT_S
    while not seen(partition_counts(admin)):
        if time.monotonic() > end:
            message = f"the brokers do not show the change of topics after {_METADATA_TIMEOUT_S:.0f} s; try again"
            raise TopicError(message)
        time.sleep(0.05)


def check_topics(admin: AdminClient, settings: Settings) -> dict[str, int]:
    """Make sure a worker can run: sources exist, ours exist or are made, changelogs fit. Returns source partitions.

    Raises
    ------
    TopicError
        A topic is missing, a changelog or an internal topic has another number of partitions than its source, or
        controls or promotions more than one.
    """
    existing = partition_counts(admin)
    wanted = wanted_topics(settings, existing)
    missing = [t.name for t in wanted if t.role == "source" and t.name not in existing]
    if missing:
        message = (
            f"topic {missing[0]} does not exist on {settings.broker.servers}; create it (`offbeat topics --create` "
            "makes all topics of a config), or correct the stream's `topic`"
        )
        raise TopicError(message)
    existing = make_missing(admin, settings, wanted)
    for topic in wanted:
        found = existing[topic.name]
        if topic.role == "changelog" and found != topic.partitions:
            message = (
                f"changelog {topic.name} has {found} partitions but its source has {topic.partitions}: rows would lie "
                "in the wrong partition. Sessions cannot be moved; begin anew with another `app`"
            )
            raise TopicError(message)
        if topic.role == "repartition" and found != topic.partitions:
            message = (
                f"internal topic {topic.name} has {found} partitions but its source has {topic.partitions}: sessions "
                "would move to other partitions than their rows. Begin anew with another `app`"
            )
            raise TopicError(message)
        if topic.role == "control" and found != 1:
            message = (
                f"topic {topic.name} has {found} partitions, but controls need exactly one, for their order counts; "
                "delete the topic and run `offbeat topics --create`, or set another topics.prefix"
            )
            raise TopicError(message)
    return {stream.topic: existing[stream.topic] for stream in settings.streams.values()}
