"""Raw text: each format is told apart and read back, patterns are checked, and nothing but a RecordError is raised."""

from __future__ import annotations

import csv
import gzip
import json
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import RecordError
from features.event_time import parse_time_ms
from features.text_formats.json_object import MAX_DEPTH
from features.text_formats.pattern import MAX_PATTERN_CHARACTERS
from features.text_lines import MAX_LINE_BYTES, LineReader

READER = LineReader(None)
unhurried = settings(deadline=None)  # other tests share the machine
SYSTEMS = ("Apache", "BGL", "HDFS", "Hadoop", "OpenSSH", "OpenStack", "Spark")


def read(text: str) -> dict[str, Any]:
    return READER.read(text.encode())


def reason(line: bytes, reader: LineReader = READER) -> str:
    """Why the line is refused."""
    with pytest.raises(RecordError) as caught:
        reader.read(line)
    assert str(caught.value)
    return caught.value.reason


# --- an example of each format

ACCESS = '203.0.113.9 - anna [04/Mar/2026:18:01:47 +0100] "GET /cart?item=7 HTTP/1.1" 200 5123'
ACCESS_FIELDS = {
    "time": "2026-03-04T18:01:47+01:00", "status": 200, "message": "GET /cart?item=7 HTTP/1.1", "bytes": 5123,
    "client": "203.0.113.9", "user": "anna", "method": "GET", "path": "/cart", "query": "item=7",
    "protocol": "HTTP/1.1",
}  # fmt: skip
SPRING = "2026-03-04T18:01:47.978+01:00  WARN 4711 --- [   nio-8080-1] d.o.shop.Cart   : two items left"
EXAMPLES = {
    "common": (ACCESS, ACCESS_FIELDS),
    "combined": (
        f'{ACCESS} "https://shop.example/" "Agent \\"9\\""',
        ACCESS_FIELDS | {"referer": "https://shop.example/", "agent": 'Agent "9"'},
    ),
    "nginx with a proxy's client": (f'{ACCESS} "-" "-" "198.51.100.7"', ACCESS_FIELDS | {"forwarded": "198.51.100.7"}),
    "virtual host, no sound request": (
        r'shop.example:443 ::1 - - [04/Mar/2026:18:01:47 +0000] "\x16\x03\x01" 400 - 0.003',
        {
            "time": "2026-03-04T18:01:47+00:00", "status": 400, "message": r"\x16\x03\x01", "host": "shop.example:443",
            "client": "::1", "extra": "0.003",
        },
    ),
    "apache error 2.4": (
        "[Wed Mar 04 18:01:47.978123 2026] [proxy:error] [pid 17:tid 140001] [client 203.0.113.9:4444] AH1: no peer",
        {
            "time": "2026-03-04T18:01:47.978123", "level": "error", "logger": "proxy", "pid": 17, "thread": "140001",
            "client": "203.0.113.9:4444", "message": "[client 203.0.113.9:4444] AH1: no peer",
        },
    ),
    "apache error 2.2": (
        "[Wed Mar  4 18:01:47 2026] [notice] ready",
        {"time": "2026-03-04T18:01:47", "level": "notice", "message": "ready"},
    ),
    "nginx error": (
        "2026/03/04 18:01:47 [crit] 17#2: *90 open() failed (13: Permission denied)",
        {
            "time": "2026-03-04T18:01:47", "level": "crit", "pid": 17, "thread": "2", "connection": "90",
            "message": "open() failed (13: Permission denied)",
        },
    ),
    "rfc 3164": (
        "<38>Mar  4 18:01:47 web-1 sshd[4711]: session opened for anna",
        {
            "facility": "auth", "level": "info", "partial_time": "Mar  4 18:01:47", "host": "web-1", "service": "sshd",
            "pid": 4711, "message": "session opened for anna",
        },
    ),
    "rfc 3164 in a file": (
        "Mar 14 18:01:47 web-1 kernel: eth0: link is up",
        {"partial_time": "Mar 14 18:01:47", "host": "web-1", "service": "kernel", "message": "eth0: link is up"},
    ),
    "rfc 3164 without a tag": (
        "Mar 14 18:01:47 web-1 last message repeated 3 times",
        {"partial_time": "Mar 14 18:01:47", "host": "web-1", "message": "last message repeated 3 times"},
    ),
    "a priority alone": (
        "<191>free text", {"facility": "local7", "level": "debug", "message": "free text"},
    ),
    "rfc 5424": (
        '<165>1 2026-03-04T18:01:47.978123Z web-1.example shop 4711 ID7 '
        '[cart@32473 item="7" note="a \\"b\\" \\]"][x] \ufeffsold',
        {
            "facility": "local4", "level": "notice", "time": "2026-03-04T18:01:47.978123Z", "host": "web-1.example",
            "service": "shop", "pid": 4711, "message_id": "ID7",
            "data": {"cart@32473": {"item": "7", "note": 'a "b" ]'}, "x": {}}, "message": "sold",
        },
    ),
    "rfc 5424 with nothing": (
        "<0>1 - - - - - -", {"facility": "kern", "level": "emerg", "message": ""},
    ),
    "rfc 5424 with a named process": (
        "<14>1 - - shop worker-b - - sold",
        {"facility": "user", "level": "info", "service": "shop", "process": "worker-b", "message": "sold"},
    ),
    "a level is no host": (
        "2026-03-04T18:01:47+01:00 WARN cart: two items left",
        {"time": "2026-03-04T18:01:47+01:00", "level": "WARN", "logger": "cart", "message": "two items left"},
    ),
    "rsyslog's file": (
        "2026-03-04T18:01:47.978123+01:00 web-1 sshd[4711]: session opened",
        {
            "time": "2026-03-04T18:01:47.978123+01:00", "host": "web-1", "service": "sshd", "pid": 4711,
            "message": "session opened",
        },
    ),
    "logfmt": (
        r'ts=2026-03-04T18:01:47Z lvl=warn msg="cart \"7\" is full" items=12 url=/a?b=c retry note=',
        {
            "ts": "2026-03-04T18:01:47Z", "lvl": "warn", "msg": 'cart "7" is full', "items": "12", "url": "/a?b=c",
            "retry": True, "note": "", "time": "2026-03-04T18:01:47Z", "level": "warn", "message": 'cart "7" is full',
        },
    ),
    "logfmt without a message": (
        "at=info status=200", {"at": "info", "status": "200", "message": "at=info status=200"},
    ),
    "json": (
        '{"severity": "WARN", "msg": "full", "@timestamp": 1772643707, "cart": {"items": [1, null]}}',
        {
            "severity": "WARN", "msg": "full", "@timestamp": 1772643707, "cart": {"items": [1, None]}, "level": "WARN",
            "message": "full", "time": 1772643707,
        },
    ),
    "klog": (
        "E0304 18:01:47.978123    4711 cart.go:88] two items left",
        {
            "level": "ERROR", "partial_time": "0304 18:01:47.978123", "pid": 4711, "file": "cart.go", "line": 88,
            "message": "two items left",
        },
    ),
    "log4j": (
        "2026-03-04 18:01:47,978 INFO [main thread] dev.shop.Cart$Item: two: items left",
        {
            "time": "2026-03-04T18:01:47.978", "level": "INFO", "thread": "main thread", "logger": "dev.shop.Cart$Item",
            "message": "two: items left",
        },
    ),
    "logback": (
        "18:01:47.978 [main] WARN  dev.shop.Cart - two items left",
        {
            "partial_time": "18:01:47.978", "level": "WARN", "thread": "main", "logger": "dev.shop.Cart",
            "message": "two items left",
        },
    ),
    "spring": (
        SPRING,
        {
            "time": "2026-03-04T18:01:47.978+01:00", "level": "WARN", "pid": 4711, "thread": "   nio-8080-1",
            "logger": "d.o.shop.Cart", "message": "two items left",
        },
    ),
    "hadoop, short dates": (
        "260304 180147 17 INFO shop.Cart: two items left",
        {"time": "2026-03-04T18:01:47", "level": "INFO", "pid": 17, "logger": "shop.Cart", "message": "two items left"},
    ),
    "spark": (
        "26/03/04 18:01:47 ERROR shop.Cart: none left",
        {"time": "2026-03-04T18:01:47", "level": "ERROR", "logger": "shop.Cart", "message": "none left"},
    ),
    "kafka": (
        "[2026-03-04 18:01:47,978] INFO [Broker id=1] Stopped (kafka.server.Broker)",
        {"time": "2026-03-04T18:01:47.978", "level": "INFO", "message": "[Broker id=1] Stopped (kafka.server.Broker)"},
    ),
    "python, as its documentation has it": (
        "2026-03-04 18:01:47,978 - shop.cart - WARNING - two - items left",
        {"time": "2026-03-04T18:01:47.978", "level": "WARNING", "logger": "shop.cart", "message": "two - items left"},
    ),
    "python, basicConfig": (
        "WARNING:shop.cart:two items left", {"level": "WARNING", "logger": "shop.cart", "message": "two items left"},
    ),
    "flask": (
        "[2026-03-04 18:01:47,978] ERROR in cart: none left",
        {"time": "2026-03-04T18:01:47.978", "level": "ERROR", "logger": "cart", "message": "none left"},
    ),
    "gunicorn": (
        "[2026-03-04 18:01:47 +0100] [4711] [INFO] Booting worker",
        {"time": "2026-03-04T18:01:47+0100", "level": "INFO", "pid": 4711, "message": "Booting worker"},
    ),
    "uvicorn": ("INFO:     Started server", {"level": "INFO", "message": "Started server"}),
    "loguru": (
        "2026-03-04 18:01:47.978 | SUCCESS  | shop.cart:sell:12 - sold",
        {"time": "2026-03-04T18:01:47.978", "level": "SUCCESS", "logger": "shop.cart:sell:12", "message": "sold"},
    ),
    "openstack": (
        "nova.log 2026-03-04 18:01:47.978 4711 INFO nova.compute.manager [req-7 - - -] [instance: 9] resumed",
        {
            "source": "nova.log", "time": "2026-03-04T18:01:47.978", "level": "INFO", "pid": 4711,
            "logger": "nova.compute.manager", "context": "req-7 - - -", "message": "[instance: 9] resumed",
        },
    ),
    "docker compose": (
        "web-1  | 2026-03-04 18:01:47 [warn] two items left",
        {"source": "web-1", "time": "2026-03-04T18:01:47", "level": "warn", "message": "two items left"},
    ),
    "postgres": (
        "2026-03-04 18:01:47.978 UTC [4711] ERROR:  no such table",
        {"time": "2026-03-04T18:01:47.978Z", "level": "ERROR", "pid": 4711, "message": "no such table"},
    ),
    "zap": (
        "2026-03-04T18:01:47.978+0100\tINFO\tsold one",
        {"time": "2026-03-04T18:01:47.978+0100", "level": "INFO", "message": "sold one"},
    ),
    "go": ("2026/03/04 18:01:47 sold one", {"time": "2026-03-04T18:01:47", "message": "sold one"}),
    "level in brackets": ("[warn] two items left", {"level": "warn", "message": "two items left"}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_format_is_told_apart(name: str) -> None:
    """A line of each format gives the fields that docs/text-lines.md names, and a full time is one we can parse."""
    line, fields = EXAMPLES[name]
    assert read(line) == fields
    if "time" in fields:
        assert parse_time_ms(fields["time"]) // 60_000 in {1772643707 // 60, (1772643707 + 3600) // 60}


@pytest.mark.parametrize(
    "line",
    [
        "nothing of note", "error opening file", "user=anna logged in again", "INFORMATION is here", "12 ERROR seen",
        "{broken", '{"a": NaN}', "[1, 2]", "<999>x", "<1>", "=", "a = 1", 'a="b', "E0304 noon", "Mar 4", "[", "2026",
        "é", "2026-13-04 18:01:47 INFO x", "0x1F", "-", "260304 180147 counts", "{" * 100_000, "12:00:00.000 later",
    ],
)  # fmt: skip
def test_what_fits_no_format_is_a_message(line: str) -> None:
    """Lines that only look a little like a format stay whole; the priority before one counts as syslog."""
    assert read(line) == {"message": line} or line == "<1>"
    assert "message" in read(line)


# --- each format, rendered and read back

text = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=30)
message = st.builds("{} {}".format, st.sampled_from(["took", "öffnet", "GET"]), text)
word = st.from_regex(r"[a-z][a-z0-9_-]{0,15}", fullmatch=True)
dotted = st.lists(st.from_regex(r"[A-Za-z][A-Za-z0-9_$]{0,8}", fullmatch=True), min_size=2, max_size=4).map(".".join)
level = st.sampled_from(["TRACE", "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL"])
pid = st.integers(0, 2**31)
moment = st.datetimes(datetime(1970, 1, 2), datetime(2099, 12, 30))  # noqa: DTZ001
zone = st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
quoted = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20).filter(lambda t: t != "-")


