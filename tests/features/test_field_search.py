"""Fields that no record has, and those that were meant."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from features.field_search import lacking, nearest

paths = st.lists(st.sampled_from(["a", "b", 0, 1]), min_size=1, max_size=3).map(tuple)
leaves: st.SearchStrategy[Any] = st.none() | st.integers(0, 3)
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), v), max_leaves=8
)


def naive(value: Any, path: tuple[str | int, ...]) -> Any:
    try:
        for part in path:
            if isinstance(part, str) != isinstance(value, dict):
                return None
            value = value[part]
    except (KeyError, IndexError, TypeError):
        return None
    return value


@given(st.sets(paths, max_size=5), st.lists(values, max_size=6))
def test_what_no_event_has_is_found(wanted: set[tuple[str | int, ...]], events: list[Any]) -> None:
    """A path is lacking if it leads to nothing, or to null, in every event; events of any shape are searched."""
    assert lacking(wanted, events) == {p for p in wanted if all(naive(event, p) is None for event in events)}
    for path in wanted:
        near = nearest(path, events)
        assert near is None or near != ""


def test_the_field_that_was_meant() -> None:
    """One with the same last name first, then one that is spelt alike; none where nothing is."""
    events = [{"user": {"id": 1, "plan": "x"}, "items": [{"sku": 1}], "a.b": 2, "timestamp": 3}]
    assert nearest(("usr", "id"), events) == "user.id"
    assert nearest(("item", "sku"), events) == "items[0].sku"
    assert nearest(("timestmp",), events) == "timestamp"
    assert nearest(("a", "b"), events) == '["a.b"]'
    assert nearest(("zzz",), events) is None


def test_a_search_ends_when_all_is_found() -> None:
    """What comes later is not read; it may be a long history."""
    read = iter([{"a": 1}, {"b": 1}, {"c": 1}])
    assert lacking({("a",), ("b",)}, read) == set()
    assert next(read) == {"c": 1}
