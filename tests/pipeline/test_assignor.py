"""The assignor in aiokafka's protocol: what travels, and two real consumers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import orjson
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from confluent_kafka.admin import AdminClient, NewTopic
from structlog.testing import capture_logs

from pipeline.assignor import OffbeatAssignor
from pipeline.clients import Clients
from pipeline.settings import parse_settings
from pipeline.shares import Owned
from tests.docs.test_docs import DEMAND
from tests.kafka import PATIENCE_S


def cluster(**sizes: int) -> Any:
    """As much of aiokafka's cluster metadata as an assignor asks for."""
    return SimpleNamespace(partitions_for_topic=lambda topic: set(range(sizes[topic])) if topic in sizes else None)


def sent(assignor: OffbeatAssignor, *topics: str) -> ConsumerProtocolMemberMetadata:
    """A member's metadata as it arrives at the leader."""
    return ConsumerProtocolMemberMetadata.decode(assignor.metadata(set(topics)).encode())


def test_what_a_member_had_reaches_the_leader() -> None:
    """Actives and standbys are reported, respected, and come back as an assignment with standbys beside it."""
    first = OffbeatAssignor(Owned("w0", frozenset({("t", 1)}), frozenset({("t", 0)})), 1)
    second = OffbeatAssignor(Owned("w1", frozenset({("t", 0)}), frozenset({("t", 1)})), 1)
    given = second.assign(cluster(t=2), {"x": sent(first, "t"), "y": sent(second, "t")})
    arrived = ConsumerProtocolMemberAssignment.decode(given["x"].encode())
    assert arrived.assignment == [("t", [1])]
    first.on_assignment(arrived)
    assert first.standby == {("t", 0)}
    assert second.standby == frozenset()  # nothing is shared between workers of one process


@pytest.mark.parametrize(
    "user_data",
    [b"", None, b"\xff", b"[]", b"{}", b'{"version": 2, "active": {"t": [0, 1]}}', b'{"version": 1, "active": 3}'],
)
def test_a_member_that_says_nothing_we_know_had_nothing(user_data: bytes | None) -> None:
    """Missing, damaged and newer user data do not disturb the others, and the member gets its share."""
    leader = OffbeatAssignor(Owned("w0", frozenset({("t", 0), ("t", 1)})))
    stranger = ConsumerProtocolMemberMetadata(0, ["t"], user_data)
    given = leader.assign(cluster(t=2), {"x": sent(leader, "t"), "y": stranger})
    assert sorted(len(one.partitions()) for one in given.values()) == [1, 1]
    leader.on_assignment(ConsumerProtocolMemberAssignment(0, [], user_data))
    assert leader.standby == frozenset()


def test_user_data_has_a_version() -> None:
    """The user data are JSON that says its version, for members of other releases."""
    data = orjson.loads(
        sent(OffbeatAssignor(Owned("w0", frozenset({("t", 2), ("t", 1)}), generation=3)), "t").user_data
    )
    assert data == {"version": 1, "instance": "w0", "generation": 3, "active": {"t": [1, 2]}, "standby": {}}


def test_a_topic_without_partitions_is_left_out() -> None:
    """A topic that is not there yet is said, and the others are given out."""
    leader = OffbeatAssignor(Owned("w0"))
    with capture_logs() as log:
        given = leader.assign(cluster(t=2), {"x": sent(leader, "t", "nowhere")})
    assert [(line["event"], line["topic"]) for line in log] == [("topic has no partitions to give out", "nowhere")]
    assert given["x"].assignment == [("t", [0, 1])]


class Worker:
    """A static member of a group on the real broker that reports what it got."""

    def __init__(self, address: str, group: str, topic: str, instance: str) -> None:
        self.assignor, self._topic = OffbeatAssignor(Owned(instance), 1), topic
        settings = parse_settings(DEMAND | {"broker": address}, {})
        self.consumer: AIOKafkaConsumer = Clients(settings).group_consumer(
            group=group, instance=instance, assignors=[self.assignor], session_timeout_ms=15_000, max_poll_records=10
        )

    async def start(self) -> None:
        """Join."""
        self.consumer.subscribe([self._topic])
        await self.consumer.start()

    @property
    def active(self) -> frozenset[int]:
        """What it reads."""
        return frozenset(tp.partition for tp in self.consumer.assignment())

    @property
    def standby(self) -> frozenset[int]:
        """What it follows."""
        return frozenset(p for _, p in self.assignor.standby)

    def report(self) -> None:
        """Say at the next rebalance what we have now."""
        active = frozenset((self._topic, p) for p in self.active)
        self.assignor.owned = Owned(self.assignor.owned.instance, active, self.assignor.standby)


async def until(condition: Callable[[], bool], *workers: Worker) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            for worker in workers:
                worker.report()
            await asyncio.sleep(0.1)


async def join_and_leave(address: str, topic: str) -> None:
    first, second = (Worker(address, topic, topic, name) for name in ("w0", "w1"))
    await first.start()
    await until(lambda: first.active == {0, 1, 2, 3}, first)
    assert first.standby == frozenset()

    await second.start()
    await until(lambda: len(first.active) == len(second.active) == 2, first)
    kept, taken = first.active, second.active
    assert kept | taken == {0, 1, 2, 3}
    assert (first.standby, second.standby) == (taken, kept)

    # A static member does not say goodbye: a restart gets the same again without a rebalance, the leader's too.
    first, second = await restarted(address, topic, first, second)
    second, first = await restarted(address, topic, second, first)

    first.report()
    await second.consumer.stop()
    await until(lambda: first.active == {0, 1, 2, 3})  # after the session timeout
    assert first.standby == frozenset()
    await first.consumer.stop()


async def restarted(address: str, topic: str, stays: Worker, goes: Worker) -> tuple[Worker, Worker]:
    generation, before = stays.consumer._coordinator.generation, (goes.active, goes.standby)
    await goes.consumer.stop()
    again = Worker(address, topic, topic, goes.assignor.owned.instance)
    await again.start()
    await until(lambda: bool(again.active))
    assert (again.active, again.standby) == before
    assert stays.consumer._coordinator.generation == generation
    return stays, again


def test_two_consumers_share_a_topic(kafka_address: str) -> None:
    """On a real broker: shares and standbys arrive, a restart keeps them, and they come back from a dead member."""
    topic = f"t{uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": kafka_address, "log_level": 0})
    admin.create_topics([NewTopic(topic, 4, 1)])[topic].result(PATIENCE_S)
    asyncio.run(join_and_leave(kafka_address, topic))
