"""What topics say that asks for a training, and what of it is passed over."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.labelled_sessions import Moment
from detectors.retrain_guard import Change, Known, NotYet, Past
from features.decode import Decoder
from pipeline.clients import Clients
from pipeline.errors import ConfigError
from pipeline.outputs import Place
from pipeline.retrain_log import RetrainLog, encode, end_of, parse
from pipeline.retraining import Signals, TopicLabel, ask, labels_at, labels_of
from pipeline.score import Line
from pipeline.sentences import sentence_of
from pipeline.settings import Settings, load_settings, parse_settings
from pipeline.topics import Topic, create_topics
from pipeline.wire import Incident, RetrainJob, RetrainOutcome
from tests.kafka import Stack

NOW_MS = 1_700_000_000_000


def settings_with(**retrain: Any) -> Settings:
    stream = {"topic": "shop.orders", "session": {"by": "s"}, "tokens": ["action"], "retrain": retrain}
    return parse_settings({"streams": {"orders": stream}}, {})


@dataclass(frozen=True)
class Said:
    """A record of a topic, as confluent gives it."""

    body: Any
    at_ms: int = NOW_MS

    def value(self) -> bytes | None:
        """As bytes; what is no bytes as JSON."""
        return self.body if isinstance(self.body, bytes | None) else json.dumps(self.body).encode()

    def timestamp(self) -> tuple[int, int]:
        """Kind and milliseconds."""
        return 1, self.at_ms


def incident(identity: str, kind: str) -> dict[str, Any]:
    """A message as the worker sends it, so that another name of a field is another name here."""
    made = Incident.model_validate(
        {
            "type": kind, "id": identity, "revision": 1, "severity": "low", "start_ms": 5, "last_ms": 5, "end_ms": None,
            "merged_into": None, "anomalies": 1, "suppressed": 0, "withheld": 0, "streams": ["orders", "other"],
            "segments": [], "sessions": 1, "session_names": [], "contributors": [], "causes": [], "examples": [],
            "summary": "", "scope": "", "detected_ms": 5,
        }
    )  # fmt: skip
    return made.model_dump()


def drift(kind: str, *, partition: int = 0, phase: str | None = "began", since_ms: int | None = 5, **more: Any) -> Any:
    source = {"topic": "shop.orders", "partition": partition, "offset": 9}
    body = {"type": kind, "id": f"orders/shop.orders/{partition}/9/{kind}", "stream": "orders", "source": source}
    return body | {"phase": phase, "since_ms": since_ms, "field": "action", "detail": "other values"} | more


def changes(signals: Signals) -> list[Change]:
    return list(signals.known("orders", [], None).changes)


def test_partitions_tell_of_one_change() -> None:
    """It is told when the first partition did, since the earliest time, and is over when it is in all of them."""
    signals = Signals(settings_with(triggers=["drift"]))
    signals.take_drift(Said(drift("field_unknown_values", partition=1, since_ms=70), NOW_MS))
    signals.take_drift(Said(drift("field_unknown_values", partition=0, since_ms=50), NOW_MS + 1))
    identity = "orders/shop.orders/1/9/field_unknown_values"
    assert changes(signals) == [Change(identity, 50, NOW_MS, "other values")]
    signals.take_drift(Said(drift("field_unknown_values", partition=1, since_ms=70), NOW_MS))  # told twice
    for partition, left in ((1, 1), (0, 0)):
        signals.take_drift(Said(drift("field_unknown_values", partition=partition, phase="ended"), NOW_MS + 9))
        assert len(changes(signals)) == left


def test_a_change_that_begins_anew_is_another() -> None:
    """A bundle may have learned one between two that look alike; what other partitions said before is over."""
    signals = Signals(settings_with(triggers=["drift"]))
    for partition in (0, 1):
        signals.take_drift(Said(drift("field_missing", partition=partition, id=f"first-{partition}"), NOW_MS))
    signals.take_drift(Said(drift("field_missing", partition=1, id="second"), NOW_MS + 9))
    assert [(change.id, change.at_ms) for change in changes(signals)] == [("second", NOW_MS + 9)]


def test_only_what_is_listed_asks() -> None:
    """Types that are not in the list, other streams, drifts that are to be watched, and what is no message."""
    signals = Signals(settings_with(triggers=["drift"], drift=["input_drift"]))
    for said in (
        drift("records_lost"), drift("field_missing"), drift("input_drift", stream="other"),
        drift("input_drift", action="watch"), drift("input_drift", id=7), b"no json", b"7", None, {},
    ):  # fmt: skip
        signals.take_drift(Said(said))
    assert changes(signals) == []
    signals.take_drift(Said(drift("input_drift", phase=None, id="a", since_ms=None, action="retrain")))
    signals.take_drift(Said(drift("input_drift", phase=None, id="b")))
    assert [change.id for change in changes(signals)] == ["a", "b"]  # without phases each is one of its own


def test_momentary_drifts_are_bounded() -> None:
    """Of drifts that never end the last thousand are remembered."""
    signals = Signals(settings_with(triggers=["drift"]))
    for n in range(1_500):
        signals.take_drift(Said(drift("surprise_drift", phase=None, id=str(n))))
    assert [change.id for change in changes(signals)] == [str(n) for n in range(500, 1_500)]


def test_incidents_are_open_until_they_close() -> None:
    """Of all streams that an incident names; merging ends one as well."""
    signals = Signals(settings_with())
    over: list[tuple[int, str]] = []
    for at_ms, kind, left in ((1, "opened", [(1, "i")]), (2, "updated", [(1, "i")]), (3, "merged", over)):
        signals.take_incident(Said(incident("i", kind), at_ms))
        assert signals.known("orders", [], None).incidents == left
    signals.take_incident(Said(incident("j", "opened"), 4))
    signals.take_incident(Said(b"{"))
    assert signals.known("orders", [], None).incidents == [(4, "j")]
    signals.take_incident(Said(incident("j", "closed"), 5))
    assert signals.known("orders", [], None).incidents == []


def test_a_label_counts_once() -> None:
    """When its decision was labelled first; a change of mind is no further label."""
    signals = Signals(settings_with())
    for at_ms, label in ((3, "normal"), (5, "anomaly")):
        signals.take_label(Said({"stream": "orders", "id": "x", "label": label}, at_ms))
    signals.take_label(Said({"stream": "orders", "id": "y", "label": "perhaps"}))
    signals.take_label(Said({"stream": "other", "id": "y", "label": "normal"}))
    assert list(signals.known("orders", [], None).labels) == [(3, "x")]


def test_the_same_trigger_gives_the_same_job() -> None:
    """Whenever one asks: the id says what asked. A guard that says no gives no job."""
    settings, log = settings_with(triggers=["drift"], least_records=10, settle="0s"), RetrainLog()
    signals = Signals(settings)
    signals.take_drift(Said(drift("field_missing")))
    jobs = [ask(settings, "orders", signals, log, None, NOW_MS + n, lambda _moment: 10) for n in (0, 60_000)]
    assert isinstance(jobs[0], RetrainJob)
    assert isinstance(jobs[1], RetrainJob)
    assert jobs[0].id == jobs[1].id == "orders/drift/orders/shop.orders/0/9/field_missing"
    assert (jobs[0].trigger, jobs[0].world_ms) == ("orders/shop.orders/0/9/field_missing", 5)
    assert jobs[0].least_records == 10
    log.take(jobs[0])
    log.take(jobs[1])
    assert [job.asked for job in log.of("orders")] == [jobs[0]]
    assert ask(settings, "orders", signals, log, None, NOW_MS + 1, lambda _moment: 10) is None
    log = RetrainLog()
    assert isinstance(ask(settings, "orders", signals, log, None, NOW_MS, lambda _moment: 9), NotYet)


JOB = RetrainJob(
    type="job", id="orders/manual/1", stream="orders", cause="manual", detail="by hand", trigger=None, since_ms=0,
    until_ms=1, world_ms=None, least_records=1, seed=0, asked_ms=1, by="me",
)  # fmt: skip
STORY: list[RetrainJob | RetrainOutcome] = [
    JOB, end_of(JOB, "started", "a", "", 2), end_of(JOB, "started", "b", "", 3), end_of(JOB, "kept", "b", "", 4),
    end_of(JOB, "offered", "a", "", 5, {"digest": "a" * 64, "serving": None, "figures": None}),
]  # fmt: skip


@given(st.data())
def test_reading_again_changes_nothing(data: st.DataObject) -> None:
    """However often parts of the topic are read again: the first end counts, and each trainer took it once."""
    log, read = RetrainLog(), 0
    while read < len(STORY):
        for message in STORY[data.draw(st.integers(0, read)) : read + 1]:
            log.take(message)
        read += 1
    (job,) = log.of("orders")
    assert (job.end, [taken.trainer for taken in job.taken]) == (STORY[3], ["a", "b"])
    assert log.open_jobs() == []


def test_messages_survive_the_topic() -> None:
    """Each is read as it was written, and has a sentence."""
    for message in STORY:
        key, value, headers = encode(message)
        assert parse(key, value) == message
        assert dict(headers)["ce_type"] == b"io.offbeat.retrain"
        assert JOB.id in sentence_of("retrain", json.loads(value))


def test_quiet_hours_are_hours() -> None:
    """What is none is refused by its key."""
    assert settings_with(quiet_hours="22:00-06:30").stream("orders").retrain.quiet_minutes == (1_320, 390)
    with pytest.raises(ConfigError, match=r"streams\.orders\.retrain\.quiet_hours is '25:00-06:00'; expected text"):
        settings_with(quiet_hours="25:00-06:00")


def test_labels_name_records_and_sessions(stack: Stack) -> None:
    """By the ids of decisions, the later word; without the topic there are none."""
    settings = load_settings(stack.config_path, {})
    assert labels_of(settings, Clients(settings), "orders", [], [0, 2]) == {}
    place = f"orders/{stack.source}"
    said = [
        (f"{place}/2/17/record", "normal"), (f"{place}/2/17/record", "anomaly"), (f"{place}/0/5/session", "normal"),
        (f"{place}/1/5/record", "anomaly"), ("nonsense", "anomaly"), (f"{place}/0/x/record", "anomaly"),
    ]  # fmt: skip
    messages = [{"stream": "orders", "id": identity, "label": label} for identity, label in said]
    other = {"stream": "other", "id": f"{place}/0/1/record", "label": "anomaly"}
    topic = f"{stack.name}.labels"
    create_topics(Clients(settings).admin(), settings, [Topic(topic, "output", 1)])
    stack.produce([(b"k", json.dumps(m).encode()) for m in [*messages, other]], topic)
    found = labels_of(settings, Clients(settings), "orders", [], [0, 2])
    assert found == {(1, 17, "record"): True, (0, 5, "session"): False}


def test_only_records_alone_at_their_moment_are_named() -> None:
    """Of two at one time it is not known which was meant, nor of two labels which is of it."""
    came = [("a", 1), ("a", 2), ("a", 2), ("b", 2), ("b", 3)]
    records = [
        Line(n, Place("t", 0), 10 * n, 0, None, json.dumps({"session": session, "ts": 10**12 + at}).encode())
        for n, (session, at) in enumerate(came)
    ]
    events = Decoder("session", "ts", [], {}).decode(records, check_key=False)
    moments = [("a", 1, True), ("a", 2, True), ("b", 2, False), ("b", 3, True), ("b", 3, False), ("c", 1, True)]
    said = [
        TopicLabel("orders", f"id {n}", is_anomaly, Moment(session, 10**12 + at))
        for n, (session, at, is_anomaly) in enumerate(moments)
    ]
    untold = TopicLabel("orders", "id", is_anomaly=True)
    nothing = events.take(np.array([], np.intp))
    assert labels_at([nothing, events], [*said, untold]) == {(1, 0, "record"): True, (1, 30, "record"): False}


def test_known_says_what_became_of_jobs() -> None:
    """Open ones are told apart."""
    log = RetrainLog()
    log.take(JOB)
    signals = Signals(settings_with())
    assert signals.known("orders", log.of("orders"), 7) == Known(past=[Past(JOB.id, "manual", 1, True)], served_ms=7,
                                                                  changes=[], incidents=[], labels=[])  # fmt: skip
