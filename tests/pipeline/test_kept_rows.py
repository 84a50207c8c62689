"""What detectors remember as rows: written when changed, checked when read, gone with the detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from detectors import kept as registry
from detectors.kept import Kept
from pipeline import kept_rows
from pipeline.errors import DamagedStateError
from pipeline.kept_rows import PREFIX, KeptRows, decode_kept


@dataclass(frozen=True)
class Count:
    """A detector's state in a byte."""

    value: int

    def pack(self) -> bytes:
        """One byte."""
        return bytes([self.value])

    @classmethod
    def unpack(cls, packed: bytes) -> Count | None:
        """The state; 255 is of another release."""
        (value,) = packed
        return None if value == 255 else cls(value)


@pytest.fixture(autouse=True)
def readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two detectors that remember a count."""
    monkeypatch.setattr(kept_rows, "READERS", {"a": Count.unpack, "b": Count.unpack})


def written(rows: KeptRows, states: Mapping[str, Kept]) -> dict[bytes, bytes | None]:
    """What a checkpoint writes."""
    changes = rows.changes(states)
    rows.settle(states)
    return changes


def test_what_is_written_is_what_is_read() -> None:
    """States come back by the names of their detectors."""
    states = {"a": Count(3), "b": Count(4)}
    saved = {key: value for key, value in KeptRows({}).changes(states).items() if value is not None}
    assert decode_kept(saved) == states


def test_only_what_changed_is_written() -> None:
    """A state that stayed is not written again; one that went is deleted."""
    rows, a = KeptRows({}), Count(1)
    assert list(written(rows, {"a": a})) == [PREFIX + b"a"]
    assert written(rows, {"a": a}) == {}
    assert list(written(rows, {"a": a, "b": Count(2)})) == [PREFIX + b"b"]
    assert written(rows, {"b": Count(2)})[PREFIX + b"a"] is None


def test_rows_that_nobody_reads_any_more_are_deleted() -> None:
    """A detector that is gone, and a state of another release, leave no rows behind."""
    saved = {PREFIX + b"gone": kept_rows.encode(Count(1)), PREFIX + b"a": kept_rows.encode(Count(255))}
    assert decode_kept(saved) == {}
    assert KeptRows(saved).changes({}) == dict.fromkeys(saved)


@pytest.mark.parametrize(
    "harm", [lambda row: row[:-1] + b"x", lambda row: row[:5], lambda _: kept_rows.frame(b"12", 1)]
)
def test_a_damaged_row_is_found(harm) -> None:
    """A row that fails its check, is cut short or holds something else is said to be damaged."""
    with pytest.raises(DamagedStateError, match="what the detector a remembers"):
        decode_kept({PREFIX + b"a": harm(kept_rows.encode(Count(1)))})


def test_names_are_short() -> None:
    """A detector's name is part of a key and of sentences."""
    assert all(name.isidentifier() for name in registry.READERS)
