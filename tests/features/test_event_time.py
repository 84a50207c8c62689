"""Event times: every unit and ISO 8601 give the moment they mean, and nothing else is taken for a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import BadTimeError
from features.event_time import MAX_TIME_MS, parse_time_ms, parse_times_ms

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Epochs are told apart by size: milliseconds begin in 1973, and nanoseconds fit 63 bits until 2262.
moments = st.integers(10**11, 2**63 // 10**6 - 1)


@given(moments)
def test_the_unit_of_an_epoch_is_told_by_its_size(time_ms: int) -> None:
    """Milli-, micro- and nanoseconds give the same moment, as numbers and as text."""
    for factor in (1, 1_000, 1_000_000):
        assert parse_time_ms(time_ms * factor) == time_ms
        assert parse_time_ms(str(time_ms * factor)) == time_ms
        assert parse_time_ms(time_ms * factor + factor // 2) == time_ms  # rounded down


@given(st.integers(0, 9 * 10**12))  # until 2255; beyond, a float of microseconds is no longer exact
def test_seconds_keep_their_milliseconds(time_ms: int) -> None:
    """Whole seconds are exact; a fraction keeps its milliseconds, although a float holds it only nearly."""
    assert parse_time_ms(time_ms // 1_000) == time_ms // 1_000 * 1_000
    assert parse_time_ms(time_ms / 1_000) == time_ms
    assert parse_time_ms(repr(time_ms / 1_000)) == time_ms


@given(st.integers(0, MAX_TIME_MS), st.integers(-14 * 60, 14 * 60))
def test_iso_round_trips(time_ms: int, zone_minutes: int) -> None:
    """ISO 8601 means the same moment in any time zone; without one it is UTC."""
    moment = EPOCH + timedelta(milliseconds=time_ms)
    assert parse_time_ms(moment.isoformat()) == time_ms
    assert parse_time_ms(moment.replace(tzinfo=None).isoformat()) == time_ms
    assert parse_time_ms(moment.isoformat().replace("+00:00", "Z")) == time_ms
    try:
        elsewhere = moment.astimezone(timezone(timedelta(minutes=zone_minutes)))
    except OverflowError:  # beyond the year 9999 in that zone
        return
    assert parse_time_ms(elsewhere.isoformat()) == time_ms


@given(st.text() | st.integers() | st.floats())
def test_anything_else_is_a_bad_time(value: str | int | float) -> None:
    """Whatever comes is a time from 1970 to 9999 or a BadTimeError, never another error."""
    try:
        time_ms = parse_time_ms(value)
    except BadTimeError:
        return
    assert 0 <= time_ms <= MAX_TIME_MS


@pytest.mark.parametrize(
    "value",
    [
        "", "yesterday", "nan", "inf", "-1", -1, -0.5, float("nan"), float("inf"), 2**63, "9" * 400, "1969-12-31",
        "2026-13-01", "12:00", "10000-01-01", "0001-01-01T00:00:00+14:00",
    ],
)  # fmt: skip
def test_no_times(value: str | float) -> None:
    """Numbers outside 1970 to 9999 and texts that are no moment are refused."""
    with pytest.raises(BadTimeError):
        parse_time_ms(value)


@given(
    st.lists(st.integers(-1, 2**64) | st.integers(10**11 - 1, 10**11 + 1), max_size=5)
    | st.lists(st.integers(0, 2**63) | st.floats() | st.sampled_from(["2026-01-02", "7", ""]), max_size=5)
)
def test_many_times_are_read_as_one_by_one(values: list[int | float | str]) -> None:
    """The quick way gives the same moments, and refuses the same."""
    try:
        expected = [parse_time_ms(value) for value in values]
    except BadTimeError:
        with pytest.raises(BadTimeError):
            parse_times_ms(values)
        return
    assert parse_times_ms(values).tolist() == expected
