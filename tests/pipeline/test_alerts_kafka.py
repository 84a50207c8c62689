"""`offbeat alerts` on a real broker: what receivers get, whatever they answer and whatever is killed."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
from typing import Any

import yaml
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.wire import DeadLetter
from tests.alerting import SECRET, Alerts, Answer, configure, incident, receiver, tell
from tests.kafka import PATIENCE_S, Stack, wait_until


def test_each_change_is_told_once_and_in_order(stack: Stack) -> None:
    """Changes of many incidents reach a receiver once each; those of one incident in their order."""
    with receiver() as ops:
        configure(stack, {"ops": ops.settings()})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident(f"i{n}", revision) for revision in (1, 2, 3) for n in range(20)])
            wait_until(lambda: len(ops.delivered) >= 60, "60 deliveries")
            alerts.wait_for('offbeat_alert_deliveries_total{outcome="delivered",receiver="ops"}', 60)
            assert alerts.stop() == 0, alerts.log_path.read_text()[-3000:]
        for n in range(20):
            assert [c for c in ops.changes() if c.startswith(f"i{n}/")] == [f"i{n}/{r}" for r in (1, 2, 3)]
        with Alerts(stack) as again:
            again.wait_ready(stack.partitions)
            tell(stack, [incident("i0", 4)])
            wait_until(lambda: "i0/4" in ops.changes(), "the next change")
        assert len(ops.got) == 61


def dead_letters(stack: Stack) -> list[dict[str, Any]]:
    """Of alerts."""
    return [letter for letter in stack.read_json("dead-letters") if letter.get("alert")]


def test_a_kill_loses_nothing_and_keeps_ids(stack: Stack) -> None:
    """What was under way at a kill -9 comes again under the same id; the rest comes once."""
    with receiver(lambda _: Answer(late_s=0.02)) as ops:
        configure(stack, {"ops": ops.settings()})
        tell_all = [incident(f"i{n}", revision) for revision in range(1, 6) for n in range(30)]
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, tell_all)
            wait_until(lambda: len(ops.got) > 20, "some deliveries")
            alerts.kill()
        with Alerts(stack) as alerts:
            wait_until(lambda: len(set(ops.changes())) == 150, "all changes")
        names = {(got.name, *got.changes) for got in ops.got}
        assert len({name for name, *_ in names}) == len(names) == 150, "an id names one message"
        assert len(ops.got) <= 150 + 4, "no more than what was under way came twice"
        for n in range(30):
            of = list(dict.fromkeys(c for c in ops.changes() if c.startswith(f"i{n}/")))
            assert of == [f"i{n}/{r}" for r in range(1, 6)]


def test_a_slow_receiver_delays_no_other(stack: Stack) -> None:
    """One that answers nobody keeps only its own messages waiting, and no memory of the process."""
    with receiver() as ops, receiver(lambda _: Answer(late_s=3.0)) as slow:
        configure(stack, {"slow": slow.settings(timeout="1s"), "ops": ops.settings()})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident(f"i{n}", 1) for n in range(40)])
            wait_until(lambda: len(ops.delivered) == 40, "all at the quick one", 30)
            pending = 'offbeat_alerts_pending{receiver="%s"}'
            alerts.wait_for(pending % "ops", 0)
            alerts.wait_for(pending % "slow", 40)
            assert alerts.value('offbeat_alerts_oldest_pending_seconds{receiver="slow"}') > 0


def test_what_fails_is_tried_again_and_then_given_up(stack: Stack) -> None:
    """After its last attempt a message goes to the dead letters with all there is to know, and can be sent again."""
    mood = {"status": 500}
    with receiver(lambda _: Answer(mood["status"])) as ops:
        configure(stack, {"ops": ops.settings(retries=["50ms", "50ms"])})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident("i", 1), incident("i", 2)])
            letters = wait_until(lambda: found if len(found := dead_letters(stack)) == 2 else None, "dead letters")
            assert [got.changes for got in ops.got] == [["i/1"]] * 3 + [["i/2"]] * 3, "order holds while it fails"
            assert len({got.name for got in ops.got}) == 2
            for letter in letters:
                DeadLetter.model_validate(letter)
            first = letters[0]
            assert (first["reason"], first["alert"]["attempts"], first["key"]) == ("exhausted", 3, "i")
            assert "answered 500" in first["detail"]
            alerts.wait_for('offbeat_alerts_given_up_total{reason="exhausted",receiver="ops"}', 2)
            mood["status"] = 204
            said = stack.run("alerts", "redeliver", "i/2").stdout
            assert "i/2 to ops: exhausted" in said
            assert "Asked for 1 message(s)" in said
            wait_until(lambda: ops.changes() == ["i/2"], "the second change")
            assert ops.got[-1].name == ops.got[3].name, "the same id"
            assert "Asked for 2" in stack.run("alerts", "redeliver", "--receiver", "ops", "--since", "1h").stdout
            wait_until(lambda: sorted(ops.changes()) == ["i/1", "i/2", "i/2"], "both")
    nothing = stack.run("alerts", "redeliver", "j", check=False)
    assert "no dead letter of alerts" in nothing.stderr
    assert "say what to send again" in stack.run("alerts", "redeliver", check=False).stderr
    assert "there is no receiver 'x'" in stack.run("alerts", "redeliver", "--receiver", "x", check=False).stderr


def test_a_retry_keeps_its_schedule_over_a_kill(stack: Stack) -> None:
    """A process that comes back waits as long as was left, and counts on."""
    with receiver(lambda _: Answer(500)) as ops:
        configure(stack, {"ops": ops.settings(retries=["100ms", "15s"])})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident("i", 1)])
            wait_until(lambda: len(ops.got) == 2, "two attempts")
            time.sleep(5.0)  # until what became of the second is written
            alerts.kill()
        with Alerts(stack):
            wait_until(lambda: dead_letters(stack), "the end of its attempts")
        assert len(ops.got) == 3
        waited = ops.got[2].at - ops.got[1].at
        assert 14.9 < waited < PATIENCE_S
        assert len({got.name for got in ops.got}) == 1
        assert dead_letters(stack)[0]["alert"]["attempts"] == 3


def test_a_receiver_that_is_gone_is_disabled(stack: Stack) -> None:
    """410: said once, nothing more is sent, what waits and what comes goes to the dead letters; until it is enabled."""
    mood = {"status": 410}
    with receiver(lambda _: Answer(mood["status"])) as ops, receiver() as other:
        configure(stack, {"ops": ops.settings(parallel=1), "other": other.settings()})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident(f"i{n}", 1) for n in range(10)])
            wait_until(lambda: len(dead_letters(stack)) == 10, "dead letters")
            assert len(ops.got) == 1
            assert {d["reason"] for d in dead_letters(stack)} == {"gone", "disabled"}
            assert sum(line["event"].startswith("receiver is disabled") for line in alerts.log()) == 1
            alerts.kill()
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident("j", 1)])
            wait_until(lambda: len(dead_letters(stack)) == 11, "another dead letter")
            alerts.wait_for('offbeat_alerts_disabled{receiver="ops"}', 1)
            status = {row["receiver"]: row for row in json.loads(stack.run("alerts", "status", "--json").stdout)}
            assert "answered 410" in status["ops"]["disabled"]
            assert status["other"]["disabled"] is None
            assert len(ops.got) == 1
            mood["status"] = 204
            stack.run("alerts", "enable", "ops")
            alerts.wait_for('offbeat_alerts_disabled{receiver="ops"}', 0)
            stack.run("alerts", "redeliver", "--receiver", "ops")
            wait_until(lambda: len(ops.delivered) == 11, "what was given up")
            tell(stack, [incident("k", 1)])
            wait_until(lambda: "k/1" in ops.changes() and "k/1" in other.changes(), "what is new")
        assert sorted(set(other.changes())) == sorted([*(f"i{n}/1" for n in range(10)), "j/1", "k/1"])
    assert "there is no receiver 'x'" in stack.run("alerts", "enable", "x", check=False).stderr


def test_a_receiver_that_asks_for_less_rests_as_a_whole(stack: Stack) -> None:
    """After 429 nothing at all is sent for as long as Retry-After says; and that is no failed attempt."""
    throttled: list[str] = []

    def answer(name: str) -> Answer:
        if throttled:
            return Answer()
        throttled.append(name)
        return Answer(429, {"Retry-After": "10"})  # so long that a gauge which is looked at now and then shows it

    with receiver(answer) as ops:
        configure(stack, {"ops": ops.settings(parallel=1, retries=[])})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident(f"i{n}", 1) for n in range(20)])
            wait_until(lambda: ops.got, "the first request")
            alerts.wait_for('offbeat_alerts_throttled{receiver="ops"}', 1)
            wait_until(lambda: len(ops.delivered) == 20, "all")
        assert ops.got[1].at - ops.got[0].at >= 10.0
        assert not dead_letters(stack)


def test_groups_leave_as_one_message_with_an_id_that_stays(stack: Stack) -> None:
    """Changes of a group that come together are one message, whose id and content a kill does not change."""
    routes = [{"receivers": ["ops"], "group_by": ["stream"], "group_wait": "2s"}]
    mood = {"status": 0}
    with receiver(lambda _: Answer(mood["status"])) as ops:
        configure(stack, {"ops": ops.settings(retries=["3s"] * 5, parallel=1)}, routes=routes)
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident("i", revision) for revision in (1, 2, 3)])
            wait_until(lambda: ops.got, "the first attempt")
            tell(stack, [incident("i", 4)])
            time.sleep(0.5)
            alerts.kill()
        mood["status"] = 204
        with Alerts(stack):
            wait_until(lambda: "i/4" in ops.changes(), "all")
        assert [got.changes for got in ops.delivered] == [["i/1", "i/2", "i/3"], ["i/4"]]
        assert {got.name for got in ops.got if got.changes[0] == "i/1"} == {ops.got[0].name}


def test_an_open_incident_is_told_again_until_it_closes(stack: Stack) -> None:
    """A repeat is marked and has an id of its own; after the incident has closed there is none."""
    routes = [{"receivers": ["ops"], "repeat": "10s"}]
    with receiver() as ops:
        configure(stack, {"ops": ops.settings()}, routes=routes)
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident("i", 1)])
            wait_until(lambda: len(ops.got) == 1, "the change")
            alerts.wait_for('offbeat_alert_delivery_seconds_count{receiver="ops"}', 1)
            alerts.kill()
        with Alerts(stack) as alerts:
            wait_until(lambda: len(ops.got) == 2, "a repeat")
            assert [got.body["data"]["repeat"] for got in ops.got] == [False, True]
            assert ops.got[1].at - ops.got[0].at > 9.9
            assert len({got.name for got in ops.got}) == 2
            tell(stack, [incident("i", 2, "closed")])
            wait_until(lambda: len(ops.got) == 3, "its end")
            time.sleep(11.0)
            assert len(ops.got) == 3


def test_two_processes_share_the_partitions(stack: Stack) -> None:
    """Another process takes partitions over, a dead one's are taken over too, and all is told."""
    with receiver(lambda _: Answer(late_s=0.01)) as ops:
        configure(stack, {"ops": ops.settings()})
        with Alerts(stack, "a0") as one, Alerts(stack, "a1") as two:
            one.wait_ready(1)
            two.wait_ready(1)
            tell(stack, [incident(f"i{n}", 1) for n in range(100)])
            wait_until(lambda: len(set(ops.changes())) == 100, "all of the first")
            two.kill()
            tell(stack, [incident(f"i{n}", 2) for n in range(100)])
            wait_until(lambda: len(set(ops.changes())) == 200, "all of the second")


