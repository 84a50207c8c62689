"""Who reads what: properties over random groups."""

from __future__ import annotations

from collections import Counter
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shares import TP, Assigned, Member, Owned, assign

Sizes = dict[str, int]
Group = dict[str, Assigned]

topics = st.sampled_from(["a", "b", "c", "d"])
sizes_of_topics = st.dictionaries(topics, st.integers(1, 9), min_size=1, max_size=4)
replicas_of_all = st.integers(0, 3)
unhurried = settings(deadline=None)  # other tests share the machine


def workers(names: range | list[int], sizes: Sizes, before: Group | None = None) -> dict[str, Member]:
    """Members that subscribe to everything and report what `before` gave them."""
    had = before or {}
    nothing = Assigned(frozenset(), frozenset())
    return {
        f"m{n}": Member(frozenset(sizes), Owned(f"w{n}", was.active, was.standby))
        for n in names
        for was in [had.get(f"m{n}", nothing)]
    }


def readers(group: Group) -> dict[TP, str]:
    """The member that reads each partition; fails if there are two."""
    found: dict[TP, str] = {}
    for member, assigned in group.items():
        for tp in assigned.active:
            assert found.setdefault(tp, member) == member
    return found


def moved(before: Group, after: Group) -> set[TP]:
    """Partitions that a member lost although it stayed."""
    was, now = readers(before), readers(after)
    return {tp for tp in was if was[tp] in after and now[tp] != was[tp]}


def assert_sound(sizes: Sizes, group: Group, replicas: int) -> None:
    """All partitions once, evenly; standbys elsewhere, as many as asked for or possible, evenly."""
    every = {(topic, p) for topic in sizes for p in range(sizes[topic])}
    assert set(readers(group)) == every
    for topics_counted in [set(sizes), *({topic} for topic in sizes)]:
        counts = [sum(tp[0] in topics_counted for tp in given.active) for given in group.values()]
        assert max(counts) - min(counts) <= 1
    followers = Counter(tp for given in group.values() for tp in given.standby)
    assert followers == Counter(dict.fromkeys(every, min(replicas, len(group) - 1))) + Counter()
    assert all(not given.active & given.standby for given in group.values())
    counts = [len(given.standby) for given in group.values()]
    assert max(counts) - min(counts) <= 1


@unhurried
@given(sizes_of_topics, st.integers(1, 7), replicas_of_all)
def test_a_new_group_is_even(sizes: Sizes, count: int, replicas: int) -> None:
    """Every partition is active once, counts differ by one at most, standbys lie with others."""
    assert_sound(sizes, assign(sizes, workers(range(count), sizes), replicas), replicas)


@unhurried
@given(sizes_of_topics, st.integers(1, 7), replicas_of_all)
def test_the_same_members_again_move_nothing(sizes: Sizes, count: int, replicas: int) -> None:
    """An assignment that is reported back comes out again, standbys included."""
    group = assign(sizes, workers(range(count), sizes), replicas)
    assert assign(sizes, workers(range(count), sizes, group), replicas) == group


@unhurried
@given(sizes_of_topics, st.integers(2, 7), replicas_of_all, st.data())
def test_a_leaver_moves_its_own_partitions(sizes: Sizes, count: int, replicas: int, data: st.DataObject) -> None:
    """When a member leaves, others keep theirs; with several topics, two may be swapped for evenness."""
    before = assign(sizes, workers(range(count), sizes), replicas)
    gone = data.draw(st.integers(0, count - 1))
    after = assign(sizes, workers([n for n in range(count) if n != gone], sizes, before), replicas)
    assert_sound(sizes, after, replicas)
    assert len(moved(before, after)) <= 2 * (len(sizes) - 1)


@unhurried
@given(sizes_of_topics, st.integers(1, 7), replicas_of_all)
def test_a_joiner_takes_what_it_needs(sizes: Sizes, count: int, replicas: int) -> None:
    """When a member joins, what moves moves to it; with several topics, two may be swapped for evenness."""
    before = assign(sizes, workers(range(count), sizes), replicas)
    after = assign(sizes, workers(range(count + 1), sizes, before), replicas)
    assert_sound(sizes, after, replicas)
    assert len(moved(before, after)) <= len(after[f"m{count}"].active) + 2 * (len(sizes) - 1)


@unhurried
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 3))
def test_one_topic_moves_as_little_as_any_even_assignment(kept: list[int], orphans: int) -> None:
    """However uneven the start, no even assignment of one topic moves less."""
    starts = [sum(kept[:n]) for n in range(len(kept))]
    sizes = {"a": sum(kept) + orphans}
    before = {
        f"m{n}": Assigned(frozenset(("a", p) for p in range(starts[n], starts[n] + kept[n])), frozenset())
        for n in range(len(kept))
    }
    after = assign(sizes, workers(range(len(kept)), sizes, before), 0)
    low, high = sizes["a"] // len(kept), -(-sizes["a"] // len(kept))
    even = (quota for quota in product({low, high}, repeat=len(kept)) if sum(quota) == sizes["a"])
    assert len(moved(before, after)) == min(
        sum(max(0, had - may) for had, may in zip(kept, quota, strict=True)) for quota in even
    )


