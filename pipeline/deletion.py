"""Deleting a session: the control that asks for it, and where the session's name or data still lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource

from pipeline.changelog import KeyReader, Progress, Trail
from pipeline.clients import Clients
from pipeline.controls import control_key, encode_control
from pipeline.errors import TopicError
from pipeline.sending import send_one
from pipeline.settings import Settings
from pipeline.topics import OUTPUTS, changelog_topic, controls_topic, output_topic, partition_counts
from pipeline.units import format_duration_ms
from pipeline.wire import DeleteSession

_UNBOUNDED_MS = 2**62  # Kafka's default of max.compaction.lag.ms is the largest long: never forced
TopicConfig = Mapping[str, str]


@dataclass(frozen=True)
class Trace:
    """One place where a session is or was.

    Attributes
    ----------
    state
        `gone`; `gone_at_compaction`: no read returns it, its bytes go with the next compaction; `kept`: the place keeps
        what it was given; `still_there`: the state returns it.
    until_ms
        When it is gone at the latest; None where it is gone or nothing bounds the time.
    """

    place: str
    where: str
    state: Literal["gone", "gone_at_compaction", "kept", "still_there"]
    until_ms: int | None
    note: str


def send_control(clients: Clients, topic: str, control: DeleteSession) -> None:
    """Ask the workers; returns when the broker has it.

    Raises
    ------
    TopicError, BrokerUnavailableError
        The broker refused, or did not acknowledge in time.
    """
    send_one(clients, topic, encode_control(control), "deletion")


def is_applied(trails: Mapping[int, Trail], marks: Mapping[int, int]) -> bool:
    """Whether no partition returns the session as it was at `marks`, the log's ends before the control was sent.

    Offsets decide, for clocks of different machines do not agree. What came after a tombstone is a new session.
    """
    return all(
        trail.last.value is None or (trail.tombstone is not None and trail.tombstone.offset >= marks[p])
        for p, trail in trails.items()
    )


def traces(
    admin: AdminClient, clients: Clients, settings: Settings, control: DeleteSession, trails: Mapping[int, Trail],
    progress: Progress,
) -> Iterator[Trace]:  # fmt: skip
    """Each place a session's name or data can be, the state's first.

    Parameters
    ----------
    control
        Names stream, session and the time from which retention counts; whether one was sent is read from the topic.
    trails
        What the changelog holds of the session, all partitions.
    """
    source, changelog = settings.stream(control.stream).topic, changelog_topic(settings, control.stream)
    labels_name_it = settings.stream(control.stream).is_repartitioned  # others name anomalies alone
    naming = [what for what in OUTPUTS if what != "labels" or labels_name_it]
    kept = {"source": source} | {what: output_topic(settings, what) for what in naming}
    if settings.incidents.enabled:
        kept |= {"incident-feed": settings.incident_feed, "incident-state": settings.incident_state}
    if settings.stream(control.stream).is_repartitioned:
        kept = {"repartition": settings.topic_of(control.stream)} | kept
    topics = {"changelog": changelog, **kept, "controls": controls_topic(settings)}
    existing = partition_counts(admin)
    configs = _configs(admin, [topic for topic in topics.values() if topic in existing])
    asked = topics["controls"] in existing and _was_asked(clients, topics["controls"], control, progress)
    of_changelog = _of_changelog(changelog, configs[changelog], trails)
    yield of_changelog
    yield _of_rocksdb(of_changelog, asked=asked)
    for place, topic in kept.items():
        yield _of_topic(place, topic, configs.get(topic), control.issued_ms)
    yield _of_controls(topics["controls"], asked=asked)


def _of_changelog(topic: str, config: TopicConfig, trails: Mapping[int, Trail]) -> Trace:
    for p, trail in trails.items():
        if trail.last.value is not None:
            began = trail.tombstone is not None
            note = f"partition {p}, offset {trail.last.offset}"
            note += "; an earlier session of that name ended or was deleted" if began else ""
            return Trace("changelog", topic, "still_there", None, note)
    ended = [trail for trail in trails.values() if trail.older_values]
    if not ended:
        note = "a tombstone with its name is left" if trails else "no record has its name"
        return Trace("changelog", topic, "gone", None, note)
    lag, segment_ms = int(config["max.compaction.lag.ms"]), int(config["segment.ms"])
    if "compact" not in config["cleanup.policy"] or lag > _UNBOUNDED_MS:
        note = "nothing bounds it: set the topic's cleanup.policy to compact, and max.compaction.lag.ms"
        return Trace("changelog", topic, "gone_at_compaction", None, note)
    until_ms = max(trail.last.time_ms for trail in ended) + max(lag, segment_ms)
    older = sum(trail.older_values for trail in ended)
    segment = format_duration_ms(segment_ms)
    note = f"{older:,} older rows below a tombstone; the first row after {segment} closes the segment they lie in"
    return Trace("changelog", topic, "gone_at_compaction", until_ms, note)


def _of_rocksdb(of_changelog: Trace, *, asked: bool) -> Trace:
    """What the changelog says holds for each worker's RocksDB too: it follows the changelog."""
    if of_changelog.state == "still_there":
        return Trace("rocksdb", "each worker's data_dir", "still_there", None, "as the changelog says")
    if asked:
        note = "a worker that deletes a session compacts RocksDB over it; one that was away does so before it reads on"
        return Trace("rocksdb", "each worker's data_dir", "gone", None, note)
    note = "it ended and was not deleted, so RocksDB drops its bytes when it next compacts"
    return Trace("rocksdb", "each worker's data_dir", "gone_at_compaction", None, note)


