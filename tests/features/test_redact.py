"""Redaction: planted secrets of every kind are found, what only looks like one stays, and no text takes long."""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections import Counter
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from features.patterns import shape_of
from features.redact import DETECTORS, redact

DIGITS, LETTERS = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORD = DIGITS + LETTERS + LETTERS.lower()

surroundings = st.sampled_from(
    [
        ("", ""), ("from ", " done"), ("[", "]"), ('{"a":"', '"}'), ("/x?y=", "&z=1"), ("(", ")."), ("a\n", "\nb"),
        ("a\\n", "\\n"), ("\u00e9 ", " \u00e9"), ("<td>", "</td>"), (",", ","),
        ("'", "'"), ("a%20", " b"), ("user: ", ";"),
        ("2026-01-02 03:04:05,678 INFO [main] org.example.shop.Cart: got ", " in 12 ms"),
    ]
)  # fmt: skip


@st.composite
def cards(draw: st.DrawFn) -> str:
    """A number of a card network with a right check digit, in one piece or in groups."""
    start, length, groups = draw(
        st.sampled_from(
            [
                ("4", 16, (4, 4, 4, 4)), ("4", 13, (13,)), ("4", 19, (4, 4, 4, 4, 3)), ("51", 16, (4, 4, 4, 4)),
                ("2221", 16, (4, 4, 4, 4)), ("34", 15, (4, 6, 5)), ("37", 15, (4, 6, 5)), ("36", 14, (4, 6, 4)),
                ("3528", 16, (4, 4, 4, 4)), ("6011", 16, (4, 4, 4, 4)), ("62", 19, (4, 4, 4, 4, 3)),
                ("2200", 16, (16,)),
            ]
        )
    )  # fmt: skip
    digits = start + draw(st.text(DIGITS, min_size=length - len(start) - 1, max_size=length - len(start) - 1))
    number = next(digits + d for d in DIGITS if luhn(digits + d))
    separator = draw(st.sampled_from(["", " ", "-"]))
    pieces = [number[sum(groups[:i]) : sum(groups[: i + 1])] for i in range(len(groups))]
    return separator.join(pieces)


