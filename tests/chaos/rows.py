"""Saved rows read by hand: session rows of format version 2, and partition rows. Shares no code with the product."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

_HEAD = struct.Struct("<2sBBHHHH")  # magic, version, token fields; hidden size, events of context, numbers, counters
_COLUMNS = struct.Struct("<qqqq4sqQ")


def read_session(value: bytes) -> dict[str, Any]:
    """One session row by column; floats stay bytes, so that comparing means comparing bits.

    Raises
    ------
    ValueError
        It is no whole row of version 2. Numbers, counters and what waits are not read: a storm's stream has none; of
        the tail's parts only the segment, the profile and the tag.
    """
    if crc32(value[:-4]) != int.from_bytes(value[-4:], "little"):
        message = "its checksum differs"
        raise ValueError(message)
    magic, version, fields, hidden, context, numbers, counters = _HEAD.unpack_from(value)
    if (magic, version) != (b"OB", 2):
        message = f"it begins with {magic!r} and version {version}"
        raise ValueError(message)
    at = _HEAD.size
    events, first_ms, last_ms, applied, worst, worst_offset, bundle = _COLUMNS.unpack_from(value, at)
    at += _COLUMNS.size
    state, at = value[at : at + 4 * hidden], at + 4 * hidden
    times, at = struct.unpack_from(f"<{context}q", value, at), at + 8 * context
    tokens, at = struct.unpack_from(f"<{context * fields}Q", value, at), at + 8 * context * fields
    at += 4 * context * numbers + 16 * counters
    places = list(zip(times, zip(*[iter(tokens)] * fields, strict=True), strict=True))
    # Event k stands at k modulo the width.
    known = [k % context for k in range(max(0, events - context), events)]
    tail = _tail(value[at + 4 : -4])
    profile = tail.get(4, b"")
    entries = len(profile) // 10
    return {
        "tag": tail.get(5, bytes(4)),
        "segment": tail.get(3, b"").decode() or None,
        "profile": dict(zip(*map(list, (
            struct.unpack_from(f"<{entries}Q", profile), struct.unpack_from(f"<{entries}H", profile, 8 * entries)
        )), strict=True)),
        "events": events, "first_ms": first_ms, "last_ms": last_ms, "applied": applied, "worst": worst,
        "worst_offset": worst_offset, "bundle": bundle, "hidden": state,
        "context": [places[k] for k in known],
        "beyond": [place for k, place in enumerate(places) if k not in known and place != (0, (0,) * fields)],
    }  # fmt: skip


def _tail(tail: bytes) -> dict[int, bytes]:
    """Its parts by tag."""
    if not tail:
        return {}
    tag, length = struct.unpack_from("<BI", tail)
    return {tag: tail[5 : 5 + length]} | _tail(tail[5 + length :])


def read_partition(saved: Mapping[bytes, bytes]) -> dict[str, float]:
    """What the partition's row says of where it stands, given all rows by key.

    The one place that knows the row's key and format.
    """
    row = json.loads(saved[b"p"][3:-4])  # between magic with version, and checksum
    found = {name: row[name] for name in ("next_offset", "watermark_ms", "records")}
    return found | ({"threshold": row["keeper"]["records"]["nats"]} if row.get("keeper") and row["records"] else {})


def session_rows(saved: Mapping[bytes, bytes]) -> dict[str, bytes]:
    """Session rows by the session's name."""
    return {key[1:].decode(): value for key, value in saved.items() if key[:1] == b"s"}


def read_rocksdb(folder: Path) -> dict[bytes, bytes]:
    """Every key and value of a RocksDB that nobody holds open, as they lie there."""
    from rocksdict import AccessType, Options, Rdict

    options = Options(raw_mode=True)
    families = {name: Options(raw_mode=True) for name in Rdict.list_cf(str(folder), options)}
    db = Rdict(str(folder), options, column_families=families, access_type=AccessType.read_only())
    try:
        return dict(db.items())
    finally:
        db.close()
