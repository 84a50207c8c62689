"""Which configured fields no record has, and which ones the user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from features.paths import Path, format_path

LOOKED_AT = 1_000  # records searched for a field that was meant
_MOST_PATHS = 10_000
_DEEPEST = 8


def lacking(paths: Iterable[Path], events: Iterable[Any]) -> set[Path]:
    """Those of the paths under which no event has a value; null is none. Reads no further than to find all.

    >>> lacking({("a",), ("b", 1)}, [{"b": [0, None]}, {"a": 1}])
    {('b', 1)}
    """
    left = set(paths)
    for event in events:
        left = {path for path in left if not _has(event, path)}
        if not left:
            break
    return left


def nearest(path: Path, events: Iterable[Any]) -> str | None:
    """The field of the first events that looks most like `path`: ends alike if one does, else is spelt alike.

    >>> nearest(("usr", "id"), [{"user": {"id": 7, "plan": "pro"}}])
    'user.id'
    """
    known = dict.fromkeys(
        islice((p for event in islice(events, LOOKED_AT) for p in _paths(event, ())), _MOST_PATHS)
    )  # fmt: skip
    wanted = format_path(path)
    alike = [format_path(p) for p in known if p[-1] == path[-1]] or [format_path(p) for p in known]
    found = difflib.get_close_matches(wanted, list(dict.fromkeys(alike)), n=1, cutoff=0.4)
    return found[0] if found else None


def _has(event: Any, path: Path) -> bool:
    for part in path:
        if isinstance(part, str):
            event = event.get(part) if isinstance(event, dict) else None
        else:
            event = event[part] if isinstance(event, list) and len(event) > part else None
    return event is not None


def _paths(value: Any, above: Path) -> Iterator[Path]:
    """Paths of the values that are neither objects nor lists; of lists the first element stands for all."""
    if isinstance(value, dict) and len(above) < _DEEPEST:
        for key, below in value.items():
            yield from _paths(below, (*above, key))
    elif isinstance(value, list) and value and len(above) < _DEEPEST:
        yield from _paths(value[0], (*above, 0))
    elif above and not isinstance(value, dict | list):
        yield above