def is_ready(alerts: Alerts) -> bool:
    """What /ready says; until it says yes that is a 503."""
    try:
        return bool(json.loads(alerts.page("/ready"))["ready"])
    except urllib.error.HTTPError:
        return False


def test_a_process_that_was_stopped_and_woken_writes_nothing_old(stack: Stack) -> None:
    """Its partitions are another's by then; it may send what it had begun, and then it is a member again."""
    with receiver(lambda _: Answer(late_s=0.05)) as ops:
        configure(stack, {"ops": ops.settings(parallel=1)})
        with Alerts(stack, "a0") as one:
            one.wait_ready(stack.partitions)
            tell(stack, [incident(f"i{n}", r) for r in (1, 2, 3, 4) for n in range(20)])
            wait_until(lambda: len(ops.got) > 5, "some deliveries")
            one.process.send_signal(signal.SIGSTOP)
            with Alerts(stack, "a1") as two:
                wait_until(lambda: len(set(ops.changes())) == 80, "all, by the other")
                before = one.opened()
                one.process.send_signal(signal.SIGCONT)
                wait_until(lambda: one.opened() > before and is_ready(one), "the first to be a member again")
                tell(stack, [incident(f"i{n}", 5) for n in range(20)])
                wait_until(lambda: len(set(ops.changes())) == 100, "what came then")
                assert two.stop() == 0
            assert one.stop() == 0
        for n in range(20):
            of = list(dict.fromkeys(c for c in ops.changes() if c.startswith(f"i{n}/")))
            assert of == [f"i{n}/{r}" for r in (1, 2, 3, 4, 5)]
        assert len(ops.got) <= 104


