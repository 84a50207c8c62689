"""Durations and sizes as people write them, to and from milliseconds."""

from __future__ import annotations

import re

_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_MS = 36_500 * _MS["d"]  # a hundred years: times and durations add up to less than 64 bits
_LEAST_MS = {"d": 172_800_000, "h": 7_200_000, "m": 120_000, "s": 1_000, "ms": 0}  # said in a unit from so many on
_DAILY, _MOST_DAILY = re.compile(r"^\s*(\d{1,9}(?:\.\d{1,9})?)\s*/\s*day\s*$"), 1e6
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


def parse_daily(value: object) -> float:
    """Read a number a day, such as `20/day` or `0.5/day`.

    >>> parse_daily("20/day"), parse_daily("0.5 / day")
    (20.0, 0.5)
    """
    match = _DAILY.match(value) if isinstance(value, str) else None
    number = float(match[1]) if match is not None else 0.0
    if not 0.0 < number <= _MOST_DAILY:
        message = "a number above 0 and up to 1000000 a day was expected, such as 20/day or 0.5/day"
        raise ValueError(message)
    return number


def format_daily(number: float) -> str:
    """Write what `parse_daily` reads.

    >>> format_daily(20.0), format_daily(0.5)
    ('20/day', '0.5/day')
    """
    return f"{number!r}".removesuffix(".0") + "/day"


def seconds_in_words(*seconds: float) -> str:
    """Write a duration, or a range of them, in three digits and in a unit of its size.

    >>> seconds_in_words(41.0), seconds_in_words(0.4, 6.0), seconds_in_words(20.0, 300.0), seconds_in_words(0.0, 0.155)
    ('41 s', '0.4 to 6 s', '20 s to 5 min', '0 to 155 ms')
    """
    said: list[str] = []
    above = ""  # the unit of what comes after, which is not said twice
    for ms in (1_000 * value for value in reversed(seconds)):
        own = next(unit for unit, least in _LEAST_MS.items() if ms >= least)
        unit = above if above and (ms == 0 or (above == "s" and ms >= 100)) else own
        number = f"{float(f'{ms / _MS[unit]:.3g}'):,.10g}"
        said.append(number if unit == above else f"{number} {'min' if unit == 'm' else unit}")
        above = unit
    return " to ".join(reversed(said))