def _of_topic(place: str, topic: str, config: TopicConfig | None, now_ms: int) -> Trace:
    """Sources and outputs keep what they have; Kafka removes whole segments, once their last record is old enough."""
    if config is None:
        return Trace(place, topic, "gone", None, "there is no such topic")
    if place == "repartition":
        return Trace(
            place, topic, "kept", None, "segments of records scored 10 to 20 minutes ago are deleted by workers"
        )
    if place == "incident-state":
        note = "until the evidence of its stream and segment is gone, and the log is compacted"
        return Trace(place, topic, "kept", None, note)
    retention_ms, segment_ms = int(config["retention.ms"]), int(config["segment.ms"])
    if "delete" not in config["cleanup.policy"] or retention_ms < 0:
        note = "compacted" if "delete" not in config["cleanup.policy"] else "retention.ms is -1"
        return Trace(place, topic, "kept", None, f"for ever: {note}")
    lasts = f"retention {format_duration_ms(retention_ms)}, in segments of {format_duration_ms(segment_ms)} at most"
    return Trace(place, topic, "kept", now_ms + retention_ms + segment_ms, lasts)


def _of_controls(topic: str, *, asked: bool) -> Trace:
    if not asked:
        return Trace("controls", topic, "gone", None, "no deletion was asked for")
    note = "the latest deletion of that name stays, for a worker that is away now still needs it"
    return Trace("controls", topic, "kept", None, note)


def _was_asked(clients: Clients, topic: str, control: DeleteSession, progress: Progress) -> bool:
    with KeyReader(clients, topic, control_key(control), [0]) as reader:
        reader.read(progress)
        return reader.row is not None


def _configs(admin: AdminClient, topics: list[str]) -> dict[str, TopicConfig]:
    """Each topic's settings, defaults included."""
    found: dict[str, TopicConfig] = {}
    resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
    for resource, future in admin.describe_configs(resources, request_timeout=10).items():
        try:
            found[resource.name] = {name: entry.value for name, entry in future.result().items()}
        except KafkaException as error:
            message = f"the settings of topic {resource.name} cannot be read: {error.args[0].str()}"
            raise TopicError(message) from None
    return found
