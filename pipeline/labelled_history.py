"""Labels on their way into training: a history read from the stream's topic, without what people called anomalies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from detectors.labelled_sessions import LeftOut, leave_out
from pipeline.anomaly_ids import AnomalyId
from pipeline.clients import Clients
from pipeline.errors import UsageError
from pipeline.history import History
from pipeline.retraining import TopicLabel, said_of
from pipeline.serving import make_parts
from pipeline.settings import Settings


def without_labelled(
    settings: Settings, clients: Clients, stream: str, history: History, until_ms: int | None = None
) -> tuple[History, LeftOut]:
    """What teaches, by what people had said until then, by Kafka's clock."""
    said = said_of(settings, clients, stream, until_ms)
    section = settings.stream(stream)
    anomalies: Sequence[set[Any]]
    if section.is_repartitioned:  # ids name the internal topic's offsets, but the source was read
        moments = [one.moment for one in said.values() if one.is_anomaly]
        anomalies, nowhere = [set(moments) - {None} for _ in history.places], moments.count(None)
    else:
        anomalies, nowhere = anomalies_of(said, section.topic, history.places), 0
    events, left_out = leave_out(history.events, anomalies, make_parts(settings, stream, None))
    return replace(history, events=events), left_out._replace(unknown=left_out.unknown + nowhere)


def anomalies_of(said: Mapping[str, TopicLabel], topic: str, places: Sequence[Any]) -> list[set[int]]:
    """Offsets that were called anomalies, by partition, in the order of `places`.

    Where a topic was made anew under its name, only ids of the latest one that anything was said of count.

    Parameters
    ----------
    said
        What was said of each id; what is no id is passed over.
    topic
        Whose offsets count.
    """
    found = [one for text in said if (one := _parsed(text)) is not None and one.place.topic == topic]
    newest = {one.place.partition: one.place.epoch for one in sorted(found, key=lambda one: one.place.epoch)}
    offsets: dict[Any, set[int]] = {}
    for one in found:
        if said[str(one)].is_anomaly and one.place.epoch == newest[one.place.partition]:
            offsets.setdefault(one.place.partition, set()).add(one.offset)
    return [offsets.get(place, set()) for place in places]


def _parsed(text: str) -> AnomalyId | None:
    """An id; None of what others wrote that is none."""
    try:
        found = AnomalyId.parse(text)
    except UsageError:
        return None
    return found if str(found) == text else None


def in_words(left_out: LeftOut) -> str | None:
    """What to tell whoever trains; None where there is nothing to tell."""
    if not left_out.sessions:
        return None
    return f"left out {left_out.sessions:,} sessions ({left_out.records:,} records) that hold labelled anomalies"
