"""Event times as they come: ISO 8601, or an epoch in seconds, milli-, micro- or nanoseconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import BadTimeError

MAX_TIME_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z
# An epoch is in seconds below the first (until the year 5138), then in milli-, micro- and nanoseconds.
_SECONDS, _MILLIS, _MICROS, _LIMIT = 10**11, 10**14, 10**17, 2**63


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
    if not 0 <= value < _LIMIT:  # NaN and infinities fail this as well
        message = f"the time {value!r} lies outside the years 1970 to 9999"
        raise BadTimeError(message)
    return _in_range(_epoch_ms(value), value)


def parse_times_ms(values: Sequence[str | int | float]) -> NDArray[np.int64]:
    """(n,) int64: `parse_time_ms` of each value; quick where all are whole numbers of one unit.

    Raises
    ------
    BadTimeError
        One of them is no time.
    """
    whole: NDArray[Any] = np.array(values if set(map(type, values)) == {int} else [0.0])
    if whole.dtype == np.int64:  # it is not where one is too large
        low, high = int(whole.min()), int(whole.max())
        if low >= 0 and high < _SECONDS:
            return whole * 1_000
        for above, below, units in ((_SECONDS, _MILLIS, 1), (_MILLIS, _MICROS, 1_000), (_MICROS, _LIMIT, 1_000_000)):
            if above <= low and high < below:
                return whole // units
    return np.array([parse_time_ms(value) for value in values], np.int64)


def _number(text: str) -> int | float | None:
    try:
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else float(text)
    except ValueError:
        return None


def _epoch_ms(value: int | float) -> int:
    if value < _SECONDS:
        # A float is rounded to microseconds first: 1700000000.001 * 1000 may fall just below the millisecond meant.
        return value * 1_000 if isinstance(value, int) else round(value * 1_000_000) // 1_000
    if value < _MILLIS:
        return int(value)
    return int(value // 1_000) if value < _MICROS else int(value // 1_000_000)


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
