"""Field paths: how they are written, and what they reach."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import RecordError
from features.json_fields import ANY, JsonFields, Kinds
from features.paths import Path, format_path, parse_path

TEXT: Kinds = frozenset({str})
keys = st.text(min_size=1, max_size=6).filter(lambda key: not re.search(r'["\\\x00-\x1f]', key))
paths = st.builds(lambda key, rest: (key, *rest), keys, st.lists(keys | st.integers(0, 999), max_size=4))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("user", ("user",)), ("user.id", ("user", "id")), ("items[0].sku", ("items", 0, "sku")),
        ("grid[2][10]", ("grid", 2, 10)), ('tags["k8s.pod"]', ("tags", "k8s.pod")), ("@timestamp", ("@timestamp",)),
        ('["a.b"].c', ("a.b", "c")), ("two words", ("two words",)),
    ],
)  # fmt: skip
def test_paths_are_read(text: str, path: Path) -> None:
    """Keys, positions in lists, and keys in quotes."""
    assert parse_path(text) == path


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "[0]", "a[", "a[x]", "a[-1]", 'a[""]', "a]b", "a[0]b", " a"]
)
def test_what_is_no_path_is_refused(text: str) -> None:
    """With a sentence that shows how one is written."""
    with pytest.raises(ValueError, match=r"is no field: write its name, or a path such as user\.id"):
        parse_path(text)


@given(paths)
def test_a_path_survives_being_written(path: Path) -> None:
    """Whatever its keys are."""
    assert parse_path(format_path(path)) == path


def place(value: Any, path: Path) -> Any:
    """An object or list with the value where the path says."""
    for part in reversed(path):
        value = {part: value} if isinstance(part, str) else [{"other": 1}] * part + [value]
    return value


def walk(value: Any, path: Path) -> Any:
    """The obvious reader."""
    for part in path:
        fits = isinstance(value, dict) if isinstance(part, str) else isinstance(value, list)
        if not fits or (part not in value if isinstance(part, str) else part >= len(value)):
            return None
        value = value[part]
    return value


@given(st.text(max_size=5), st.builds(lambda k, r: (k, *r), keys, st.lists(keys | st.integers(0, 3), max_size=4)))
def test_a_value_is_found_where_its_path_says(value: str, path: Path) -> None:
    """Through objects and lists, whatever else is in them."""
    fields = JsonFields({path: TEXT})
    assert fields.column(path)([fields.parse(json.dumps(place(value, path)).encode())]) == [value]


scalars = st.none() | st.text("ab", max_size=2) | st.integers(0, 3) | st.booleans()
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
short_paths = st.builds(
    lambda key, rest: (key, *rest), st.sampled_from("abc"), st.lists(st.sampled_from(["a", "b", 0, 1]), max_size=3)
)


@given(st.dictionaries(st.sampled_from("abc"), json_values), st.lists(short_paths, min_size=1, max_size=3, unique=True))
def test_fields_are_read_as_by_hand(event: dict[str, Any], wanted: list[Path]) -> None:
    """Each path gives what walking the object gives, or the record is refused because a value is of another shape."""
    try:
        fields = JsonFields(dict.fromkeys(wanted, ANY))
    except ValueError:
        return  # one inside another
    for path in wanted:
        try:
            (found,) = fields.column(path)([fields.parse(json.dumps(event).encode())])
        except RecordError:
            continue
        assert found == walk(event, path)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ([("a",), ("a", "b")], "the field a is used as a value and, in another place, as an object"),
        ([("a", "b"), ("a",)], "the field a is used as a value and, in another place, as an object"),
        ([("a", "b"), ("a", 0)], "the field a is used as an object and, in another place, as a list"),
    ],
)
def test_fields_that_exclude_each_other_are_refused(wanted: list[Path], sentence: str) -> None:
    """Also where both are of one kind."""
    with pytest.raises(ValueError, match=sentence):
        JsonFields(dict.fromkeys(wanted, ANY))
    with pytest.raises(ValueError, match=sentence):
        JsonFields({path: frozenset({str, int}) - {(int, float)[i]} for i, path in enumerate(wanted)})


def test_an_element_of_another_shape_is_named() -> None:
    """The sentence says where."""
    fields = JsonFields({("items", 1, "sku"): TEXT})
    read = fields.column(("items", 1, "sku"))
    assert read([fields.parse(b'{"items": [7, {"sku": "x"}, "any"]}')]) == ["x"]
    with pytest.raises(RecordError, match=r"Expected 'str \| null', got 'int' - at 'sku' \(in items\[1\]\)"):
        read([fields.parse(b'{"items": [7, {"sku": 3}]}')])