def in_quotes(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def to_ms(when: datetime) -> int:
    return (when.replace(tzinfo=when.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


@unhurried
@given(
    word, quoted, moment, zone, st.sampled_from(["GET", "POST"]), st.from_regex(r"/[!#-\[\]-~]{0,20}", fullmatch=True),
    st.integers(100, 599), st.none() | st.integers(0, 10**12), quoted, quoted, st.booleans(),
)  # fmt: skip
def test_access_logs_are_read_back(
    client: str, user: str, when: datetime, tz: timezone, method: str, target: str, status: int, size: int | None,
    referer: str, agent: str, combined: bool,
) -> None:  # fmt: skip
    """Common and combined lines give what was rendered; the date becomes ISO 8601 with its zone."""
    user = user.replace(" ", "_").encode("ascii", "replace").decode().replace("-", "_")
    at = when.replace(tzinfo=tz, microsecond=0)
    request = f"{method} {target} HTTP/1.1"
    date = f"{at:%d/%b/%Y:%H:%M:%S %z}"
    line = f"{client} - {in_quotes(user)[1:-1]} [{date}] {in_quotes(request)} {status} {'-' if size is None else size}"
    if combined:
        line += f" {in_quotes(referer)} {in_quotes(agent)}"
    fields = read(line)
    expected: dict[str, Any] = {"client": client, "user": user, "method": method, "status": status, "message": request}
    expected |= {"referer": referer, "agent": agent} if combined else {}
    expected |= {} if size is None else {"bytes": size}
    assert {name: fields.get(name) for name in expected} == expected
    assert fields["path"] + ("?" + fields["query"] if "query" in fields else "") == target
    assert datetime.fromisoformat(fields["time"]) == at
    assert ("bytes" in fields) == (size is not None)


@unhurried
@given(st.integers(0, 191), moment, word, word, st.none() | pid, message, st.booleans())
def test_rfc_3164_is_read_back(
    priority: int, when: datetime, host: str, service: str, process: int | None, said: str, prefixed: bool
) -> None:
    """The old syslog gives host, service, pid and message, and no time: its date has no year."""
    stamp = f"{when:%b} {when.day:2d} {when:%H:%M:%S}"
    tag = service if process is None else f"{service}[{process}]"
    fields = read(f"{f'<{priority}>' if prefixed else ''}{stamp} {host} {tag}: {said}")
    expected: dict[str, Any] = {"partial_time": stamp, "host": host, "service": service, "message": said}
    expected |= {} if process is None else {"pid": process}
    assert {name: fields[name] for name in fields if name not in {"facility", "level"}} == expected
    assert ("level" in fields) == ("facility" in fields) == prefixed


data_name = st.from_regex(r"[!#-<>-\\^-~]{1,12}", fullmatch=True)
data = st.dictionaries(data_name, st.dictionaries(data_name, text, max_size=3), min_size=1, max_size=3)


@unhurried
@given(st.integers(0, 191), moment, zone, word, word, pid | word, word, st.none() | data, message)
def test_rfc_5424_is_read_back(
    priority: int, when: datetime, tz: timezone, host: str, service: str, process: int | str, kind: str,
    elements: dict[str, dict[str, str]] | None, said: str,
) -> None:  # fmt: skip
    """The new syslog gives every part, structured data with any names and values included."""
    at = when.replace(tzinfo=tz)
    rendered = "-" if elements is None else ""
    for name, parameters in (elements or {}).items():
        inside = "".join(f" {k}={in_quotes(v).replace(']', chr(92) + ']')}" for k, v in parameters.items())
        rendered += f"[{name}{inside}]"
    fields = read(f"<{priority}>1 {at.isoformat()} {host} {service} {process} {kind} {rendered} {said}")
    expected = {
        "time": at.isoformat(), "host": host, "service": service, "message_id": kind, "message": said,
        "process" if isinstance(process, str) else "pid": process,
    }  # fmt: skip
    expected |= {} if elements is None else {"data": elements}
    assert {name: fields[name] for name in fields if name not in {"facility", "level"}} == expected
    assert parse_time_ms(fields["time"]) == to_ms(at)


@unhurried
@given(st.dictionaries(word.map("k_{}".format), text | st.just("\n\tx"), min_size=1, max_size=6))
def test_logfmt_is_read_back(pairs: dict[str, str]) -> None:
    """Keys and values come back, quoted where they must be, and the line is the message."""
    rendered = []
    for key, value in pairs.items():
        plain = value and not any(c.isspace() or c in '"\\' for c in value)
        rendered.append(f"{key}={value if plain else in_quotes(value).replace(chr(10), chr(92) + 'n')}")
    line = " ".join(rendered)
    assert read(line) == pairs | {"message": line}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=12,
)


@unhurried
@given(st.dictionaries(word.map("k_{}".format), json_values, max_size=5), st.booleans(), st.none() | st.integers(1, 3))
def test_json_is_read_back(fields: dict[str, Any], escaped: bool, indent: int | None) -> None:
    """Any object comes back as it was, over one line or several, with escapes or without."""
    assert read(json.dumps(fields, ensure_ascii=escaped, indent=indent)) == fields


@unhurried
@given(st.sampled_from("IWEF"), moment, pid, word, st.integers(1, 99_999), message)
def test_klog_is_read_back(letter: str, when: datetime, process: int, file: str, line: int, said: str) -> None:
    """A klog line gives every part, and no time: its date has no year."""
    stamp = f"{when:%m%d %H:%M:%S.%f}"
    assert read(f"{letter}{stamp} {process:7d} {file}.go:{line}] {said}") == {
        "level": {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "FATAL"}[letter], "partial_time": stamp,
        "pid": process, "file": f"{file}.go", "line": line, "message": said,
    }  # fmt: skip


APP_SHAPES = (
    "{time} {level} {logger}: {said}", "{time} {level} [{thread}] {logger}: {said}",
    "{time} [{thread}] {level:5} {logger} - {said}", "{time} - {logger} - {level} - {said}",
    "[{time}] {level} in {logger}: {said}", "{time}  {level} {pid} --- [{thread}] {logger:30} : {said}",
    "{time} {pid} {level} {logger} [{thread}] {said}", "{time} | {level:8} | {logger} - {said}",
    "{source} {time} {level} {logger}: {said}", "{source} | {time} {level} {logger}: {said}",
)  # fmt: skip


@unhurried
@given(st.sampled_from(APP_SHAPES), moment, st.none() | zone, st.sampled_from(".,"), st.sampled_from("T "), level,
       dotted, word, word, pid, message)  # fmt: skip
def test_loggers_lines_are_read_back(
    shape: str, when: datetime, tz: timezone | None, point: str, between: str, severity: str, logger: str, thread: str,
    source: str, process: int, said: str,
) -> None:  # fmt: skip
    """Time, level, logger, thread, process and message come back from each order that loggers print them in."""
    at = when.replace(tzinfo=tz, microsecond=when.microsecond // 1000 * 1000)
    stamp = at.isoformat(between, "milliseconds").replace(".", point)
    parts = {"level": severity, "logger": logger, "thread": thread, "source": source, "pid": process, "said": said}
    fields = read(shape.format(time=stamp, **parts))
    assert parse_time_ms(fields.pop("time")) == to_ms(at)
    named = {name for name in ("level", "logger", "thread", "source", "pid") if "{" + name in shape}
    expected = {name: parts[name] for name in named} | {"message": said}
    if "context" in fields:
        fields["thread"] = fields.pop("context")
    assert fields == expected


# --- what a line is made of


def test_line_ends_marks_and_colours_are_dropped() -> None:
    """CRLF, a byte order mark, colours and other controls are no part of any field; tabs stay."""
    line = b"\xef\xbb\xbf\x1b[1;32mINFO\x1b[0m:\tready\x07 \xc2\x9b31mred\x00\tone\r\n"
    assert READER.read(line) == {"level": "INFO", "message": "ready red\tone"}
    assert READER.read(b"\x1b]0;title\x07plain\r\n\r\n") == {"message": "plain"}
    coloured = rb'{"log": "\u001b[31mred\u001b[0m \\u001b stays\r\n", "deep": [{"x": "\u0000\u009b1mz"}], "n": 1}'
    fields = READER.read(coloured)
    assert fields["log"] == fields["message"] == "red \\u001b stays\n"
    assert fields["deep"] == [{"x": "z"}]


@unhurried
@given(
    text.filter(lambda t: t.strip("\ufeff\n") and not t.isspace()), st.lists(st.sampled_from(range(256)), max_size=9)
)
def test_controls_never_reach_a_field(said: str, controls: list[int]) -> None:
    """Whatever controls stand between the characters of a line, none is in what is read."""
    marks = [chr(c) for c in controls if c < 0x20 or 0x7F <= c < 0xA0]
    line = "x" + "".join(a + b for a, b in zip(said, marks * len(said), strict=False)) + said
    fields = read(line)
    assert all(c in "\t\n" or not (c < " " or "\x7f" <= c < "\xa0") for v in fields.values() for c in str(v))


def test_a_stack_trace_is_one_record() -> None:
    """The first line is read, the others are kept as they are; a JSON object may span lines."""
    trace = "java.lang.IllegalStateException: none\r\n\tat dev.shop.Cart.sell(Cart.java:88)\r\n\r\n"
    fields = read(f"\n2026-03-04 18:01:47,978 ERROR dev.shop.Cart: failed\r\n{trace}")
    assert fields == {
        "time": "2026-03-04T18:01:47.978", "level": "ERROR", "logger": "dev.shop.Cart", "message": "failed",
        "detail": "java.lang.IllegalStateException: none\n\tat dev.shop.Cart.sell(Cart.java:88)",
    }  # fmt: skip
    assert read('{"msg": "a",\n"b": 1}') == {"msg": "a", "b": 1, "message": "a"}
    assert read('{"msg": "a"}\nb') == {"msg": "a", "message": "a", "detail": "b"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"", "not_text"), (b"\r\n", "not_text"), (b" \t\n", "not_text"), (b"\xef\xbb\xbf", "not_text"),
        (b"\x1b[0m", "not_text"), (b"abc\xff", "not_text"), (b"\xed\xa0\x80", "not_text"),
        (b"\xc3\x00\xa9", "not_text"), (b"x" * (MAX_LINE_BYTES + 1), "too_long"), (b"\xff" * 2**20, "too_long"),
    ],
)  # fmt: skip
def test_what_is_no_text_has_its_reason(line: bytes, expected: str) -> None:
    """Bytes that are no UTF-8, nothing, and too much are refused by name, with a pattern or without."""
    assert reason(line) == expected
    assert reason(line, LineReader("(?P<all>.+)")) == expected


def test_names_that_mean_the_same_are_added() -> None:
    """Our names stand beside the writer's, never over a field that is there, and never for an object."""
    assert read('{"msg": "a", "message": "b"}') == {"msg": "a", "message": "b"}
    assert read('{"log": "first", "msg": "second"}')["message"] == "first"
    assert "time" not in read('{"timestamp": {"seconds": 5}}')
    assert read("severity=low level=high")["level"] == "high"


def test_json_nests_so_deep_and_no_deeper() -> None:
    """Depth is bounded by a number of ours and not by the interpreter's; brackets in texts do not count."""
    for depth, is_json in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False), (40_000, False)):
        line = '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)
        assert ("a" in read(line)) is is_json
    assert read(json.dumps({"a": '[{"\\' * 99})) == {"a": '[{"\\' * 99}


