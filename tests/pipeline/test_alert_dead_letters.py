"""Alerts that were given up: what the dead letter says, and that it comes back whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.alerts.change import Change
from pipeline.alerts.commands import select
from pipeline.alerts.dead_letters import given_up, parse
from pipeline.alerts.index import Taken
from pipeline.alerts.intake import lean
from pipeline.alerts.rows import Pending
from pipeline.wire import DeadLetter

NAMES = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
CHANGES = st.builds(
    Change, id=NAMES, subject=NAMES, kind=st.sampled_from(["opened", "updated", "merged", "closed", "anomaly"]),
    streams=st.lists(NAMES, max_size=3).map(tuple), severity=st.sampled_from(["low", "medium", "high", "critical"]),
    labels=st.dictionaries(NAMES, NAMES, max_size=3), at_ms=st.integers(0, 2**52),
    body=st.dictionaries(NAMES, JSON, max_size=4),
)  # fmt: skip


def taken(*changes: Change) -> Taken:
    """A message of changes that was tried twice."""
    rows = tuple(Pending("ops", change, i, None, 0, 0, None, "incidents", 7 + i) for i, change in enumerate(changes))
    return Taken(3, "ops", "a message", rows, 1, kept=True, must_keep=False)


@given(st.lists(CHANGES, min_size=1, max_size=3, unique_by=lambda change: change.id))
def test_what_was_given_up_comes_back_whole(changes: list[Change]) -> None:
    """Each change has a dead letter as the schema says; read back, they are the message that was given up."""
    outputs = given_up(taken(*changes), "exhausted", "it answered 500", 1_000, 2)
    for output in outputs:
        DeadLetter.model_validate_json(output.value)
    letters = [letter for output in outputs if (letter := parse(output.value)) is not None]
    assert [letter.change for letter in letters] == changes
    (message,) = select(reversed(letters), [], "ops", 0)
    assert [letter.change for letter in message] == changes, "in its order"
    assert {(m.receiver, m.message, m.partition, m.reason) for m in message} == {("ops", "a message", 3, "exhausted")}


def test_what_is_meant_is_named_in_several_ways() -> None:
    """By incident, change, message or dead letter; by receiver; and by when it was given up."""
    changes = [Change(f"i/{n}", "i", "updated", ("s",), "low", {}, 0, {}) for n in (1, 2)]
    letters = [parse(output.value) for output in given_up(taken(*changes), "rejected", "", 1_000, 1)]
    found = [letter for letter in letters if letter is not None]
    for name in ("i", "i/1", "i/2", "a message", "i/1/ops/dead-letter"):
        assert len(select(found, [name], None, 0)) == 1
    assert select(found, ["j"], None, 0) == []
    assert select(found, [], "other", 0) == []
    assert len(select(found, [], None, 1_000)) == 1
    assert select(found, [], None, 1_001) == []


def test_other_dead_letters_are_none_of_alerts() -> None:
    """Records that could not be scored lie in the same topic."""
    for value in (None, b"", b"[]", b"7", b'"alert"', b'{"alert": null}', b'{"alert": {}}', b"no json"):
        assert parse(value) is None


def test_a_body_that_fits_no_record_loses_its_largest_parts() -> None:
    """What is small stays, and so does the change's name."""
    change = Change("i/1", "i", "opened", ("s",), "low", {}, 0, {"summary": "short", "context": ["x" * 1_000] * 300})
    assert lean(change).body == {"summary": "short"}
    assert lean(change).id == "i/1"
    small = Change("i/1", "i", "opened", ("s",), "low", {}, 0, {"context": ["x" * 1_000] * 100})
    assert lean(small) is small
