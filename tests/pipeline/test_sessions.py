"""`offbeat sessions show` and `delete` on a real broker, and what they say of rows."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.kafka import new_producer
from detectors.parts import Parts
from detectors.rows import RowShape, SessionRows
from pipeline.changelog import Written, usual_partitions
from pipeline.cold_rows import session_key
from pipeline.row_format import RowFormat
from pipeline.sessions import describe, in_words
from tests.kafka import COMMAND, PATIENCE_S, QUIET, Stack, WorkerProcess, as_records, wait_until, write_untrained_bundle
from tests.pipeline.test_commands_kafka import fails

START_MS = 1_700_000_000_000


def event(session: str, at_ms: int, action: str = "view", status: str | None = "ok") -> dict[str, Any]:
    return {"session": session, "action": action, "status": status, "ts": START_MS + at_ms}


# --- a row in words --------------------------------------------------------------------------------------------------


def row_of(parts: Parts, **columns: Any) -> Written:
    rows = SessionRows.empty(1, parts.shape)
    for name, value in ({"events": 1, "first_ms": START_MS, "last_ms": START_MS, "applied": 7} | columns).items():
        getattr(rows, name)[:] = value
    return Written(2, 40, START_MS + 9, RowFormat(parts.shape).encode(rows)[0])


def words_of(parts: Parts, bundles: Path, **columns: Any) -> str:
    return "\n".join(in_words(describe("a", row_of(parts, **columns), "t.changelog", parts, bundles)))


def test_which_bundle_wrote_a_state(parts: Parts, unlearned_parts: Parts, tmp_path: Path) -> None:
    """The bundle is named as the serving one, as another that is still there, as unknown, or as none."""
    assert parts.learned is not None
    number, digest = parts.learned.number, parts.learned.digest
    assert f"of bundle {digest[:12]}, which serves" in words_of(parts, tmp_path, bundle=number)
    assert f"of an unknown bundle ({number:016x}...)" in words_of(unlearned_parts, tmp_path, bundle=number)
    (tmp_path / digest).mkdir()
    assert f"of bundle {digest[:12]}; the serving one rebuilds it" in words_of(unlearned_parts, tmp_path, bundle=number)
    assert "none: no bundle has scored it yet" in words_of(parts, tmp_path, bundle=0)


def test_the_worst_record(parts: Parts, tmp_path: Path) -> None:
    """Score and place of the worst record stand there, or that none was scored."""
    assert "none scored yet" in words_of(parts, tmp_path)
    assert "score 6.25 at shop.orders/2/33" in words_of(parts, tmp_path, worst=np.float32(6.25), worst_offset=33)


def test_the_segment(parts: Parts, tmp_path: Path) -> None:
    """A session's segment is named where it has one."""
    assert "segment" not in words_of(parts, tmp_path)
    assert "  segment       süd" in words_of(parts, tmp_path, segment="süd".encode())


def test_times_beyond_the_calendar(parts: Parts, tmp_path: Path) -> None:
    """A gap that leads beyond the year 9999 is printed as a number, not as an exception."""
    patient = replace(parts, rules=replace(parts.rules, gap_ms=10**15))
    assert f"later than {START_MS + 10**15} ms since 1970" in words_of(patient, tmp_path)


# --- show ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(kafka_address: str, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A stack whose worker has kept one open session and ended another, and has stopped."""
    stack = Stack(kafka_address, tmp_path_factory.mktemp("kept"))
    stack.configure()
    stack.create_source()
    write_untrained_bundle(stack)
    stack.produce(
        as_records(
            [
                event("open/é", 0), event("done", 0), event("open/é", 400, "teleport", None), event("done", 9, "close"),
                event("open/é", 1_500, "pay", "failed"),
            ]
        )
    )  # fmt: skip
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    return stack


def changelog(stack: Stack) -> str:
    return f"{stack.name}.orders.changelog"


