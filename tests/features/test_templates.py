"""Templates: shapes of lines, and the one template that a line matches."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import shapes
from features.shapes import MAX_CHARACTERS, WILDCARD, as_number, mask, shape_of
from features.templates import Matcher, Template, Templates
from tests.naive_templates import match_one

any_text = st.text(st.characters(), max_size=60)  # lone surrogates too
tokens = st.sampled_from(["a", "b", "x7", "x<*>", "42", WILDCARD, "<<*>*>", "k=-1,", "k=<*>,", "\ud800"])
lines = st.one_of(any_text, st.lists(tokens, max_size=5).map(" ".join))
template_texts = st.lists(
    st.lists(st.sampled_from(["a", "b", "x<*>", "k=<*>,", WILDCARD, WILDCARD]), max_size=4).map(" ".join), max_size=12
)


@given(template_texts, st.lists(lines, max_size=20))
def test_fast_equals_naive(texts: list[str], given_lines: list[str]) -> None:
    """The matcher finds the template and the values that trying every template finds, whatever it matched before."""
    templates = Templates.of(texts)
    matcher = Matcher(templates)
    for _ in range(2):
        found = matcher.match(given_lines)
        for line, template_id, values in zip(given_lines, found.ids, found.values, strict=True):
            expected = match_one(texts, line)
            shown = None if template_id is None else (templates.by_id[template_id].text, values)
            assert shown == expected
            assert template_id is None or len(values) == templates.by_id[template_id].wildcards


@given(template_texts, st.lists(lines, max_size=20), st.integers(0, 20))
def test_a_line_is_matched_by_itself(texts: list[str], given_lines: list[str], cut: int) -> None:
    """Cut anywhere, and matched by a fresh matcher, lines give the same answers."""
    whole = Matcher(Templates.of(texts)).match(given_lines)
    parts = [Matcher(Templates.of(texts)).match(part) for part in (given_lines[:cut], given_lines[cut:])]
    assert whole.ids == parts[0].ids + parts[1].ids
    assert whole.values == parts[0].values + parts[1].values


@given(lines)
def test_a_shape_and_its_values_are_the_line(line: str) -> None:
    """Values put back into a masked token give the token; the shape has a wildcard for each value."""
    for token in line.split():
        masked, values = mask(token)
        assert masked.count(WILDCARD) == len(values)
        assert _fill(masked, values) == token
        masked.encode()  # no lone surrogate is left


@pytest.mark.parametrize(
    ("token", "masked"),
    [
        ("10.251.43.21:50010", "<*>"), ("/10.0.0.1,", "/<*>,"), ("blk_-1608999687919862906", "blk_<*>"),
        ("0x00544eb8,", "<*>,"), ("b562ef10-ba2d-48ae-bf4a-18666cba4a51]", "<*>]"), ("deadbeef", "deadbeef"),
        ("dead0beef", "<*>"), ("00:1A:2b:3c:4d:5e", "<*>"), ("fe80::1:2:3", "<*>"), ("5.4KB", "<*><*>"),
        ("KB,", "<*>,"), ("BIG", "BIG"), ("job_12_0003", "job_<*>_<*>"), ("1e-05", "<*>"), ("a-5", "a-<*>"),
        ("12:30:01.5", "<*>"), ("ssh2", "ssh<*>"), ("\ud800x\udfff", "<*>x<*>"), ("<*>", "<*>"), ("status", "status"),
    ],
)  # fmt: skip
def test_what_is_masked(token: str, masked: str) -> None:
    """Numbers, addresses, ids, units of size and broken characters are masked, and words are not."""
    assert mask(token)[0] == masked


@given(st.one_of(any_text, st.floats().map(str), st.integers().map(str), st.just("9" * 4_000)))
def test_a_number_is_finite_or_none(value: str) -> None:
    """Whatever stands in a line, a numeric parameter is a finite number; decimal texts are read as what they say."""
    number = as_number(value)
    assert number is None or math.isfinite(number)
    if value.isascii() and value.isdigit() and len(value) < 300:
        assert number == float(value)


def test_the_most_specific_template_wins() -> None:
    """The fewest wildcards win, then the first by text; one of wildcards alone takes only what is masked to them."""
    templates = Templates.of(["<*> <*>", "<*> b", "a <*>", "a b", ""])
    found = Matcher(templates).match(["a b", "a 7", "7 b", "a c", "7 8", "c c", "", "a b c"])
    texts = [None if i is None else templates.by_id[i].text for i in found.ids]
    assert texts == ["a b", "a <*>", "<*> b", "a <*>", "<*> <*>", None, "", None]
    assert Matcher(Templates.of(["a <*>", "<*> b"])).match(["a b"]).ids == [Template("<*> b").id]


def test_an_id_is_the_texts_for_ever() -> None:
    """An id depends on the text alone and does not change between versions."""
    assert Template("Took <*> s").id == "e1bc4c78f0d7"
    again = Templates.of(["Took <*> s", "new"])
    assert again.by_id["e1bc4c78f0d7"].text == "Took <*> s"


@given(st.lists(any_text.map(lambda text: " ".join(text.split()))))
def test_templates_go_through_json(texts: list[str]) -> None:
    """Templates come back from JSON as they were, in an order that is not that of the input."""
    templates = Templates.of(texts)
    assert Templates.from_json(json.loads(json.dumps(templates.to_json()))) == templates
    assert Templates.of(texts[::-1]) == templates


@pytest.mark.parametrize("content", [None, {"a": 1}, [1], ["a  b"], [" a"], ["a", "a"], "ab"])
def test_what_are_no_templates_is_refused(content: object) -> None:
    """A bundle whose templates are damaged is refused with a sentence."""
    with pytest.raises(ValueError, match="template"):
        Templates.from_json(content)


def test_odd_lines() -> None:
    """Empty lines, lines and tokens of 1 MB and broken characters are matched by their beginnings, or not at all."""
    matcher = Matcher(Templates.of(["", " ".join(["a"] * (MAX_CHARACTERS // 2)), "x" * MAX_CHARACTERS, "<*> <*>"]))
    found = matcher.match(["", " \t\n", "a " * 500_000, "x" * 1_000_000, "\ud800 \udfff", "\x00", "7" * 1_000_000])
    assert [i is not None for i in found.ids] == [True, True, True, True, True, False, False]
    assert found.values[4] == ("\ud800", "\udfff")


@pytest.mark.parametrize("piece", ["dead0-", "1:", "::", "-+", "0x", "aB", "....", "1e-", "a\u0660", "<*"])
def test_a_hostile_token_costs_little(piece: str) -> None:
    """Texts made to lead the pattern astray are masked in time that grows with their length."""
    assert _fill(*mask(piece * 600)) == piece * 600
    assert len(shape_of(piece * 1_000_000)) == 1


def test_a_flood_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million distinct lines leave caches of bounded size behind, and answers stay right."""
    monkeypatch.setattr(shapes, "_CACHED_BYTES", 1_000_000)
    matcher = Matcher(Templates.of(["user <*> came"]))
    most = 0
    for low in range(0, 1_000_000, 50_000):
        found = matcher.match(
            f"user x{i:x}y {'came' if i % 2 else 'went' + 'abcdefgh'[i % 8]}" for i in range(low, low + 50_000)
        )
        assert [i is None for i in found.ids[:4]] == [True, False, True, False]
        assert found.values[1] == (f"x{low + 1:x}y",)
        most = max(most, len(matcher._masks), len(matcher._masks.values_of), len(matcher._known))
    assert 1_000 < most < 1_000_000 // shapes._ENTRY_BYTES


def _fill(masked: str, values: tuple[str, ...]) -> str:
    """A masked text with its values put back."""
    parts = masked.split(WILDCARD)
    return parts[0] + "".join(value + part for value, part in zip(values, parts[1:], strict=True))
