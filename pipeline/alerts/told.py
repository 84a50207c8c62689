"""Changes as receivers are told them: JSON of a bounded size, whatever stands in an incident."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from pipeline.alerts.change import ANOMALY, Change
from pipeline.sentences import sentence_of
from pipeline.sessions import iso

LIMIT = 20_000  # bytes of a body, as Standard Webhooks advises
MOST_CHANGES = 12  # in a message: so many always fit, for a change can be told in 1.4 kB
_ENVELOPE = 1_000  # bytes that receivers need around changes
_BARE = 1_400
_NAME_BYTES, _SUMMARY_BYTES = 200, 300
_SHORT_TEXT, _SHORT_LIST, _SHORT_KEYS, _DEEP = 120, 3, 24, 5


def told(changes: Sequence[Change], *, limit: int = LIMIT) -> list[dict[str, Any]]:
    """Changes as JSON values of fewer than `limit` bytes in all, each cut no more than it must be.

    A change is told whole where its share of the bytes suffices; else with shorter texts and lists; else without its
    incident or anomaly. Of all that, `shortened` tells.
    """
    assert 0 < len(changes) <= MOST_CHANGES, "a message has so many changes at most"
    share = max(_BARE, (limit - _ENVELOPE) // len(changes))
    return [_told(change, share) for change in changes]


def _told(change: Change, share: int) -> dict[str, Any]:
    whole = _plain(change)
    if len(orjson.dumps(whole)) <= share:
        return whole
    short = _bare(change) | {key: _shorter(whole[key], 0) for key in ("incident", "anomaly")}
    return short if len(orjson.dumps(short)) <= share else _bare(change)


def _plain(change: Change) -> dict[str, Any]:
    is_anomaly = change.kind == ANOMALY
    return {
        "id": change.id, "subject": change.subject, "kind": change.kind, "severity": change.severity,
        "streams": list(change.streams), "labels": dict(change.labels), "time": iso(change.at_ms),
        "summary": summary_of(change), "incident": None if is_anomaly else dict(change.body),
        "anomaly": dict(change.body) if is_anomaly else None, "shortened": False,
    }  # fmt: skip


def _bare(change: Change) -> dict[str, Any]:
    """What names a change and says it in a sentence; at most `_BARE` bytes."""
    labels = [(cut(name, 30), cut(value, 40)) for name, value in sorted(change.labels.items())]
    return _plain(change) | {
        "id": named(change.id), "subject": named(change.subject), "streams": [cut(s, 60) for s in change.streams[:2]],
        "labels": dict(labels[:4]), "summary": cut(summary_of(change), _SUMMARY_BYTES), "incident": None,
        "anomaly": None, "shortened": True,
    }  # fmt: skip


def summary_of(change: Change) -> str:
    """A change in a sentence for people."""
    if change.kind != ANOMALY:
        return str(change.body.get("summary", "an incident"))
    try:
        return sentence_of("anomalies", dict(change.body))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return f"an anomaly of stream {change.streams[0] if change.streams else change.subject}"


def named(name: str, most: int = _NAME_BYTES) -> str:
    """A name of at most `most` bytes of JSON; one that is cut ends with a hash, so that it stays a name of its own."""
    if _size(name) <= most:
        return name
    return f"{cut(name, most - 17, '')}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def cut(text: str, most: int, end: str = "…") -> str:
    """The beginning of a text, at most `most` bytes as JSON without the quotes.

    >>> cut("abcdef", 5), cut("abc", 5)
    ('ab…', 'abc')
    """
    if len(text) <= most and _size(text) <= most:
        return text
    kept, left = 0, most - len(end.encode())
    for kept, character in enumerate(text):  # noqa: B007 (how many fit)
        left -= _size(character)
        if left < 0:
            break
    return text[:kept] + end


def _size(text: str) -> int:
    return len(orjson.dumps(text)) - 2


def _shorter(value: Any, depth: int) -> Any:
    """The same with the beginnings of its texts and lists."""
    if isinstance(value, str):
        return cut(value, _SHORT_TEXT)
    if isinstance(value, Mapping):
        kept = list(value.items())[:_SHORT_KEYS] if depth else value.items()
        return {cut(str(key), _SHORT_TEXT): _shorter(inner, depth + 1) for key, inner in kept} if depth < _DEEP else {}
    if isinstance(value, list | tuple):
        return [_shorter(inner, depth + 1) for inner in value[:_SHORT_LIST]] if depth < _DEEP else []
    return value
