"""What a line is read into, and the names that mean the same in every format."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]  # texts, numbers, truth values and None; objects and lists in JSON, objects in syslog's data

# Writers of JSON and logfmt choose their own names. These are read under ours as well.
_OURS = {
    "msg": "message", "short_message": "message", "log": "message", "event": "message",
    "severity": "level", "lvl": "level", "loglevel": "level", "log_level": "level", "levelname": "level",
    "log.level": "level",
    "timestamp": "time", "ts": "time", "@timestamp": "time", "datetime": "time",
    "hostname": "host",
    "app": "service", "service.name": "service",
    "logger_name": "logger", "loggerName": "logger", "log.logger": "logger",
}  # fmt: skip


def add_our_names(fields: Fields) -> Fields:
    """Give known fields our names beside their own; a field that is there is never changed, the first of two counts."""
    for name in _OURS.keys() & fields.keys() and [name for name in fields if name in _OURS]:
        value = fields[name]
        if isinstance(value, str | int | float):
            fields.setdefault(_OURS[name], value)
    return fields
