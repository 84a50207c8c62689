"""A line that is one JSON object."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from features.text_formats.controls import drop_controls
from features.text_formats.fields import Fields, add_our_names

MAX_DEPTH = 64  # far below the interpreter's own limit, which would depend on who calls

_ESCAPED_CONTROL = re.compile(r"\\(?:u00[0189][0-9a-fA-F]|u007[fF]|[bfr])")
_decode = msgspec.json.Decoder().decode


def read_json_object(text: str) -> Fields | None:
    """Read one JSON object, nested as it is; None if the text is anything else, or nests deeper than `MAX_DEPTH`.

    The object keeps its fields, and known ones are there under our names too.
    """
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        return None
    try:
        found: Any = _decode(text)
    except (msgspec.MsgspecError, UnicodeError):
        return None
    if not isinstance(found, dict):
        return None
    return add_our_names(_drop_controls(found) if "\\" in text and _ESCAPED_CONTROL.search(text) else found)


def _drop_controls(value: Any) -> Any:
    """Drop controls from every text but the fields' names; how deep it goes is bounded by `MAX_DEPTH`."""
    if isinstance(value, str):
        return drop_controls(value)
    if isinstance(value, list):
        return [_drop_controls(inner) for inner in value]
    return {name: _drop_controls(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def _depth(text: str) -> int:
    """How deep brackets outside of strings nest; without meaning where the text is no JSON."""
    depth = deepest = 0
    quoted = escaped = False
    for character in text:
        if quoted:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                quoted = False
        elif character == '"':
            quoted = True
        elif character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest
