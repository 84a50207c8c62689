"""What asks for trainings, as topics tell it: drifts, incidents and labels, folded into what the guard wants to know.

Messages of versions to come and of others are looked at for what is used here, and otherwise passed over: nothing that
somebody writes to these topics may stop a trainer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from confluent_kafka import Message

from detectors.comparison import Labels
from detectors.labelled_sessions import Moment, offsets_at
from detectors.retrain_guard import Change, GuardRules, Known, NotYet, Past, Records, Wanted, decide
from features.events import Events
from pipeline.clients import Clients
from pipeline.lineage import who
from pipeline.retrain_feed import Feed
from pipeline.retrain_log import Job, RetrainLog
from pipeline.settings import Settings
from pipeline.stream_settings import RetrainSettings
from pipeline.topics import output_topic
from pipeline.wire import RetrainJob

_OVER = {"closed", "merged"}
# Remembered of a stream; older ones have been answered by a job long since.
_MOST_LABELS, _MOST_CHANGES = 100_000, 1_000

_Key = tuple[str, str | None, str | None]  # type and field of a drift; of one that never ends its id


def guard_rules(settings: RetrainSettings) -> GuardRules:
    """The section as plain numbers."""
    return GuardRules(
        frozenset(settings.triggers), settings.every, settings.span, settings.labels, settings.cool_down,
        settings.per_week, settings.quiet_minutes, settings.wait_for_incidents, settings.settle, settings.least_records,
    )  # fmt: skip


@dataclass
class _OfStream:
    """What has been read of one stream; `changes` by what changed, and within that by partition."""

    changes: dict[_Key, dict[str, Change]] = field(default_factory=dict)
    incidents: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


class Signals:
    """What has been read of the topics. `take_...` may be given a message twice."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._streams = {name: _OfStream() for name in settings.streams}

    def take_drift(self, message: Message) -> None:
        """Remember a drift of a type that asks for training until it ends; one without phases for good."""
        body, stream = _body(message), None
        stream = self._streams.get(str(body.get("stream")))
        kind, phase, identity = (body.get(key) for key in ("type", "phase", "id"))
        if stream is None or not isinstance(identity, str) or not isinstance(kind, str):
            return
        if kind not in self._settings.stream(str(body["stream"])).retrain.drift or body.get("action") == "watch":
            return
        about, place = body.get("field"), _place(body)
        key = (kind, about if isinstance(about, str) else None, None if phase in {"began", "ended"} else identity)
        if phase == "ended":
            ongoing = stream.changes.get(key, {})
            ongoing.pop(place, None)
            if not ongoing:
                stream.changes.pop(key, None)
            return
        since = body.get("since_ms")
        at_ms, detail = message.timestamp()[1], body.get("detail")
        change = Change(identity, since if isinstance(since, int) else None, at_ms, str(detail or kind))
        ongoing = stream.changes.setdefault(key, {})
        if place in ongoing and ongoing[place].id != identity:  # it began anew: what was known of it is over
            ongoing.clear()
        ongoing.setdefault(place, change)
        if len(stream.changes) > _MOST_CHANGES:
            stream.changes.pop(next(iter(stream.changes)))

    def take_incident(self, message: Message) -> None:
        """Remember an incident while it is open, and when that was told first."""
        body = _body(message)
        identity, kind, streams = body.get("id"), body.get("type"), body.get("streams")
        for name in streams if isinstance(streams, list) else []:
            stream = self._streams.get(str(name))
            if stream is None or not isinstance(identity, str):
                continue
            if kind in _OVER:
                stream.incidents.pop(identity, None)
            else:
                stream.incidents.setdefault(identity, message.timestamp()[1])

    def take_label(self, message: Message) -> None:
        """Remember when something was labelled first."""
        label = read_label(message)
        if label is not None and label.stream in self._streams:
            labels = self._streams[label.stream].labels
            labels.setdefault(label.id, message.timestamp()[1])
            if len(labels) > _MOST_LABELS:
                labels.pop(next(iter(labels)))

    def known(self, stream: str, jobs: Sequence[Job], served_ms: int | None) -> Known:
        """What the guard is told."""
        of = self._streams[stream]
        return Known(
            [_together(partitions.values()) for partitions in of.changes.values()],
            [Past(job.asked.id, job.asked.cause, job.asked.asked_ms, job.is_open) for job in jobs],
            sorted((told_ms, identity) for identity, told_ms in of.incidents.items()),
            sorted((at_ms, identity) for identity, at_ms in of.labels.items()),
            served_ms,
        )


def _together(changes: Any) -> Change:
    """What partitions say of one change: told when the first did, and since the earliest time of all."""
    first = min(changes, key=lambda change: (change.at_ms, change.id))
    since = [change.since_ms for change in changes if change.since_ms is not None]
    return Change(first.id, min(since, default=None), first.at_ms, first.detail)


