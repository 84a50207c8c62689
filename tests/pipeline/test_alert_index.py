"""The index of the outbox: what leaves next, in which order, and the same after any restart."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.alerts.change import Change
from pipeline.alerts.index import MOST_BYTES, Index, Taken
from pipeline.alerts.rows import Disabled, Open, Pending, Position, Row, encode, encode_key
from pipeline.alerts.told import MOST_CHANGES
from tests.naive_outbox import NaiveIndex

RECEIVERS = ("ops", "chat")


def change(subject: str, revision: int, size: int = 10) -> Change:
    """A change of an incident, with a body of about `size` bytes."""
    body = {"summary": "x" * size}
    return Change(f"{subject}/{revision}", subject, "updated", ("orders",), "low", {"stream": "orders"}, 7, body)


def pending(seq: int, *, subject: str = "i", receiver: str = "ops", group: str | None = None, **more: Any) -> Pending:
    """A row that nobody has taken."""
    size, ready_ms = more.get("size", 10), more.get("ready_ms", 0)
    return Pending(receiver, change(subject, seq, size), seq, group, ready_ms, 0, None, "incidents", seq)


class Life:
    """An index and its topic: rows go to both, and either may be the one that is believed."""

    def __init__(self) -> None:
        self.log: list[tuple[bytes, bytes | None]] = []
        self.index = Index()
        self.index.show(0)

    def write(self, *rows: Row, gone: tuple[tuple[str, ...], ...] = ()) -> None:
        """As a transaction does."""
        written = [encode(row) for row in rows] + [(encode_key(key), None) for key in gone]
        self.log += written
        self.index.apply(0, written)

    def delivered(self, taken: Taken) -> None:
        """The receiver has it."""
        keys = tuple(row.key for row in taken.rows)
        self.write(gone=keys + ((("message", taken.receiver, taken.id),) if taken.kept else ()))

    def restart(self, *, compacted: bool) -> None:
        """Begin anew with what the topic says, the last row of each key alone if it is compacted."""
        log = self.log
        if compacted:
            last = {key: i for i, (key, _) in enumerate(log)}
            log = [(key, value) for i, (key, value) in enumerate(log) if last[key] == i]
        self.log, self.index = log, Index()
        self.index.apply(0, log)
        assert self.index.take("ops", 1 << 61) is None, "not all may be there"
        self.index.show(0)


def same(taken: Taken | None, naive: Any) -> None:
    """Both gave the same message."""
    assert (taken is None) == (naive is None)
    if taken is not None:
        assert taken.sealed(taken.attempts, naive.due_ms) == naive


@given(st.data())
def test_any_life_gives_what_the_naive_list_gives(data: st.DataObject) -> None:
    """Whatever comes, is taken, fails or is delivered, and wherever it is cut: the same messages at the same times."""
    life, naive, now, seq = Life(), NaiveIndex(), 0, 0
    under_way: dict[str, list[Taken]] = {name: [] for name in RECEIVERS}
    for _ in range(data.draw(st.integers(1, 25))):
        receiver = data.draw(st.sampled_from(RECEIVERS))
        what = data.draw(st.sampled_from(["put", "put", "put", "take", "take", "fail", "deliver", "wait", "restart"]))
        mine = under_way[receiver]
        if what == "put":
            row = pending(
                seq, subject=data.draw(st.sampled_from("abc")), receiver=receiver,
                group=data.draw(st.sampled_from([None, "g", "h"])), ready_ms=now + data.draw(st.integers(0, 3)),
                size=data.draw(st.sampled_from([10, MOST_BYTES // 3, MOST_BYTES])),
            )  # fmt: skip
            seq += 1
            life.write(row)
            naive.put(row)
        elif what == "take":
            taken, expected = life.index.take(receiver, now), naive.take(receiver, now)
            same(taken, expected)
            if taken is not None and expected is not None:
                if taken.must_keep:
                    life.write(row_ := taken.sealed(0, now))
                    naive.seal(row_)
                    taken = life.index.take(receiver, now)
                    same(taken, naive.take(receiver, now))
                    assert taken is not None
                mine.append(taken)
        elif what == "fail" and mine:
            taken = mine.pop(data.draw(st.integers(0, len(mine) - 1)))
            failed = taken.sealed(taken.attempts + 1, now + data.draw(st.integers(0, 5)))
            life.write(failed)
            naive.seal(failed)
        elif what == "deliver" and mine:
            taken = mine.pop(data.draw(st.integers(0, len(mine) - 1)))
            life.delivered(taken)
            naive.delivered(taken.sealed(0, 0))
        elif what == "wait":
            now += data.draw(st.integers(1, 4))
        elif what == "restart":
            life.restart(compacted=data.draw(st.booleans()))
            naive.restart()
            under_way = {name: [] for name in RECEIVERS}
        for name in RECEIVERS:
            assert life.index.next_ms(name) == naive.next_ms(name)
            rows = [row for row in naive.pending if row.receiver == name]
            assert life.index.waiting(name) == (len(rows), min((row.ready_ms for row in rows), default=None))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, "g", "h"])), max_size=30), st.randoms())
def test_all_leaves_in_order_and_nothing_waits_for_ever(changes: list[tuple[str, str | None]], random: Any) -> None:
    """Whichever message ends first, each subject's changes come once and in order, until nothing is left."""
    life = Life()
    for seq, (subject, group) in enumerate(changes):
        life.write(pending(seq, subject=subject, group=group))
    under_way: list[Taken] = []
    told: dict[str, list[int]] = {name: [] for name in "abc"}
    while life.index.waiting("ops")[0]:
        while (taken := life.index.take("ops", 1)) is not None:
            under_way.append(taken)
        assert under_way, "something waits, and nothing may leave"
        taken = under_way.pop(random.randrange(len(under_way)))
        for row in taken.rows:
            told[row.change.subject].append(row.seq)
        life.delivered(taken)
    assert {s: [i for i, (subject, _) in enumerate(changes) if subject == s] for s in "abc"} == told


