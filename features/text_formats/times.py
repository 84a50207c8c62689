"""Dates as logs print them, to ISO 8601 as `features/event_time.py` reads it."""

from __future__ import annotations

_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MONTHS = {name: f"{number:02d}" for number, name in enumerate(_NAMES, 1)}
MONTH = "(?:" + "|".join(_NAMES) + ")"

_DAY = r"(?:0[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0[1-9]|1[0-2])"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d"
_FRACTION = r"(?:[.,]\d{1,9})?"

FULL = rf"\d{{4}}[-/.]{_MONTH}[-/.]{_DAY}[T ]{_CLOCK}{_FRACTION}(?: ?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?"
SHORT = rf"\d\d/{_MONTH}/{_DAY} {_CLOCK}{_FRACTION}|\d\d{_MONTH}{_DAY} (?:[01]\d|2[0-3])[0-5]\d[0-5]\d"
CLOCK = rf"{_CLOCK}[.,]\d{{3}}"


def to_iso(text: str) -> str | None:
    """Write a time that `FULL`, `SHORT` or `CLOCK` found as ISO 8601; None for a time of day, which is no moment.

    Two digits of a year are of this century: 17 is 2017. A zone is kept; where there is none, none is added.

    Examples
    --------
    >>> to_iso("2026/01/02 03:04:05,678 UTC"), to_iso("260102 030405"), to_iso("03:04:05.678")
    ('2026-01-02T03:04:05.678Z', '2026-01-02T03:04:05', None)
    """
    if text[2] == ":":
        return None
    if text[2] == "/":
        text = "20" + text
    elif text[6] == " ":
        return f"20{text[:2]}-{text[2:4]}-{text[4:6]}T{text[7:9]}:{text[9:11]}:{text[11:]}"
    end = text[19:]
    if end:
        end = end.replace(",", ".").replace(" ", "").replace("UTC", "Z").replace("GMT", "Z")
    return f"{text[:4]}-{text[5:7]}-{text[8:10]}T{text[11:19]}{end}"
