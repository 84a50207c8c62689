"""Promotions on their topic: what is sent is what workers read, and what others write there never stops one.

The topic is compacted and has one partition; its key is the stream, so what it holds of a stream is what serves it.
"""

from __future__ import annotations

import socket
from typing import Protocol

import orjson
from pydantic import ValidationError

from pipeline.clients import Clients
from pipeline.errors import BrokerUnavailableError, TopicError
from pipeline.logs import get_logger
from pipeline.outputs import Headers, event_headers
from pipeline.sending import send_one
from pipeline.settings import Settings
from pipeline.topics import control_topics, create_topics, models_topic, partition_counts
from pipeline.wire import Promotion

_PROBE_S = 2.0

log = get_logger()


def promotion_key(promotion: Promotion) -> bytes:
    """The record key: compaction keeps the latest promotion of each stream."""
    return promotion.stream.encode()


def encode_promotion(promotion: Promotion) -> tuple[bytes, bytes, Headers]:
    """Key, value and CloudEvents headers of a promotion."""
    identity = f"{promotion.stream}/{promotion.digest}/{promotion.issued_ms}"
    headers = event_headers(promotion.stream, identity, "promotion", promotion.issued_ms)
    return promotion_key(promotion), orjson.dumps(promotion.model_dump()), headers


def parse_promotion(key: bytes | None, value: bytes | None) -> Promotion | None:
    """A promotion from the topic, or None with a warning: what others wrote there must never stop a worker.

    None is also what a tombstone gives, and a promotion of a later version, whose type is unknown.
    """
    if value is None:
        return None
    try:
        promotion = Promotion.model_validate_json(value, strict=True)
    except ValidationError as error:
        why = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors())
    else:
        if promotion_key(promotion) == key:
            return promotion
        why = "its key is not its stream"
    shown = None if key is None else key[:200].decode("utf-8", "replace")
    log.warning("promotion passed over: it is not ours, damaged, or of a later version", key=shown, why=why)
    return None


class Serves(Protocol):
    """Where it stands which bundle serves a stream."""

    def current(self) -> Promotion | None:
        """The promotion by which it serves; None where none does."""


def tell_workers(settings: Settings, registry: Serves) -> None:
    """Publish what serves, and again until that is what still serves.

    Of two that promote at once one writes `serving` last. Whoever publishes looks again afterwards, so the last message
    names what serves, in whichever order the two came to the broker.

    Raises
    ------
    BrokerUnavailableError, TopicError
        Nobody has been told.
    """
    clients = Clients(settings)
    topic = _models_topic(settings, clients)
    promotion = registry.current()
    while promotion is not None:
        send_one(clients, topic, encode_promotion(promotion), "promotion")
        told, promotion = promotion, registry.current()
        if promotion is not None and promotion.digest == told.digest:
            return


def _models_topic(settings: Settings, clients: Clients) -> str:
    """The topic of promotions; it is made where it is missing and may be."""
    if not any(_answers(server) for server in settings.broker.addresses):
        message = f"no Kafka broker answers at {settings.broker.servers}"
        raise BrokerUnavailableError(message)
    admin, topic = clients.admin(), models_topic(settings)
    if topic not in partition_counts(admin):
        if not settings.topics.create:
            message = f"topic {topic} does not exist and topics.create is off: run `offbeat topics --create`"
            raise TopicError(message)
        create_topics(admin, settings, [t for t in control_topics(settings) if t.name == topic])
    return topic


def _answers(server: str) -> bool:
    """Whether anybody listens there: much sooner said than by a client, which tries for as long as it may."""
    host, _, port = server.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
    except (OSError, ValueError):
        return False
    return True
