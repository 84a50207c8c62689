"""Durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.units import format_duration_ms, parse_duration_ms


@given(st.integers(0, 36_500 * 86_400_000))
def test_what_is_written_is_read_back(ms: int) -> None:
    """Formatting and parsing lose nothing."""
    assert parse_duration_ms(format_duration_ms(ms)) == ms
    assert parse_duration_ms(ms) == ms


@pytest.mark.parametrize(("text", "ms"), [("250ms", 250), (" 1.5 s ", 1_500), ("15m", 900_000), ("7d", 604_800_000)])
def test_units(text: str, ms: int) -> None:
    """Every unit means what it says, fractions and blanks included."""
    assert parse_duration_ms(text) == ms


def test_a_century_is_the_longest() -> None:
    """Longer durations are refused, so that times and durations always add up."""
    with pytest.raises(ValueError, match="a duration of at most 36500d was expected"):
        parse_duration_ms("36501d")


@pytest.mark.parametrize("value", ["", "soon", "5", "-5s", "5 weeks", "1e3s", -1, True, None, 1.5, ["5s"]])
def test_no_durations(value: object) -> None:
    """Anything else is refused with an example of what was expected."""
    with pytest.raises(ValueError, match="a duration such as 250ms, 30s, 15m, 2h or 7d was expected"):
        parse_duration_ms(value)