def test_a_message_holds_so_much_and_no_more() -> None:
    """A group that does not fit leaves as several messages; a change that is too large by itself leaves alone."""
    life = Life()
    life.write(*(pending(i, subject=f"s{i}", group="g") for i in range(MOST_CHANGES + 5)))
    life.write(pending(99, subject="large", group="h", size=2 * MOST_BYTES), pending(100, subject="small", group="h"))
    sizes = [len(taken.rows) for taken in iter(lambda: life.index.take("ops", 1), None)]
    assert sizes == [MOST_CHANGES, 5, 1, 1]


def test_a_subject_with_many_changes_costs_no_more_for_each() -> None:
    """Thousands of changes of one incident are indexed and taken without a walk over all of them each time."""
    life, steps = Life(), 5_000
    life.index.apply(0, [encode(pending(i)) for i in range(steps)])
    for i in range(steps):
        taken = life.index.take("ops", 1)
        assert taken is not None
        assert taken.rows[0].seq == i
        life.index.apply(0, [(encode_key(taken.rows[0].key), None)])
    assert life.index.next_ms("ops") > 1 << 60


def test_open_incidents_are_told_again_when_due() -> None:
    """The one that is due for longest is taken once; after its row was written anew it waits for its next time."""
    life = Life()
    rows = [Open("ops", change(f"i{at}", 1), every_ms=10, next_ms=at) for at in (30, 20)]
    life.write(*rows)
    assert life.index.take_repeat("ops", 19) is None
    assert life.index.next_ms("ops") == 20
    assert life.index.take_repeat("ops", 40) == (0, rows[1])
    assert life.index.take_repeat("ops", 40) == (0, rows[0])
    assert life.index.take_repeat("ops", 40) is None
    life.write(Open("ops", rows[0].change, every_ms=10, next_ms=40, told=1))
    assert life.index.next_ms("ops") == 40
    life.write(gone=(rows[0].key,))
    life.restart(compacted=True)
    assert life.index.open_row(0, "ops", "i20") == rows[1]
    assert life.index.open_row(0, "ops", "i30") is None


def test_rows_that_are_not_about_receivers_are_handed_back() -> None:
    """A position comes back to who reads the topic, and what cannot be read is passed over."""
    life, position = Life(), Position({"incidents": (7, "an id")}, 3)
    read = [encode(position), (b'["later kind","x"]', b"{}"), (b"no json", b"{}"), (encode(pending(1))[0], b"[")]
    assert life.index.apply(0, read) == {("position",): position}
    assert life.index.receivers() == set()


def test_a_partition_is_forgotten_alone() -> None:
    """What another partition holds stays."""
    life = Life()
    for partition in (0, 1):
        life.index.apply(partition, [encode(pending(1)), encode(Disabled("ops", 1, "it said 410"))])
        life.index.show(partition)
    life.index.forget(0)
    taken = life.index.take("ops", 1)
    assert taken is not None
    assert taken.partition == 1
    assert life.index.disabled("ops") == "it said 410"
    life.index.forget(1)
    assert life.index.disabled("ops") is None
    assert life.index.next_ms("ops") > 1 << 60


def test_a_clock_that_was_wrong_keeps_nothing_back() -> None:
    """A row that was written under a clock years ahead is due within the longest that anything waits."""
    life = Life()
    life.index.apply(0, [encode(pending(1, ready_ms=10**15)), encode(Open("ops", change("j", 1), 10, 10**15))], 100)
    assert life.index.next_ms("ops") == 100
    assert life.index.take("ops", 99) is None
    assert life.index.take("ops", 100) is not None
    assert life.index.take_repeat("ops", 100) is not None