pieces = st.sampled_from([line for line, _ in EXAMPLES.values()]).flatmap(
    lambda line: st.tuples(st.integers(0, len(line)), st.integers(0, len(line))).map(
        lambda cut: line[min(cut) : max(cut)]
    )
)
hostile = st.binary(max_size=80) | st.lists(
    pieces | text | st.sampled_from(list('"\\[]{}=:<>- \n\t\x1b')), max_size=8
).map(lambda parts: "".join(parts).encode())


@unhurried
@given(hostile)
def test_any_bytes_are_read_or_refused(line: bytes) -> None:
    """Whatever bytes come, they are fields or a RecordError; a text that is no JSON has a message."""
    try:
        fields = READER.read(line)
    except RecordError:
        return
    assert fields or json.loads(line) == {}
    assert all(isinstance(name, str) for name in fields)
    if b"{" not in line:
        assert isinstance(fields["message"], str | bool)
        assert all(isinstance(v, str | int | dict) for v in fields.values())


@unhurried
@given(st.lists(hostile, max_size=6), st.randoms(use_true_random=False))
def test_a_line_is_read_alone(lines: list[bytes], shuffled: Any) -> None:
    """What a line gives does not depend on the lines before it, nor on what was done to their fields."""

    def outcome(reader: LineReader, line: bytes) -> str:
        try:
            fields = reader.read(line)
        except RecordError as error:
            return f"{error.reason}: {error}"
        shown = repr(fields)
        fields.clear()
        return shown

    alone = {line: outcome(LineReader(None), line) for line in lines}
    shuffled.shuffle(lines)
    assert all(outcome(READER, line) == alone[line] for line in lines)


