"""Controls: what users ask of workers, on a compacted topic of one partition. A worker applies one at a checkpoint."""

from __future__ import annotations

import orjson
from pydantic import ValidationError

from pipeline.logs import get_logger
from pipeline.outputs import Headers, event_headers
from pipeline.wire import DeleteSession, LabelPattern

Control = DeleteSession | LabelPattern

log = get_logger()


def control_key(control: Control) -> bytes:
    """The record key: compaction keeps the latest control of each. No stream's name has a slash, a session's may."""
    if isinstance(control, LabelPattern):
        return f"pattern/{control.stream}/{control.pattern}".encode()
    return f"delete/{control.stream}/{control.session}".encode()


def encode_control(control: Control) -> tuple[bytes, bytes, Headers]:
    """Key, value and CloudEvents headers of a control."""
    key = control_key(control)
    identity = f"{key.decode()}/{control.issued_ms}"
    headers = event_headers(control.stream, identity, "control", control.issued_ms)
    return key, orjson.dumps(control.model_dump()), headers


def parse_control(key: bytes | None, value: bytes | None) -> Control | None:
    """A control from the topic, or None with a warning: what others wrote there must never stop a worker.

    None is also what a tombstone gives (a control taken back), and a control of a later version, whose type is unknown.
    """
    if value is None:
        return None
    try:
        model = LabelPattern if (key or b"").startswith(b"pattern/") else DeleteSession
        control: Control = model.model_validate_json(value, strict=True)
    except ValidationError as error:
        _passed_over(key, "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors()))
        return None
    if control_key(control) != key:
        _passed_over(key, "its key does not name what its value does")
        return None
    return control


def _passed_over(key: bytes | None, why: str) -> None:
    shown = None if key is None else key[:200].decode("utf-8", "replace")
    log.warning("control passed over: it is not ours, damaged, or of a later version", key=shown, why=why)
