"""Drift told by labels: a stream's labels folded in the order of their times, and what the drift topic lacks of it.

Labels are of anomalies, so an error is one that people called normal. What is found follows from what the topic of
labels holds alone, so every trainer finds the same, and the drift topic itself says what has been told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from confluent_kafka import Message

from detectors.drift_events import DriftEvent
from detectors.label_watch import Labelled, LabelState, update_many
from pipeline.anomaly_ids import AnomalyId
from pipeline.errors import UsageError
from pipeline.outputs import Output, Place
from pipeline.retraining import read_label
from pipeline.stream_drift import stream_drift_output

MOST = 20_000  # labels of a stream that are remembered, in case somebody changes their mind
_Key = tuple[int, str]  # when it was said, of which id


@dataclass
class _OfStream:
    labels: dict[str, tuple[int, bool]] = field(default_factory=dict)  # by id: when, and whether an anomaly
    waiting: list[_Key] = field(default_factory=list)
    last: _Key = (-1, "")
    state: LabelState = field(default_factory=LabelState)
    event: tuple[DriftEvent, Place] | None = None  # the latest, and where: it ends in the partition where it began
    offsets: dict[Place, int] = field(default_factory=dict)  # of the last label of each partition
    told: bool = False  # the drift topic says that one is open


class LabelDrift:
    """What has been read of labels and of drift. `take_...` may be given a message twice."""

    def __init__(self, streams: Iterable[str]) -> None:
        self._streams = {name: _OfStream() for name in streams}

    def take_label(self, message: Message) -> None:
        """Remember what is said of an anomaly; the later word replaces the one before."""
        label, at_ms = read_label(message), message.timestamp()[1]
        of = None if label is None else self._streams.get(label.stream)
        if label is None or of is None or of.labels.get(label.id) == (at_ms, label.is_anomaly):
            return
        try:
            AnomalyId.parse(label.id)
        except UsageError:  # of others
            return
        if of.labels.pop(label.id, None) is not None or (at_ms, label.id) < of.last:
            of.state, of.event, of.last = (
                LabelState(),
                None,
                (-1, ""),
            )  # from the beginning, as a compacted topic has it
            of.waiting = [(at, identity) for identity, (at, _) in of.labels.items()]
        of.labels[label.id] = at_ms, label.is_anomaly
        of.waiting.append((at_ms, label.id))
        if len(of.labels) > MOST:
            self._fold(of)
            of.labels.pop(min(of.labels, key=lambda identity: of.labels[identity][0]))

    def take_drift(self, message: Message) -> None:
        """Remember whether a drift of labels is told as open."""
        try:
            body: Any = orjson.loads(message.value() or b"")
        except orjson.JSONDecodeError:
            return
        of = self._streams.get(str(body.get("stream"))) if isinstance(body, dict) else None
        if of is not None and body.get("type") == "concept_drift" and body.get("phase") in {"began", "ended"}:
            of.told = body["phase"] == "began"

    def due(self, stream: str, now_ms: int) -> Output | None:
        """What the drift topic does not say yet; None where it says all, once both topics have been read."""
        of = self._streams[stream]
        self._fold(of)
        if of.event is None or of.event[0].has_begun == of.told:
            return None
        event, place = of.event
        return stream_drift_output(event, stream=stream, place=place, now_ms=now_ms)

    def was_told(self, stream: str) -> None:
        """What was due is on the topic."""
        of = self._streams[stream]
        of.told = of.event is not None and of.event[0].has_begun

    def _fold(self, of: _OfStream) -> None:
        for at_ms, identity in sorted(of.waiting):
            one = AnomalyId.parse(identity)
            of.offsets[one.place] = one.offset
            label = Labelled(True, of.labels[identity][1], at_ms, one.offset)
            of.state, events = update_many(of.state, [label])
            for event in events:
                place = one.place if event.has_begun or of.event is None else of.event[1]
                of.event = replace(event, offset=of.offsets[place]), place
            of.last = at_ms, identity
        of.waiting = []