@pytest.mark.parametrize(
    "line",
    [
        *(line + tail * 50_000 for line, _ in EXAMPLES.values() for tail in (" ", "a=")),
        "[" * 200_000, "\\" * 200_000, "a=\"" * 60_000, "a " * 100_000, "[a " * 60_000, '{"a":' * 40_000,
        "<1>1 - - - - - " + '[a b="' * 40_000, "2026-03-04 18:01:47 " + "a" * 200_000, "a" * 200_000 + " 2026",
        '1 - - [04/Mar/2026:18:01:47 +0000] "' + '\\"' * 100_000, "x\x1b[" + "0;" * 100_000, "x" + "\x1b]" * 100_000,
    ],
)  # fmt: skip
def test_long_lines_take_no_longer_than_they_are(line: str) -> None:
    """Formats are walked in time in proportion to the line: a quarter of a megabyte of traps takes a second."""
    line = line[:MAX_LINE_BYTES]
    began = time.process_time()
    read(line)
    assert time.process_time() - began < 5  # in time by its square it would be minutes


# --- patterns


def test_a_pattern_gives_its_groups() -> None:
    """Named groups that took part are the fields; the pattern begins where the line begins."""
    reader = LineReader(r"(?P<level>\w+)(?: <(?P<user>\w+)>)? (?P<message>.+)")
    assert reader.fields == ("level", "user", "message")
    assert reader.read(b"WARN <anna> \xc3\xa9\r\n") == {"level": "WARN", "user": "anna", "message": "é"}
    assert reader.read(b"WARN x\n at y") == {"level": "WARN", "message": "x", "detail": " at y"}
    assert reason(b" WARN x", reader) == "no_match"
    assert reason(b"x" * (MAX_PATTERN_CHARACTERS + 1), reader) == "too_long"
    assert LineReader("(?P<detail>a)").read(b"a\nb") == {"detail": "a"}
    assert LineReader(None).fields is None


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(", "no regular expression: missing"), ("(?P<a>x)(?P<a>y)", "no regular expression: redefinition"),
        ("(?P<1>x)", "no regular expression: bad character"), ("(?P<a>x{99999999999})", "no regular expression"),
        ("(" * 5_000 + "x" + ")" * 5_000, "no regular expression"),
        ("(?P<a>[[:alpha:]]+)", "no regular expression: Possible nested set"), ("", "names no group"),
        (r"(\w+) x", "names no group"), ("(?P<a>.*)", "matches the empty line"),
        ("(?P<a>x)?", "matches the empty line"), ("(?P<a>(x+)+)y", "possessive"),
        (r"(?P<a>(?:\w+\s?)*)!", "possessive"),
        ("(?P<a>(?:a|ab)*)c", "possessive"), ("(?P<a>(?:x{0,9}y?){2,99})c", "possessive"),
        ("(?P<a>(?=(?:a*)*b)a)", "possessive"), ("(?P<a>(?:(?:a*)*b)++)", "possessive"),
        ("(?P<a>x)(?P=a)", "refers back"), ("(?P<a>x)(?(a)y|z)", "refers back"),
    ],
)  # fmt: skip
def test_a_pattern_that_cannot_serve_is_refused(pattern: str, sentence: str) -> None:
    """When it is made, in one sentence: what it is not, or what could take exponential time."""
    with pytest.raises(ValueError, match=sentence) as caught:
        LineReader(pattern)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?P<time>\S+ \S+) (?P<level>[A-Z]+) (?P<message>.*)", r"(?P<ip>(?:\d{1,3}\.){3}\d{1,3})", r"(?P<a>(?:ab)+)c",
        r"(?P<a>(?:\w+ ?)*+)!", r"(?P<a>(?:(?>\w+ ?))+)!", r'"(?P<a>(?:[^"\\]|\\.)*+)"',
        r"(?P<a>[ab]*?)c(?P<b>d?)",
    ],
)  # fmt: skip
def test_a_pattern_that_serves_is_taken(pattern: str) -> None:
    """What logs need stays possible: plain repetitions, few of few, and anything possessive."""
    assert LineReader(pattern).fields