def saved(stack: Stack, name: str) -> Message:
    return next(m for m in reversed(stack.read(changelog(stack))) if m.key() == session_key(name))


def write_row(stack: Stack, name: str, *values: bytes | None, partition: int | None = None) -> None:
    """Write to the changelog as a worker would: in the session's partition unless told otherwise."""
    producer = new_producer(stack.address)
    p = usual_partitions(name, stack.partitions)[0] if partition is None else partition
    for value in values:
        producer.produce(changelog(stack), value, key=session_key(name), partition=p)
    assert producer.flush(30) == 0


def show(stack: Stack, name: str, *options: str) -> dict[str, Any]:
    return dict(json.loads(stack.run("sessions", "show", "-s", "orders", name, "--json", *options).stdout))


def test_show_an_open_session(kept: Stack) -> None:
    """All the state holds of an open session is told: events, times, worst record, bundle, place, last events."""
    where, (digest,) = (
        saved(kept, "open/é"),
        [p.name for p in (kept.folder / "bundles" / "orders").iterdir() if p.is_dir()],
    )
    verdicts = {d["id"]: d for d in kept.read_json("decisions") if d["session"] == "open/é"}
    worst = max(verdicts.values(), key=lambda d: d["score"])
    last = max(m.offset() for m in kept.read(kept.source) if m.key() == "open/é".encode())
    source = {"topic": kept.source, "partition": where.partition()}
    assert show(kept, "open/é") == {
        "stream": "orders", "session": "open/é", "open": True, "segment": None,
        "events": 3, "waiting": 0, "first_ms": START_MS,
        "last_ms": START_MS + 1_500, "due_ms": START_MS + 6_500, "max_events": 12,
        "worst_record": {"score": worst["score"], "offset": int(worst["id"].split("/")[3])},
        "bundle": {"mark": digest[:16], "digest": digest, "serving": True},
        "applied": {**source, "offset": last},
        "context": [
            {"time_ms": START_MS, "action": "view", "status": "ok"},
            {"time_ms": START_MS + 400, "action": "<oov>", "status": "<missing>"},
            {"time_ms": START_MS + 1_500, "action": "pay", "status": "failed"},
        ],
        "bytes": len(where.value()),
        "changelog": {
            "topic": changelog(kept), "partition": where.partition(), "offset": where.offset(),
            "written_ms": where.timestamp()[1],
        },
    }  # fmt: skip
    words = kept.run("sessions", "show", "-s", "orders", "open/é").stdout
    for part in (
        "Session open/é of stream orders is open.", "3, at 12 it is ended", "2023-11-14T22:13:20.000Z",
        "when its partition sees an event later than 2023-11-14T22:13:26.500Z", f"score {worst['score']:.2f} at ",
        f"of bundle {digest[:12]}, which serves", f"{kept.source}/{where.partition()}/{last}",
        "2023-11-14T22:13:20.400Z  action=<oov> status=<missing>",
    ):  # fmt: skip
        assert part in words


def test_show_a_session_that_is_not_open(kept: Stack) -> None:
    """Where none is open, a sentence says so, and when it ended or where else to look; the exit code is 1."""
    command = ("sessions", "show", "-s", "orders")
    write_row(kept, "ended", saved(kept, "open/é").value(), None)
    ended = (f"no open session 'ended' in {changelog(kept)}, partition ", "one ended or was deleted at 20")
    assert fails(kept, 1, (*command, "ended"), *ended)
    assert fails(kept, 1, (*command, "done"), "no open session 'done'")  # it came and went within one checkpoint
    assert fails(kept, 1, (*command, "never"), "no open session 'never'", "`--all-partitions` searches the others too")
    assert fails(kept, 1, (*command, "never", "--all-partitions"), f"in {changelog(kept)}, any of 4 partitions")
    done = kept.run(*command, "never", "--json", check=False)
    partitions = usual_partitions("never", 4)
    assert json.loads(done.stdout) == {"stream": "orders", "session": "never", "open": False, "partitions": partitions}


