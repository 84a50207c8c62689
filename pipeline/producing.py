"""Sending a file's lines to a stream's topic."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from features.events import Events
from pipeline.clients import Clients
from pipeline.errors import BrokerUnavailableError, TopicError
from pipeline.score import Line, read_lines
from pipeline.serving import make_session_decoder
from pipeline.stream_settings import StreamSettings

_CHUNK = 500
_FLUSH_S = 60.0


def produce_lines(
    clients: Clients, stream: StreamSettings, source: Path, rate: float | None, progress: Callable[[int], None],
    clock: Callable[[], float], sleep: Callable[[float], None],
) -> int:  # fmt: skip
    """Send every line with its session as key; returns how many were acknowledged.

    A line's own `_key` wins; one without a session goes without a key, as a faulty producer's would.

    Raises
    ------
    TopicError
        A record is larger than client or topic allow, or the broker refused one.
    """
    producer, decoder = clients.confluent_producer(), make_session_decoder(stream)
    failures: list[KafkaError] = []
    sent = 0

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(error)

    began = clock()
    lines = read_lines(source, stream.topic, progress)
    size = _CHUNK if rate is None else max(1, min(_CHUNK, int(rate / 20)))
    while chunk := list(islice(lines, size)):
        if rate is not None:
            sleep(max(0.0, began + sent / rate - clock()))
        for line, key in zip(chunk, _keys(chunk, decoder.decode(chunk, check_key=False)), strict=True):
            _send(producer, stream.topic, line, key, delivered)
            sent += 1
        producer.poll(0)
        _raise_first(failures)
    if producer.flush(_FLUSH_S):
        message = f"the broker did not acknowledge all records within {_FLUSH_S:.0f} s; some may be missing"
        raise BrokerUnavailableError(message)
    _raise_first(failures)
    return sent


def _keys(chunk: list[Line], events: Events) -> list[bytes | None]:
    """A line's own key, else its session."""
    keys = [line.key for line in chunk]
    for index, session in zip(events.index.tolist(), events.session.tolist(), strict=True):
        if keys[index] is None:
            keys[index] = events.sessions[session].encode()
    return keys


def _send(
    producer: Producer,
    topic: str,
    line: Line,
    key: bytes | None,
    delivered: Callable[[KafkaError | None, Message], None],
) -> None:
    while True:
        try:
            producer.produce(topic, line.value, key=key, timestamp=line.timestamp, on_delivery=delivered)
            return
        except BufferError:
            producer.poll(0.1)
        except KafkaException as error:
            _raise_first([error.args[0]], line)


def _raise_first(failures: list[KafkaError], line: Line | None = None) -> None:
    if not failures:
        return
    where = "" if line is None else f"line {line.number} ({len(line.value or b''):,} bytes): "
    if failures[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
        message = (
            f"{where}a record is larger than Kafka takes: the client's limit is 1,000,000 bytes, the topic's is its "
            "max.message.bytes (1,048,588 unless set); make the record smaller"
        )
        raise TopicError(message)
    message = f"{where}a record could not be produced: {failures[0].str()}"
    raise TopicError(message)
