"""What can be wrong with a record.

RecordError                 the record cannot be scored; it goes to the dead letters, the stream goes on
├── NotJsonError            the bytes are no JSON (NaN and Infinity are none either)
├── WrongTypeError          JSON, but no object, or a field has another type than the config says
├── MissingSessionError     the session field is absent or empty
├── KeyMismatchError        the record's key is not its session
└── BadTimeError            the time field is no time, or lies outside the years 1970 to 9999
"""

from __future__ import annotations

from typing import ClassVar


class RecordError(ValueError):
    """A record that cannot be scored; `reason` is its stable name in dead letters and metrics."""

    reason: ClassVar[str] = "bad_record"
    retriable: ClassVar[bool] = False


class NotJsonError(RecordError):
    """The bytes are no JSON."""

    reason = "not_json"


class WrongTypeError(RecordError):
    """JSON, but not of the shape the config describes."""

    reason = "wrong_type"


class MissingSessionError(RecordError):
    """The record does not say which session it belongs to."""

    reason = "missing_session"


class KeyMismatchError(RecordError):
    """Sessions are kept by record key, so a key that is not the session would tear a session apart."""

    reason = "key_is_not_session"


class BadTimeError(RecordError):
    """The time field holds no time we can read."""

    reason = "bad_time"