@unhurried
@given(st.integers(2, 6), st.integers(1, 12), st.integers(1, 2))
def test_a_lost_partition_goes_where_its_rows_are(count: int, size: int, replicas: int) -> None:
    """A standby takes over, unless another one of its partitions has filled it up."""
    sizes = {"a": size}
    before = assign(sizes, workers(range(count), sizes), replicas)
    after = assign(sizes, workers(range(1, count), sizes, before), replicas)
    fair = -(-size // (count - 1))
    for tp in before["m0"].active:
        reader = readers(after)[tp]
        warm = [m for m in after if tp in before[m].standby]
        assert reader in warm or all(len(after[m].active) == fair for m in warm)


@unhurried
@given(sizes_of_topics, st.integers(1, 5), replicas_of_all, st.randoms())
def test_the_order_of_members_does_not_matter(sizes: Sizes, count: int, replicas: int, random: object) -> None:
    """Whoever leads the group decides the same."""
    members = workers(range(count + 1), sizes, assign(sizes, workers(range(count), sizes), replicas))
    shuffled = list(members.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign(dict(reversed(sizes.items())), dict(shuffled), replicas) == assign(sizes, members, replicas)


@unhurried
@given(sizes_of_topics, st.lists(st.frozensets(topics), min_size=1, max_size=5), replicas_of_all)
def test_only_subscribed_topics_are_assigned(sizes: Sizes, wanted: list[frozenset[str]], replicas: int) -> None:
    """Nobody gets a topic it does not subscribe to; topics somebody wants are read whole; again moves nothing."""
    members = {f"m{n}": Member(wish, Owned(f"w{n}")) for n, wish in enumerate(wanted)}
    group = assign(sizes, members, replicas)
    assert all(tp[0] in members[m].topics for m, given in group.items() for tp in given.active | given.standby)
    known = frozenset().union(*wanted)
    assert set(readers(group)) == {(topic, p) for topic in sizes if topic in known for p in range(sizes[topic])}
    again = {m: Member(wish.topics, Owned(wish.had.instance, *vars(group[m]).values())) for m, wish in members.items()}
    assert assign(sizes, again, replicas) == group


def test_what_was_kept_stays_where_something_new_can_go() -> None:
    """Of two partitions that could even things out, the one moves that nobody had here."""
    sizes = {"a": 1, "b": 3, "c": 2}
    before = {
        "m0": Assigned(frozenset({("b", 0)}), frozenset()),
        "m1": Assigned(frozenset({("b", 1), ("c", 0)}), frozenset()),
    }
    after = assign(sizes, workers(range(2), sizes, before), 0)
    assert_sound(sizes, after, 0)
    assert all(before[m].active <= after[m].active for m in before)


def test_members_that_share_no_topic_are_levelled_through_a_third() -> None:
    """One with too much gives to one with too little by way of a member that reads both topics."""
    members = {
        "m0": Member(frozenset("a"), Owned("w0", frozenset(("a", p) for p in range(3)))),
        "m1": Member(frozenset("ab"), Owned("w1", frozenset({("b", 0), ("b", 1)}))),
        "m2": Member(frozenset("b"), Owned("w2", frozenset({("b", 2)}))),
    }
    group = assign({"a": 3, "b": 3}, members, 0)
    assert {m: len(given.active) for m, given in group.items()} == {"m0": 2, "m1": 2, "m2": 2}


def test_of_two_claims_the_later_generation_counts() -> None:
    """A worker that slept through a rebalance does not take its partitions back from their reader."""
    members = {
        "m0": Member(frozenset("a"), Owned("w0", frozenset({("a", 0)}), generation=4)),
        "m1": Member(frozenset("a"), Owned("w1", frozenset({("a", 0), ("a", 1)}), generation=5)),
    }
    assert readers(assign({"a": 3}, members, 0)) == {("a", 0): "m1", ("a", 1): "m1", ("a", 2): "m0"}


def test_partitions_that_are_no_more_are_forgotten() -> None:
    """What a member reports and the topic does not have is not handed out."""
    members = {"m0": Member(frozenset("a"), Owned("w0", frozenset({("a", 0), ("a", 7), ("z", 0)})))}
    assert readers(assign({"a": 1}, members, 1)) == {("a", 0): "m0"}


def test_no_members_have_no_shares() -> None:
    """An empty group is assigned nothing."""
    assert assign({"a": 3}, {}, 1) == {}