@unhurried
@given(st.text(st.sampled_from("ab.*+?|(){}[]\\^$<>P:=!,12 "), max_size=20), st.text("ab12 <>", max_size=30))
def test_any_pattern_is_taken_or_refused(pattern: str, line: str) -> None:
    """Whatever stands for a pattern, it is refused by a ValueError or serves without another error, and in time."""
    try:
        reader = LineReader(f"(?P<a>{pattern})x" if len(pattern) % 2 else pattern)
    except ValueError:
        return
    try:
        reader.read(line.encode())
    except RecordError:
        return


# --- real lines


def lines_of(path: Path) -> list[bytes]:
    with gzip.open(path) as file:
        return list(file)


@pytest.mark.parametrize("system", SYSTEMS)
def test_real_lines_keep_their_content(system: str, shared_data: Path) -> None:
    """On seven systems' lines the message holds what their readers call content; six need no pattern for the rest."""
    folder = shared_data / "data" / "loghub2k"
    lines = lines_of(folder / f"{system}_2k.log.gz")
    with gzip.open(folder / f"{system}_2k.log_structured.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(lines) == len(rows) == 2_000
    found = [READER.read(line) for line in lines]
    for row, fields in zip(rows, found, strict=True):
        assert row["Content"].strip() in fields["message"]
        if system != "BGL":
            assert row["Content"].strip() == fields["message"].strip()
            assert fields.get("level") == row.get("Level")
        if "time" in fields:
            assert parse_time_ms(fields["time"]) > 10**12
    for name in ("level", "time"):
        share = sum(name in fields for fields in found) / len(found)
        assert share == (0.0 if system in {"BGL", "OpenSSH"} else 1.0)


def test_a_pattern_reads_what_is_not_known(shared_data: Path) -> None:
    """Blue Gene's lines are of no common format; a pattern gives the parts that others took out of them."""
    reader = LineReader(
        r"(?P<label>\S+) (?P<time>\d+) \S+ (?P<node>\S+) \S+ \S+ (?P<kind>\S+) (?P<component>\S+) (?P<level>[A-Z]+) "
        r"?(?P<message>.*)"
    )
    folder = shared_data / "data" / "loghub2k"
    with gzip.open(folder / "BGL_2k.log_structured.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(rows, lines_of(folder / "BGL_2k.log.gz"), strict=True):
        fields = reader.read(line)
        assert (fields["level"], fields["message"].strip()) == (row["Level"], row["Content"].strip())
        assert parse_time_ms(fields["time"]) == int(row["Timestamp"]) * 1_000


def test_raw_hadoop_lines_are_read_whole(shared_data: Path) -> None:
    """Each of the raw HDFS lines gives time, level, logger, process and message, and nothing of it is lost."""
    lines = lines_of(shared_data / "data" / "hdfs" / "raw.log.gz")[::10]
    for line in lines:
        fields = READER.read(line)
        at = datetime.fromisoformat(fields["time"])
        again = f"{at:%y%m%d %H%M%S} {fields['pid']} {fields['level']} {fields['logger']}: {fields['message']}"
        assert again == line.decode().rstrip("\n")