def test_what_a_removed_receiver_did_not_get_is_given_up(stack: Stack) -> None:
    """Nothing waits for ever for a receiver that the config has no more, and nothing of it is lost."""
    with receiver() as ops, receiver(lambda _: Answer(500)) as old:
        configure(stack, {"ops": ops.settings(), "old": old.settings(retries=["1h"])})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident("i", 1)])
            wait_until(lambda: old.got and ops.got, "an attempt each")
            alerts.stop()
        configure(stack, {"ops": ops.settings()})
        with Alerts(stack):
            letter = wait_until(lambda: dead_letters(stack), "a dead letter")[0]
        assert (letter["reason"], letter["alert"]["receiver"]) == ("no_receiver", "old")
        assert len(old.got) == 1
    assert "there is no receiver 'old'" in stack.run("alerts", "redeliver", "i/1", check=False).stderr


def test_a_first_start_tells_what_happens_from_then_on(stack: Stack) -> None:
    """Old incidents are no news; later starts tell all that came meanwhile."""
    with receiver() as ops:
        configure(stack, {"ops": ops.settings()}, start="latest")
        stack.run("topics", "--create")
        tell(stack, [incident(f"old{n}", 1) for n in range(20)])
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident("new", 1)])
            wait_until(lambda: ops.changes() == ["new/1"], "what is new")
            alerts.wait_for('offbeat_alert_delivery_seconds_count{receiver="ops"}', 1)
            alerts.kill()
        tell(stack, [incident("meanwhile", 1)])
        with Alerts(stack):
            wait_until(lambda: ops.changes() == ["new/1", "meanwhile/1"], "what came meanwhile")


