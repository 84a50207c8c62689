"""A key in a changelog: where clients place it, and what is left of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.partitioner import murmur2
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.kafka import new_producer
from pipeline.changelog import KeyReader, Trail, Written, usual_partitions
from pipeline.clients import Clients
from pipeline.errors import TopicError
from pipeline.settings import load_settings
from tests.kafka import QUIET, Stack, wait_until


@pytest.mark.parametrize(
    ("key", "expected"),
    [  # those of Apache Kafka's own tests of Utils.murmur2
        (b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971), (b"abc", 479470107),
    ],
)  # fmt: skip
def test_murmur2_is_java_clients(key: bytes, expected: int) -> None:
    """The hash is Kafka's, and the partition is its positive part modulo the number of partitions."""
    assert murmur2(key) & 0xFFFFFFFF == expected & 0xFFFFFFFF
    assert usual_partitions(key.decode(), 64)[0] == (expected & 0x7FFFFFFF) % 64


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(1, 1_000))
def test_usual_partitions_exist(name: str, partitions: int) -> None:
    """There are one or two, each once, each one that the topic has."""
    usual = usual_partitions(name, partitions)
    assert 1 <= len(usual) == len(set(usual)) <= 2
    assert all(0 <= p < partitions for p in usual)


@pytest.mark.parametrize(("partitioner", "place"), [("murmur2_random", 0), ("consistent", -1)])
def test_usual_partitions_are_where_clients_place_keys(partitioner: str, place: int, stack: Stack) -> None:
    """Records sent by Java's rule lie in the first partition named, those by librdkafka's in the last."""
    names = [f"s-{n}" for n in range(50)] + ["é", "a/b", "x" * 300]
    producer = new_producer(stack.address, partitioner=partitioner)
    for name in names:
        producer.produce(stack.source, b"{}", key=name.encode())
    assert producer.flush(30) == 0
    found = {m.key().decode(): m.partition() for m in stack.read(stack.source)}
    assert found == {name: usual_partitions(name, stack.partitions)[place] for name in names}


@given(st.lists(st.none() | st.binary(), min_size=1, max_size=8))
def test_a_trail(values: list[bytes | None]) -> None:
    """A trail says what came last, how many values lie below it, and which tombstone was the last."""
    records = [Written(0, 10 * n, n, value) for n, value in enumerate(values)]
    trail = Trail(records[0], tombstone=None if values[0] is not None else records[0])
    for record in records[1:]:
        trail = trail.then(record)
    assert trail.last == records[-1]
    assert trail.older_values == sum(value is not None for value in values[:-1])
    assert trail.tombstone == next((r for r in reversed(records) if r.value is None), None)


def test_a_reader_follows_a_key(stack: Stack) -> None:
    """Each `read` goes on to where the log ends then, other keys, aborted and open transactions apart."""
    clients = Clients(load_settings(stack.config_path))
    with KeyReader(clients, stack.source, b"k", range(stack.partitions)) as reader:
        reader.read()
        assert reader.trails == {}
        stack.produce([(b"k", b"1"), (b"other", b"2"), (b"k", b"3")])
        reader.read()
        (trail,) = reader.trails.values()
        assert (trail.last.value, trail.older_values, trail.tombstone) == (b"3", 1, None)
        assert reader.row == trail.last
        producer = Producer(
            {"bootstrap.servers": stack.address, "transactional.id": stack.name, "partitioner": "murmur2", **QUIET}
        )
        producer.init_transactions(30)
        for value, commits in ((b"4", False), (None, True)):
            producer.begin_transaction()
            producer.produce(stack.source, value, key=b"k")
            assert producer.flush(30) == 0
            reader.read()
            assert reader.row is not None, "an open transaction is not read"
            if commits:
                producer.commit_transaction(30)
            else:
                producer.abort_transaction(30)

        def is_gone() -> bool:
            """A commit is answered before its marker is there."""
            reader.read()
            return reader.row is None

        wait_until(is_gone, "the tombstone")
        (trail,) = reader.trails.values()
        assert (trail.older_values, trail.tombstone) == (2, trail.last)
        assert reader.ends == stack.ends()


def test_a_topic_that_cannot_be_read(kafka_address: str, tmp_path: Path) -> None:
    """A topic that went away is a sentence with Kafka's reason."""
    stack = Stack(kafka_address, tmp_path)
    stack.configure()
    with pytest.raises(TopicError, match="topic nowhere cannot be read: "):
        KeyReader(Clients(load_settings(stack.config_path)), "nowhere", b"k", [0])
