"""Session rows as bytes: a fixed-width head, a tagged tail, a checksum. Format version 2; version 1 is read too.

Little endian. Head: magic "OB", version, token fields F (u8 each); hidden size H, context W, numbers N, counters C (u16
each); then the columns of `detectors.rows.SessionRows` in order, but for the last six. Tail: its length (u32), then
parts of tag (u8), length (u32) and bytes: 1 is `held`, 2 is `windows`, 3 is `segment`, 4 is the profile, the keys (u64)
of its entries and then their counts (u16), 5 is `tag` (f32) where it is not 0; parts of later releases are skipped.
Last: CRC-32 of all before it (u32). Version 1 had neither numbers nor counters nor anything in its tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from detectors.rows import COLUMNS, DTYPES, RowShape, SessionRows
from features.profiles import FREE
from pipeline.errors import DamagedStateError, StateError

VERSION = 2
_LEAST = {1: 8 + 4, 2: 12 + 4}  # by version: what tells version and shape, and the checksum
MAGIC = int.from_bytes(b"OB", "little")
_TAGS = {"held": 1, "windows": 2, "segment": 3}  # columns of bytes, in the tail
_PROFILE, _PROFILE_COLUMNS, _ENTRY_BYTES = 4, {"profile_keys", "profile_counts"}, 10
_TAG = 5
_PART = Struct("<BI")  # tag and length
_COLUMNS = [name for name in COLUMNS if name not in {*_TAGS, *_PROFILE_COLUMNS, "tag"}]
_SINCE_2 = {"context_numbers", "counter_value", "counter_ms"}
_SIZES = {1: ("hidden", "context"), 2: ("hidden", "context", "numbers", "counters")}


class RowFormat:
    """Encodes and decodes rows of one shape."""

    def __init__(self, shape: RowShape) -> None:
        self.shape = shape
        self._heads = {version: _head(version, shape) for version in _SIZES}

    def encode(self, rows: SessionRows) -> list[bytes]:
        """One byte string a row."""
        head = self._heads[VERSION]
        packed = np.zeros(len(rows), head)
        packed["magic"], packed["version"], packed["fields"] = MAGIC, VERSION, self.shape.fields
        for name in _SIZES[VERSION]:
            packed[f"{name}_size"] = getattr(self.shape, name)
        for name in _COLUMNS:
            packed[name] = getattr(rows, name)
        tails = _tails(rows)
        packed["tail"] = [len(tail) for tail in tails]
        whole, width = packed.tobytes(), head.itemsize
        begins = range(0, len(whole), width)
        values = [whole[at : at + width] + tail for at, tail in zip(begins, tails, strict=True)]
        sums = np.array([crc32(value) for value in values], "<u4").tobytes()
        return [value + sums[4 * i : 4 * i + 4] for i, value in enumerate(values)]

    def decode(self, values: Sequence[bytes]) -> SessionRows:
        """Rows of byte strings, of any version that is read.

        Raises
        ------
        DamagedStateError
            A checksum differs.
        StateError
            A row has another shape or a newer version.
        """
        for value in values:
            self.check(value)
        rows = SessionRows.empty(len(values), self.shape)
        for version, head in self._heads.items():
            mine = np.array([i for i, value in enumerate(values) if value[2] == version], np.intp)
            width = head.itemsize
            packed = np.frombuffer(b"".join(values[i][:width] for i in mine.tolist()), head)
            for name in _COLUMNS:
                if version > 1 or name not in _SINCE_2:
                    getattr(rows, name)[mine] = packed[name]
            for i in mine[packed["tail"] > 0].tolist():
                found = _parts(values[i][width:-4])
                for name, tag in _TAGS.items():
                    getattr(rows, name)[i] = found.get(tag, b"")
                _read_profile(found.get(_PROFILE, b""), rows.profile_keys[i], rows.profile_counts[i])
                rows.tag[i] = np.frombuffer(found.get(_TAG, bytes(4)), "<f4")[0]
        return rows

    def first_ms(self, value: bytes) -> int:
        """Time of the first event of an encoded row, which is not checked."""
        at: int = self._heads[value[2]].fields["first_ms"][1]  # type: ignore[index]
        return int.from_bytes(value[at : at + 8], "little")

    def check(self, value: bytes) -> None:
        """Return if a row can be decoded; errors as `decode`."""
        if len(value) < _LEAST[1] or crc32(value[:-4]) != int.from_bytes(value[-4:], "little"):
            message = "a saved session row fails its check"
            raise DamagedStateError(message)
        version = value[2]
        if version not in self._heads:
            message = f"a saved session row has format {version}, this version reads up to {VERSION}: upgrade offbeat"
            raise StateError(message)
        sizes = {n: int.from_bytes(value[4 + 2 * i : 6 + 2 * i], "little") for i, n in enumerate(_SIZES[version])}
        found = RowShape(fields=value[3], profile=self.shape.profile, **sizes)
        if found != self.shape:
            message = f"a saved session row was written for {found}, the config says {self.shape}"
            raise StateError(message)
        assert len(value) >= self._heads[version].itemsize + 4, "a whole row of this shape has this width"


def _head(version: int, shape: RowShape) -> np.dtype[Any]:
    known = [("magic", "<u2"), ("version", "u1"), ("fields", "u1"), *((f"{n}_size", "<u2") for n in _SIZES[version])]
    names = [name for name in _COLUMNS if version > 1 or name not in _SINCE_2]
    columns = [(name, DTYPES[name], shape.dimensions(name)) for name in names]
    return np.dtype([*known, *columns, ("tail", "<u4")])


def _tails(rows: SessionRows) -> list[bytes]:
    """Each row's tail; most columns of it hold nothing in most rows, and cost nothing then."""
    tails = [b""] * len(rows)
    columns = [(tag, getattr(rows, name).tolist()) for name, tag in _TAGS.items()]
    for tag, column in [*columns, (_PROFILE, _profiles(rows)), (_TAG, _tags(rows))]:
        if any(column):
            tails = [tail + _tagged(tag, part) if part else tail for tail, part in zip(tails, column, strict=True)]
    return tails


