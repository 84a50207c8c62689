"""The incident stage on a real broker: anomalies become incidents, told once each, whatever is killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import Message
from msgspec.structs import replace as with_

from detectors.incident_report import Report
from detectors.incident_state import IncidentState, Notice
from detectors.incidents import IncidentRules
from pipeline.errors import ConfigError, UsageError
from pipeline.incident_reader import read_states
from pipeline.incident_stage import incident_output, take
from pipeline.mute_commands import make_mute
from pipeline.notices import decode, encode
from pipeline.settings import load_settings, parse_settings
from pipeline.wire import Incident
from tests.detectors.test_incidents import LARGEST_ROW
from tests.kafka import Stack, WorkerProcess, as_records, shop_events, wait_until

DAY_MS = 86_400_000
SOON = {"together": "1s", "quiet": "3s"}


def feed(stack: Stack) -> list[Message]:
    """All notices there are, read_committed."""
    return stack.read(f"{stack.name}.incident-feed")


def told(stack: Stack) -> list[dict[str, Any]]:
    """All that was told of incidents, each message as its schema wants it."""
    messages = stack.read_json("incidents")
    for message in messages:
        Incident.model_validate(message)
    return messages


def burst(now_ms: int, first: int, count: int, **more: Any) -> list[Notice]:
    """Strong anomalies of so many sessions, ten milliseconds apart, of a stream that has been watched for a day."""
    about: dict[str, Any] = {
        "stream": "orders", "type": "record", "p_value": 1e-5, "rate": 0.001, "since_ms": now_ms - DAY_MS,
        "topic": "t", "partition": 0, "top": (("status", 1.0),),
    } | more  # fmt: skip
    return [
        Notice(
            id=f"{about['stream']}/t/0/{i}/record", session=f"s-{i}", time_ms=now_ms + 10 * (i - first),
            decisions=100_000 + i, offset=i, **about,
        )
        for i in range(first, first + count)
    ]  # fmt: skip


def send(stack: Stack, notices: Iterable[Notice]) -> None:
    """To the feed, keyed as workers do."""
    stack.produce([(b"", encode(notice)) for notice in notices], f"{stack.name}.incident-feed")


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


def expected(stack: Stack) -> list[Report]:
    """What an uninterrupted walk over the feed tells, with the clock left alone."""
    rules = load_settings(stack.config_path).incidents.rules
    return take(IncidentState(), [(m.value(), m.timestamp()[1]) for m in feed(stack)], rules).changes


def without_clock(message: dict[str, Any]) -> dict[str, Any]:
    """But for when it was seen."""
    return {key: value for key, value in message.items() if key != "detected_ms"}


def all_closed(stack: Stack) -> Callable[[], bool]:
    """Whether there are incidents, and all are over."""

    def look() -> bool:
        last = {message["id"]: message["type"] for message in told(stack)}
        return bool(last) and set(last.values()) <= {"closed", "merged"}

    return look


@pytest.fixture
def second(stack: Stack) -> Stack:
    """A stack whose incidents are over soon."""
    stack.configure(incidents=SOON)
    return stack


def test_each_anomaly_is_a_notice(stack: Stack) -> None:
    """What goes to the anomalies goes to the feed, under the same id, with how many decisions it stands for."""
    stack.score(as_records(shop_events(5, 60)))
    notices = [notice for m in feed(stack) if isinstance(notice := decode(m.value()), Notice)]
    anomalies = {a["id"]: a for a in stack.read_json("anomalies")}
    assert {n.id for n in notices} == set(anomalies)
    assert len(notices) == len(anomalies) > 10
    decisions = stack.read_json("decisions")
    for notice in notices:
        anomaly = anomalies[notice.id]
        assert (notice.p_value, notice.rate, notice.type) == (anomaly["p_value"], 0.1, anomaly["type"])
        assert (notice.time_ms, notice.session) == (anomaly["time_ms"], anomaly["session"])
        of_kind = [d for d in decisions if d["type"] == notice.type and d["id"].split("/")[2] == str(notice.partition)]
        assert 1 <= notice.decisions <= len(of_kind)
    for kind in ("record", "session"):
        for partition in range(stack.partitions):
            counts = [
                n.decisions for n in notices if isinstance(n, Notice) and (n.type, n.partition) == (kind, partition)
            ]
            assert all(a < b for a, b in pairwise(counts))


def test_a_burst_over_two_streams_is_one_incident_and_closes(second: Stack) -> None:
    """It opens at once, names both streams, and closes when nothing comes any more."""
    with WorkerProcess(second) as worker:
        worker.wait_ready(second.partitions)
        began_ms = now_ms()
        of_spans = burst(began_ms + 300, 100, 30, stream="spans", topic="u", segment="pay")
        send(second, burst(began_ms, 1, 30) + of_spans)
        wait_until(lambda: told(second), "an incident")
        wait_until(all_closed(second), "its end")
        page = worker.metrics()
        assert worker.stop() == 0
    messages = told(second)
    assert len({m["id"] for m in messages}) == 1
    assert [m["revision"] for m in messages] == list(range(1, len(messages) + 1))
    last = messages[-1]
    assert (last["type"], last["anomalies"], last["streams"]) == ("closed", 60, ["orders", "spans"])
    assert last["causes"][0]["stream"] == "orders"
    assert last["id"] == "orders/t/0/1/record/incident"
    assert 'offbeat_incident_changes_total{change="closed"} 1.0' in page
    assert 'offbeat_notices_total{outcome="counted"} 60.0' in page
    assert "offbeat_incidents_open 0.0" in page


def test_a_flood_is_one_incident(second: Stack) -> None:
    """A million anomalies a minute, of as many sessions: one incident, told a few times, and little is kept of them."""
    second.configure(incidents={"together": "5s", "quiet": "60s"})
    began_ms, count = now_ms(), 50_000
    with WorkerProcess(second) as worker:
        worker.wait_ready(second.partitions)
        send(second, burst(began_ms, 1, 30))
        wait_until(lambda: told(second), "an incident")
        flood = enumerate(burst(began_ms, 1_000, count))
        send(second, (with_(n, time_ms=began_ms + 300 + i * 60 // 1_000) for i, n in flood))
        counted = f'offbeat_notices_total{{outcome="counted"}} {count + 30}.0'
        wait_until(lambda: counted in worker.metrics(), "all of the flood")
        assert worker.stop() == 0
    messages = told(second)
    assert len({m["id"] for m in messages}) == 1
    assert len(messages) < 20
    assert max(len(m.value() or b"") for m in second.read(f"{second.name}.incident-state")) <= LARGEST_ROW


def test_kill_in_the_middle_loses_and_doubles_nothing(second: Stack) -> None:
    """A worker killed again and again tells what an uninterrupted walk over the feed tells, each change once."""
    second.configure(incidents=SOON | {"quiet": "60s", "together": "2s"})
    began_ms, workers = now_ms(), list[WorkerProcess]()
    for part in range(4):
        worker = WorkerProcess(second)
        workers.append(worker)
        worker.wait_ready(second.partitions)
        at_ms = began_ms + 5_000 * (part // 2)
        send(second, burst(at_ms, 1_000 * part, 2_000 if part else 40, stream=f"stream-{part // 2}"))
        if part < 3:
            if part == 0:
                wait_until(lambda: told(second), "something told")
            worker.kill()
    wait_until(lambda: len(told(second)) >= len(expected(second)), "all told")
    assert workers[-1].stop() == 0
    messages = told(second)
    assert len({(m["id"], m["revision"]) for m in messages}) == len(messages)
    wanted = [json.loads(incident_output(r, 0).value) for r in expected(second)]
    assert sorted(map(without_clock, messages), key=order) == sorted(map(without_clock, wanted), key=order)


def order(message: dict[str, Any]) -> tuple[str, int]:
    """By name."""
    return message["id"], message["revision"]


def test_a_restart_goes_on_with_what_was_open(second: Stack) -> None:
    """An incident that was open when the worker stopped is updated and closed by the next."""
    second.configure(incidents={"together": "5s", "quiet": "30s"})
    began_ms = now_ms()
    with WorkerProcess(second) as worker:
        worker.wait_ready(second.partitions)
        send(second, burst(began_ms, 1, 30))
        wait_until(lambda: told(second), "an incident")
        assert worker.stop() == 0
    with WorkerProcess(second) as worker:  # of the same name, so that it need not wait for the other's to run out
        worker.wait_ready(second.partitions)
        send(second, burst(began_ms, 1, 30))  # all of it comes twice
        send(second, burst(began_ms + 2_000, 100, 20))
        wait_until(all_closed(second), "its end")
        assert worker.stop() == 0
    last = told(second)[-1]
    assert (last["id"], last["type"], last["anomalies"]) == ("orders/t/0/1/record/incident", "closed", 50)


def test_mutes_are_in_force_from_their_place_in_the_log_on(second: Stack) -> None:
    """What matches one makes no incident, is counted and shown, with and without a worker; once lifted it counts."""
    with WorkerProcess(second) as worker:
        worker.wait_ready(second.partitions)
        assert second.run("mute", "list").stdout == "Nothing is muted.\n"
        asked = ("-s", "orders", "--field", "status", "--value", "failed", "--for", "2h", "--reason", "known")
        mute = json.loads(second.run("mute", "add", *asked, "--json").stdout)
        send(second, burst(now_ms(), 1, 30, observed={"status": "failed"}))
        send(second, burst(now_ms(), 100, 1, observed={"status": "ok"}))
        wait_until(lambda: 'outcome="suppressed"} 30.0' in worker.metrics(), "suppressed notices")
        assert worker.stop() == 0
    assert told(second) == []
    (listed,) = json.loads(second.run("mute", "list", "--json").stdout)
    assert (listed["id"], listed["suppressed"], listed["value"]) == (mute["id"], 30, "failed")
    assert "stream orders, status failed, until" in second.run("mute", "list").stdout
    (suppressed,) = json.loads(second.run("incidents", "list", "--suppressed", "--json").stdout)
    assert (suppressed["by"], suppressed["count"], len(suppressed["last"])) == (mute["id"], 30, 20)
    assert "30 anomalies from" in second.run("incidents", "list", "--suppressed").stdout
    assert "is lifted" in second.run("mute", "remove", mute["id"]).stdout
    again = second.run("mute", "remove", mute["id"], check=False)
    assert (again.returncode, "there is no mute" in again.stderr) == (1, True)
    with WorkerProcess(second) as worker:
        worker.wait_ready(second.partitions)
        send(second, burst(now_ms(), 200, 30, observed={"status": "failed"}))
        wait_until(lambda: told(second), "an incident")
        assert worker.stop() == 0


def test_incidents_are_listed_and_shown(second: Stack) -> None:
    """The commands show what was told last, in words and as JSON, and say what there is not."""
    second.run("topics", "--create")
    assert second.run("incidents", "list").stdout == "There is no incident.\n"
    with WorkerProcess(second) as worker:
        worker.wait_ready(second.partitions)
        send(second, burst(now_ms(), 1, 30))
        wait_until(all_closed(second), "its end")
        assert worker.stop() == 0
    (listed,) = json.loads(second.run("incidents", "list", "--json").stdout)
    assert listed == told(second)[-1]
    assert json.loads(second.run("incidents", "list", "--open", "--json").stdout) == []
    assert "closed" in second.run("incidents", "list").stdout
    shown = second.run("incidents", "show", listed["id"]).stdout
    assert listed["summary"] in shown
    assert "1. orders, status, since" in shown
    assert json.loads(second.run("incidents", "show", listed["id"], "--json").stdout) == listed
    missing = second.run("incidents", "show", "nothing", check=False)
    assert (missing.returncode, "has no incident 'nothing'" in missing.stderr) == (1, True)
    tail = second.run("tail", "incidents", "--from-start", "--limit", "1").stdout
    assert told(second)[0]["summary"] in tail


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "would silence everything; name one of them"),
        ({"stream": "s", "value": "v"}, "name it with --field"),
        ({"stream": "s", "lasts": "soon"}, "--for is 'soon'; a duration such as"),
        ({"stream": "x"}, "the config has no stream 'x'"),
    ],
)
def test_wrong_mutes_are_told(arguments: dict[str, str], sentence: str) -> None:
    """Each mistake gives a sentence."""
    settings = parse_settings({"streams": {"s": {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}}}, {})
    about: dict[str, Any] = dict.fromkeys(("stream", "segment", "session", "field", "value"))
    lasts = arguments.get("lasts", "2h")
    about |= {key: value for key, value in arguments.items() if key != "lasts"}
    with pytest.raises(UsageError, match=sentence):
        make_mute(settings, lasts, "why", **about, now_ms=0)


def test_without_incidents_there_is_nothing_to_mute() -> None:
    """Where the incident stage is off, commands on its state say so."""
    section = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}
    settings = parse_settings({"streams": {"s": section}, "incidents": {"enabled": False}}, {})
    with pytest.raises(UsageError, match=r"incidents\.enabled is false"):
        read_states(settings)


def test_what_is_no_notice_is_passed_over() -> None:
    """Anything may be written to a topic; it is counted and changes nothing."""
    step = take(IncidentState(), [(b"{}", 0), (None, 0), (b"\xff", 0)], IncidentRules())
    assert step.outcomes == {"unreadable": 3}
    assert step.state == IncidentState()


@pytest.mark.parametrize(
    ("incidents", "sentence"),
    [
        ({"quiet": "1m", "together": "2m"}, "quiet must be at least as long as together"),
        ({"maintenance": [{"from": "2026-01-02T00:00", "until": "2026-01-01T00:00"}]}, "before it begins"),
        (
            {"maintenance": [{"from": "2026-01-01", "until": "2026-01-02", "streams": ["x"]}]},
            "maintenance names stream x, which there is not",
        ),
        ({"maintenance": [{"from": "2026-01-01", "until": "2026-01-02", "stream": ["x"]}]}, "did you mean streams"),
        ({"false_per_day": 0}, "greater than 0"),
    ],
)
def test_wrong_settings_are_told(incidents: dict[str, Any], sentence: str) -> None:
    """Each mistake in the section gives a sentence."""
    streams = {"s": {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}}
    with pytest.raises(ConfigError, match=sentence):
        parse_settings({"streams": streams, "incidents": incidents}, {})


def test_maintenance_is_read_as_utc() -> None:
    """A time without a zone is UTC, with one it is what it says."""
    window = {"from": "2026-01-01T00:00:00", "until": "2026-01-01T02:00:00+01:00", "segments": ["eu"]}
    streams = {"s": {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}}
    (found,) = parse_settings(
        {"streams": streams, "incidents": {"maintenance": [window]}}, {}
    ).incidents.rules.maintenance
    assert (found.until_ms - found.from_ms, found.from_ms, found.segments) == (3_600_000, 1_767_225_600_000, ("eu",))


def test_no_stream_may_read_what_the_stage_writes() -> None:
    """The feed and the state are no sources."""
    for topic in ("offbeat.incident-feed", "offbeat.incident-state", "offbeat.incidents"):
        with pytest.raises(ConfigError, match="topic of Offbeat's own"):
            parse_settings({"streams": {"s": {"topic": topic, "session": {"by": "k"}, "tokens": ["a"]}}}, {})
