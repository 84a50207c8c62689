"""syslog: RFC 5424, RFC 3164 as it is found in practice, and the file format of rsyslog with full dates."""

from __future__ import annotations

import re

from features.text_formats.fields import Fields
from features.text_formats.times import MONTH

_LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "console", "cron2", *(f"local{n}" for n in range(8)),
)  # fmt: skip

_MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)"
_VALUE = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_ELEMENT = rf'\[[^\s=\]"]{{1,255}}+(?: [^\s=\]"]{{1,255}}+={_VALUE})*+ ?\]'
_TAG = r"(?:([^\s:\[\]]{1,128}+)(?:\[([^\]\s]{0,64}+)\])?: ?)"

_PRIORITY = re.compile(r"<(\d{1,3})>", re.ASCII)
_NEW = re.compile(
    rf"[1-9]\d{{0,2}} (-|{_MOMENT}) (\S{{1,255}}+) (\S{{1,255}}+) (\S{{1,255}}+) (\S{{1,255}}+) "
    rf"(?:-|((?:{_ELEMENT})++))(?: (.*)|$)",
    re.ASCII,
)
_OLD = re.compile(rf"({MONTH} [ \d]\d \d\d:\d\d:\d\d)(?:\.\d{{1,9}})? (\S{{1,255}}+) {_TAG}?(.*)", re.ASCII)
_FILE = re.compile(rf"({_MOMENT}) (\S{{1,255}}+) {_TAG}(.*)", re.ASCII)
_ELEMENTS = re.compile(r"""\[([^\s=\]"]++)([^"\]]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"\]]*+)*+)\]""", re.ASCII)
_PARAMETERS = re.compile(r"""([^\s=\]"]++)="([^"\\]*+(?:\\.[^"\\]*+)*+)\"""", re.ASCII)
_ESCAPE = re.compile(r'\\(["\\\]])')


def read_syslog(text: str) -> Fields | None:
    """Read a line that begins with a priority, or with a date without year as RFC 3164 has it."""
    if text[0] != "<":
        return _read_old(text, 0)
    found = _PRIORITY.match(text)
    if found is None or int(found[1]) >= 8 * len(_FACILITIES):
        return None
    facility, level = divmod(int(found[1]), 8)
    end = found.end()
    fields = _read_new(text, end) or _read_old(text, end) or {"message": text[end:]}
    return {"facility": _FACILITIES[facility], "level": _LEVELS[level], **fields}


def read_syslog_file(text: str) -> Fields | None:
    """Read `date host tag[pid]: message` with an RFC 3339 date, as rsyslog writes files."""
    found = _FILE.match(text)
    if found is None:
        return None
    moment, host, tag, pid, message = found.groups()
    return {"time": moment, "host": host, **_sender(tag, pid), "message": message}


def _read_old(text: str, start: int) -> Fields | None:
    """RFC 3164; its date has no year and no zone, so it gives no `time`: a clock would have to guess."""
    found = _OLD.match(text, start)
    if found is None:
        return None
    moment, host, tag, pid, message = found.groups()
    fields = {"partial_time": moment, "host": host, "message": message}
    return fields if tag is None else {**fields, **_sender(tag, pid)}


def _read_new(text: str, start: int) -> Fields | None:
    """RFC 5424; what is `-` there is absent here."""
    found = _NEW.match(text, start)
    if found is None:
        return None
    moment, host, service, pid, message_id, data, message = found.groups()
    fields = _sender(service, pid)
    for name, value in (("time", moment), ("host", host), ("message_id", message_id)):
        if value != "-":
            fields[name] = value
    if data is not None:
        fields["data"] = {
            name: {key: _unescape(value) for key, value in _PARAMETERS.findall(inner)}
            for name, inner in _ELEMENTS.findall(data)
        }
    fields["message"] = (message or "").removeprefix("\ufeff")
    return fields


def _sender(service: str, process: str | None) -> Fields:
    """The service, and its process: `pid` where that is a number, else `process`, as it may be any name."""
    fields: Fields = {} if service == "-" else {"service": service}
    if process and process != "-":
        number = process.isascii() and process.isdigit() and len(process) < 11
        fields["pid" if number else "process"] = int(process) if number else process
    return fields


def _unescape(value: str) -> str:
    return value if "\\" not in value else _ESCAPE.sub(r"\1", value)