def test_show_searches_all_partitions(kept: Stack) -> None:
    """A session that a producer placed in a way of its own is found when all partitions are searched."""
    (unusual, *_) = set(range(4)) - set(usual_partitions("moved", 4))
    write_row(kept, "moved", saved(kept, "open/é").value(), partition=unusual)
    assert fails(kept, 1, ("sessions", "show", "-s", "orders", "moved"), "no open session 'moved'", "--all-partitions")
    assert show(kept, "moved", "--all-partitions")["changelog"]["partition"] == unusual


def test_show_where_librdkafka_places_keys(kept: Stack) -> None:
    """A session placed by librdkafka's own rule is found without searching."""
    name = next(n for n in map(str, range(99)) if len(usual_partitions(n, 4)) == 2)
    write_row(kept, name, saved(kept, "open/é").value(), partition=usual_partitions(name, 4)[1])
    assert show(kept, name)["session"] == name


def test_show_a_row_that_cannot_be_read(kept: Stack) -> None:
    """A damaged row, one of a newer version and one of another config are each a sentence."""
    value = saved(kept, "open/é").value()
    newer = value[:2] + b"\x63" + value[3:-4]
    other = RowShape(32, 6, 2)
    write_row(kept, "damaged", bytes([*value[:50], value[50] ^ 1, *value[51:]]))
    write_row(kept, "short", b"OB")
    write_row(kept, "newer", newer + crc32(newer).to_bytes(4, "little"))
    write_row(kept, "other", RowFormat(other).encode(SessionRows.empty(1, other))[0])
    command = ("sessions", "show", "-s", "orders")
    for name in ("damaged", "short"):
        parts = (
            f"the row of session '{name}' in {changelog(kept)}, partition ",
            "is damaged; `offbeat sessions delete`",
        )
        assert fails(kept, 1, (*command, name), *parts)
    assert fails(kept, 1, (*command, "newer"), "has format 99", "upgrade offbeat")
    assert fails(kept, 1, (*command, "other"), "was written for RowShape(hidden=32")


