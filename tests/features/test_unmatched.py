"""The sample of unmatched lines: bounded, repeatable, its counts never too high."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from features.shapes import shape_of
from features.unmatched import MAX_EXAMPLE_CHARACTERS, Unmatched

lines = st.lists(st.sampled_from(["a", "b", "c 1", "c 2", "d e", "", "\ud800 f"]))


@given(lines, st.integers(1, 6))
@example(list("aabcd"), 1)
@example(list("aaabcbcbc"), 2)
def test_counts_are_exact_or_too_low_by_a_known_number(given_lines: list[str], room: int) -> None:
    """A count is the truth less at most `uncounted`; what came more often than that is there; nothing is made up."""
    sample = _learn(given_lines, room)
    truth = Counter(" ".join(shape_of(line)) for line in given_lines)
    found = {shape: count for shape, count, _ in sample.shapes()}
    assert len(found) <= room
    assert sample.lines == len(given_lines)
    assert sample.uncounted <= len(given_lines) // (room + 1)
    assert all(truth[shape] - sample.uncounted <= count <= truth[shape] for shape, count in found.items())
    assert all(shape in found for shape, count in truth.items() if count > sample.uncounted)
    if len(truth) <= room:
        assert found == truth


@given(lines, st.integers(1, 6), st.integers(0, 30))
def test_it_goes_on_from_a_snapshot(given_lines: list[str], room: int, cut: int) -> None:
    """Saved as JSON anywhere and restored, it ends with the same sample."""
    sample = _learn(given_lines[:cut], room)
    restored = Unmatched.restore(json.loads(json.dumps(sample.snapshot())))
    for line in given_lines[cut:]:
        restored.learn_one(line)
    assert restored.snapshot() == _learn(given_lines, room).snapshot()


def test_the_first_line_of_a_shape_is_its_example() -> None:
    """Numbers do not part lines; the example is the first, cut, and any JSON writer can write it."""
    sample = _learn(["took 5 s", "took 6 s", "\ud800", "x" * 1_000_000], 10)
    rows = sample.shapes()
    assert rows[0] == ("took <*> s", 2, "took 5 s")
    assert max(len(example) for _, _, example in rows) == MAX_EXAMPLE_CHARACTERS
    json.dumps(sample.snapshot(), ensure_ascii=False).encode()


def test_a_flood_does_not_hide_what_is_frequent() -> None:
    """200,000 lines of distinct shapes leave a bounded sample, and a line that keeps coming stays in it."""
    sample = Unmatched(100)
    for i in range(66_000):
        word = "".join("abcdefgh"[i >> (3 * k) & 7] for k in range(6))
        for line in (f"flood {word}", f"{word} flood", f"{word}x", "again and again"):
            sample.learn_one(line)
    rows = sample.shapes()
    assert len(rows) <= 100
    assert rows[0][0] == "again and again"
    assert rows[0][1] >= 66_000 - sample.uncounted > 60_000


@pytest.mark.parametrize(
    "content", [None, [], {}, {"max_shapes": 1, "lines": 0, "uncounted": 0, "shapes": [{"shape": "a"}]}]
)
def test_what_is_no_sample_is_refused(content: object) -> None:
    """A damaged sample is refused with a sentence."""
    with pytest.raises(ValueError, match="begins anew"):
        Unmatched.restore(content)


def _learn(given_lines: list[str], room: int) -> Unmatched:
    sample = Unmatched(room)
    for line in given_lines:
        sample.learn_one(line)
    return sample