def luhn(digits: str) -> bool:
    """Every second digit from the right doubled, the digits of all added up: a multiple of ten."""
    doubled = [int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits))]
    return sum(n // 10 + n % 10 for n in doubled) % 10 == 0


@st.composite
def ibans(draw: st.DrawFn) -> str:
    """An account of some country with right check digits, in one piece or in groups of four."""
    country, length = draw(
        st.sampled_from(
            [("DE", 22), ("GB", 22), ("FR", 27), ("NL", 18), ("NO", 15), ("MT", 31), ("CH", 21), ("BR", 29)]
        )
    )
    account = draw(st.text(DIGITS + LETTERS, min_size=length - 4, max_size=length - 4))
    remainder = int("".join(str(int(c, 36)) for c in account + country + "00")) % 97
    iban = f"{country}{98 - remainder:02}{account}"
    if draw(st.booleans()):
        return iban if draw(st.booleans()) else iban.lower()
    return draw(st.sampled_from([" ", "-"])).join(iban[i : i + 4] for i in range(0, length, 4))


@st.composite
def emails(draw: st.DrawFn) -> str:
    """An address as people have them, international ones and those of URLs included."""
    inner = st.text(WORD + "_-", min_size=1, max_size=8)
    local = draw(st.text(WORD, min_size=1)) + draw(st.sampled_from(["", ".", "+"])) + draw(inner)
    host = draw(st.lists(st.text(WORD + "\u00fc", min_size=1, max_size=8), min_size=1, max_size=3))
    end = draw(st.sampled_from(["com", "de", "museum", "xn--p1ai", "\u0440\u0444"]))
    return f"{local}{draw(st.sampled_from(['@', '%40']))}{'.'.join(host)}.{end}"


@st.composite
def jwts(draw: st.DrawFn) -> str:
    """Header, claims and signature, base64url."""
    claims = draw(st.dictionaries(st.text(WORD, min_size=1), st.text(), min_size=1, max_size=3))
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    parts.append(draw(st.binary(min_size=32, max_size=32)))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def _addresses_of_6() -> st.SearchStrategy[str]:
    telling = st.ip_addresses(v=6).filter(lambda a: any(c in DIGITS for c in str(a)))
    forms = st.sampled_from([str, lambda a: a.exploded, lambda a: str(a).upper()])
    mapped = st.ip_addresses(v=4).map("::ffff:{}".format)
    return st.builds(lambda form, address: form(address), forms, telling) | mapped


phones = st.sampled_from(
    [
        "+4930123456", "+49 30 1234567", "+49 (0)30 123-4567", "+1 415-555-2671", "+1 (415) 555-2671", "+14155552671",
        "+44 20 7946 0958", "+33.1.23.45.67.89", "415-555-2671", "(415) 555-2671", "415.555.2671", "+86 138 0013 8000",
    ]
)  # fmt: skip
_TAIL = "0aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX"
tokens = st.sampled_from(
    [
        "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", "ghp_" + _TAIL, "github_pat_11ABCDEFG0" + _TAIL,
        "glpat-" + _TAIL[:20],
        "xox" + "b-123456789012-" + _TAIL, "sk" + "_live_" + _TAIL[:24], "rk" + "_test_" + _TAIL[:24],
        "AIza" + _TAIL[:35],
        "sk-ant-api03-" + _TAIL, "npm_" + _TAIL, "hf_" + _TAIL, "SG." + _TAIL[:22] + "." + _TAIL,
    ]
) | jwts()  # fmt: skip
keys = st.sampled_from(["RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "PGP PRIVATE KEY BLOCK"]).flatmap(
    lambda kind: st.text(WORD + "+/=\n", max_size=200).map(
        lambda body: f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----"
    )
)
planted = st.one_of(
    cards().map(lambda found: (found, "<card>")),
    ibans().map(lambda found: (found, "<iban>")),
    emails().map(lambda found: (found, "<email>")),
    st.ip_addresses(v=4).map(lambda found: (str(found), "<ip>")),
    _addresses_of_6().map(lambda found: (found, "<ip>")),
    phones.map(lambda found: (found, "<phone>")),
    tokens.map(lambda found: (found, "<token>")),
    keys.map(lambda found: (found, "<key>")),
)


@given(planted, surroundings)
@example(("fe80::1%eth0", "<ip>"), ("on ", ": refused"))
@example(("2001:db8::1", "<ip>"), ("[", "]:8080"))
@example(("10.1.2.3", "<ip>"), ("host/", ":8080"))
@example(("o'brien@example.org", "<email>"), ("", "."))
def test_what_is_planted_is_found(secret: tuple[str, str], around: tuple[str, str]) -> None:
    """Each kind is replaced by its label, whatever stands around it, and what stands around it stays."""
    before, after = around
    redacted = redact(before + secret[0] + after)
    if before == "a%20" or (secret[1] == "<email>" and before == "a\\n"):  # the find may begin within the escape
        assert redacted.endswith(secret[1] + after)
    else:
        assert redacted == before + secret[1] + after


names = st.sampled_from(
    ["password", "PASSWD", "db_password", "userPassword", "pwd", "secret", "client_secret", "token", "access_token",
     "x-api-key", "apiKey", "API_KEY", "AWS_SECRET_ACCESS_KEY", "AccountKey", "Authorization", "cvv"]
)  # fmt: skip
_PLAIN = WORD + "!#$%^*_-+=.:/~@|?"


@given(names, st.sampled_from(["=", ": ", " = ", ":", " => ", "%3D"]), st.text(_PLAIN, min_size=1), surroundings)
def test_a_named_value_is_found(name: str, sign: str, value: str, around: tuple[str, str]) -> None:
    """The value of a field with a telling name is replaced, up to where something else begins."""
    assume(value.lower() not in {"null", "none", "nil", "true", "false", "undefined"} and value[0] not in "=>:/~-")
    assume(
        not value.lower().startswith(("sig", "pass", "pwd", "token", "secret"))
        and not around[1].startswith(("<", "\\"))
    )
    before, after = around
    assert redact(f"{before} {name}{sign}{value}{after}") == f"{before} {name}{sign}<secret>{after}"


@given(names, st.text("\\\"'/,;&{}[]<>()=: \n\t\u00e9a", max_size=20), st.integers(0, 3))
def test_no_part_of_a_quoted_value_is_left(name: str, middle: str, depth: int) -> None:
    """In JSON, and in JSON within JSON, a value goes whole, whatever quotes and backslashes are in it."""
    text = json.dumps({name: f"MARK{middle}MARK", "next": 1})
    for _ in range(depth):
        text = json.dumps({"message": text})
    assert "MARK" not in redact(text)
    if depth == 0:
        assert json.loads(redact(text)) == {name: "<secret>", "next": 1}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgres://ann:s3c:ret@db.example.org/x", "postgres://<secret>@db.example.org/x"),
        ("redis://:p@ss@10.0.0.1:6379", "redis://<secret>@<ip>:6379"),
        ("Authorization: Basic QWxhZGRpbjpvcGVu", "Authorization: <secret>"),
        ("curl -H 'Authorization: Bearer abc123' x", "curl -H 'Authorization: <secret>' x"),
        ("sent Bearer abcdef123456 twice", "sent Bearer <token> twice"),
        ("login --user ann --password hunter2 --quiet", "login --user ann --password <secret> --quiet"),
        ("<ns:password type='x'>hunter2</ns:password>", "<ns:password type='x'><secret></ns:password>"),
        ("Set-Cookie: id=a3fWa; Secure; Path=/\r\nHost: x", "Set-Cookie: <secret>\r\nHost: x"),
        ("GET /login?user=ann&pass=hunter2&next=/ 200", "GET /login?user=ann&pass=<secret>&next=/ 200"),
        ("token: password: hunter2", "token: password: <secret>"),
        ("password=ab,cd;ef&gh, user=ann", "password=<secret>, user=ann"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "<key>"),
        ("tel: 089/123 456, phone_number='5551234567'", "tel: <phone>, phone_number='<phone>'"),
        ("1.2.3.4::1", "<ip><ip>"),
        ("4111 1111 1111 1111 12/27 123", "<card> 12/27 123"),
        ("1234 4111 1111 1111 1111", "1234 <card>"),
        ("DE89 3704 0044 0532 0130 00 BIC COBADEFF", "<iban> BIC COBADEFF"),
    ],
)
def test_examples(text: str, masked: str) -> None:
    """Forms that are not built by a rule."""
    assert redact(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Receiving block blk_-1608999687919862906 src: here", "blk_4111111111111111", "version 1.2.3.4.5", "v1.2.3.4",
        "version 1.2.3.4", "Chrome/120.0.0.0 Safari/537.36", "4111 1111 1111 1112", "1700000000000 1700000000000000",
        "2026-01-02T03:04:05.678+02:00", "2005-06-03-15.42.50.363779", "10/Oct/2000:13:55:36 -0700", "12:34:56:78",
        "123e4567-e89b-42d3-a456-426614174000", "12345678-1234-4234-8234-123456789012", "0.4111111111111111",
        " -4111111111111111 ", "+1.23456789", "+0200", "std::vector a::b dead::beef ::", "00:1b:44:11:3a:b7",
        "DE88 3704 0044 0532 0130 00", "ZZ89370400440532013000", "root@localhost", "lodash@4.17.21", "Foo@5e2de80c",
        "getty@tty1.service", "Failed password for root", "PWD=/root ; USER=root", "token=null, secret: None",
        "the bearer of this letter", "max_tokens=256", "256.1.1.1", "sk-learn-is-a-library-of-python",
        "/user/1234567/x", "part-00081 task_200811092030_0001_m_000081_0",
        "session 550e8400e29b41d4a716446655440000",
    ],
)  # fmt: skip
def test_near_misses_stay(text: str) -> None:
    """Ids, times, versions, and numbers whose check digit is wrong stay as they are."""
    assert redact(text) == text


