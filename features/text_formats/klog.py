"""klog, the log format of Kubernetes and of other programs in Go."""

from __future__ import annotations

import re

from features.text_formats.fields import Fields

_LINE = re.compile(
    r"([IWEF])((?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]) \d\d:\d\d:\d\d\.\d{1,9}) +(\d{1,10}) "
    r"([^\s:\]]{1,255}+):(\d{1,7})\] ?(.*)",
    re.ASCII,
)
_LEVELS = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "FATAL"}


def read_klog(text: str) -> Fields | None:
    """Read `Lmmdd hh:mm:ss.uuuuuu pid file:line] message`; the date has no year, so there is no `time`."""
    found = _LINE.match(text)
    if found is None:
        return None
    letter, moment, pid, file, line, message = found.groups()
    return {
        "level": _LEVELS[letter], "partial_time": moment, "pid": int(pid), "file": file, "line": int(line),
        "message": message,
    }  # fmt: skip
