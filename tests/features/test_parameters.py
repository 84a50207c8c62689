"""Parameters: the numbers in log lines, where training finds them, and that reading them again gives the same."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.messages import MessageReader
from features.parameters import with_parameters
from features.quantities import read_quantity
from features.shapes import WILDCARD
from features.templates import Templates
from tests.naive_templates import match_one

words = st.sampled_from(
    ["took", "a", "7", "17ms", "3.5KB,", "size=4", "(1.5e3)", "blk_12", "0x1f", "10.0.0.1", "-2", "9" * 16, "<*>", ""]
)
lines = st.one_of(st.text(max_size=40), st.lists(words, max_size=5).map(" ".join))
template_texts = st.lists(
    st.lists(st.sampled_from(["took", "a", "size=<*>", "<*>ms", "<*><*>,", WILDCARD]), max_size=4).map(" ".join),
    max_size=8,
)


def some_places(texts: list[str]) -> Templates:
    """Templates of which every place counts, two of each at most."""
    places = {text: [i for i, token in enumerate(text.split()) if WILDCARD in token][:2] for text in texts}
    return Templates.from_json(Templates.of(texts).to_json(), places)


def naive_numbers(texts: list[str], message: str | None) -> list[float]:
    """The two numbers of a message, by trying every template."""
    found = None if message is None else match_one(texts, message)
    if found is None or message is None:
        return [math.nan, math.nan]
    places = enumerate(zip(found[0].split(), message[:4096].split(), strict=True))
    numbers = [
        read_quantity(token, scaled=not any(f"<*>{unit}" in place for unit in ("ms", "s")))
        for _, (place, token) in places if WILDCARD in place
    ]  # fmt: skip
    return [*numbers, math.nan, math.nan][:2]


@given(template_texts, st.lists(st.none() | lines, max_size=20), st.integers(0, 20))
def test_fast_equals_naive_in_any_slices(texts: list[str], messages: list[str | None], cut: int) -> None:
    """Numbers are those of trying every template, whatever was read before and wherever the messages are cut."""
    templates = some_places(list(dict.fromkeys(texts)))
    whole = MessageReader(templates, parameters=2)
    expected = np.array([naive_numbers(texts, message) for message in messages]).reshape(-1, 2)
    for _ in range(2):
        np.testing.assert_array_equal(whole.read(messages).numbers, expected)
    pieces = [MessageReader(templates, parameters=2).read(part) for part in (messages[:cut], messages[cut:])]
    np.testing.assert_array_equal(np.vstack([piece.numbers for piece in pieces]), expected)
    assert not np.isinf(expected).any()
    assert whole.read(messages).texts == pieces[0].texts + pieces[1].texts
    assert whole.read(messages).texts == MessageReader(Templates.of(texts)).read(messages).texts


@pytest.mark.parametrize(
    ("token", "as_written", "scaled"),
    [
        ("42", 42, 42), ("-1.5", -1.5, -1.5), ("+2e3,", 2000, 2000), ("took=17ms;", 17, 0.017), ("2KiB", 2, 2048),
        ("(3.5MB)", 3.5, 3.5 * 2**20), ("90m", 90, 5400), ("12%", 12, 12), ("5µs", 5, 5e-6), ("[time:8s],", 8, 8),
        ("9" * 15, 1e15 - 1, 1e15 - 1), ("user7", None, None), ("blk_-35", None, None), ("0x1f", None, None),
        ("12ab", None, None), ("1.2.3", None, None),
        ("10.0.0.1", None, None), ("12:30", None, None), ("2026-01-02", None, None), ("1,024", None, None),
        ("1m3s", None, None), ("9" * 16, None, None), ("nan", None, None), ("inf", None, None), ("1_0", None, None),
        ("٣", None, None), ("<card>", None, None), ("<*>", None, None), ("", None, None), ("7\n", None, None),
    ],
)  # fmt: skip
def test_what_is_a_number(token: str, as_written: float | None, scaled: float | None) -> None:
    """Decimal numbers with a unit at them, in bytes and seconds where lines differ; ids, addresses, dates are none."""
    for wanted, is_scaled in ((as_written, False), (scaled, True)):
        assert read_quantity(token, scaled=is_scaled) == pytest.approx(
            math.nan if wanted is None else wanted, nan_ok=True
        )


@given(st.text(max_size=30) | st.floats().map(str) | st.just("9" * 4_000), st.booleans())
def test_a_number_is_finite_or_none(token: str, scaled: bool) -> None:
    """Whatever stands in a line."""
    assert not math.isinf(read_quantity(token, scaled=scaled))


def test_places_of_numbers_are_found() -> None:
    """Ids that grow, addresses and places that hold words too often are passed over; the first others are kept."""
    rng = random.Random(0)
    text = "request <*> from <*> got <*> took <*> sent <*> tries <*>"
    history = [
        f"request {1_000 + i + rng.randrange(20)} from 10.0.0.{i % 9} got {200 if i % 10 else 'none'} took "
        f"{rng.random() * 9:.1f}ms sent {rng.randrange(9)}KB tries {rng.randrange(3)}"
        for i in range(400)
    ]  # fmt: skip
    templates = Templates.of([text, "Cache miss", "seldom <*>"])
    found = with_parameters(templates, [*history, *["seldom 7"] * 19], 2)
    assert found.numbers == {text: (7, 9)}
    assert with_parameters(templates, history, 4).numbers == {text: (7, 9, 11)}
    assert with_parameters(templates, history, 0).numbers == {}
    numbers = MessageReader(found, parameters=2).read([history[0].replace("0.0", "0.1"), "request x", None]).numbers
    assert numbers.tolist()[0] == [
        pytest.approx(float(history[0].split()[7][:-2]) / 1000),
        float(history[0].split()[9][:-2]) * 1024,
    ]
    assert np.isnan(numbers[1:]).all()


def test_a_unit_in_the_template_leaves_numbers_as_written() -> None:
    """Where all lines of a template have the same unit, people see the numbers that they know."""
    found = with_parameters(Templates.of(["took <*>ms"]), [f"took {n % 7}ms" for n in range(50)], 1)
    assert MessageReader(found, parameters=1).read(["took 42ms"]).numbers.tolist() == [[42.0]]


def test_without_templates_there_are_no_numbers() -> None:
    """Before any bundle serves, every message is unmatched and its numbers are missing."""
    found = MessageReader(None, parameters=2).read(["took 7 ms", None])
    assert found.texts == ["<oov>", None]
    assert np.isnan(found.numbers).all()
    assert found.numbers.shape == (2, 2)


@pytest.mark.parametrize(
    "places", [{"b": [0]}, {"a <*>": [0]}, {"a <*>": [2]}, {"a <*>": 1}, {"a <*>": ["1"]}, ["a <*>"]]
)
def test_damaged_places_are_refused(places: object) -> None:
    """Numbers stand where a template has a wildcard; anything else is no bundle of ours."""
    with pytest.raises(ValueError, match="templates cannot be read"):
        Templates.from_json(["a <*>"], places)
    good = Templates.from_json(["a <*>"], {"a <*>": [1]})
    assert Templates.from_json(good.to_json(), json.loads(json.dumps(good.numbers))) == good
