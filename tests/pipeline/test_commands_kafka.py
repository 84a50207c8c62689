"""Commands and the worker on a real broker: topics, tail, produce, training from a topic, and what can be wrong."""

from __future__ import annotations

import fcntl
import json
import signal
import socket
import subprocess
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.kafka import new_producer
from pipeline.drift import drift_output
from pipeline.outputs import Place
from tests.kafka import COMMAND, PATIENCE_S, QUIET, Stack, WorkerProcess, as_records, shop_events, wait_until


def failed(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> bool:
    """One sentence with these parts in it on stderr, and this exit code."""
    sentence = done.stderr.splitlines()[-1]
    missing = [part for part in parts if part not in sentence]
    assert not missing, f"{missing} not in {sentence!r}"
    return done.returncode == code and sentence.startswith("offbeat: ") and "Traceback" not in done.stderr


def fails(stack: Stack, code: int, arguments: tuple[str, ...], *parts: str) -> bool:
    return failed(stack.run(*arguments, check=False), code, *parts)


def event(session: str = "a", **more: Any) -> dict[str, Any]:
    return {"session": session, "action": "view", "status": "ok", "ts": 1_700_000_000_000} | more


def produce_large(stack: Stack, key: bytes, value: bytes) -> None:
    """One record that librdkafka's own limit would not let through."""
    producer = new_producer(stack.address, **{"message.max.bytes": 8_000_000, "partitioner": "murmur2_random"})
    errors: list[object] = []
    producer.produce(stack.source, value, key=key, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    assert errors == [None]


# --- topics ----------------------------------------------------------------------------------------------------------


def test_topics_are_listed_created_and_deleted(stack: Stack) -> None:
    """Missing topics are listed as such, made by --create with their settings, and gone after --delete, sources not."""

    def listed(*options: str) -> dict[str, dict[str, Any]]:
        return {row["topic"]: row for row in json.loads(stack.run("topics", "--json", *options).stdout)}

    kinds = (
        "anomalies",
        "rescores",
        "decisions",
        "dead-letters",
        "late",
        "drift",
        "incidents",
        "incident-feed",
        "incident-state",
        "labels",
        "controls",
        "models",
        "retrain",
        "orders.changelog",
    )
    ours = {f"{stack.name}.{what}" for what in kinds}
    before = listed()
    assert set(before) == ours | {stack.source}
    assert {name for name, row in before.items() if row["partitions"] is None} == ours
    created = listed("--create")
    one, other = f"{stack.name}.controls", f"{stack.name}.models"
    assert {name: row["partitions"] for name, row in created.items()} == {t: 4 for t in created} | {one: 1, other: 1}
    assert created[one]["role"] == "control"
    assert created[one]["config"]["cleanup.policy"] == "compact"
    assert created[f"{stack.name}.orders.changelog"]["config"]["cleanup.policy"] == "compact"
    assert listed("--create") == created
    deleted = listed("--delete")
    assert {name for name, row in deleted.items() if row["partitions"] is None} == ours
    table = stack.run("topics").stdout
    assert "missing" in table
    assert stack.source in table


def test_a_changelog_has_as_many_partitions_as_its_source(stack: Stack) -> None:
    """A changelog that does not fit its source stops the worker with a sentence: rows would lie in wrong partitions."""
    stack.run("topics", "--create")
    stack.run("topics", "--delete")
    stack.partitions = 2
    stack.configure(stream={"topic": f"{stack.source}.two"}, topics={"prefix": stack.name, "partitions": 2})
    stack.run("topics", "--create")
    stack.configure()
    assert fails(stack, 1, ("worker",), "has 2 partitions but its source has 4", "another `app`")


def test_controls_have_one_partition(stack: Stack) -> None:
    """Controls in several partitions would have no order, so a worker refuses such a topic with a sentence."""
    admin = AdminClient({"bootstrap.servers": stack.address, **QUIET})
    name = f"{stack.name}.controls"
    admin.create_topics([NewTopic(name, 2, 1)])[name].result(PATIENCE_S)
    assert fails(stack, 1, ("worker",), f"topic {name} has 2 partitions, but controls need exactly one")


# --- produce and tail ------------------------------------------------------------------------------------------------


def test_produce_keys_records_by_session(stack: Stack) -> None:
    """Each line is one record whose key is its session or the line's own key; a line without either has none."""
    lines = [event("a"), event("b", action="add"), {"action": "view"}, event("c", _key="other")]
    (stack.folder / "e.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    done = stack.run("produce", "e.jsonl", "-s", "orders", "--json", "--rate", "1000")
    assert json.loads(done.stdout) == {"records": 5}
    found = stack.read(stack.source)
    assert sorted(m.key() or b"" for m in found) == [b"", b"", b"a", b"b", b"other"]
    assert sorted(m.value() for m in found) == sorted([json.dumps(line).encode() for line in lines] + [b"no json"])


def test_produce_to_a_topic_that_does_not_exist(stack: Stack) -> None:
    """A missing topic is named, with the command that makes it; it is not made by accident."""
    stack.configure(stream={"topic": "nowhere"})
    (stack.folder / "e.jsonl").write_text(json.dumps(event()) + "\n")
    assert fails(stack, 1, ("produce", "e.jsonl", "-s", "orders"), "topic nowhere does not exist", "topics --create`")
    topics = {row["topic"]: row["partitions"] for row in json.loads(stack.run("topics", "--json").stdout)}
    assert topics["nowhere"] is None


def test_produce_a_line_of_2_mb(stack: Stack) -> None:
    """A record larger than the client's limit is refused with its line and both limits."""
    lines = json.dumps(event()) + "\n" + json.dumps(event(note="x" * 2_000_000)) + "\n"
    (stack.folder / "e.jsonl").write_text(lines)
    limits = ("the client's limit is 1,000,000 bytes", "max.message.bytes (1,048,588 unless set)")
    assert fails(stack, 1, ("produce", "e.jsonl", "-s", "orders"), "line 2 (2,000,", *limits)


def test_produce_a_line_the_topic_does_not_take(kafka_address: str, stack: Stack) -> None:
    """A record larger than the topic's limit is refused by the broker, and the sentence says so."""
    small = Stack(kafka_address, stack.folder / "small")
    small.configure()
    small.create_source(**{"max.message.bytes": "10000"})
    (small.folder / "e.jsonl").write_text(json.dumps(event(note="x" * 20_000)) + "\n")
    assert fails(small, 1, ("produce", "e.jsonl", "-s", "orders"), "larger than Kafka takes", "max.message.bytes")


def test_tail(stack: Stack) -> None:
    """`tail` prints one line a message and stops at --limit: sentences for people, the messages as they are for jq."""
    stack.produce([*as_records(shop_events(11, 100)), (b"x", b"no json")])
    with WorkerProcess(stack):
        stack.wait_until_scored()
    for what in ("anomalies", "decisions"):
        known = {json.dumps(m, sort_keys=True) for m in stack.read_json(what)}
        raw = stack.run("tail", what, "--from-start", "--limit", "3", "--json").stdout.splitlines()
        assert len(raw) == 3
        assert {json.dumps(json.loads(line), sort_keys=True) for line in raw} <= known
        sentences = stack.run("tail", what, "--from-start", "--limit", "3").stdout.splitlines()
        assert len(sentences) == 3
        assert all("  orders  s-" in line for line in sentences)
    (letter,) = stack.run("tail", "dead-letters", "--from-start", "--limit", "1").stdout.splitlines()
    assert letter.startswith(f"{stack.source}/")
    assert "not_json: " in letter


def test_tail_drift(stack: Stack) -> None:
    """Each kind of drift is a sentence with place and amount; a kind of a later version has its own words."""
    stack.run("topics", "--create")
    place = Place(stack.source, 3)
    common: dict[str, Any] = {"stream": "orders", "place": place, "offset": 7, "now_ms": 1_800_000_000_123}
    outputs = [
        drift_output("topic_recreated", amount=2, detail="It has another id.", **common),
        drift_output("records_lost", amount=1_200, detail="Retention.", since_ms=1_800_000_000_000, **common),
        drift_output("offset_reset", amount=1, detail="It stood at 3.", **common),
        drift_output("sessions_lost", amount=8, detail="Damaged.", sessions=[f"s-{n}" for n in range(8)], **common),
    ]
    later = json.loads(outputs[0].value) | {"type": "token_distribution", "detail": "More of pay."}
    values = [*(o.value for o in outputs), json.dumps(later).encode()]
    stack.produce([(outputs[0].key, value) for value in values], topic=f"{stack.name}.drift")
    where, lines = f"{stack.source}/3", stack.run("tail", "drift", "--from-start", "--limit", "5").stdout.splitlines()
    assert lines == [
        f"2027-01-15 08:00:00.123  orders  {said}"
        for said in (
            f"{where} was made anew, 2 open sessions were closed. It has another id.",
            f"{where} lost 1,200 records before they were read, since 2027-01-15 08:00:00.000. Retention.",
            f"the offset of {where} was reset to 7, 1 open sessions were closed. It stood at 3.",
            f"{where} lost the states of 8 sessions: s-0 s-1 s-2 s-3 s-4 and 3 more. Damaged.",
            f"{where}: token_distribution (2 sessions). More of pay.",
        )
    ]


def test_tail_shows_what_others_wrote(stack: Stack) -> None:
    """A message in our topic that is none of ours is shown as it is, and tail goes on."""
    stack.run("topics", "--create")
    stack.produce([(b"k", b"hello"), (b"k", None), (b"k", b"{}")], topic=f"{stack.name}.anomalies")
    lines = stack.run("tail", "--from-start", "--limit", "3").stdout.splitlines()
    assert lines == ["hello", "", "{}"]


def test_tail_waits_for_new_messages_until_interrupted(stack: Stack) -> None:
    """Without --from-start only what comes now is shown; Ctrl-C ends it quietly."""
    stack.run("topics", "--create")
    topic = f"{stack.name}.dead-letters"
    stack.produce([(b"k", b"old")], topic=topic)
    command = [*COMMAND, "tail", "dead-letters", "--json", "-c", str(stack.config_path)]
    shown = stack.folder / "shown"
    with shown.open("wb") as out, (stack.folder / "errors").open("wb") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors)
    try:

        def sees_new() -> bool:  # until its group has partitions, what we send comes too early
            stack.produce([(b"k", b"new")], topic=topic)
            return "new" in shown.read_text()

        wait_until(sees_new, "tail to show a message")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert (stack.folder / "errors").read_text() == ""
    assert set(shown.read_text().split()) == {"new"}


def test_tail_of_a_topic_that_is_not_there_yet(stack: Stack) -> None:
    """Before a worker ran there is nothing to follow, and the sentence says what makes it."""
    assert fails(stack, 1, ("tail",), f"topic {stack.name}.anomalies does not exist yet", "`offbeat worker`")


# --- train from the topic --------------------------------------------------------------------------------------------


def test_train_from_the_topic(stack: Stack) -> None:
    """--from-topic learns what came between --since and --until, by Kafka's timestamps, and counts what it left out."""
    early = as_records(shop_events(12, 160))
    stack.produce([*early, (b"x", b"no json"), (b"wrong", json.dumps(event()).encode())])
    time.sleep(0.05)
    middle = datetime.now(UTC).isoformat()
    time.sleep(0.05)
    stack.produce(as_records(shop_events(13, 130, start_ms=1_780_000_000_000)))
    train = ("train", "-s", "orders", "--from-topic", "--json")

    done = stack.run(*train, "--until", middle)
    first = json.loads(done.stdout)
    assert first["data"]["records"] == len(early)
    assert first["serving"] is False
    assert "left out 1 records: not_json" in done.stderr
    assert "left out 1 records: key_is_not_session" in done.stderr

    later = json.loads(stack.run(*train, "--since", middle).stdout)
    assert later["data"]["records"] == sum(stack.ends().values()) - len(early) - 2
    assert later["data"]["first_ms"] >= 1_780_000_000_000

    assert fails(stack, 1, (*train, "--until", "1h"), "there is no record in it")
    assert fails(stack, 2, (*train, "--since", "yesterday"), "'yesterday' is no time: write 2026-01-31T12:00:00Z")


def test_train_from_a_topic_that_does_not_exist(stack: Stack) -> None:
    """A missing topic is named."""
    stack.configure(stream={"topic": "nowhere"})
    assert fails(stack, 1, ("train", "-s", "orders", "--from-topic"), "topic nowhere does not exist; create it")


# --- the worker ------------------------------------------------------------------------------------------------------


def test_worker_without_its_topic(stack: Stack) -> None:
    """A missing source topic stops the worker before it starts, with the command that makes it."""
    stack.configure(stream={"topic": "nowhere"})
    assert fails(stack, 1, ("worker",), "topic nowhere does not exist on ", "`offbeat topics --create`")


def test_worker_that_may_not_create(stack: Stack) -> None:
    """With topics.create off a missing output topic is named."""
    stack.configure(topics={"prefix": stack.name, "create": False})
    assert fails(stack, 1, ("worker",), f"topic {stack.name}.anomalies does not exist and topics.create is off")


def test_worker_on_a_taken_port(stack: Stack) -> None:
    """A taken port for /metrics is named with the key to change."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        stack.configure(http={"port": port})
        assert fails(stack, 1, ("worker",), f"http.port {port} on 127.0.0.1 cannot be used (Address already in use)")


def test_worker_with_a_name_that_is_held(stack: Stack) -> None:
    """An instance name belongs to one living process of a data_dir."""
    stack.configure(instance="w7")
    (stack.folder / "data" / "w7").mkdir(parents=True)
    with (stack.folder / "data" / "w7" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert fails(stack, 1, ("worker",), "instance w7 is held by another running worker", "another `instance`")


def test_worker_with_a_damaged_bundle(stack: Stack) -> None:
    """A flipped byte in the serving bundle stops the worker before it takes any partition."""
    directory = stack.folder / "bundles" / "orders"
    path = directory / (directory / "serving").read_text().strip() / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert fails(stack, 1, ("worker",), "weights.safetensors in bundle", "is damaged (its SHA-256 differs)")


def test_worker_whose_config_no_longer_fits_its_state(stack: Stack) -> None:
    """A changed session rule would tear the saved sessions apart: the worker says so and stops."""
    stack.produce(as_records(shop_events(14, 20)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    stack.configure(stream={"session": {"by": "session", "gap": "9s"}}, instance="w0")
    assert fails(stack, 1, ("worker",), "changed in a way its saved sessions cannot follow", "another `app`")


def test_a_record_of_2_mb(kafka_address: str, stack: Stack) -> None:
    """Where the topic allows them, 2 MB records are scored or dead-lettered like any other, and the stream goes on."""
    large = Stack(kafka_address, stack.folder / "large", partitions=1)
    large.configure()
    large.create_source(**{"max.message.bytes": "4000000"})
    note = "é" * 1_000_000
    large.produce(as_records([event("before")]))
    produce_large(large, b"big", json.dumps(event("big", note=note), ensure_ascii=False).encode())
    produce_large(large, b"bad", json.dumps(event("bad", note=note, action=7.5), ensure_ascii=False).encode())
    large.produce(as_records([event("after")]))
    with WorkerProcess(large) as worker:
        large.wait_until_scored()
        assert worker.stop() == 0
    assert [v["session"] for v in large.read_json("decisions")] == ["before", "big", "after"]
    (letter,) = large.read_json("dead-letters")
    assert (letter["reason"], letter["truncated"], letter["source"]["offset"]) == ("wrong_type", True, 2)
    assert 63_990 <= len(letter["payload"].encode()) <= 64_000


@pytest.mark.parametrize("start", ["latest", "earliest"])
def test_where_a_stream_begins(start: str, stack: Stack) -> None:
    """`start` decides where the very first worker begins, and only it."""
    stack.configure(stream={"start": start})
    stack.produce(as_records([event("old")]))
    with WorkerProcess(stack) as worker:
        worker.wait_ready(stack.partitions)
        assert worker.stop() == 0
    stack.produce(as_records([event("new")]))  # while no worker runs
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    assert {v["session"] for v in stack.read_json("decisions")} == ({"new"} if start == "latest" else {"old", "new"})
