"""The partition row: what a partition keeps beside its sessions, saved with them in every checkpoint.

As bytes: magic "OB", version (u8), JSON, CRC-32 of all before it (u32, little endian).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

import msgspec

from detectors.promise_keeper import KeeperState
from detectors.rows import Decided
from detectors.schema_watch import SchemaState
from pipeline.errors import DamagedStateError, StateError

VERSION = 2  # version 1 was bare JSON, before the first release
_MAGIC = b"OB"


@dataclass(frozen=True)
class PartitionRow:
    """Attributes as they stand after record X.

    Attributes
    ----------
    next_offset, watermark_ms, records, schema
        As in `detectors.rows.PartitionState`.
    sessions
        Open ones.
    fingerprint
        Of the stream's section, as far as it shapes rows.
    bundle, runtime
        Digest of the bundle in force (None while warming up) and what computes it.
    topic_id
        The source topic's: another one under the same name is another topic.
    epoch
        How often the partition began anew, with other records under offsets that ids have named before.
    controls
        The first offset of the controls topic that was not applied.
    recent_ids, rescoring, explaining, absolved, decided, keeper
        As in `detectors.rows.PartitionState`.
    labelled
        Labels of anomalies of the stream so far, as the last that was applied tells: normal ones, and others.
    complete
        Whoever saved it let go in order: nothing after X has been judged yet.
    """

    next_offset: int
    watermark_ms: int
    records: int
    sessions: int
    fingerprint: str
    bundle: str | None
    runtime: str
    topic_id: str
    epoch: int
    controls: int
    recent_ids: bytes = b""
    schema: SchemaState | None = None
    rescoring: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    explaining: tuple[int, int] = (0, 0)
    absolved: bytes = b""
    labelled: tuple[int, int] = (0, 0)
    keeper: KeeperState | None = None
    complete: bool = False
    decided: Decided = field(default_factory=Decided)

    def encode(self) -> bytes:
        """As it is saved."""
        body = _MAGIC + bytes([VERSION]) + msgspec.json.encode(self)
        return body + crc32(body).to_bytes(4, "little")


_decode = msgspec.json.Decoder(PartitionRow).decode  # keys of later releases are passed over


def decode_partition_row(value: bytes) -> PartitionRow:
    """A saved row.

    Raises
    ------
    DamagedStateError
        Its checksum differs.
    StateError
        A newer release wrote it.
    """
    if value[:2] != _MAGIC or crc32(value[:-4]) != int.from_bytes(value[-4:], "little"):
        message = "a saved partition row fails its check"
        raise DamagedStateError(message)
    if value[2] != VERSION:
        message = f"a saved partition row has format {value[2]}, this version reads {VERSION}: upgrade offbeat"
        raise StateError(message)
    return _decode(value[3:-4])
