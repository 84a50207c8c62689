"""What the drift topic says: as `pipeline/wire.py` describes it, named for ever, and bounded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.drift_events import ACTIONS, DriftEvent, DriftType
from detectors.schema_watch import FieldDrift
from pipeline.drift import MAX_NAMED, Kind, drift_output
from pipeline.outputs import Output, Place
from pipeline.schema_drift import schema_drift_output
from pipeline.sentences import sentence_of
from pipeline.stream_drift import stream_drift_output
from pipeline.wire import Drift
from tests.pipeline.test_outputs import validate

PLACE = Place("shop.orders", 3)
KINDS: tuple[Kind, ...] = get_args(Kind)
COMMON: dict[str, Any] = {"stream": "orders", "place": PLACE, "detail": "It was.", "now_ms": 1_800_000_000_123}


def made(kind: Kind, **more: Any) -> Output:
    return drift_output(kind, **{"offset": 7, "amount": 3} | COMMON | more)


def test_the_kinds_are_those_of_the_schema() -> None:
    """What can be built is what the schema lists."""
    assert set(KINDS) == set(get_args(Drift.model_fields["type"].annotation))


@pytest.mark.parametrize("kind", KINDS)
def test_drift_is_as_the_wire_model_says(kind: Kind) -> None:
    """Each kind validates strictly, with key, id and headers as every output has them."""
    output = made(kind)
    message = validate(output)
    assert (output.topic, output.key) == ("drift", b"orders/shop.orders/3")
    assert message.id == f"orders/shop.orders/3/7/{kind}"
    assert dict(output.headers) == {
        "ce_specversion": b"1.0", "ce_id": message.id.encode(), "ce_source": b"/offbeat/orders",
        "ce_type": b"io.offbeat.drift", "ce_time": b"2027-01-15T08:00:00.123Z", "content-type": b"application/json",
    }  # fmt: skip
    of_records = kind == "records_lost" or kind.startswith("field_") or kind.endswith("_drift")
    unit = "labels" if kind == "concept_drift" else "records" if of_records else "sessions"
    assert message.amount_unit == unit


@given(
    st.sampled_from(KINDS), st.integers(0, 2**62), st.integers(0, 2**62), st.none() | st.integers(0, 2**50),
    st.lists(st.text(min_size=1), max_size=130),
)  # fmt: skip
def test_any_drift_validates(kind: Kind, offset: int, amount: int, since_ms: int | None, names: list[str]) -> None:
    """Whatever the numbers and names, the message holds; names beyond the first hundred are left to the amount."""
    message = validate(made(kind, offset=offset, amount=amount, since_ms=since_ms, sessions=names))
    assert (message.source.offset, message.amount, message.since_ms) == (offset, amount, since_ms)
    assert message.sessions == names[:MAX_NAMED]


def test_drift_is_pure() -> None:
    """The same arguments give the same message; another kind, place or offset another id."""
    assert made("offset_reset") == made("offset_reset")
    others = [made("offset_reset"), made("records_lost"), made("offset_reset", offset=8)]
    others.append(made("offset_reset", place=Place("shop.orders", 2)))
    assert len({json.loads(o.value)["id"] for o in others}) == 4


def test_fields_are_named() -> None:
    """What is about a field says which, and whether it began; two fields at one record have two ids."""
    one, other = (made("field_missing", field=field, phase="began") for field in ("user.id", "action"))
    message = validate(one)
    assert (message.field, message.phase) == ("user.id", "began")
    assert message.id == "orders/shop.orders/3/7/field_missing/user.id"
    assert validate(other).id != message.id
    assert (validate(made("records_lost")).field, validate(made("records_lost")).phase) == (None, None)


@pytest.mark.parametrize(("kind", "word"), [("missing", "missing"), ("type", "a type"), ("unknown", "never met")])
def test_a_field_drift_in_words(kind: str, word: str) -> None:
    """The message says what is wrong with the field and what was usual, and `offbeat tail drift` prints a sentence."""
    drift = FieldDrift(
        kind, "plan", True, 7, 1_700_000_000_000, 300, 512, 300, 0.01, "gold" if kind == "unknown" else None
    )
    output = schema_drift_output(drift, stream="orders", place=PLACE, now_ms=1_800_000_000_123)
    message = validate(output)
    assert (message.amount, message.since_ms, message.field) == (300, 1_700_000_000_000, "plan")
    assert word in message.detail
    assert "300 of the last 512 records; in training in 1% at most" in message.detail
    assert ("'gold'" in message.detail) == (kind == "unknown")
    ended = schema_drift_output(replace(drift, has_begun=False), stream="orders", place=PLACE, now_ms=0)
    assert "about as few as in training" in validate(ended).detail
    assert f"{message.type} began, since" in sentence_of("drift", json.loads(output.value))


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("begun", [True, False])
def test_a_change_that_lasts_in_words(kind: DriftType, begun: bool) -> None:
    """What, where, since when, how much, how sure, and what would be done: in fields, and as a sentence."""
    field = "ms" if kind in ("input_drift", "unknown_drift") else None
    event = DriftEvent(kind, field, begun, 7, 1_700_000_000_000, 9_216, "psi", 0.371, 0.006, 0.106, 2.5e-11)
    output = stream_drift_output(event, stream="orders", place=PLACE, now_ms=1_800_000_000_123)
    message = validate(output)
    assert (message.type, message.field, message.since_ms, message.amount) == (kind, field, 1_700_000_000_000, 9_216)
    assert (message.statistic, message.value, message.usual, message.limit) == ("psi", 0.371, 0.006, 0.106)
    assert (message.p_value, message.phase) == (2.5e-11, "began" if begun else "ended")
    assert message.action == (ACTIONS[kind] if begun else "watch")
    assert "psi 0.371, there at most 0.006" in message.detail
    assert ("by chance once in 4e+10" in message.detail) == begun
    assert (field is None) or message.detail.startswith(field)
    said = sentence_of("drift", json.loads(output.value))
    assert (
        f"{kind} {message.phase}, since 2023-11-14 22:13:20.000 9,216 {message.amount_unit}. {message.detail}" in said
    )
