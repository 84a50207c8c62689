"""One record of text to fields: by a pattern, or by the format that the line itself shows."""

from __future__ import annotations

from collections.abc import Callable

from features.errors import NotTextError, TooLongError
from features.text_formats.app_log import read_dated, read_levelled, read_sourced, read_timed
from features.text_formats.controls import drop_controls, may_hold_controls
from features.text_formats.fields import Fields
from features.text_formats.json_object import read_json_object
from features.text_formats.klog import read_klog
from features.text_formats.logfmt import read_logfmt
from features.text_formats.pattern import Pattern
from features.text_formats.syslog import read_syslog, read_syslog_file
from features.text_formats.web_server import read_access, read_apache_error, read_nginx_error

MAX_LINE_BYTES = 262_144  # a quarter of what Kafka takes by default, so that a dead letter about it fits as well

_Read = Callable[[str], Fields | None]
_DIGITS = "0123456789"
_CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTERS = _CAPITALS + _CAPITALS.lower() + "_@"
# In this order, and only those whose first character fits: the order decides where two formats could read a line.
_FORMATS: tuple[tuple[_Read, str | None], ...] = (
    (read_json_object, "{"),
    (read_syslog, "<ADFJMNOS"),
    (read_klog, "IWEF"),
    (read_apache_error, "["),
    (read_nginx_error, _DIGITS),
    (read_timed, _DIGITS + "["),
    (read_syslog_file, _DIGITS),
    (read_dated, _DIGITS + "["),
    (read_levelled, _LETTERS + "["),
    (read_logfmt, _LETTERS),
    (read_access, None),
    (read_sourced, None),
)


def _those_for(character: str) -> tuple[_Read, ...]:
    return tuple(read for read, firsts in _FORMATS if firsts is None or character in firsts)


_BY_FIRST = {chr(code): _those_for(chr(code)) for code in range(128)}
_FOR_OTHERS = _those_for("\x80")


class LineReader:
    r"""Reads records of text; what one gives depends on nothing but its bytes and the pattern.

    It fails on formats it does not know only in that the whole line becomes the message. A line that looks like another
    format is read as that one: a stream whose lines mislead needs a pattern.

    Parameters
    ----------
    pattern
        A regular expression with named groups, which become the fields; None to tell the format of each line.

    Attributes
    ----------
    fields
        The fields a pattern can give; None without one, when lines decide.

    Raises
    ------
    ValueError
        The pattern cannot be used; see `Pattern`.

    Examples
    --------
    >>> LineReader(None).read(b"2026-01-02 03:04:05,678 WARN shop.Cart: 3 items left")
    {'level': 'WARN', 'message': '3 items left', 'logger': 'shop.Cart', 'time': '2026-01-02T03:04:05.678'}
    >>> LineReader(r"(?P<code>\d+) (?P<message>.*)").read(b"17 all is well")
    {'code': '17', 'message': 'all is well'}
    """

    def __init__(self, pattern: str | None) -> None:
        self._pattern = None if pattern is None else Pattern(pattern)
        self.fields = None if self._pattern is None else self._pattern.fields

    def read(self, line: bytes) -> Fields:
        """Read one record: its first line by its format, the lines after it, as of a stack trace, as `detail`.

        Parameters
        ----------
        line
            UTF-8, at most `MAX_LINE_BYTES`. A byte order mark, line ends at either end, control characters and
            terminals' colours are dropped.

        Returns
        -------
        fields
            New on each call. `message` is among them, unless a pattern or a JSON object has none.

        Raises
        ------
        NotTextError
            It is no UTF-8, or nothing is left of it.
        TooLongError
            It has more than `MAX_LINE_BYTES`, or more characters than are matched with a pattern.
        NoMatchError
            The pattern does not match.
        """
        text = clean(line)
        first, _, rest = text.partition("\n")
        if self._pattern is not None:
            fields = self._pattern.read(first)
        else:
            # JSON may be written over several lines.
            whole = read_json_object(text) if rest and text[0] == "{" else None
            if whole is not None:
                return whole
            fields = _tell_apart(first)
        if rest:
            fields.setdefault("detail", rest)
        return fields


def clean(line: bytes) -> str:
    """Decode a record and drop what is no text; see `LineReader.read`."""
    if len(line) > MAX_LINE_BYTES:
        message = f"the text has {len(line)} bytes; {MAX_LINE_BYTES} are allowed"
        raise TooLongError(message)
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        message = f"the text is no UTF-8 at byte {error.start}"
        raise NotTextError(message) from None
    if may_hold_controls(line):
        text = drop_controls(text)
    text = text.removeprefix("\ufeff").strip("\n")
    if not text or text.isspace():
        message = "the text is empty"
        raise NotTextError(message)
    return text


def _tell_apart(line: str) -> Fields:
    for read in _BY_FIRST.get(line[0], _FOR_OTHERS):
        fields = read(line)
        if fields is not None:
            return fields
    return {"message": line}
