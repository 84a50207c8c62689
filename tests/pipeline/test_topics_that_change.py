"""Sources that are made anew, cut or rewound, and offsets that are missing: said, counted, and never passed over."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.kafka import PATIENCE_S, Stack, WorkerProcess, as_records, by_id, shop_events, wait_until
from tests.pipeline.test_worker import decisions_of, scored_by_file

CLOCKS = ("detected_ms",)


def admin_of(stack: Stack) -> AdminClient:
    return AdminClient({"bootstrap.servers": stack.address, "log_level": 0})


def make_anew(stack: Stack) -> None:
    admin = admin_of(stack)
    admin.delete_topics([stack.source])[stack.source].result(PATIENCE_S)
    wait_until(lambda: stack.source not in admin.list_topics(timeout=PATIENCE_S).topics, "the topic to go")
    stack.create_source()


def cut(stack: Stack, before: int) -> None:
    """Delete each partition's records below an offset, as retention does."""
    admin = admin_of(stack)  # a client that is let go of takes its answers along
    places = [TopicPartition(stack.source, p, before) for p in range(stack.partitions)]
    for future in admin.delete_records(places).values():
        future.result(PATIENCE_S)


def drift(stack: Stack) -> dict[str, dict[str, Any]]:
    return by_id(stack.read_json("drift"), ignore=CLOCKS)


