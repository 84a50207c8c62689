"""A Slack message, for incoming webhooks: a line for each change."""

from __future__ import annotations

import orjson

from pipeline.alerts.change import Change, Message
from pipeline.alerts.told import cut, summary_of

_SUMMARY_BYTES = 600
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})  # else data could mention people or hide links


def body_of(message: Message) -> bytes:
    """The body, under 20 kB. No link in it is unfolded, for Slack would fetch what a record held."""
    lines = [_line(change) for change in message.changes]
    if message.is_test:
        lines.insert(0, "*Test*: Offbeat reaches this channel, and nothing is wrong.")
    if message.is_repeat:
        lines.insert(0, "Still open:")
    return orjson.dumps({"text": "\n".join(lines), "unfurl_links": False, "unfurl_media": False})


def _line(change: Change) -> str:
    said = cut(" ".join(summary_of(change).split()).translate(_ESCAPES), _SUMMARY_BYTES)
    return f"*{change.kind}*, {change.severity}: {said}"