def test_show_without_the_bundle(kept: Stack, tmp_path: Path) -> None:
    """A bundle that cannot be read hides only the words: the session is shown, with a warning."""
    directory = tmp_path / "orders"
    directory.mkdir()
    (directory / "serving").write_text("no digest")
    done = subprocess.run(
        [*COMMAND, "sessions", "show", "-s", "orders", "open/é", "--json", "-c", kept.config_path],
        env=os.environ | {"OFFBEAT_MODELS_DIR": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "warning: tokens show as <oov>" in done.stderr
    shown = json.loads(done.stdout)
    assert [e["action"] for e in shown["context"]] == ["<oov>"] * 3
    assert shown["bundle"]["serving"] is False


# --- delete ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(kafka_address: str, tmp_path: Path) -> Stack:
    """Topics without a worker: the tests write the changelog themselves. The source is compacted."""
    stack = Stack(kafka_address, tmp_path)
    stack.configure()
    stack.create_source(**{"cleanup.policy": "compact"})
    stack.run("topics", "--create")
    return stack


def controls(stack: Stack) -> list[Message]:
    return stack.read(f"{stack.name}.controls")


DELETE = ("sessions", "delete", "-s", "orders")


def verify(stack: Stack, name: str, code: int) -> dict[str, dict[str, Any]]:
    """What `delete --verify` lists, by place."""
    done = stack.run(*DELETE, name, "--verify", "--json", check=False)
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert (found["sent"], found["gone"]) == (False, code == 0)
    return {place["place"]: place for place in found["places"]}


def test_delete_while_no_worker_runs(state: Stack) -> None:
    """One control is sent, with key and headers as documented; while nobody applies it, a sentence says so."""
    write_row(state, "a/b", b"row")
    sentence = ("session 'a/b' is still in the state after 0.5 s; is a worker running?", f"in {state.name}.controls")
    assert fails(state, 1, (*DELETE, "a/b", "--yes", "--wait", "0.5"), *sentence)
    (control,) = controls(state)
    assert control.key() == b"delete/orders/a/b"
    value, headers = json.loads(control.value()), dict(control.headers() or [])
    assert value == {"type": "delete_session", "stream": "orders", "session": "a/b", "issued_ms": value["issued_ms"]}
    assert headers["ce_id"] == f"delete/orders/a/b/{value['issued_ms']}".encode()
    assert headers["ce_type"] == b"io.offbeat.control"
    sent = state.run(*DELETE, "a/b", "--yes", "--wait", "0").stdout
    assert sent.startswith("The deletion of session a/b lies in ")


def test_delete_waits_until_it_is_applied(state: Stack) -> None:
    """It ends well once the row's tombstone lies above where the log ended when the control was sent."""
    write_row(state, "a", b"earlier", None, b"row")  # an older tombstone is no answer
    command = [*COMMAND, *DELETE, "a", "--yes", "--wait", "60", "--verify", "--json", "-c", str(state.config_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: controls(state), "the control")
            assert process.poll() is None
            write_row(state, "a", None)
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 0, err
    done = json.loads(out)
    assert (done["sent"], done["gone"], done["places"][0]["state"]) == (True, True, "gone_at_compaction")


def test_a_session_of_the_same_name_may_follow(state: Stack) -> None:
    """A row after the tombstone is a new session: the deletion was applied, and --verify says what stands there."""
    write_row(state, "a", b"row")
    command = [*COMMAND, *DELETE, "a", "--yes", "--wait", "60", "-c", str(state.config_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: controls(state), "the control")
            write_row(state, "a", None, b"new")
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "Session a is deleted: no read and no recovery returns it.\n"), err
    assert "an earlier session of that name ended or was deleted" in verify(state, "a", 1)["changelog"]["note"]


def test_verify_lists_each_place(state: Stack) -> None:
    """Before and after, each place is listed with its state and, where one is known, a time."""
    write_row(state, "a", b"older", b"row")
    before = verify(state, "a", 1)
    assert list(before) == [
        "changelog", "rocksdb", "source", "anomalies", "rescores", "decisions", "dead-letters", "late", "drift",
        "incidents", "incident-feed", "incident-state", "controls",
    ]  # fmt: skip
    assert {place for place, trace in before.items() if trace["state"] == "still_there"} == {"changelog", "rocksdb"}
    assert before["controls"]["state"] == "gone"
    assert controls(state) == [], "--verify alone deletes nothing"

    state.run(*DELETE, "a", "--yes", "--wait", "0")
    write_row(state, "a", None)
    (tombstone,) = [m for m in state.read(changelog(state)) if m.value() is None]
    after = verify(state, "a", 0)
    assert after["changelog"] == {
        "place": "changelog", "where": changelog(state), "state": "gone_at_compaction",
        "until_ms": tombstone.timestamp()[1] + 86_400_000, "note": after["changelog"]["note"],
    }  # fmt: skip
    assert after["changelog"]["note"].startswith("2 older rows below a tombstone")
    assert (after["rocksdb"]["state"], after["controls"]["state"]) == ("gone", "kept")
    assert (after["source"]["state"], after["source"]["until_ms"]) == ("kept", None)
    assert after["source"]["note"] == "for ever: compacted"
    week = 7 * 86_400_000
    for place in ("anomalies", "rescores", "decisions", "dead-letters", "late", "drift", "incidents", "incident-feed"):
        trace = after[place]
        assert (trace["state"], trace["note"]) == ("kept", "retention 7d, in segments of 7d at most")
        assert 0 <= trace["until_ms"] - tombstone.timestamp()[1] - 2 * week < 60_000
    table = state.run(*DELETE, "a", "--verify").stdout
    assert "gone at compaction by" in table
    assert after["incident-state"]["state"] == "kept"
    assert table.count("kept until") == 8


def test_verify_where_nothing_was(state: Stack) -> None:
    """A name the log does not hold is gone, as is one of which a tombstone is left; a missing topic has nothing."""
    admin = AdminClient({"bootstrap.servers": state.address, **QUIET})
    admin.delete_topics([f"{state.name}.drift"])[f"{state.name}.drift"].result(PATIENCE_S)
    wait_until(lambda: f"{state.name}.drift" not in admin.list_topics(timeout=PATIENCE_S).topics, "the topic to go")
    traces = verify(state, "never", 0)
    assert (traces["changelog"]["state"], traces["changelog"]["note"]) == ("gone", "no record has its name")
    assert (traces["drift"]["state"], traces["drift"]["note"]) == ("gone", "there is no such topic")
    write_row(state, "ended", None)
    traces = verify(state, "ended", 0)
    assert (traces["changelog"]["state"], traces["changelog"]["until_ms"]) == ("gone", None)
    assert traces["rocksdb"]["state"] == "gone_at_compaction", "it ended by itself: nobody compacts RocksDB for it"


def test_verify_with_a_changelog_of_other_settings(kafka_address: str, tmp_path: Path) -> None:
    """Where the changelog's own settings bound nothing, no time is promised."""
    stack = Stack(kafka_address, tmp_path)
    stack.configure()
    stack.create_source(**{"retention.ms": "-1"})
    admin = AdminClient({"bootstrap.servers": stack.address, **QUIET})
    name = changelog(stack)
    admin.create_topics([NewTopic(name, 4, 1, config={"cleanup.policy": "compact"})])[name].result(PATIENCE_S)
    write_row(stack, "a", b"row", None)
    traces = verify(stack, "a", 0)
    assert (traces["changelog"]["state"], traces["changelog"]["until_ms"]) == ("gone_at_compaction", None)
    assert "max.compaction.lag.ms" in traces["changelog"]["note"]
    assert (traces["source"]["until_ms"], traces["source"]["note"]) == (None, "for ever: retention.ms is -1")
    assert fails(stack, 1, (*DELETE, "a", "--yes"), f"topic {stack.name}.controls does not exist; run `offbeat topics")


def test_delete_of_what_is_not_there(state: Stack) -> None:
    """A session without a saved row is asked to be deleted all the same: a worker may be about to save it."""
    assert state.run(*DELETE, "a", "--yes").stdout == "Session a is deleted: no read and no recovery returns it.\n"
    assert len(controls(state)) == 1


@pytest.mark.parametrize(("answer", "code", "sent"), [(b"n\n", 1, 0), (b"y\n", 0, 1)])
def test_delete_asks_at_a_terminal(answer: bytes, code: int, sent: int, state: Stack) -> None:
    """At a terminal it asks, and only a yes deletes."""
    ours, its = pty.openpty()
    try:
        os.write(ours, answer)
        done = subprocess.run(
            [*COMMAND, *DELETE, "a", "-c", str(state.config_path)], stdin=its, capture_output=True, text=True,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(its)
    assert done.returncode == code, done.stderr
    assert "Forget session 'a' of stream orders? [y/N]" in done.stderr
    assert ("Nothing was deleted." in done.stderr) is (sent == 0)
    assert len(controls(state)) == sent


def test_before_a_worker_ran_there_is_no_state(stack: Stack) -> None:
    """Without a changelog both commands say that no worker has kept sessions yet."""
    for command in (("sessions", "show", "-s", "orders", "a"), (*DELETE, "a", "--yes"), (*DELETE, "a", "--verify")):
        assert fails(
            stack, 1, command, f"topic {changelog(stack)} does not exist: no worker has kept sessions of orders"
        )