def _tagged(tag: int, part: bytes) -> bytes:
    return _PART.pack(tag, len(part)) + part


def _profiles(rows: SessionRows) -> list[bytes]:
    """Each row's profile; entries are taken one after the other."""
    if not rows.profile_keys.shape[1]:
        return [b""] * len(rows)
    taken = (rows.profile_keys != FREE).sum(axis=1).tolist()
    keys, counts = rows.profile_keys, rows.profile_counts
    return [keys[i, :n].tobytes() + counts[i, :n].tobytes() for i, n in enumerate(taken)]


def _tags(rows: SessionRows) -> list[bytes]:
    """Each row's tag; nothing for 0, so that rows without one are as they were before there were tags."""
    packed = rows.tag.astype("<f4").tobytes()
    return [packed[4 * i : 4 * i + 4] if some else b"" for i, some in enumerate(rows.tag.view(np.uint32).tolist())]


def _read_profile(part: bytes, keys: NDArray[np.uint64], counts: NDArray[np.uint16]) -> None:
    """Write a row's profile to where it belongs; nowhere, where the stream keeps none any more."""
    taken = len(part) // _ENTRY_BYTES
    if taken <= len(keys):
        keys[:taken] = np.frombuffer(part[: 8 * taken], "<u8")
        counts[:taken] = np.frombuffer(part[8 * taken :], "<u2")


def _parts(tail: bytes) -> dict[int, bytes]:
    """The parts of a tail by tag."""
    found, at = {}, 0
    while at < len(tail):
        length = int.from_bytes(tail[at + 1 : at + 5], "little")
        found[tail[at]] = tail[at + 5 : at + 5 + length]
        at += 5 + length
    return found