@given(st.uuids(), st.integers(-(2**63), 2**63 - 1), st.datetimes(), surroundings)
def test_ids_and_times_stay(uuid: object, block: int, moment: object, around: tuple[str, str]) -> None:
    """UUIDs, block ids and times stay, in any surroundings."""
    text = f"{around[0]} {uuid} blk_{block} {moment} {around[1]}"
    assert redact(text) == text


PIECES = [
    "1.2.3.4", "::1", "2001:db8::1", ":", "::", "4111111111111111", "4111 1111 1111 1111", "+4930123456", "+",
    "(415) 555-2671", "a@b.co", "@", "%40", "DE89370400440532013000", "password=", "token: ", "\"", "'", "\\", "\\n",
    " ", ",", "-", "--token ", "<email>", "<secret>", "<password>", "</password>", "://", "u:p@",
    "Bearer abcdef123456", "eyJhbGciOiJI.eyJzdWIi.x", "\xe9", "AKIAIOSFODNN7EXAMPLE", "-----BEGIN PRIVATE KEY-----",
    "cookie: ", "tel:", "=", "&", "{", "_", "x", "\n", "\u017f", "\ud800", "\u0130",
]  # fmt: skip
texts = st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


@given(texts)
def test_redacting_twice_changes_nothing(text: str) -> None:
    """What is redacted holds nothing more to redact; no text makes it fail."""
    assert redact(redact(text)) == redact(text)


