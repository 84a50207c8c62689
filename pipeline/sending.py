"""Sending one message and waiting until the broker has it, as commands do."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException, Message

from pipeline.clients import Clients
from pipeline.errors import BrokerUnavailableError, TopicError
from pipeline.outputs import Headers

_FLUSH_S = 30.0


def send_one(clients: Clients, topic: str, message: tuple[bytes, bytes, Headers], what: str) -> None:
    """Send a message; `what` names it in sentences.

    Raises
    ------
    TopicError, BrokerUnavailableError
        The broker refused, or did not acknowledge in time.
    """
    key, value, headers = message
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(error)

    producer = clients.confluent_producer()
    try:
        producer.produce(topic, value, key=key, headers=headers, on_delivery=delivered)
    except KafkaException as error:  # larger than the client takes
        failures.append(error.args[0])
    if producer.flush(_FLUSH_S):
        sentence = f"the broker did not acknowledge the {what} within {_FLUSH_S:.0f} s; look at it, then ask again"
        raise BrokerUnavailableError(sentence)
    if failures:
        sentence = f"the {what} could not be sent to {topic}: {failures[0].str()}"
        raise TopicError(sentence)
