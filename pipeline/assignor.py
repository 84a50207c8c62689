"""The group's partition assignor: `shares.assign`, carried by Kafka's group protocol.

A worker tells the group what it had, and is told what to read and which standbys to keep: partitions of others whose
changelog it follows, so that it can take them over quickly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import msgspec
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from pipeline.logs import get_logger
from pipeline.shares import TP, Member, Owned, assign

_VERSION = 1  # of the user data; a reader that does not know it takes the member for one that had nothing

log = get_logger()


class _UserData(msgspec.Struct):
    """What travels beside subscription and assignment, as JSON; partitions by topic."""

    version: int = _VERSION
    instance: str = ""
    generation: int = -1
    active: dict[str, list[int]] = {}
    standby: dict[str, list[int]] = {}


class OffbeatAssignor(AbstractPartitionAssignor):  # type: ignore[misc] # aiokafka ships no types
    """The assignor of one worker, to be given to its consumer: aiokafka only calls methods, so an instance will do.

    Its methods run in the consumer's thread. `owned` and `standby` are replaced whole, never changed.

    Parameters
    ----------
    owned
        What to report when the group is joined; the caller replaces it as things change.
    standby_replicas
        Standbys of each partition. The group's leader decides for all, so it should be the same in all workers.
    """

    name = "offbeat"

    def __init__(self, owned: Owned, standby_replicas: int = 0) -> None:
        self.owned, self.standby = owned, frozenset[TP]()
        self._standby_replicas = standby_replicas

    def metadata(self, topics: Iterable[str]) -> Any:
        """Say what this worker subscribes to and has."""
        had = self.owned
        data = _UserData(_VERSION, had.instance, had.generation, _grouped(had.active), _grouped(had.standby))
        return ConsumerProtocolMemberMetadata(0, sorted(topics), msgspec.json.encode(data))

    def assign(self, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:
        """Decide as the group's leader."""
        known = {}
        for topic in sorted({topic for member in members.values() for topic in member.subscription}):
            partitions = cluster.partitions_for_topic(topic)
            if partitions is None:
                log.warning("topic has no partitions to give out", topic=topic)
            else:
                known[topic] = len(partitions)
        group = {m: Member(frozenset(said.subscription), _had(m, said.user_data)) for m, said in members.items()}
        return {
            m: ConsumerProtocolMemberAssignment(
                0, list(_grouped(given.active).items()), msgspec.json.encode(_UserData(standby=_grouped(given.standby)))
            )
            for m, given in assign(known, group, self._standby_replicas).items()
        }

    def on_assignment(self, assignment: Any) -> None:
        """Take note of the standbys; aiokafka itself sees to the partitions."""
        self.standby = frozenset(_ungrouped(_decode(assignment.user_data).standby))


def _decode(user_data: bytes | None) -> _UserData:
    try:
        data = msgspec.json.decode(user_data or b"", type=_UserData)
    except msgspec.MsgspecError:
        return _UserData()
    return data if data.version == _VERSION else _UserData()


def _had(member: str, user_data: bytes | None) -> Owned:
    data = _decode(user_data)
    active, standby = frozenset(_ungrouped(data.active)), frozenset(_ungrouped(data.standby))
    return Owned(data.instance or member, active, standby, data.generation)


def _grouped(tps: Iterable[TP]) -> dict[str, list[int]]:
    return {topic: [p for _, p in found] for topic, found in groupby(sorted(tps), key=lambda tp: tp[0])}


def _ungrouped(partitions: Mapping[str, list[int]]) -> Iterable[TP]:
    return ((topic, p) for topic, ps in partitions.items() for p in ps)
