"""Inputs that hurt: sound ones, damaged at random, with what readers are known to trip over put in."""

from __future__ import annotations

from functools import reduce

from hypothesis import strategies as st

SOUND = (
    b'{"session": "a", "ts": "2026-03-04T18:01:47Z", "action": "view", "user": {"country": "DK"}, "n": [1, -2.5e3]}',
    b'{"session": 42, "ts": 1772643707123, "action": null, "final": true}',
    b'203.0.113.9 - anna [04/Mar/2026:18:01:47 +0100] "GET /a?b=c HTTP/1.1" 200 5123 "-" "agent"',
    b"[Wed Mar 04 18:01:47.978123 2026] [proxy:error] [pid 17:tid 14] [client 203.0.113.9:4444] no peer",
    b"2026/03/04 18:01:47 [crit] 17#2: *90 open() failed",
    b"<38>Mar  4 18:01:47 web-1 sshd[4711]: session opened",
    b'<165>1 2026-03-04T18:01:47.978Z web-1 shop 4711 ID7 [cart@9 item="7" note="a \\"b\\" \\]"][x] sold',
    b'ts=2026-03-04T18:01:47Z lvl=warn msg="cart \\"7\\" is full" items=12 retry note=',
    b"E0304 18:01:47.978123    4711 cart.go:88] two items left",
    b"2026-03-04 18:01:47,978 INFO [main] dev.shop.Cart$Item: two items left\n\tat dev.shop.Cart(Cart.java:8)\n",
    b"nova.log 2026-03-04 18:01:47.978 4711 INFO nova.compute.manager [req-7 - - -] [instance: 9] resumed",
    b"260304 180147 17 INFO shop.Cart: two items left",
    b"WARNING:shop.cart:two items left",
)
EXPORT = (
    b'{"resourceMetrics": [{"resource": {"attributes": [{"key": "host", "value": {"stringValue": "a"}}]}, '
    b'"scopeMetrics": [{"scope": {"name": "m"}, "metrics": [{"name": "n", "unit": "1", "sum": '
    b'{"aggregationTemporality": 2, "isMonotonic": true, "dataPoints": [{"attributes": [{"key": "k", "value": '
    b'{"arrayValue": {"values": [{"intValue": "1"}]}}}], "timeUnixNano": "1544712660300000000", "asInt": "7", '
    b'"flags": 0}]}}, {"name": "h", "histogram": {"dataPoints": [{"count": 4, "sum": 1.5}]}}, {"name": "q", '
    b'"summary": {"dataPoints": [{"quantileValues": [{"quantile": 0.5, "value": "NaN"}]}]}}]}]}]}'
)
PUT_IN = (
    b"", b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc2\x9b31m", b"\x1b[0m", b"\r\n", b"\n", b"\\", b'\\"',
    b"\\ud800", b"\\u0000", b'"', b"'", b"=", b"{", b"}", b"[", b"]", b"<", b">", b":", b" ", b"-", b"NaN",
    b"-Infinity", b"1e999", b"9" * 40, b"9" * 5_000, b"-1", b"0000-00-00", b"9999-12-31T23:59:59.999999999+14:00",
    b"[" * 3_000, b'{"a":' * 3_000, b"x" * 300_000, "é\u2028\U0001f600".encode(),
)  # fmt: skip

_edit = st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PUT_IN) | st.binary(max_size=6))


def _apply(line: bytes, edit: tuple[float, int, bytes]) -> bytes:
    """Put bytes in the place of some others."""
    where, dropped, put = edit
    at = int(where * len(line))
    return line[:at] + put + line[at + dropped :]


def _damaged(sound: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    edits = st.lists(_edit, max_size=4)
    return st.builds(lambda line, edits: reduce(_apply, edits, line), st.sampled_from(sound), edits)


damaged, exports = _damaged(SOUND), _damaged((EXPORT,))
lines = damaged | st.binary(max_size=200)

_numbers = st.integers() | st.floats() | st.sampled_from((10**400, -(2**63), 2**63, 2**63 - 1, 10**11, 10**14, 10**17))
_dates = st.datetimes().map(lambda moment: moment.isoformat()) | st.sampled_from(
    ("0000-01-01", "9999-12-31T23:59:59.999Z", "2026-02-30", "2026-W10-3", "20260304T180147Z", "1e3", "0x10", "٢٠٢٦")
)
_damaged_dates = st.builds(
    lambda text, at, put: text[: int(at * len(text))] + put + text[int(at * len(text)) + len(put) // 2 :],
    _dates, st.floats(0, 1),
    st.text(max_size=4) | st.sampled_from(("Z", "+14:00", "-00:00:01", ",", "T", "\x00", "9" * 30)),
)  # fmt: skip
times = _numbers | _dates | _damaged_dates | st.text(max_size=40)
texts = lines.map(lambda line: line.decode("utf-8", "surrogateescape")) | st.text(max_size=200)

_number_texts = _numbers.map(lambda number: str(number) if abs(number) < 10**300 else "1e400") | st.sampled_from(
    ("", "nan", "-NaN", "+Inf", "infinity", "1_0", "0x1p3", "1e-400", "5e-324", "٢٠", "1e", ".", "-", "1" * 9_999)
)
_edges = st.sampled_from((None, True, [], {}, 1.7976931348623157e308, -5e-324, 10**310, 0.0, -0.0, 1.0))
measures = st.lists(_numbers | _number_texts | _edges | st.text(max_size=8), max_size=60)