def metric(worker: WorkerProcess, name: str) -> float:
    lines = [line for line in worker.metrics().splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.parametrize("while_reading", [False, True])
def test_a_topic_made_anew_closes_its_sessions(while_reading: bool, stack: Stack) -> None:
    """All open sessions end with a verdict, the new topic is read from its start, and no id has two contents."""
    stack.configure(decisions={"sample": 1.0})
    first, second = as_records(shop_events(21, 120)), as_records(shop_events(22, 30))
    with WorkerProcess(stack) as worker:
        stack.produce(first)
        stack.wait_until_scored()
        before = by_id(stack.read_json("decisions"))
        if not while_reading:
            assert worker.stop() == 0
        make_anew(stack)
        stack.produce(second)
        with worker if while_reading else WorkerProcess(stack) as later:
            later.wait_ready(4)
            wait_until(lambda: metric(later, "offbeat_stream_changes_total") == 4, "all to be noticed")
            stack.wait_until_scored()
            assert later.stop() == 0

    decisions = by_id(stack.read_json("decisions"))
    old = {i: v for i, v in decisions.items() if "~" not in i}
    new = {i: v for i, v in decisions.items() if f"/{stack.source}~1/" in i}
    assert len(old) + len(new) == len(decisions)
    closed = [v for i, v in old.items() if i not in before]
    assert {v["ended"] for v in closed} == {"input"}
    opened = {v["session"] for v in before.values() if v["type"] == "record"}
    assert len(closed) + sum(v["type"] == "session" for v in before.values()) >= len(opened)
    assert {i.replace("~1/", "/"): v | {"id": i.replace("~1/", "/")} for i, v in new.items()} == decisions_of(
        scored_by_file(stack)
    )
    told = drift(stack)
    assert {v["type"] for v in told.values()} == {"topic_recreated"}
    assert len(told) == 4
    assert sum(v["amount"] for v in told.values()) == len(closed)


def test_a_longer_topic_under_the_same_name_is_noticed(stack: Stack) -> None:
    """Where the new topic holds more than was read of the old one, no fetch fails; its id tells, within seconds."""
    second = as_records(shop_events(30, 300))
    with WorkerProcess(stack) as worker:
        stack.produce(as_records(shop_events(29, 20)))
        stack.wait_until_scored()
        make_anew(stack)
        stack.produce(second)
        wait_until(lambda: metric(worker, "offbeat_stream_changes_total") == 4, "all to be noticed")
        stack.wait_until_scored()
        assert worker.stop() == 0
    new = {i.replace("~1/", "/"): v for i, v in by_id(stack.read_json("decisions")).items() if "~1/" in i}
    assert {i: v | {"id": i} for i, v in new.items()} == decisions_of(scored_by_file(stack))


@pytest.mark.parametrize("point", ["checkpoint/0:1", "checkpoint/3:2", "checkpoint/4:3"])
def test_closing_all_sessions_survives_a_crash(point: str, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while a recreated topic's sessions are being closed, the next worker closes the rest; each closes once."""
    stack.configure(state={"hot_sessions": 100})
    stack.produce(as_records(shop_events(23, 2_000)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    make_anew(stack)
    monkeypatch.setenv("FAIL_POINT", point)
    with WorkerProcess(stack) as worker:
        assert worker.process.wait(PATIENCE_S) == -9
    monkeypatch.delenv("FAIL_POINT")
    stack.produce(as_records(shop_events(24, 30)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    decisions = by_id(stack.read_json("decisions"))
    ended = [v["session"] for i, v in decisions.items() if v["type"] == "session" and "~" not in i]
    begun = {v["session"] for i, v in decisions.items() if v["type"] == "record" and "~" not in i}
    assert begun == set(ended)
    assert len(drift(stack)) == 4


@pytest.mark.parametrize("while_reading", [False, True])
def test_records_lost_to_retention_are_counted(while_reading: bool, stack: Stack) -> None:
    """A source cut past what was read goes on at its new start, with its sessions; how much was lost is said."""
    records = as_records(shop_events(25, 400))
    half = len(records) // 2
    with WorkerProcess(stack) as worker:
        stack.produce(records[:half])
        stack.wait_until_scored()
        read = stack.committed()
        if while_reading:
            worker.process.send_signal(19)
        else:
            assert worker.stop() == 0
        stack.produce(records[half:])
        beyond = max(read.values()) + 10
        cut(stack, beyond)
        if while_reading:
            worker.process.send_signal(18)
        with worker if while_reading else WorkerProcess(stack) as later:
            later.wait_ready(4)
            stack.wait_until_scored()
            counted = metric(later, "offbeat_lost_records_total")
            assert later.stop() == 0
    told = drift(stack)
    assert {v["type"] for v in told.values()} == {"records_lost"}
    decided = {i for i, v in by_id(stack.read_json("decisions")).items() if v["type"] == "record"}
    lost = [
        offset
        for p, end in stack.ends().items()
        for offset in range(end)
        if f"orders/{stack.source}/{p}/{offset}/record" not in decided
    ]
    assert counted == len(lost) == sum(v["amount"] for v in told.values())
    assert while_reading or len(lost) == sum(beyond - offset for offset in read.values())  # else some were under way
    assert max(lost) < beyond


def test_a_reset_offset_is_followed_when_asked(stack: Stack) -> None:
    """A group's offset moved by an operator stops the worker with a sentence; --accept-reset closes and follows it."""
    stack.produce(as_records(shop_events(26, 100)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    before = by_id(stack.read_json("decisions"))
    moved = [TopicPartition(stack.source, p, 5) for p in range(stack.partitions)]
    admin = admin_of(stack)  # named: dropping it would cancel the request

    def is_moved() -> bool:
        """Only of a group that is empty, and a static member stays for its session timeout."""
        try:
            asked = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(stack.name, moved)])
            return all(tp.error is None for tp in asked[stack.name].result(PATIENCE_S).topic_partitions)
        except KafkaException:
            return False

    wait_until(is_moved, "the group to be empty")
    with WorkerProcess(stack) as worker:
        assert worker.process.wait(PATIENCE_S) == 1
        assert "--accept-reset" in worker.log_path.read_text()
        assert "Traceback" not in worker.log_path.read_text()
    with WorkerProcess(stack, options=("--accept-reset",)) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    after = {i: v for i, v in by_id(stack.read_json("decisions")).items() if i not in before}
    assert {v["ended"] for i, v in after.items() if "~" not in i} == {"input"}
    again = {i.replace("~1/", "/") for i, v in after.items() if "~1/" in i and v["type"] == "record"}
    assert again == {i for i, v in before.items() if v["type"] == "record" and int(i.split("/")[3]) >= 5}
    assert {v["type"] for v in drift(stack).values()} == {"offset_reset"}
    with WorkerProcess(stack) as worker:  # and from then on all is as ever
        worker.wait_ready(4)
        assert worker.stop() == 0


def test_gaps_in_offsets_are_no_loss(stack: Stack) -> None:
    """Transaction markers and aborted records leave holes and never show; what was committed is scored."""
    records = as_records(shop_events(27, 150))
    producer = Producer(
        {
            "bootstrap.servers": stack.address, "transactional.id": f"{stack.name}-source",
            "partitioner": "murmur2_random", "log_level": 0,
        }
    )  # fmt: skip
    producer.init_transactions(30)
    with WorkerProcess(stack) as worker:
        worker.wait_ready(4)
        for begin in range(0, len(records), 100):
            producer.begin_transaction()
            for key, value in records[begin : begin + 100]:
                producer.produce(stack.source, b'{"never": "seen"}' if begin % 300 == 0 else value, key=key)
            if begin % 300 == 0:
                producer.abort_transaction(30)
            else:
                producer.commit_transaction(30)
        committed = sum(len(records[b : b + 100]) for b in range(0, len(records), 100) if b % 300)

        def scored() -> bool:
            return sum(v["type"] == "record" for v in by_id(stack.read_json("decisions")).values()) == committed

        wait_until(scored, "all committed records to be scored")
        assert worker.stop() == 0
    assert by_id(stack.read_json("decisions")) == decisions_of(scored_by_file(stack))
    assert stack.read_json("dead-letters") == []
    assert stack.read_json("drift") == []


def test_more_partitions_are_refused(stack: Stack) -> None:
    """A source that got more partitions would send sessions elsewhere: the worker does not start, and says so."""
    from confluent_kafka.admin import NewPartitions

    stack.score(as_records(shop_events(28, 20)))
    admin = admin_of(stack)
    admin.create_partitions([NewPartitions(stack.source, 6)])[stack.source].result(PATIENCE_S)
    with WorkerProcess(stack) as worker:
        assert worker.process.wait(PATIENCE_S) == 1
        assert "partitions but its source has 6" in worker.log_path.read_text()
