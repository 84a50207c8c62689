"""`offbeat mute`: known anomalies that shall count for no incident for a time.

A mute goes through the feed of anomalies, into each of its partitions: so it has a place in the log, and who reads
the log again finds it in force from the same anomaly on. No verdict changes by it.
"""

from __future__ import annotations

import json
import time
from uuid import uuid4

import msgspec
from confluent_kafka import Producer

from detectors.incident_state import LONGEST_NAME, Mute
from pipeline.clients import Clients
from pipeline.errors import BrokerUnavailableError, IncidentError, UsageError
from pipeline.incident_reader import feed_partitions, read_states
from pipeline.lineage import who
from pipeline.notices import Unmute, encode
from pipeline.sessions import iso
from pipeline.settings import Settings
from pipeline.units import parse_duration_ms

_FLUSH_S = 30.0


def add_mute(
    settings: Settings, lasts: str, reason: str, *, stream: str | None, segment: str | None, session: str | None,
    field: str | None, value: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Send a mute to the incident stage, and print its name."""
    mute = make_mute(
        settings, lasts, reason, stream=stream, segment=segment, session=session, field=field, value=value,
        now_ms=time.time_ns() // 1_000_000,
    )  # fmt: skip
    read_states(settings)  # or a sentence on what is missing
    _send(settings, encode(mute))
    print(json.dumps(msgspec.to_builtins(mute)) if as_json else f"Muted as {mute.id} until {iso(mute.until_ms)}.")


def make_mute(
    settings: Settings, lasts: str, reason: str, *, stream: str | None, segment: str | None, session: str | None,
    field: str | None, value: str | None, now_ms: int,
) -> Mute:  # fmt: skip
    """A mute as it was asked for.

    Raises
    ------
    UsageError
        It names nothing, or what cannot be.
    """
    if stream is not None:
        settings.stream(stream)  # or a sentence
    if (stream, segment, session, field) == (None,) * 4:
        message = "a mute without --stream, --segment, --session or --field would silence everything; name one of them"
        raise UsageError(message)
    if value is not None and field is None:
        message = "--value is that of a field; name it with --field"
        raise UsageError(message)
    try:
        until_ms = now_ms + parse_duration_ms(lasts)
    except ValueError as error:
        message = f"--for is {lasts!r}; {error}"
        raise UsageError(message) from None
    segment, value = (None if text is None else text[:LONGEST_NAME] for text in (segment, value))
    return Mute(f"mute-{uuid4().hex[:8]}", until_ms, reason, who(settings), now_ms, stream, segment, session, field,
                value)  # fmt: skip


def list_mutes(settings: Settings, *, as_json: bool) -> None:
    """Print mutes in force, and how much each has kept from counting."""
    states, now_ms = read_states(settings), time.time_ns() // 1_000_000
    mutes = {name: mute for state in states for name, mute in state.mutes.items() if mute.until_ms > now_ms}
    counts = {name: sum(s.suppressed[name].count for s in states if name in s.suppressed) for name in mutes}
    if as_json:
        print(json.dumps([msgspec.to_builtins(mute) | {"suppressed": counts[name]} for name, mute in mutes.items()]))
        return
    for name, mute in mutes.items():
        until = f"until {iso(mute.until_ms)}, by {mute.by}"
        print(f"{name}  {in_words(mute)}, {until}: {mute.reason} ({counts[name]:,} suppressed)")
    if not mutes:
        print("Nothing is muted.")


def remove_mute(settings: Settings, name: str) -> None:
    """Lift a mute.

    Raises
    ------
    IncidentError
        There is none of that name.
    """
    if not any(name in state.mutes for state in read_states(settings)):
        message = f"there is no mute {name!r}; `offbeat mute list` shows those there are"
        raise IncidentError(message)
    _send(settings, encode(Unmute(name)))
    print(f"{name} is lifted.")


def in_words(mute: Mute) -> str:
    """What it is about."""
    about = {"stream": mute.stream, "segment": mute.segment, "session": mute.session, mute.field or "": mute.value}
    named = [f"{what} {value}" for what, value in about.items() if what and value is not None]
    return ", ".join([*named, *([mute.field] if mute.field and mute.value is None else [])])


def _send(settings: Settings, value: bytes) -> None:
    """To each partition of the feed, for each decides by its own order."""
    producer: Producer = Clients(settings).confluent_producer()
    for partition in range(feed_partitions(settings)):
        producer.produce(settings.incident_feed, value, partition=partition)
    if producer.flush(_FLUSH_S):
        servers = settings.broker.servers
        message = f"no Kafka broker answers at {servers}: nothing was acknowledged for {_FLUSH_S:.0f} s; try again"
        raise BrokerUnavailableError(message)
