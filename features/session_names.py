"""Names of sessions that several fields identify: `acme/u-1` for the fields `tenant` and `user.id`.

Tuples that differ have names that differ, because `/` and `%` inside a value are written as `%2F` and `%25`. A session
of one field is named by its value as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from features.masking import Masker


def join_name(values: Sequence[str]) -> str:
    """One name of several values.

    >>> join_name(["acme", "50%/50"])
    'acme/50%25%2F50'
    """
    return "/".join(value.replace("%", "%25").replace("/", "%2F") for value in values)


def split_name(name: str) -> list[str]:
    """The values that `join_name` made a name of."""
    return [part.replace("%2F", "/").replace("%25", "%") for part in name.split("/")]


def name_masker(masker: Masker, fields: Sequence[str]) -> Callable[[str], str] | None:
    """What masks names of sessions: each field's part by the field's own rule; None where no field has one.

    Parameters
    ----------
    fields
        Paths of the session's fields, in the order of their parts, or `@key` alone.
    """
    ways = [masker.of(field) for field in fields]
    if not any(ways):
        return None
    if len(ways) == 1:
        (way,) = ways
        return lambda name: str(way(name)) if way is not None else name

    def mask(name: str) -> str:
        parts = zip(split_name(name), ways, strict=True)
        return join_name([part if way is None else str(way(part)) for part, way in parts])

    return mask
