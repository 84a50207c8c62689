"""What terminals obey and nobody reads: colours and other control characters."""

from __future__ import annotations

import re

_KEPT = b"\t\n"
_BYTES = bytes(byte for byte in (*range(0x20), 0x7F) if byte not in _KEPT)
# Terminals' sequences (colours, titles) whole, then single controls, those above ASCII too.
_CONTROL = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*+[ -/]*+[@-~]|\x1b\\][^\x07\x1b]*+(?:\x07|\x1b\\\\)|\x1b[ -/]*+[0-~]"
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def may_hold_controls(line: bytes) -> bool:
    """Whether UTF-8 bytes may hold controls; quick, because nearly none do. Those above ASCII begin with C2."""
    return len(line.translate(None, _BYTES)) != len(line) or b"\xc2" in line


def drop_controls(text: str) -> str:
    """Drop terminals' sequences and all controls but tabs and line feeds."""
    return _CONTROL.sub("", text)
