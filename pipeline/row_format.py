"""Session rows as bytes: a fixed-width head, a tagged tail, a checksum. Format version 1.

Little endian. Head: magic "OB", version, token fields F (u8 each); hidden size H, context W (u16 each); then the
columns of `detectors.rows.SessionRows` in order. Tail: its length (u32), then parts of tag (u8), length (u32) and
bytes; version 1 writes none and skips those it does not know. Last: CRC-32 of all before it (u32).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from zlib import crc32

import numpy as np

from detectors.rows import DTYPES, RowShape, SessionRows
from pipeline.errors import DamagedStateError, StateError

VERSION = 1
_LEAST = 8 + 4  # what tells version and shape, and the checksum
MAGIC = int.from_bytes(b"OB", "little")
_COLUMNS = [f.name for f in fields(SessionRows)]


class RowFormat:
    """Encodes and decodes rows of one shape."""

    def __init__(self, shape: RowShape) -> None:
        self.shape = shape
        head = [("magic", "<u2"), ("version", "u1"), ("fields", "u1"), ("hidden_size", "<u2"), ("context_size", "<u2")]
        columns = [(name, DTYPES[name], shape.dimensions(name)) for name in _COLUMNS]
        self._head = np.dtype([*head, *columns, ("tail", "<u4")])
        self._first_ms_at = self._head.fields["first_ms"][1]  # type: ignore[index]

    def encode(self, rows: SessionRows) -> list[bytes]:
        """One byte string a row."""
        packed = np.zeros(len(rows), self._head)
        packed["magic"], packed["version"], packed["fields"] = MAGIC, VERSION, self.shape.fields
        packed["hidden_size"], packed["context_size"] = self.shape.hidden, self.shape.context
        for name in _COLUMNS:
            packed[name] = getattr(rows, name)
        whole, width = packed.tobytes(), self._head.itemsize
        heads = (whole[at : at + width] for at in range(0, len(whole), width))
        return [head + crc32(head).to_bytes(4, "little") for head in heads]

    def decode(self, values: Sequence[bytes]) -> SessionRows:
        """Rows of byte strings.

        Raises
        ------
        DamagedStateError
            A checksum differs.
        StateError
            A row has another shape or a newer version.
        """
        for value in values:
            self.check(value)
        width = self._head.itemsize
        packed = np.frombuffer(b"".join(v[:width] for v in values), self._head)
        return SessionRows(*(np.array(packed[name]) for name in _COLUMNS))

    def first_ms(self, value: bytes) -> int:
        """Time of the first event of an encoded row, which is not checked."""
        return int.from_bytes(value[self._first_ms_at : self._first_ms_at + 8], "little")

    def check(self, value: bytes) -> None:
        """Return if a row can be decoded; errors as `decode`."""
        if len(value) < _LEAST or crc32(value[:-4]) != int.from_bytes(value[-4:], "little"):
            message = "a saved session row fails its check"
            raise DamagedStateError(message)
        if value[2] != VERSION:
            message = f"a saved session row has format {value[2]}, this version reads {VERSION}: upgrade offbeat"
            raise StateError(message)
        found = RowShape(int.from_bytes(value[4:6], "little"), int.from_bytes(value[6:8], "little"), value[3])
        if found != self.shape:
            message = f"a saved session row was written for {found}, the config says {self.shape}"
            raise StateError(message)
        assert len(value) >= self._head.itemsize + 4, "a whole row of this shape has this width"
