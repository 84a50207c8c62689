"""Logs of web servers: the common and combined access formats, and the error logs of Apache and NGINX."""

from __future__ import annotations

import re

from features.text_formats.fields import Fields
from features.text_formats.times import MONTH, MONTHS

_QUOTED = r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_ACCESS = re.compile(
    r"(?:(\S{1,255}:\d{1,5}) )?(\S{1,255}+) (\S{1,255}+) (\S{1,255}+) "
    rf"\[(\d\d)/({MONTH})/(\d{{4}}):(\d\d:\d\d:\d\d) ([+-]\d\d)(\d\d)\] {_QUOTED} (\d{{3}}) (\d{{1,18}}|-)"
    rf"(?: {_QUOTED} {_QUOTED}(?: {_QUOTED})?)?(?: (.*)|$)",
    re.ASCII,
)
_REQUEST = re.compile(r"([A-Z]{3,20}) ([^\s?]++)(?:\?(\S*+))?(?: (HTTP/\d(?:\.\d)?))?$", re.ASCII)
_ESCAPE = re.compile(r'\\(["\\])')

_APACHE = re.compile(
    rf"\[[A-Z][a-z][a-z] ({MONTH}) ([ \d]\d) (\d\d:\d\d:\d\d(?:\.\d{{1,6}})?) (\d{{4}})\] "
    r"\[(?:([\w-]{0,64}+):)?([a-z]{4,6}\d?)\] (?:\[pid (\d{1,10})(?::tid (\d{1,20}))?\] )?"
    r"((?:\[client ([^\s\]]{1,255}+)\] )?.*)",
    re.ASCII,
)
_NGINX = re.compile(
    r"(\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d) \[([a-z]{4,6})\] (\d{1,10})#(\d{1,20}): (?:\*(\d{1,20}) )?(.*)", re.ASCII
)


def read_access(text: str) -> Fields | None:
    """Read an access log's line, with a virtual host before it or not; what is `-` there is absent here.

    The message is the request; method, path, query and protocol are there when it is a sound one.
    """
    found = _ACCESS.match(text)
    if found is None:
        return None
    (host, client, identity, user, day, month, year, clock, hours, minutes, request, status, size, referer, agent,
     forwarded, extra) = found.groups()  # fmt: skip
    request = _unescape(request)
    fields: Fields = {
        "time": f"{year}-{MONTHS[month]}-{day}T{clock}{hours}:{minutes}", "status": int(status), "message": request,
    }  # fmt: skip
    if size != "-":
        fields["bytes"] = int(size)
    for name, value in (
        ("host", host), ("client", client), ("identity", identity), ("user", user), ("referer", referer),
        ("agent", agent), ("forwarded", forwarded), ("extra", extra),
    ):  # fmt: skip
        if value and value != "-":
            fields[name] = value if "\\" not in value else _unescape(value)
    sound = _REQUEST.match(request)
    if sound is not None:
        fields["method"], fields["path"], query, protocol = sound.groups()
        if query is not None:
            fields["query"] = query
        if protocol is not None:
            fields["protocol"] = protocol
    return fields


def read_apache_error(text: str) -> Fields | None:
    """Read a line of Apache's error log, of 2.4 or before; its date has no zone, the client is in the message too."""
    found = _APACHE.match(text)
    if found is None:
        return None
    month, day, clock, year, module, level, pid, thread, message, client = found.groups()
    fields: Fields = {
        "time": f"{year}-{MONTHS[month]}-{day.replace(' ', '0')}T{clock}", "level": level, "message": message,
    }  # fmt: skip
    return _with(fields, logger=module, pid=pid and int(pid), thread=thread, client=client)


def read_nginx_error(text: str) -> Fields | None:
    """Read a line of NGINX's error log; its date has no zone."""
    found = _NGINX.match(text)
    if found is None:
        return None
    year, month, day, clock, level, pid, thread, connection, message = found.groups()
    fields: Fields = {
        "time": f"{year}-{month}-{day}T{clock}", "level": level, "pid": int(pid), "thread": thread, "message": message,
    }  # fmt: skip
    return _with(fields, connection=connection)


def _with(fields: Fields, **more: str | int | None) -> Fields:
    """The fields and those of `more` that are there."""
    for name, value in more.items():
        if value is not None and value != "":
            fields[name] = value
    return fields


def _unescape(text: str) -> str:
    r"""Quotes and backslashes as they were; `\x16` stays as the server wrote it, for it may stand for no character."""
    return text if "\\" not in text else _ESCAPE.sub(r"\1", text)