def test_anomalies_are_told_by_stream_where_no_incidents_are_made(stack: Stack) -> None:
    """A flood of anomalies is a few messages, each of as many as fit."""
    with receiver() as ops:
        configure(stack, {"ops": ops.settings()})
        config = yaml.safe_load(stack.config_path.read_text()) | {"incidents": {"enabled": False}}
        stack.config_path.write_text(yaml.safe_dump(config))
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            anomalies = [
                {"type": "record", "id": f"orders/t/0/{n}/record", "stream": "orders", "session": "s", "segment": None,
                 "time_ms": 1_700_000_000_000 + n, "severity": "high", "p_value": 0.001, "score": 9.0}
                for n in range(100)
            ]  # fmt: skip
            stack.produce([(b"s", json.dumps(a).encode()) for a in anomalies], f"{stack.name}.anomalies")
            wait_until(lambda: len(ops.changes()) == 100, "all anomalies")
        assert len(ops.got) <= 12
        assert sorted(ops.changes()) == sorted(a["id"] for a in anomalies)


def test_what_cannot_be_read_is_counted_and_passed_over(stack: Stack) -> None:
    """Messages of others in our topics stop nothing."""
    with receiver() as ops:
        configure(stack, {"ops": ops.settings()})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            stack.produce(
                [(b"i", b"no json"), (b"i", b"[]"), (b"i", b'{"id": 3}'), (b"i", None)], f"{stack.name}.incidents"
            )
            stack.produce([(b"i", b'{"type": "later"}')], f"{stack.name}.alert-requests")
            tell(stack, [incident("i", 1)])
            wait_until(lambda: ops.changes() == ["i/1"], "the change")
            alerts.wait_for('offbeat_alert_changes_total{outcome="unreadable"}', 3)
            alerts.wait_for('offbeat_alert_changes_total{outcome="routed"}', 1)