def _body(message: Message) -> Mapping[str, Any]:
    try:
        body = orjson.loads(message.value() or b"")
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _place(body: Mapping[str, Any]) -> str:
    source = body.get("source")
    return f"{source.get('topic')}/{source.get('partition')}" if isinstance(source, dict) else ""


# --- jobs


def ask(
    settings: Settings, stream: str, signals: Signals, log: RetrainLog, served_ms: int | None, now_ms: int,
    records: Records,
) -> RetrainJob | NotYet | None:  # fmt: skip
    """The job that a stream asks for now; None where nothing asks."""
    section = settings.stream(stream).retrain
    known = signals.known(stream, log.of(stream), served_ms)
    found = decide(guard_rules(section), known, now_ms, records)
    return job_of(settings, stream, found, now_ms) if isinstance(found, Wanted) else found


def job_of(settings: Settings, stream: str, wanted: Wanted, now_ms: int, seed: int = 0) -> RetrainJob:
    """The message that asks for a training; its id says what asked, and so is the same whoever sees that."""
    return RetrainJob.model_validate(
        {
            "type": "job", "id": f"{stream}/{wanted.cause}/{wanted.trigger}", "stream": stream, "cause": wanted.cause,
            "detail": wanted.detail, "trigger": wanted.trigger if wanted.cause in {"drift", "labels"} else None,
            "since_ms": wanted.since_ms, "until_ms": wanted.until_ms, "world_ms": wanted.world_ms,
            "least_records": settings.stream(stream).retrain.least_records, "seed": seed, "asked_ms": now_ms,
            "by": who(settings),
        }
    )  # fmt: skip


# --- labels


@dataclass(frozen=True)
class TopicLabel:
    """What people say of a decision; `moment` is when it was in which session, where the label tells."""

    stream: str
    id: str
    is_anomaly: bool
    moment: Moment | None = None


def read_label(message: Message) -> TopicLabel | None:
    """What a message says of a decision, or None where it says nothing of the kind."""
    body = _body(message)
    stream, identity, label = (body.get(key) for key in ("stream", "id", "label"))
    if not isinstance(stream, str) or not isinstance(identity, str) or label not in {"normal", "anomaly"}:
        return None
    session, time_ms = body.get("session"), body.get("time_ms")
    moment = Moment(session, time_ms) if isinstance(session, str) and isinstance(time_ms, int) else None
    return TopicLabel(stream, identity, label == "anomaly", moment)


def said_of(settings: Settings, clients: Clients, stream: str, until_ms: int | None = None) -> dict[str, TopicLabel]:
    """What people said of each id of a stream, where the topic of labels is there; the later word counts.

    Parameters
    ----------
    until_ms
        By Kafka's timestamps; None: all there is. Compaction may have removed what was said before that.
    """
    topic, found = output_topic(settings, "labels"), dict[str, TopicLabel]()

    def take(message: Message) -> None:
        label = read_label(message)
        if label is not None and label.stream == stream and (until_ms is None or message.timestamp()[1] <= until_ms):
            found[label.id] = label

    if topic in clients.admin().list_topics(timeout=10).topics:
        feed = Feed(clients, {topic: take}, time.monotonic)
        try:
            feed.read_to_the_end()
        finally:
            feed.close()
    return found


def labels_of(
    settings: Settings, clients: Clients, stream: str, arrived: Sequence[Events], places: Sequence[Any]
) -> Labels:
    """What people said of a stream's records and sessions.

    Parameters
    ----------
    arrived, places
        The parts of the history, and the partition of each.

    Returns
    -------
    labels
        Of a repartitioned stream those of records alone: where its sessions end by order is not known here.
    """
    said = [(kind, label) for label in said_of(settings, clients, stream).values() if (kind := _kind_of(label.id))]
    if settings.stream(stream).is_repartitioned:  # ids name another topic than the history's
        return labels_at(arrived, [label for kind, label in said if kind == "record"])
    labels: dict[tuple[int, int, str], bool] = {}
    numbers = {str(place): number for number, place in enumerate(places)}
    for kind, label in said:
        _, partition, offset, _ = label.id.rsplit("/", 3)
        if partition in numbers and offset.isdigit():
            labels[numbers[partition], int(offset), kind] = label.is_anomaly
    return labels


def labels_at(arrived: Sequence[Events], said: Sequence[TopicLabel]) -> Labels:
    """Labels of records that are alone at their moment; which of several was meant is not known."""
    at_moment: dict[Moment, list[TopicLabel]] = {}
    for label in said:
        if label.moment is not None:
            at_moment.setdefault(label.moment, []).append(label)
    return {
        (number, offsets[0], "record"): at_moment[moment][0].is_anomaly
        for number, events in enumerate(arrived)
        for moment, offsets in offsets_at(events, at_moment).items()
        if len(offsets) == len(at_moment[moment]) == 1
    }


def _kind_of(identity: str) -> str | None:
    """`record` or `session`; None of what is labelled otherwise, or is no id."""
    parts = identity.rsplit("/", 3)  # ... / partition / offset / kind
    return parts[3] if len(parts) == 4 and parts[3] in {"record", "session"} else None
