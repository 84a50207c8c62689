"""Partition rows as bytes: they round trip, damage is found, and version 2 reads as it always has."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedStateError, StateError
from pipeline.partition_row import PartitionRow, decode_partition_row

numbers = st.integers(-1, 2**62)
rows = st.builds(
    PartitionRow, next_offset=numbers, watermark_ms=numbers, records=numbers, sessions=numbers, fingerprint=st.text(),
    bundle=st.none() | st.text(), runtime=st.text(), topic_id=st.text(), epoch=numbers, controls=numbers,
)  # fmt: skip

# What version 2 wrote when it was new; it must be read for ever.
GOLDEN = (
    b'OB\x02{"next_offset":7,"watermark_ms":1700000000000,"records":6,"sessions":2,"fingerprint":"00ff","bundle":"ab",'
    b'"runtime":"kernel","topic_id":"t-1","epoch":1,"controls":3}'
)


@given(rows)
def test_rows_round_trip(row: PartitionRow) -> None:
    """What is decoded is what was encoded."""
    assert decode_partition_row(row.encode()) == row


@given(rows, st.data())
def test_any_damage_is_found(row: PartitionRow, data: st.DataObject) -> None:
    """A flipped bit anywhere, or a row cut short or too long, is refused."""
    value = row.encode()
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    flipped = bytearray(value)
    flipped[bit // 8] ^= 1 << bit % 8
    for damaged in (bytes(flipped), value[: data.draw(st.integers(0, len(value) - 1))], value + b"\0", b""):
        with pytest.raises(DamagedStateError):
            decode_partition_row(damaged)


def test_the_golden_row() -> None:
    """A row of version 2, from before some of today's keys, is read, and what is written today begins with it."""
    golden = GOLDEN + crc32(GOLDEN).to_bytes(4, "little")
    row = PartitionRow(7, 1_700_000_000_000, 6, 2, "00ff", "ab", "kernel", "t-1", 1, 3)
    assert decode_partition_row(golden) == row
    assert row.encode().startswith(GOLDEN.removesuffix(b"}"))


def test_keys_of_later_releases_are_passed_over() -> None:
    """A row with more in it than this release knows is read: a rolling upgrade may go back."""
    body = GOLDEN[:-1] + b',"later":[1]}'
    assert decode_partition_row(body + crc32(body).to_bytes(4, "little")).next_offset == 7


def test_a_newer_version_is_refused_by_name() -> None:
    """A version whose bytes mean something else gives a sentence."""
    body = b"OB\x03" + GOLDEN[3:]
    with pytest.raises(StateError, match="format 3, this version reads 2: upgrade offbeat"):
        decode_partition_row(body + crc32(body).to_bytes(4, "little"))
