"""A saved session in words: what `offbeat sessions show` prints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

from detectors.explanation import in_words as events_in_words
from detectors.parts import Learned, Parts
from detectors.rows import NO_BUNDLE, NO_OFFSET
from features.event_order import unpack_held
from models.bundle import names_in
from models.errors import StoreUnavailableError
from models.folders import Folder, as_folder
from pipeline.changelog import Written
from pipeline.errors import StateError, UsageError
from pipeline.row_format import RowFormat

Json = dict[str, Any]


def checked_name(session: str) -> str:
    """A session's name as the command line gave it.

    Raises
    ------
    UsageError
        It cannot be a name: it is empty, or no UTF-8.
    """
    try:
        session.encode()
    except UnicodeEncodeError:
        message = "the session's name is no UTF-8 text, so no session can have it; write it as the records have it"
        raise UsageError(message) from None
    if not session:
        message = "the session's name is empty, so no session can have it; write it as the records have it"
        raise UsageError(message)
    return session


def describe(session: str, written: Written, changelog: str, parts: Parts, bundles: Path | Folder) -> Json:
    """All that a saved row says, as JSON. Tokens are read back from their hashes by the serving bundle's vocabulary.

    Parameters
    ----------
    bundles
        The stream's folder of bundles, for the one that wrote the state.

    Raises
    ------
    StateError
        The row is damaged, or was written by a newer version or under another config.
    """
    value = written.value
    assert value is not None, "a tombstone describes nothing"
    if not _is_whole(value):
        message = (
            f"the row of session {session!r} in {changelog}, partition {written.partition}, offset {written.offset}, "
            "is damaged; `offbeat sessions delete` removes it, and the session starts anew with its next event"
        )
        raise StateError(message)
    rows = RowFormat(parts.shape).decode([value])
    worst, worst_offset, last_ms = float(rows.worst[0]), int(rows.worst_offset[0]), int(rows.last_ms[0])
    source = {"topic": parts.topic, "partition": written.partition}
    return {
        "stream": parts.stream,
        "session": session,
        "open": True,
        "segment": rows.segment[0].decode() or None,
        "events": int(rows.events[0]),
        "waiting": len(unpack_held(rows.held[0])),
        "first_ms": int(rows.first_ms[0]) if rows.events[0] else None,
        "last_ms": last_ms if rows.events[0] else None,
        "due_ms": int(rows.due_ms(parts.rules)[0]),
        "max_events": parts.rules.max_events,
        "worst_record": {"score": worst, "offset": None if worst_offset == NO_OFFSET else worst_offset}
        if math.isfinite(worst)
        else None,
        "bundle": _bundle(int(rows.bundle[0]), parts.learned, bundles),
        "applied": {**source, "offset": int(rows.applied[0])},
        "context": events_in_words(*rows.recent(0), parts, None if parts.learned is None else parts.learned.vocabulary),
        "bytes": len(value),
        "changelog": {
            "topic": changelog, "partition": written.partition, "offset": written.offset, "written_ms": written.time_ms,
        },
    }  # fmt: skip


def in_words(described: Json) -> Iterator[str]:
    """Lines for people of what `describe` gave."""
    applied, log, bundle, worst = (described[k] for k in ("applied", "changelog", "bundle", "worst_record"))
    place = f"{applied['topic']}/{applied['partition']}"
    waiting = f", and {described['waiting']:,} that wait to be put in order" if described["waiting"] else ""
    yield f"Session {described['session']} of stream {described['stream']} is open."
    events = f"{described['events']:,}, at {described['max_events']:,} it is ended{waiting}"
    worst_at = "" if worst is None or worst["offset"] is None else f" at {place}/{worst['offset']}"
    if described["segment"] is not None:
        yield f"  {'segment':<14}{described['segment']}"
    for label, text in {
        "events": events,
        "first event": _moment(described["first_ms"]),
        "last event": _moment(described["last_ms"]),
        "over": f"when its partition sees an event later than {iso(described['due_ms'])}",
        "worst record": "none scored yet" if worst is None else f"score {worst['score']:.2f}{worst_at}",
        "hidden state": _bundle_in_words(bundle),
        "applied up to": f"{place}/{applied['offset']}",
        "row": f"{described['bytes']:,} bytes, {log['topic']}/{log['partition']}/{log['offset']}, written "
        f"{iso(log['written_ms'])}",
    }.items():
        yield f"  {label:<14}{text}"
    yield "Last events, oldest first:"
    for event in described["context"]:
        words = (f"{field}={token}" for field, token in event.items() if field != "time_ms")
        yield f"  {iso(event['time_ms'])}  {' '.join(words)}"


def _moment(time_ms: int | None) -> str:
    return "none yet" if time_ms is None else iso(time_ms)


def iso(time_ms: int) -> str:
    """A moment as ISO 8601, UTC; beyond the calendar, as it is."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms since 1970"


def _is_whole(value: bytes) -> bool:
    """Whether a row's checksum holds: of every format version, the last four bytes are the CRC-32 of the others."""
    return len(value) > 4 and crc32(value[:-4]) == int.from_bytes(value[-4:], "little")


def _bundle(number: int, learned: Learned | None, bundles: Path | Folder) -> Json | None:
    """Which bundle wrote the state: rows keep 64 bits of its digest."""
    if number == NO_BUNDLE:
        return None
    mark = f"{number:016x}"
    if learned is not None and learned.number == number:
        return {"mark": mark, "digest": learned.digest, "serving": True}
    try:
        known = [name for name in names_in(as_folder(bundles)) if name.startswith(mark)]
    except StoreUnavailableError:  # its name is no reason to show nothing of the session
        known = []
    return {"mark": mark, "digest": known[0] if known else None, "serving": False}


def _bundle_in_words(bundle: Json | None) -> str:
    if bundle is None:
        return "none: no bundle has scored it yet"
    if bundle["serving"]:
        return f"of bundle {bundle['digest'][:12]}, which serves"
    known = f"of bundle {bundle['digest'][:12]}" if bundle["digest"] else f"of an unknown bundle ({bundle['mark']}...)"
    return f"{known}; the serving one rebuilds it from the last events when the session is next touched"
