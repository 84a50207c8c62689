"""Saved rows: nothing is lost, damage is found, and old ones stay readable."""

from __future__ import annotations

import json
import struct
from dataclasses import fields
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.rows import DTYPES, RowShape, SessionRows
from features.event_order import unpack_held
from features.tokens import stable_hash
from pipeline.errors import DamagedStateError, StateError
from pipeline.row_format import VERSION, RowFormat
from tests.chaos.rows import read_session

shapes = st.builds(
    RowShape,
    st.sampled_from([1, 4, 16]),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from([0, 3]),
)


def random_rows(count: int, shape: RowShape, seed: int) -> SessionRows:
    """Rows with any bits at all, NaN and infinities included, some with events that wait."""
    rng = np.random.default_rng(seed)
    made = []
    for f in fields(SessionRows):
        if f.name in {"held", "windows", "segment"}:
            made.append(np.array([rng.bytes(int(rng.integers(0, 3)) * 20) for _ in range(count)] + [None], "O")[:-1])
            continue
        if f.name in {"profile_keys", "profile_counts"}:  # entries are taken one after the other
            taken = np.arange(shape.profile) < rng.integers(0, shape.profile + 1, (count, 1))
            if f.name == "profile_counts":
                taken = made[-1] > 0
            made.append((taken * rng.integers(1, 60_000, taken.shape)).astype(DTYPES[f.name]))
            continue
        dtype, dimensions = np.dtype(DTYPES[f.name]), (count, *shape.dimensions(f.name))
        made.append(
            np.frombuffer(rng.bytes(dtype.itemsize * int(np.prod(dimensions))), dtype).reshape(dimensions).copy()
        )
    return SessionRows(*made)


def same_bits(one: SessionRows, other: SessionRows) -> bool:
    columns = [f.name for f in fields(SessionRows) if f.name not in {"held", "windows", "segment"}]
    same = all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in columns)
    return (
        same
        and one.held.tolist() == other.held.tolist()
        and one.windows.tolist() == other.windows.tolist()
        and one.segment.tolist() == other.segment.tolist()
    )


@given(shapes, st.integers(0, 5), st.integers(0, 2**32))
def test_rows_round_trip(shape: RowShape, count: int, seed: int) -> None:
    """What is decoded is what was encoded, bit by bit; its first event's time can be told without decoding."""
    rows, form = random_rows(count, shape, seed), RowFormat(shape)
    values = form.encode(rows)
    assert same_bits(form.decode(values), rows)
    rows.first_ms[:] = np.abs(rows.first_ms // 2)
    assert [form.first_ms(v) for v in form.encode(rows)] == rows.first_ms.tolist()


@given(shapes, st.integers(0, 2**32), st.data())
def test_any_damage_is_found(shape: RowShape, seed: int, data: st.DataObject) -> None:
    """A flipped bit anywhere, or a row cut short or too long, is refused as damaged."""
    form = RowFormat(shape)
    (value,) = form.encode(random_rows(1, shape, seed))
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    flipped = bytearray(value)
    flipped[bit // 8] ^= 1 << bit % 8
    length = data.draw(st.integers(0, len(value) - 1))
    for damaged in (bytes(flipped), value[:length], value + b"\0"):
        with pytest.raises(DamagedStateError):
            form.decode([value, damaged])


def test_a_row_of_another_shape_or_version_is_refused() -> None:
    """A row that is whole but not for this config or version is refused by name."""
    form = RowFormat(RowShape(4, 3, 2))
    (value,) = form.encode(random_rows(1, form.shape, 0))
    with pytest.raises(StateError, match=r"hidden=4, context=3, fields=2.*the config says .*fields=1"):
        RowFormat(RowShape(4, 3, 1)).decode([value])
    newer = value[:2] + b"\x03" + value[3:-4]
    with pytest.raises(StateError, match="format 3, this version reads up to 2: upgrade offbeat"):
        form.decode([newer + crc32(newer).to_bytes(4, "little")])


def test_a_tail_of_a_later_version_is_skipped() -> None:
    """Parts a newer writer of format 2 puts into the tail are skipped, so that rows stay readable both ways."""
    form = RowFormat(RowShape(4, 3, 2))
    rows = random_rows(2, form.shape, 1)
    new, width = b"\x09" + (3).to_bytes(4, "little") + b"new", len(form.encode(SessionRows.empty(1, form.shape))[0]) - 4
    tails = [new + value[width:-4] + new for value in form.encode(rows)]
    heads = [value[: width - 4] for value in form.encode(rows)]
    longer = [head + len(tail).to_bytes(4, "little") + tail for head, tail in zip(heads, tails, strict=True)]
    assert same_bits(form.decode([v + crc32(v).to_bytes(4, "little") for v in longer]), rows)


@pytest.mark.parametrize("version", [1, 2])
def test_the_golden_rows(version: int) -> None:
    """The rows in tests/golden, each written by its version, read as they always have; this version writes its own."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / f"row-v{version}.json").read_text())
    form = RowFormat(RowShape(**golden["shape"]))
    rows = form.decode([bytes.fromhex(golden["hex"])])
    assert {name: getattr(rows, name)[0].tolist() for name in golden["row"]} == golden["row"]
    times, hashes, numbers = rows.recent(0)
    assert times.tolist() == [time_ms for time_ms, *_ in golden["recent"]]
    assert hashes.tolist() == [[stable_hash(text) for text in texts] for _, texts, *_ in golden["recent"]]
    assert numbers.tolist() == [kept[0] if kept else [] for _, _, *kept in golden["recent"]]
    assert [event._asdict() for event in unpack_held(rows.held[0])] == golden.get("held", [])
    assert (form.encode(rows)[0].hex() == golden["hex"]) == (version == VERSION)


def test_a_segment_is_a_part_of_the_tail() -> None:
    """A row without a segment has the bytes it had before there were any; one with has five more and its name."""
    form = RowFormat(RowShape(4, 3, 2))
    rows = SessionRows.empty(2, form.shape)
    rows.segment[1] = "süd".encode()
    without, with_one = form.encode(rows)
    assert len(with_one) == len(without) + 5 + 4
    assert without[-8:-4] == bytes(4)
    assert with_one[len(without) - 8 : -4] == bytes([9, 0, 0, 0, 3, 4, 0, 0, 0]) + "süd".encode()
    assert form.decode([without, with_one]).segment.tolist() == [b"", "süd".encode()]
    assert [read_session(value)["segment"] for value in (without, with_one)] == [None, "süd"]


def test_a_tag_is_a_part_of_the_tail() -> None:
    """A row without a tag has the bytes it had before there were any; one with has nine more, and reads back."""
    form = RowFormat(RowShape(4, 3, 2))
    rows = SessionRows.empty(2, form.shape)
    rows.tag[1] = -0.75
    without, with_one = form.encode(rows)
    assert without[-8:-4] == bytes(4)
    assert with_one[len(without) - 8 : -4] == bytes([9, 0, 0, 0, 5, 4, 0, 0, 0]) + struct.pack("<f", -0.75)
    assert form.decode([without, with_one]).tag.tolist() == [0.0, -0.75]
    assert [read_session(value)["tag"] for value in (without, with_one)] == [bytes(4), struct.pack("<f", -0.75)]