@given(texts)
@example("_ 4111111111111111")
@example("\\n4111111111111111 %20DE89370400440532013000")
def test_the_cheap_look_misses_nothing(text: str) -> None:
    """A detector that is skipped would have changed nothing."""
    for name, may_hold, mask in DETECTORS:
        if not may_hold(text, text.lower(), shape_of(text)):
            assert mask(text) == text, name


HARD = [
    "1", "1 ", "1111 ", "4111-", "4111111111111111 ", "1.", "1.1.1.1", "1.2.3.4 ", ":", "1:", "::1 ", "a:", "f::",
    "+1", "+", "(", "555-", "a", "a.", "a@", "a@b.", "@a.1", "a'", "%40", "%", "AA00", "AA00 0000 ", "password",
    "password=", "password='", "password=\"\\", "password=\\", "token:", "token: ", "key\\", "token=,", "token=a,b",
    "--", "--token ", "<token>", "<token ", "<password>a", "cookie:", "eyJ", "eyJaaaaaaaa-", "eyJaaaaaaaa.", "sk-",
    "sk-a", "SG.", "github_pat_", "Bearer ", "bearer a", "-----BEGIN", "-----BEGIN PRIVATE KEY-----", "://", "://a:",
    "://a:b", "tel", "tel:1", "phone: 1 ", "\xe9", "<", ">", " ", "\\",
]  # fmt: skip


@pytest.mark.parametrize("piece", HARD)
def test_time_is_linear(piece: str) -> None:
    """A text takes about eight times as long as one of an eighth of its length, even if written against us."""
    small, large = (took(piece, size) for size in (1 << 16, 1 << 19))
    assert large < 24 * max(small, 0.002), (small, large)


def test_a_megabyte_of_everything_takes_linear_time() -> None:
    """So does one that holds all of it, in pieces of every length."""
    small, large = (took("".join(HARD + PIECES), size) for size in (1 << 17, 1 << 20))
    assert large < 24 * max(small, 0.002), (small, large)


def took(piece: str, size: int) -> float:
    """Seconds of processor for a text of that many characters, the least of three times."""
    text = (piece * (size // len(piece) + 1))[:size] + "@::</-- key"  # opens the gates

    def once() -> float:
        began = time.process_time()
        redact(text)
        return time.process_time() - began

    return min(once() for _ in range(3))


def test_few_ordinary_lines_change(shared_data: Path) -> None:
    """In real logs of seven systems hardly a line changes but by its IP addresses."""
    changed: Counter[str] = Counter()
    lines = 0
    logs = sorted((shared_data / "data" / "loghub2k").glob("*_2k.log.gz"))
    for path in (*logs, shared_data / "data" / "hdfs" / "raw.log.gz"):
        for line in gzip.decompress(path.read_bytes()).decode("utf-8", "replace").splitlines():
            lines += 1
            look = line, line.lower(), shape_of(line)
            changed.update(name for name, may_hold, mask in DETECTORS if may_hold(*look) and mask(line) != line)
    assert lines > 60_000
    assert changed.pop("IPv4") > 10_000
    assert sum(changed.values()) < 100, changed


def test_the_strategies_are_right() -> None:
    """Known numbers: what the tests build is what the world uses."""
    assert luhn("4111111111111111")
    assert not luhn("4111111111111112")
    assert redact("GB82 WEST 1234 5698 7654 32") == "<iban>"
    assert redact(f"{IPv4Address('192.0.2.1')} {IPv6Address('2001:db8::8a2e:370:7334')}") == "<ip> <ip>"
