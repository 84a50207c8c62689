"""Small rows with a version and a checksum.

Magic "OB", version (u8), content, CRC-32 of all before it (u32, little endian).
"""

from __future__ import annotations

from zlib import crc32

from pipeline.errors import DamagedStateError

_MAGIC = b"OB"


def frame(content: bytes, version: int) -> bytes:
    """The content as a row."""
    body = _MAGIC + bytes([version]) + content
    return body + crc32(body).to_bytes(4, "little")


def version_of(row: bytes) -> int:
    """What wrote the row; -1 where it is too short to say so."""
    return row[2] if len(row) > len(_MAGIC) else -1


def content_of(row: bytes, name: str) -> bytes:
    """What was framed; `name` is for people.

    Raises
    ------
    DamagedStateError
        The checksum differs.
    """
    if row[:2] != _MAGIC or crc32(row[:-4]) != int.from_bytes(row[-4:], "little"):
        message = f"{name} cannot be read: it fails its check"
        raise DamagedStateError(message)
    return row[3:-4]
