"""Names made of several values: no two tuples share one, and masks hold part by part."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from features.decode import Decoder
from features.events import Events
from features.masking import make_masker, parse_rules
from features.session_names import join_name, split_name
from tests.features.test_decode import Given

VALUES = st.lists(
    st.text(st.sampled_from("a/%25F"), min_size=1, max_size=6) | st.text(min_size=1), min_size=2, max_size=4
)


def decoded(*values: dict[str, Any], mask: Any = None, by: Any = ("tenant", "user.id")) -> Events:
    decoder = Decoder(by, None, ["action"], {}, masker=make_masker(parse_rules(mask or {}), b"0" * 16))
    records = [Given(json.dumps(value).encode(), offset=i) for i, value in enumerate(values)]
    return decoder.decode(records, check_key=False)


def record(tenant: Any, user: Any) -> dict[str, Any]:
    return {"tenant": tenant, "user": {"id": user}, "action": "x"}


@given(VALUES)
def test_a_name_tells_its_values(values: list[str]) -> None:
    """What was joined can be split again, so names of different tuples differ."""
    assert split_name(join_name(values)) == values


def test_names_read_well() -> None:
    """Values stand with / between them; numbers as text; one field alone stays as it is."""
    events = decoded(record("acme", 7), record("a/b", "50%"), record("acme", "7"))
    assert events.sessions == ["acme/7", "a%2Fb/50%25"]
    assert events.session.tolist() == [0, 1, 0]
    assert decoded(record("a/b", 1), by="tenant").sessions == ["a/b"]


def test_each_part_must_be_there() -> None:
    """A record without one of the fields has no session, and the reason names the field."""
    events = decoded(record("acme", None), record("", 1), record("acme", 1), record(None, 1), record(1.5, 1))
    assert events.sessions == ["acme/1"]
    assert [(r.index, r.error.reason) for r in events.rejects] == [
        (0, "missing_session"), (1, "missing_session"), (3, "missing_session"), (4, "wrong_type"),
    ]  # fmt: skip
    assert "user.id is absent" in str(events.rejects[0].error)


def test_a_rule_masks_its_part() -> None:
    """A rule over one field leaves the other part; what it leaves is escaped again."""
    (plain,) = decoded(record("acme", "u/1"), mask={"user": "hash"}).sessions
    tenant, user = plain.split("/")
    assert tenant == "acme"
    assert user.startswith("hash:")
    assert decoded(record("acme", "u/12345"), mask={"user": {"truncate": 3}}).sessions == ["acme/u%2F1"]
    assert decoded(record("acme", 1), record("acme", 2), mask={"user.id": {"truncate": 1}}).sessions == [
        "acme/1", "acme/2",
    ]  # fmt: skip
