"""Incidents as commands see them: what was told of them, and the incident stage's state up to the feed's end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import orjson
from confluent_kafka import IsolationLevel, KafkaException, Message
from confluent_kafka import TopicPartition as At
from confluent_kafka.admin import AdminClient, OffsetSpec

from detectors.incident_state import IncidentState
from pipeline.clients import Clients
from pipeline.consuming import offsets_of
from pipeline.errors import BrokerUnavailableError, IncidentError, TopicError, UsageError
from pipeline.incident_stage import restore_state, take
from pipeline.recovery import read_changelog
from pipeline.settings import Settings
from pipeline.topics import output_topic, partition_counts

Json = dict[str, Any]


def read_incidents(settings: Settings) -> dict[str, Json]:
    """The last that was told of each incident, by id, in the order in which they began."""
    clients = Clients(settings)
    admin, topic = clients.admin(), output_topic(settings, "incidents")
    last: dict[str, Json] = {}
    for p in range(_partitions(admin, topic)):
        for message in _read(clients, admin, topic, p, None):
            try:
                told = orjson.loads(message.value() or b"")
                if told["revision"] >= last.get(told["id"], told)["revision"]:
                    last[told["id"]] = told
            except (ValueError, KeyError, TypeError):  # written by others
                continue
    return dict(sorted(last.items(), key=lambda item: (item[1]["start_ms"], item[0])))


def read_incident(settings: Settings, name: str) -> Json:
    """The last that was told of one incident.

    Raises
    ------
    IncidentError
        There is none, or its messages are gone.
    """
    incidents = read_incidents(settings)
    if name not in incidents:
        message = (
            f"topic {output_topic(settings, 'incidents')} has no incident {name!r}; `offbeat incidents list` shows "
            "those it has"
        )
        raise IncidentError(message)
    return incidents[name]


def read_states(settings: Settings) -> list[IncidentState]:
    """By partition of the feed, the incident stage's state as it is once all of the feed is read."""
    if not settings.incidents.enabled:
        message = "no incidents are made, for incidents.enabled is false; set it to true, and restart the workers"
        raise UsageError(message)
    clients = Clients(settings)
    admin, feed, rules = clients.admin(), settings.incident_feed, settings.incidents.rules
    states = []
    for p in range(_partitions(admin, feed)):
        state, position = restore_state(clients, admin, settings.incident_state, p, threading.Event())
        messages = ((m.value(), max(0, m.timestamp()[1])) for m in _read(clients, admin, feed, p, position))
        states.append(take(state, messages, rules).state)
    return states


def feed_partitions(settings: Settings) -> int:
    """How many partitions the feed has."""
    return _partitions(Clients(settings).admin(), settings.incident_feed)


def _partitions(admin: AdminClient, topic: str) -> int:
    counts = partition_counts(admin)
    if topic not in counts:
        message = f"topic {topic} does not exist yet; start `offbeat worker`, or run `offbeat topics --create`"
        raise TopicError(message)
    return counts[topic]


def _read(clients: Clients, admin: AdminClient, topic: str, partition: int, position: int | None) -> Iterator[Message]:
    """A partition from a position, or its beginning, up to its end."""
    at = [At(topic, partition)]
    try:
        low = offsets_of(admin, at, OffsetSpec.earliest(), IsolationLevel.READ_COMMITTED)[partition]
        high = offsets_of(admin, at, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)[partition]
        start = At(topic, partition, max(low, low if position is None else position))
        for _, messages in read_changelog(clients, start, high, threading.Event()):
            yield from messages
    except KafkaException as error:
        message = f"no Kafka broker answers at {clients.servers} ({error.args[0].str()}); try again when it is back"
        raise BrokerUnavailableError(message) from None
