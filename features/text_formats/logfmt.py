"""logfmt: `key=value key="quoted value" key`, as Heroku, Go's loggers and many others print it."""

from __future__ import annotations

import re

from features.text_formats.fields import Fields, add_our_names

_FIRST = re.compile(r"""[^\s="]++=""", re.ASCII)
# A key with what follows it, or a character that fits nowhere. Possessive, so that a line is walked once.
_PART = re.compile(r"""([^\s="]++)(?:(=)(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)"|([^\s"]*+))(?=\s|$))?|(\S)""", re.ASCII)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "", '"': '"', "\\": "\\", "/": "/"}


def read_logfmt(text: str) -> Fields | None:
    """Read pairs; None unless the line begins with one and has fewer bare keys than pairs.

    Values stay texts, for `7` may be a number or a name; a bare key is True. A key that comes twice has its last value.
    Where no pair is a message, the whole line is.
    """
    if _FIRST.match(text) is None:
        return None
    parts = _PART.findall(text)
    fields: Fields = {}
    bare = 0
    for key, equals, quoted, plain, stray in parts:
        if stray:
            return None
        if not equals:
            bare += 1
            fields[key] = True
        elif quoted:
            fields[key] = quoted if "\\" not in quoted else _ESCAPE.sub(_unescape, quoted)
        else:
            fields[key] = plain
    if 2 * bare >= len(parts):
        return None
    add_our_names(fields).setdefault("message", text)
    return fields


def _unescape(found: re.Match[str]) -> str:
    """One escaped character; controls and halves of pairs, which no text of ours holds, and unknown ones stay."""
    escaped = found[1]
    if len(escaped) == 1:
        return _ESCAPED.get(escaped, found[0])
    code = int(escaped[1:], 16)
    return found[0] if code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 else chr(code)
