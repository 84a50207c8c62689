"""What can be wrong with a record.

RecordError                 the record cannot be scored; it goes to the dead letters, the stream goes on
├── NotJsonError            the bytes are no JSON (NaN and Infinity are none either)
├── NotTextError            the bytes are no UTF-8, or nothing is left of them
├── TooLongError            the text is longer than one record may be
├── NoMatchError            the stream has a pattern, and the line does not match it
├── WrongTypeError          JSON, but no object, or a field has another type than the config says
├── MissingSessionError     the session field is absent or empty
├── KeyMismatchError        the record's key is not its session
└── BadTimeError            the time field is no time, or lies outside the years 1970 to 9999
"""

from __future__ import annotations

from typing import ClassVar


class RecordError(ValueError):
    """A record that cannot be scored; `reason` is its stable name in dead letters and metrics.

    Parameters
    ----------
    at
        Where in the record, if one place is to blame: the keys and positions of its path with dots between them.
    """

    reason: ClassVar[str] = "bad_record"
    in_general: ClassVar[str] = "the record cannot be scored"  # what may be said where its content must not be
    retriable: ClassVar[bool] = False

    def __init__(self, message: str, at: str = "") -> None:
        super().__init__(message)
        self.at = at


class NotJsonError(RecordError):
    """The bytes are no JSON."""

    reason = "not_json"
    in_general = "the bytes are no JSON"


class NotTextError(RecordError):
    """The bytes are no UTF-8, or nothing is left of them."""

    reason = "not_text"
    in_general = "the bytes are no UTF-8, or nothing is left of them"


class TooLongError(RecordError):
    """The text is longer than one record may be."""

    reason = "too_long"
    in_general = "the text is too long"


class NoMatchError(RecordError):
    """The stream has a pattern, and the line does not match it."""

    reason = "no_match"
    in_general = "the pattern does not match the text"


class WrongTypeError(RecordError):
    """JSON, but not of the shape the config describes."""

    reason = "wrong_type"
    in_general = "a field has another type or length than the config allows"


class MissingSessionError(RecordError):
    """The record does not say which session it belongs to."""

    reason = "missing_session"
    in_general = "the session is absent or empty"


class KeyMismatchError(RecordError):
    """Sessions are kept by record key, so a key that is not the session would tear a session apart."""

    reason = "key_is_not_session"
    in_general = "the record's key is not its session"


class BadTimeError(RecordError):
    """The time field holds no time we can read."""

    reason = "bad_time"
    in_general = "the time is none, or lies outside the years 1970 to 9999"
