"""Fields of text records by their paths, held to the same kinds as those of JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from features.errors import RecordError, WrongTypeError
from features.json_fields import ANY, Kinds
from features.paths import Path, format_path
from features.text_lines import LineReader


class TextFields:
    """Reads some fields of lines; see `LineReader` for what a line is read into.

    Raises
    ------
    ValueError
        The reader has a pattern, and it does not give a field.
    """

    def __init__(self, reader: LineReader, kinds: Mapping[Path, Kinds]) -> None:
        self.parse: Callable[[bytes], Any] = reader.read
        self._kinds = dict(kinds)
        for path in kinds:
            if reader.fields is not None and path not in {(name,) for name in reader.fields}:
                given = ", ".join(sorted(reader.fields))
                message = f"the pattern gives no field {format_path(path)}; its named groups are {given}"
                raise ValueError(message)

    def parse_all(self, values: Sequence[bytes]) -> list[Any] | None:
        """Read many; None where one of them cannot be read."""
        try:
            return list(map(self.parse, values))
        except RecordError:
            return None

    def column(self, path: Path) -> Callable[[list[Any]], list[Any]]:
        """What reads a field of lines; None where it is absent or null. It raises WrongTypeError for other kinds."""
        get = self._getter(path)
        return lambda lines: list(map(get, lines))

    def _getter(self, path: Path) -> Callable[[Any], Any]:
        kinds = self._kinds[path]
        if len(path) == 1 and kinds == ANY:
            name = path[0]
            return lambda fields: fields.get(name)

        def get(fields: Any) -> Any:
            value = _walk(fields, path)
            if value is not None and type(value) not in kinds and kinds != ANY:
                expected = " or ".join(sorted(kind.__name__ for kind in kinds))
                message = f"Expected {expected}, got {type(value).__name__} - at '{format_path(path)}'"
                raise WrongTypeError(message, ".".join(map(str, path)))
            return value

        return get


def _walk(value: Any, path: Path) -> Any:
    for part in path:
        if isinstance(part, str):
            value = value.get(part) if isinstance(value, dict) else None
        else:
            value = value[part] if isinstance(value, list) and len(value) > part else None
    return value
