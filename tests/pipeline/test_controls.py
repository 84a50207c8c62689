"""Controls: what is sent is what is read, and what others send never stops a worker."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pipeline.controls import encode_control, parse_control
from pipeline.wire import DeleteSession

streams = st.text("abcxyz019._-", min_size=1, max_size=20)
sessions = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)
SENT = {"type": "delete_session", "stream": "orders", "session": "a/b", "issued_ms": 1_800_000_000_123}
KEY = b"delete/orders/a/b"


@given(streams, sessions, st.integers(0, 2**47))
def test_a_control_round_trips(stream: str, session: str, issued_ms: int) -> None:
    """What is parsed is what was encoded, whatever the session's name."""
    control = DeleteSession(type="delete_session", stream=stream, session=session, issued_ms=issued_ms)
    key, value, headers = encode_control(control)
    assert parse_control(key, value) == control
    assert dict(headers)["ce_id"] == key + f"/{issued_ms}".encode()


def test_a_control_on_the_wire() -> None:
    """Key, value and headers are as documented; keys of a later version are passed over."""
    key, value, headers = encode_control(DeleteSession.model_validate(SENT))
    assert key == KEY
    assert json.loads(value) == SENT
    assert dict(headers) == {
        "ce_specversion": b"1.0", "ce_id": b"delete/orders/a/b/1800000000123", "ce_source": b"/offbeat/orders",
        "ce_type": b"io.offbeat.control", "ce_time": b"2027-01-15T08:00:00.123Z", "content-type": b"application/json",
    }  # fmt: skip
    later = json.dumps(SENT | {"asked_by": "somebody"}).encode()
    assert parse_control(KEY, later) == DeleteSession.model_validate(SENT)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (KEY, b"no json", "value: Invalid JSON"),
        (KEY, b"[1]", "value: Input should be an object"),
        (KEY, json.dumps(SENT | {"type": "mute"}).encode(), "type: Input should be 'delete_session'"),
        (KEY, json.dumps(SENT | {"session": ""}).encode(), "session: String should have at least 1"),
        (KEY, json.dumps(SENT | {"issued_ms": "1"}).encode(), "issued_ms: Input should be a valid integer"),
        (KEY, json.dumps({k: v for k, v in SENT.items() if k != "stream"}).encode(), "stream: Field required"),
        (b"delete/orders/other", json.dumps(SENT).encode(), "its key does not name what its value does"),
        (None, json.dumps(SENT).encode(), "its key does not name what its value does"),
    ],
)
def test_what_is_no_control_is_passed_over(key: bytes | None, value: bytes, why: str) -> None:
    """A message that is malformed, not ours or of a later version is left out with one warning that says why."""
    with capture_logs() as logged:
        assert parse_control(key, value) is None
    (line,) = logged
    assert (line["log_level"], line["event"].split(":")[0]) == ("warning", "control passed over")
    assert why in line["why"]


def test_a_control_taken_back_is_no_control() -> None:
    """A tombstone asks for nothing, and is nothing to warn of."""
    with capture_logs() as logged:
        assert parse_control(KEY, None) is None
    assert logged == []


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=5
)


@given(st.none() | st.binary(), st.binary() | json_values.map(lambda v: json.dumps(v).encode()))
def test_no_bytes_stop_a_worker(key: bytes | None, value: bytes) -> None:
    """Any key and value at all give a control or None, never an exception."""
    with capture_logs():
        assert parse_control(key, value) is None


@given(st.dictionaries(st.sampled_from([*SENT, "x"]), json_values))
def test_no_part_stops_a_worker(parts: dict[str, Any]) -> None:
    """Nor does a control with any of its parts replaced, lone surrogates in its text included."""
    changed = SENT | parts
    with capture_logs():
        parse_control(KEY, json.dumps(changed).encode())
        assert parse_control(KEY, json.dumps(changed | {"session": "\ud800"}).encode()) is None
