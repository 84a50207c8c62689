"""Some thousand hostile inputs for all that reads foreign bytes; `python -m tests.fuzz` gives more."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target, fuzz

EXAMPLES = 3_000  # about 15 s for all


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_input_breaks_it(target: Target) -> None:
    """Whatever comes is read or refused as promised."""
    done = fuzz(target, EXAMPLES, 1)
    print(f"{target.name}: {done:,} inputs")
    assert done >= EXAMPLES


def test_a_target_that_breaks_is_found() -> None:
    """A check that fails for one kind of input ends the run with that input."""

    def check(value: bytes) -> None:
        assert b"\x00" not in value

    with pytest.raises(AssertionError):
        fuzz(Target("broken", st.binary(), check), 2_000, 1)
