"""Lines as loggers of Java, Python, Go and others print them: time, level, logger, message, in several orders."""

from __future__ import annotations

import re

from features.text_formats.fields import Fields
from features.text_formats.times import CLOCK, FULL, SHORT, to_iso

_WORDS = (
    "TRACE|DEBUG|VERBOSE|INFO|SUCCESS|NOTICE|WARNING|WARN|ERROR|ERR|SEVERE|CRITICAL|CRIT|FATAL|ALERT|EMERG|PANIC|LOG"
)
_ANY = f"{FULL}|{SHORT}|{CLOCK}"
_SEPARATOR = r"[ \t]++(?:[-|][ \t]++)?"
_NAME = r"[A-Za-z_][\w.$/<>:-]{0,199}"
_THREAD = r"\[([^\]\[]{1,200}+)\][ \t]++"

_AFTER_TIME = rf"(?(1)\])(?:{_SEPARATOR}|(?<=\])|$)"

_TIME = re.compile(rf"(\[)?({_ANY}){_AFTER_TIME}", re.ASCII)
_DATED = re.compile(rf"(\[)?({FULL}){_AFTER_TIME}", re.ASCII)
_SOURCE = re.compile(rf"(\S{{1,200}}+)[ \t]++(?:\|[ \t]++)?(?=\[?(?:{_ANY}))", re.ASCII)
# A level is a word in capitals, or any case in brackets or before a colon: "error opening file" has none. What is
# optional before it is lazy, so that `[INFO]` is the level and no thread.
_BODY = re.compile(
    rf"(?:\[?(\d{{1,10}})\]?{_SEPARATOR})?"
    rf"(?:{_THREAD})??"
    rf"(?:({_NAME})[ \t]++[-|][ \t]++)??"
    rf"(?:\[ ?((?i:{_WORDS})) {{0,5}}\]:?|({_WORDS})(?:(?=[\s|]|$)|:(?!\S))|((?i:{_WORDS})):(?!\S))"
    r"[ \t]*+(?:[-|][ \t]++)?"
    r"(?:(\d{1,10}) ---[ \t]++)?"
    rf"(?(3)|(?:(?:{_THREAD})?(?:in[ \t]++)?({_NAME})(?::(?!\S)|[ \t]++[-:](?!\S))[ \t]*+"
    r"|([A-Za-z_][\w$]{0,99}+(?:\.[\w$]{1,99}+)++)[ \t]++\[([^\]]{1,500}+)\][ \t]*+)?)"
    r"(.*)",
    re.ASCII,
)
_TERSE = re.compile(rf"({_WORDS}):([\w.]{{1,200}}+):(.*)", re.ASCII)


def read_timed(text: str) -> Fields | None:
    """Read a line that begins with a time and has a level after it."""
    found = _TIME.match(text)
    fields = None if found is None else _read_body(text, found.end())
    if found is None or fields is None:
        return None
    time = to_iso(found[2])
    if time is None:
        fields["partial_time"] = found[2]
    else:
        fields["time"] = time
    return fields


def read_dated(text: str) -> Fields | None:
    """Read a line that begins with a full date and a time; what comes after it is the message."""
    found = _DATED.match(text)
    return None if found is None else {"time": to_iso(found[2]), "message": text[found.end() :]}


def read_sourced(text: str) -> Fields | None:
    """Read a line with one word before its time: a container, a file, as tools that merge logs put it."""
    found = _SOURCE.match(text)
    fields = None if found is None else read_timed(text[found.end() :])
    if found is None or fields is None:
        return None
    fields["source"] = found[1]
    return fields


def read_levelled(text: str) -> Fields | None:
    """Read a line that begins with a level, or a thread and a level: `INFO:logger:message`, `ERROR message`."""
    found = _TERSE.match(text)
    if found is not None:
        return {"level": found[1], "logger": found[2], "message": found[3]}
    return _read_body(text, 0)


def _read_body(text: str, start: int) -> Fields | None:
    found = _BODY.match(text, start)
    if found is None:
        return None
    (pid, thread, logger, bracketed, bare, ended, late_pid, late_thread, late_logger, dotted, context,
     message) = found.groups()  # fmt: skip
    fields: Fields = {"level": bracketed or bare or ended, "message": message}
    logger = logger or late_logger or dotted
    if logger is not None:
        fields["logger"] = logger
    thread = thread or late_thread
    if thread is not None:
        fields["thread"] = thread
    pid = pid or late_pid
    if pid is not None:
        fields["pid"] = int(pid)
    if context is not None:
        fields["context"] = context
    return fields
