"""Durations and sizes as people write them, to and from milliseconds."""

from __future__ import annotations

import re

_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_MS = 36_500 * _MS["d"]  # a hundred years: times and durations add up to less than 64 bits
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")


def parse_duration_ms(value: object) -> int:
    """Read `250ms`, `15m`, `7d` or a number of milliseconds.

    >>> parse_duration_ms("15m"), parse_duration_ms("1.5s"), parse_duration_ms(250)
    (900000, 1500, 250)
    """
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is not None:
        ms = float(match[1]) * _MS[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        ms = value
    else:
        message = "a duration such as 250ms, 30s, 15m, 2h or 7d was expected"
        raise ValueError(message)
    if ms > _LONGEST_MS:
        message = "a duration of at most 36500d was expected"
        raise ValueError(message)
    return round(ms)


def format_duration_ms(ms: int) -> str:
    """Write milliseconds in the largest unit that keeps them whole.

    >>> format_duration_ms(900000), format_duration_ms(250)
    ('15m', '250ms')
    """
    for unit, size in reversed(_MS.items()):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"
