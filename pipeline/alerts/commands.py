"""`offbeat alerts status`, `redeliver` and `enable`: what waits, and what people ask of running processes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from rich.console import Console
from rich.table import Table

from pipeline.alerts.dead_letters import TOPIC, GivenUp, parse
from pipeline.alerts.index import Index
from pipeline.alerts.requests import Enable, Redeliver, Request, encode_request
from pipeline.clients import Clients
from pipeline.errors import AlertError, BrokerUnavailableError, TopicError, UsageError
from pipeline.history import parse_moment_ms
from pipeline.settings import Settings
from pipeline.topic_reading import read_all
from pipeline.topics import output_topic, partition_counts

_FLUSH_S = 30.0


def show_status(settings: Settings, *, as_json: bool) -> None:
    """Print of each receiver how much it has not got, for how long, and whether it is disabled."""
    clients, now_ms = Clients(settings), time.time_ns() // 1_000_000
    _partitions(clients, settings.alert_outbox)
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder) / "status.sqlite")
        for record in read_all(clients, settings.alert_outbox, _silent):
            index.apply(record.partition, [(record.key, record.value)])
        names = sorted(index.receivers() | settings.alerts.receivers.keys())
        rows = [row for name in names if _says(row := _status(index, name, now_ms), settings)]
        index.close()
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("receiver", "pending", "failing", "oldest", "disabled")
    for row in rows:
        age = "" if row["oldest_s"] is None else f"{row['oldest_s']:,.0f} s"
        table.add_row(row["receiver"], f"{row['pending']:,}", f"{row['failing']:,}", age, row["disabled"] or "")
    Console(highlight=False).print(table)


def _status(index: Index, name: str, now_ms: int) -> dict[str, Any]:
    count, oldest_ms = index.waiting(name)
    return {
        "receiver": name, "pending": count, "failing": index.trying(name),
        "oldest_s": None if oldest_ms is None else max(0, now_ms - oldest_ms) / 1000, "disabled": index.disabled(name),
    }  # fmt: skip


def _says(row: dict[str, Any], settings: Settings) -> bool:
    """Whether there is something to say of a receiver that the config may not have any more."""
    return row["receiver"] in settings.alerts.receivers or bool(row["pending"])


def redeliver(
    settings: Settings, ids: Sequence[str], *, receiver: str | None, since: str | None, as_json: bool
) -> None:
    """Ask running processes to send again what was given up, and say what that is.

    Raises
    ------
    UsageError
        There is no such receiver, or `since` is no time.
    AlertError
        No dead letter is meant, or one's receiver is not in the config.
    """
    if receiver is not None:
        _check_receiver(settings, receiver)
    now_ms = time.time_ns() // 1_000_000
    since_ms = 0 if since is None else parse_moment_ms(since, now_ms)
    clients = Clients(settings)
    partitions = _partitions(clients, settings.alert_requests)
    topic = output_topic(settings, TOPIC)
    letters = (parse(record.value) for record in read_all(clients, topic, _silent))
    found = select((letter for letter in letters if letter is not None), ids, receiver, since_ms)
    if not found:
        message = f"no dead letter of alerts in {topic} is meant; `offbeat tail dead-letters --from-start` shows them"
        raise AlertError(message)
    for letter in found:
        _check_receiver(settings, letter[0].receiver)
    _send(clients, settings.alert_requests, [(of[0].partition % partitions, _again(of)) for of in found])
    if as_json:
        print(json.dumps([{"receiver": of[0].receiver, "message": of[0].message} for of in found]))
        return
    for of in found:
        print(f"{of[0].message} to {of[0].receiver}: {of[0].reason}, {of[0].detail}")
    print(f"Asked for {len(found):,} message(s); a running `offbeat alerts` sends them.")


def select(
    letters: Iterable[GivenUp], ids: Sequence[str], receiver: str | None, since_ms: int
) -> list[list[GivenUp]]:  # fmt: skip
    """Messages that are meant, each as the dead letters of all that it told, in its order.

    An id is that of a message, a change, an incident or a dead letter.
    """
    messages: dict[tuple[str, str], dict[str, GivenUp]] = {}
    for letter in letters:
        if receiver in {None, letter.receiver} and letter.detected_ms >= since_ms:
            messages.setdefault((letter.receiver, letter.message), {})[letter.change.id] = letter
    wanted = set(ids)
    found = []
    for of in messages.values():
        named = {name for d in of.values() for name in (d.id, d.message, d.change.id, d.change.subject)}
        if not wanted or not wanted.isdisjoint(named):
            order = next(iter(of.values())).changes
            found.append([of[change] for change in order if change in of])
    return found


def _again(of: Sequence[GivenUp]) -> Redeliver:
    return Redeliver(of[0].receiver, of[0].message, tuple(letter.change for letter in of))


def enable(settings: Settings, receiver: str) -> None:
    """Ask running processes to give a receiver messages again.

    Raises
    ------
    UsageError
        There is no such receiver.
    """
    _check_receiver(settings, receiver)
    clients = Clients(settings)
    partitions = _partitions(clients, settings.alert_requests)
    _send(clients, settings.alert_requests, [(p, Enable(receiver)) for p in range(partitions)])
    print(f"Asked for; `offbeat alerts redeliver --receiver {receiver}` sends what was given up meanwhile.")


def _check_receiver(settings: Settings, name: str) -> None:
    if name not in settings.alerts.receivers:
        there = ", ".join(settings.alerts.receivers) or "none"
        message = f"there is no receiver {name!r}; alerts.receivers has: {there}"
        raise UsageError(message)


def _partitions(clients: Clients, topic: str) -> int:
    counts = partition_counts(clients.admin())
    if topic not in counts:
        message = f"topic {topic} does not exist yet; start `offbeat alerts`, or run `offbeat topics --create`"
        raise TopicError(message)
    return counts[topic]


def _send(clients: Clients, topic: str, requests: Sequence[tuple[int, Request]]) -> None:
    producer: Producer = clients.confluent_producer()
    for partition, request in requests:
        key, value = encode_request(request)
        producer.produce(topic, value, key=key, partition=partition)
        producer.poll(0)
    if producer.flush(_FLUSH_S):
        message = f"the broker did not acknowledge all requests within {_FLUSH_S:.0f} s; look at it, then ask again"
        raise BrokerUnavailableError(message)


def _silent(_done: int, _total: int) -> None:
    """These topics are read in no time."""