def test_a_topic_made_anew_is_read_from_its_start(stack: Stack) -> None:
    """The position is that of the topic that is gone, and keeps nothing of the new one back."""
    with receiver() as ops:
        configure(stack, {"ops": ops.settings()})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident(f"i{n}", 1) for n in range(50)])
            wait_until(lambda: len(ops.got) == 50, "all")
            alerts.stop()
        admin = AdminClient({"bootstrap.servers": stack.address})
        admin.delete_topics([f"{stack.name}.incidents"])[f"{stack.name}.incidents"].result(PATIENCE_S)
        wait_until(lambda: f"{stack.name}.incidents" not in admin.list_topics(timeout=PATIENCE_S).topics, "it to go")
        stack.run("topics", "--create")
        tell(stack, [incident("new", 1)])
        with Alerts(stack):
            wait_until(lambda: "new/1" in ops.changes(), "what the new topic has")


def test_pages_say_whether_all_is_open(stack: Stack) -> None:
    """/ready lists the outbox's partitions, /healthz says that the process is alive."""
    with receiver() as ops:
        configure(stack, {"ops": ops.settings()})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            assert json.loads(alerts.page("/healthz"))["alive"]
            ready = wait_until(lambda: json.loads(alerts.page("/ready")), "the page")
            assert [p["state"] for p in ready["partitions"]] == ["open"] * stack.partitions


def test_what_cannot_start_says_so_in_one_sentence(stack: Stack) -> None:
    """No receiver, a missing secret, topics that do not fit."""
    said = stack.run("alerts", check=False).stderr
    assert "nobody is to be told" in said
    with receiver() as ops:
        configure(stack, {"ops": ops.settings(secrets=["env:NOT_SET_ANYWHERE"])})
        assert "NOT_SET_ANYWHERE" in stack.run("alerts", check=False).stderr
        assert "does not exist yet" in stack.run("alerts", "status", check=False).stderr
        admin, topic = AdminClient({"bootstrap.servers": stack.address}), NewTopic(f"{stack.name}.alert-outbox", 3, 1)
        admin.create_topics([topic])[topic.topic].result(PATIENCE_S)
        (stack.folder / "secret").write_text(SECRET)
        configure(stack, {"ops": ops.settings(secrets=[f"file:{stack.folder}/secret"])})
        said = stack.run("alerts", check=False).stderr
        assert f"{stack.name}.alert-outbox has 3 partitions, but {stack.name}.incidents has 4" in said
