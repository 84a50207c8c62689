"""Who reads which partitions, and who keeps whose rows warm: sticky, even, and to where the rows already lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TP = tuple[str, int]  # topic and partition; equal to Faust's and aiokafka's named tuples
_Held = dict[str, set[TP]]
_Key = Callable[[TP], tuple[Any, ...]]


@dataclass(frozen=True)
class Owned:
    """What a worker has: partitions it reads, and partitions of others whose rows it keeps warm.

    Of two workers that claim one partition, that of the later `generation` has it: the other slept through a rebalance.
    """

    instance: str
    active: frozenset[TP] = frozenset()
    standby: frozenset[TP] = frozenset()
    generation: int = -1

    def coldness(self, tp: TP) -> int:
        """0 where the partition was read, 1 where it was followed, 2 where none of its rows lie."""
        return 0 if tp in self.active else 1 if tp in self.standby else 2


@dataclass(frozen=True)
class Member:
    """A member of the group: the topics it subscribes to, and what it had."""

    topics: frozenset[str]
    had: Owned


@dataclass(frozen=True)
class Assigned:
    """What a member is to read and to follow."""

    active: frozenset[TP]
    standby: frozenset[TP]


def assign(partitions: Mapping[str, int], members: Mapping[str, Member], standby_replicas: int) -> dict[str, Assigned]:
    """Decide for the whole group; the same for any order of `members`.

    Every partition of a subscribed topic is active once. Members that subscribe to the same topics differ by at most
    one in what they read, in all and of each topic. As far as that allows, members keep what they had, and what has
    lost its reader goes where its rows are warm. Each partition has `standby_replicas` standbys, or as many as there
    are other instances; these, too, stay where they were and are spread evenly.

    Parameters
    ----------
    partitions
        Number of partitions by topic.
    members
        By member id.
    """
    ordered = dict(sorted(members.items(), key=lambda item: (item[1].had.instance, item[0])))
    if not ordered:
        return {}
    active = _actives([(topic, p) for topic in sorted(partitions) for p in range(partitions[topic])], ordered)
    standby = _standbys(active, ordered, standby_replicas)
    return {m: Assigned(frozenset(active[m]), frozenset(standby[m])) for m in ordered}


def _actives(every: list[TP], members: Mapping[str, Member]) -> _Held:
    readers = {topic: [m for m in members if topic in members[m].topics] for topic, _ in every}
    every = [tp for tp in every if readers[tp[0]]]
    share = {topic: count / len(readers[topic]) for topic, count in _by_topic(every).items()}
    held: _Held = {m: set() for m in members}
    orphans = []
    for tp in every:
        claims = [m for m in readers[tp[0]] if tp in members[m].had.active]
        if claims:
            held[max(claims, key=lambda m: members[m].had.generation)].add(tp)
        else:
            orphans.append((tp, [m for m in readers[tp[0]] if tp in members[m].had.standby]))
    fair = -(-len(every) // len(members))
    for tp, warm in sorted(orphans, key=lambda orphan: not orphan[1]):  # the warm first, while there is room for them
        near = [m for m in warm if len(held[m]) < fair] or readers[tp[0]]
        held[min(near, key=lambda m: (len(held[m]), _by_topic(held[m])[tp[0]]))].add(tp)

    def may_take(taker: str, tp: TP) -> bool:
        return tp[0] in members[taker].topics

    def price(giver: str, taker: str) -> _Key:
        here, there = _by_topic(held[giver]), _by_topic(held[taker])
        gives, takes = members[giver].had, members[taker].had
        return lambda tp: (
            there[tp[0]] - here[tp[0]], share[tp[0]] - here[tp[0]], tp in gives.active, takes.coldness(tp), tp
        )  # fmt: skip

    while _level(held, may_take, price) or _mix(held, members, price):
        pass
    return held


def _standbys(active: _Held, members: Mapping[str, Member], replicas: int) -> _Held:
    held: _Held = {m: set() for m in members}
    reader = {tp: members[m].had.instance for m, tps in active.items() for tp in tps}

    def may_take(taker: str, tp: TP) -> bool:
        member = members[taker]
        return tp[0] in member.topics and tp not in held[taker] and member.had.instance != reader[tp]

    def price(giver: str, taker: str) -> _Key:
        return lambda tp: (-members[giver].had.coldness(tp), members[taker].had.coldness(tp), tp)

    for tp in sorted(reader):
        able = [m for m in members if may_take(m, tp)]
        able.sort(key=lambda m: (members[m].had.coldness(tp) == 2, len(held[m])))
        for m in able[:replicas]:
            held[m].add(tp)
    _level(held, may_take, price)
    return held


def _level(held: _Held, may_take: Callable[[str, TP], bool], price: Callable[[str, str], _Key]) -> bool:
    """Move partitions, each time the cheapest, from members with many to such with at least two fewer.

    Whether any moved. Members that may take the same come out even.
    """
    moved = False
    while step := _step(held, may_take, price):
        giver, taker, tp = step
        held[giver].remove(tp)
        held[taker].add(tp)
        moved = True
    return moved


def _step(
    held: _Held, may_take: Callable[[str, TP], bool], price: Callable[[str, str], _Key]
) -> tuple[str, str, TP] | None:
    by_load = sorted(held, key=lambda m: (len(held[m]), sum(n * n for n in _by_topic(held[m]).values())))
    for giver in reversed(by_load):
        for taker in by_load:
            if len(held[giver]) - len(held[taker]) < 2:
                break
            if offers := [tp for tp in held[giver] if may_take(taker, tp)]:
                return giver, taker, min(offers, key=price(giver, taker))
    return None


def _mix(held: _Held, members: Mapping[str, Member], price: Callable[[str, str], _Key]) -> bool:
    """Make one topic more even and leave the counts of all topics together as even as they are; whether it could."""
    for topic in sorted({tp[0] for tps in held.values() for tp in tps}):
        counts = {m: (_by_topic(held[m])[topic], len(held[m])) for m in held if topic in members[m].topics}
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        if counts[most][0] - counts[least][0] < 2:
            continue
        swap = counts[most][1] <= counts[least][1]  # then something has to come back for it
        here, there = _by_topic(held[most]), _by_topic(held[least])
        back = [tp for tp in held[least] if tp[0] in members[most].topics and there[tp[0]] > here[tp[0]]]
        if swap and not back:
            continue
        moved = min((tp for tp in held[most] if tp[0] == topic), key=price(most, least))
        returned = {min(back, key=price(least, most))} if swap else set()
        held[most] = held[most] - {moved} | returned
        held[least] = held[least] - returned | {moved}
        return True
    return False


def _by_topic(tps: Iterable[TP]) -> Counter[str]:
    return Counter(topic for topic, _ in tps)
