"""A stream's `mask` section: which fields are dropped, hashed, cut or redacted before anything is kept or sent."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from features.paths import format_path, parse_path
from features.redact import redact

Scalar: TypeAlias = str | int | float | bool | None

HASH_PREFIX = "hash:"
HASH_DIGITS = 16  # 64 bits: among 100 million distinct values a collision has a chance of 1 in 3,700
MIN_SECRET_BYTES = 16
_HUGE_BITS = 10_000  # Python refuses to write much larger numbers in decimal, because that takes quadratic time


@dataclass(frozen=True)
class Rule:
    """What happens to a field's value; `length` is how many characters `truncate` keeps, and None for the others."""

    kind: Literal["drop", "hash", "redact", "truncate"]
    length: int | None = None


def parse_rules(section: object) -> dict[str, Rule]:
    """Read a `mask` section as YAML gives it.

    Raises
    ------
    ValueError
        It is no mapping of field paths to rules; the sentence says what is allowed.

    Examples
    --------
    >>> parse_rules({"email": "drop", "note": {"truncate": 40}})
    {'email': Rule(kind='drop', length=None), 'note': Rule(kind='truncate', length=40)}
    """
    if not isinstance(section, Mapping):
        message = f"mask is {_shown(section)}, but must map field paths to drop, hash, redact or {{truncate: N}}"
        raise ValueError(message)
    rules: dict[str, Rule] = {}
    for given, value in section.items():
        path = _path(given)
        if path in rules:
            message = f"mask has two rules for {path}; keep one"
            raise ValueError(message)
        rules[path] = _rule(given, value)
    return rules


def _path(path: object) -> str:
    if not isinstance(path, str) or not path:
        message = f"mask has the key {_shown(path)}, but its keys are field paths such as user.email"
        raise ValueError(message)
    return format_path(parse_path(path))


def _rule(path: object, value: object) -> Rule:
    match value:
        case "drop" | "hash" | "redact":
            return Rule(value)
        case {"truncate": int(length), **others} if not others and not isinstance(length, bool) and length >= 1:
            return Rule("truncate", length)
    message = f"mask.{path} is {_shown(value)}; allowed is drop, hash, redact or {{truncate: N}} with N of at least 1"
    raise ValueError(message)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


@dataclass(frozen=True)
class Masker:
    """Applies a stream's rules to decoded values; the same value gives the same result, always and everywhere.

    A rule holds for its field and for all that lies inside: one on `user` covers `user.email` and `user[0]`. Of several
    the nearest counts. A field without a rule keeps its value.
    """

    rules: Mapping[str, Rule]
    _ways: Mapping[str, Callable[[Scalar], Scalar]] = field(repr=False)  # they hold the secret

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return bool(self.rules)

    def of(self, path: str) -> Callable[[Scalar], Scalar] | None:
        """What masks this field's values, to be looked up once; None where no rule holds. Any spelling of the path."""
        rule = covering(self.rules, path)
        return None if rule is None else self._ways[rule]

    def value(self, path: str, value: Scalar) -> Scalar:
        """The masked value of a field.

        `drop` gives None, as if the field were absent. `hash` gives `hash:` and 16 hexadecimal digits, whatever the
        type; a number and the same number as text have the same hash. `truncate` cuts a number's text. `redact`
        leaves a number as it is unless it holds something, as a card number does. None stays None.
        """
        way = self.of(path)
        return value if way is None else way(value)


def covering(rules: Collection[str], path: str) -> str | None:
    """Which of some rules' paths holds for a field: its own, or that of the nearest object or list around it."""
    parts = parse_path(path)
    around = (format_path(parts[:length]) for length in range(len(parts), 0, -1))
    return next((found for found in around if found in rules), None)


def make_masker(rules: Mapping[str, Rule], secret: bytes | None = None) -> Masker:
    """Build the masker of a stream.

    Parameters
    ----------
    rules
        Field path to rule.
    secret
        Key of the hashes, 16 bytes or more; needed only where a rule is `hash`.

    Raises
    ------
    ValueError
        A rule is `hash` and there is no secret, or a secret is too short.
    """
    hashed = next((path for path, rule in rules.items() if rule.kind == "hash"), None)
    if secret is None and hashed is not None:
        message = f"mask.{hashed} is hash, which needs a secret of at least {MIN_SECRET_BYTES} bytes"
        raise ValueError(message)
    if secret is not None and len(secret) < MIN_SECRET_BYTES:
        message = f"the secret for hashes has {len(secret)} bytes; at least {MIN_SECRET_BYTES} are needed"
        raise ValueError(message)
    return Masker(dict(rules), {path: _way(rule, secret or b"") for path, rule in rules.items()})


NO_MASK = Masker({}, {})


def _way(rule: Rule, secret: bytes) -> Callable[[Scalar], Scalar]:
    match rule.kind:
        case "drop":
            return lambda value: None
        case "hash":
            return lambda value: None if value is None else _hash(_text(value), secret)
        case "truncate":
            return lambda value: None if value is None else _text(value)[: rule.length]
        case "redact":
            return _redacted


def _hash(text: str, secret: bytes) -> str:
    """HMAC-SHA256, shortened (RFC 2104, section 5)."""
    return HASH_PREFIX + hmac.digest(secret, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:HASH_DIGITS]


def _redacted(value: Scalar) -> Scalar:
    if value is None or isinstance(value, bool):
        return value
    text = _text(value)
    found = redact(text)
    return value if found == text else found


def _text(value: str | int | float | bool) -> str:
    """The value as JSON would write it; a number of thousands of digits in hexadecimal."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > _HUGE_BITS:
        return hex(value)
    return str(value)
