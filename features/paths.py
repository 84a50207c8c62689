"""Field paths: `user.id`, `items[0].sku`, `attributes["service.name"]`."""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

# No quotes, backslashes or control characters in keys: the JSON reader takes none.
_KEY = re.compile(r'[^.\[\]\s"\\\x00-\x1f][^.\[\]"\\\x00-\x1f]*')
_BRACKET = re.compile(r'\[(?:(\d{1,6})|"([^"\\\x00-\x1f]+)")\]')


def parse_path(text: str) -> Path:
    """Read a path: keys with dots between them, `[N]` for an element of a list, `["..."]` for any other key.

    Returns
    -------
    path
        Keys as text, positions in lists (from 0) as whole numbers.

    Raises
    ------
    ValueError
        It is no path; the sentence says how one is written.

    Examples
    --------
    >>> parse_path('items[0].sku'), parse_path('attributes["service.name"]')
    (('items', 0, 'sku'), ('attributes', 'service.name'))
    """
    path: list[str | int] = []
    at = 0
    while at < len(text):
        if found := _BRACKET.match(text, at):
            number, key = found.groups()
            path.append(int(number) if key is None else key)
        else:
            dotted = bool(path)  # every key but the first has a dot before it
            found = _KEY.match(text, at + dotted) if not dotted or text[at] == "." else None
            if found is None:
                break
            path.append(found[0])
        at = found.end()
    if at < len(text) or not path or isinstance(path[0], int):
        message = f'{text!r} is no field: write its name, or a path such as user.id, items[0].sku or user["e.mail"]'
        raise ValueError(message)
    return tuple(path)


def format_path(path: Path) -> str:
    """Text that `parse_path` reads as this path."""
    parts = [f"[{p}]" if isinstance(p, int) else _format_key(p) for p in path]
    return "".join(parts).removeprefix(".")


def _format_key(key: str) -> str:
    return f".{key}" if _KEY.fullmatch(key) else f'["{key}"]'
