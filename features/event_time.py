"""Event times as they come: ISO 8601, or an epoch in seconds, milli-, micro- or nanoseconds."""

from __future__ import annotations

from datetime import UTC, datetime

from features.errors import BadTimeError

MAX_TIME_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z


def parse_time_ms(value: str | int | float) -> int:
    """Read one event time.

    Parameters
    ----------
    value
        ISO 8601 text (without a zone it is UTC), or a number, or a number as text.

    Returns
    -------
    time_ms
        Milliseconds since 1970, rounded down.

    Raises
    ------
    BadTimeError
        It is neither, or lies outside 1970 to 9999.

    Examples
    --------
    >>> parse_time_ms("2026-01-02T03:04:05Z"), parse_time_ms(1767323045), parse_time_ms(1767323045000000)
    (1767323045000, 1767323045000, 1767323045000)
    """
    if isinstance(value, str):
        number = _number(value)
        if number is None:
            return _from_iso(value)
        value = number
    if not 0 <= value < 2**63:  # NaN and infinities fail this as well
        message = f"the time {value!r} lies outside the years 1970 to 9999"
        raise BadTimeError(message)
    return _in_range(_epoch_ms(value), value)


def _number(text: str) -> int | float | None:
    try:
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else float(text)
    except ValueError:
        return None


def _epoch_ms(value: int | float) -> int:
    """An epoch below 1e11 is in seconds (until the year 5138), below 1e14 in ms, below 1e17 in us, else in ns."""
    if value < 10**11:
        # A float is rounded to microseconds first: 1700000000.001 * 1000 may fall just below the millisecond meant.
        return value * 1_000 if isinstance(value, int) else round(value * 1_000_000) // 1_000
    if value < 10**14:
        return int(value)
    return int(value // 1_000) if value < 10**17 else int(value // 1_000_000)


def _from_iso(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        message = f"the time {text[:60]!r} is neither ISO 8601 nor an epoch"
        raise BadTimeError(message) from None
    return _in_range(delta.days * 86_400_000 + delta.seconds * 1_000 + delta.microseconds // 1_000, text)


def _in_range(time_ms: int, value: object) -> int:
    if not 0 <= time_ms <= MAX_TIME_MS:
        message = f"the time {value!r} lies outside the years 1970 to 9999"
        raise BadTimeError(message)
    return time_ms
