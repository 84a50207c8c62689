"""Masking: rules from YAML, and no rule that lets the original text through."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.masking import HASH_DIGITS, HASH_PREFIX, Rule, Scalar, make_masker, parse_rules

KEY, OTHER_KEY = b"0123456789abcdef", b"fedcba9876543210"
scalars: st.SearchStrategy[Scalar] = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
SECRETS = [
    "ann@example.org",
    "4111 1111 1111 1111",
    "DE89370400440532013000",
    "+49 30 1234567",
    "10.1.2.3",
    "password=hunter2",
]


def way(rule: object, key: bytes | None = KEY) -> Callable[[Scalar], Scalar]:
    """What a field with this rule goes through."""
    masker = make_masker(parse_rules({"field": rule}), key)
    return lambda value: masker.value("field", value)


def test_rules_are_read() -> None:
    """Each form of a rule is understood, and an empty section has none."""
    section = {"email": "drop", "card": "hash", "note": {"truncate": 40}, "user.message": "redact"}
    assert parse_rules(section) == {
        "email": Rule("drop"), "card": Rule("hash"), "note": Rule("truncate", 40), "user.message": Rule("redact"),
    }  # fmt: skip
    assert parse_rules({}) == {}


@pytest.mark.parametrize(
    "rule",
    [
        "erase", "Drop", "", None, True, 40, [], ["drop"], {}, {"truncate": 0}, {"truncate": -1}, {"truncate": True},
        {"truncate": "40"}, {"truncate": 4.0}, {"truncate": 4, "hash": True}, {"drop": None}, "truncate", "x" * 1000,
    ],
)  # fmt: skip
def test_other_rules_are_refused(rule: object) -> None:
    """A sentence names the field, the value in short, and what is allowed."""
    with pytest.raises(ValueError, match="truncate: N") as caught:
        parse_rules({"note": rule})
    assert str(caught.value).startswith("mask.note is ")
    assert "drop, hash, redact" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("section", ["drop", None, ["email"], {"": "drop"}, {1: "drop"}, {None: "drop"}])
def test_other_sections_are_refused(section: object) -> None:
    """A mask section maps field paths to rules."""
    with pytest.raises(ValueError, match=r"field paths"):
        parse_rules(section)


@given(st.dictionaries(st.text() | st.integers(), st.recursive(scalars, st.lists) | st.just({"truncate": 2})) | scalars)
def test_any_section_is_read_or_refused(section: Any) -> None:
    """No section of YAML gives another error than ValueError."""
    try:
        rules = parse_rules(section)
    except ValueError:
        return
    assert set(rules) == set(section)


def test_the_secret_is_needed_and_long() -> None:
    """A hash needs 16 bytes of secret; other rules need none, and a masker does not show it."""
    with pytest.raises(ValueError, match=r"mask\.card is hash"):
        make_masker({"card": Rule("hash")}, None)
    with pytest.raises(ValueError, match="15 bytes"):
        make_masker({"card": Rule("drop")}, KEY[:15])
    assert make_masker({"card": Rule("drop")}).value("card", 1) is None
    assert KEY.decode() not in repr(make_masker({"card": Rule("hash")}, KEY))


@given(scalars)
def test_drop_leaves_nothing(value: Scalar) -> None:
    """A dropped value is absent, whatever it was."""
    assert way("drop")(value) is None


@given(scalars)
def test_a_hash_is_a_shortened_hmac(value: Scalar) -> None:
    """It says that it is a hash, has one length for all, is the same each time, and another with another key."""
    hashed = way("hash")(value)
    if value is None:
        assert hashed is None
        return
    text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, bool) else str(value)
    assert hashed == HASH_PREFIX + hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS]
    assert way("hash")(value) == hashed
    assert way("hash", OTHER_KEY)(value) != hashed


@given(st.lists(st.text(), unique=True, max_size=30))
def test_hashes_tell_values_apart(values: list[str]) -> None:
    """Distinct values keep distinct hashes."""
    assert len({way("hash")(value) for value in values}) == len(values)


def test_a_number_and_its_text_have_one_hash() -> None:
    """A producer that begins to write a number as text does not change who is meant."""
    assert way("hash")(42) == way("hash")("42")
    assert way("hash")(True) != way("hash")(1)
    assert isinstance(way("hash")(42), str)


@given(scalars, st.integers(1, 50))
def test_truncate_keeps_the_beginning(value: Scalar, length: int) -> None:
    """At most that many characters are kept, and they are the first; None stays None."""
    cut = way({"truncate": length})(value)
    if isinstance(value, str):
        assert cut == value[:length]
    assert cut is None if value is None else isinstance(cut, str) and len(cut) <= length


@given(scalars)
def test_redact_leaves_what_holds_nothing(value: Scalar) -> None:
    """A number that is no card number stays a number; the result of redaction is stable."""
    masked = way("redact")(value)
    assert repr(way("redact")(masked)) == repr(masked)
    if value is None or isinstance(value, bool):
        assert masked is value


def test_a_card_number_is_redacted_as_a_number_too() -> None:
    """JSON may hold a card number without quotes."""
    assert way("redact")(4111111111111111) == "<card>"
    assert way("redact")(4111111111111112) == 4111111111111112


@pytest.mark.parametrize("rule", ["drop", "hash", {"truncate": 3}, "redact"])
@pytest.mark.parametrize("secret", SECRETS)
def test_no_rule_lets_the_original_through(rule: object, secret: str) -> None:
    """Whatever the rule, the secret is not in what comes out; without a rule it is."""
    assert secret not in str(way(rule)(f"x {secret} y"))
    assert make_masker(parse_rules({"other": rule}), KEY).value("field", secret) == secret


@pytest.mark.parametrize("rule", ["drop", "hash", {"truncate": 3}, "redact"])
@pytest.mark.parametrize(
    "value",
    [10**5000, -(10**5000), "\ud800", "\x00", float("nan"), float("inf"), "a" * 10**6],
    ids=["huge", "minus huge", "half a character", "NUL", "NaN", "infinity", "long"],
)
def test_strange_values_are_no_trouble(rule: object, value: Scalar) -> None:
    """Huge numbers, half characters and long texts pass every rule."""
    masked = way(rule)(value)
    assert masked is None or isinstance(masked, str | int | float)


def test_a_rule_covers_what_lies_inside() -> None:
    """A rule on an object or a list holds for its fields; the nearest counts; names that only begin alike differ."""
    masker = make_masker(
        parse_rules({"user": "drop", "user.name": "hash", "items": "drop", "items[1].sku": "redact"}), KEY
    )
    for path in ("user", "user.email", "user.address.street", "user[0]", "items", "items[0]", "items[0].sku"):
        assert masker.value(path, "x") is None, path
    assert str(masker.value("user.name", "x")).startswith(HASH_PREFIX)
    assert str(masker.value("user.name.first", "x")).startswith(HASH_PREFIX)
    assert masker.value("items[1].sku", "a@b.co") == "<email>"
    for path in ("username", "other.user", "item", "user_", '["user.name"]'):
        assert masker.of(path) is None, path
        assert masker.value(path, "x") == "x"


def test_a_rule_covers_keys_of_any_form() -> None:
    """Brackets and dots in quoted keys do not hide a field from the rule around it; a field has one name."""
    masker = make_masker(parse_rules({'user["a.b"]': "drop", "tags": "drop", "@key": "drop"}))
    covered = ('tags["x]"]', 'tags["x]"].id', 'tags["a[b]"]', 'tags["a.b"][3]', 'user["a.b"].c', '["tags"].x', "@key")
    for path in covered:
        assert masker.of(path) is not None, path
    assert masker.of('user["a"].b') is None
    with pytest.raises(ValueError, match=r"mask has two rules for user\.id"):
        parse_rules({"user.id": "drop", 'user["id"]': "redact"})


def test_a_masker_without_rules_is_false() -> None:
    """So a stream without a mask section can skip it."""
    assert not make_masker({})
    assert make_masker({"a": Rule("drop")})
