"""JSON to typed objects that hold just the fields a config names; everything else is skipped while it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from features.errors import NotJsonError, WrongTypeError
from features.paths import Path, format_path

_AT = re.compile(r"at `\$\.(.+)`$")  # where the JSON reader says an error is
Kinds = frozenset[type]  # of str, int, float, bool; null and absence are allowed always
ANY: Kinds = frozenset({str, int, float, bool})


class JsonFields:
    """Reads some fields of JSON objects.

    Parameters
    ----------
    kinds
        What each field may be; a field with `ANY` may be an object or a list as well.
    numbers
        Fields that may lie beyond all floats, as 1e999 does. Whoever reads them checks their kinds: in a record with
        such a number they may be anything.

    Raises
    ------
    ValueError
        One path lies inside another (`user` and `user.id`), or takes an object for a list.
    """

    def __init__(self, kinds: Mapping[Path, Kinds], numbers: Collection[Path] = ()) -> None:
        self._tree = _tree(kinds)
        self._beyond = _tree({path: ANY if path in numbers else kind for path, kind in kinds.items()})
        self._decode, self._decode_beyond = _decoder(_struct(self._tree)), _decoder(_struct(self._beyond))

    def parse(self, value: bytes) -> Any:
        """Read one object, for the columns.

        Raises
        ------
        NotJsonError, WrongTypeError
            The bytes are no JSON, or a field is not of its kinds.
        """
        return _parse(self._decode, self._decode_beyond, value, ())

    def parse_all(self, values: Sequence[bytes]) -> list[Any] | None:
        """Read many, quicker than one by one; None where one of them takes a closer look."""
        try:
            return list(map(self._decode, values))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def column(self, path: Path) -> Callable[[list[Any]], list[Any]]:
        """What reads a field of parsed objects; None where it, or an object or list around it, is absent or null.

        Raises
        ------
        WrongTypeError
            By the reader: inside a list, elements are looked at one by one, and only then.
        """
        careful = _reader(self._tree, self._beyond, path, ())
        if any(isinstance(part, int) for part in path):
            return lambda events: list(map(careful, events))
        quick = attrgetter(".".join(map(_attribute, path)))

        def read(events: list[Any]) -> list[Any]:
            try:
                return list(map(quick, events))
            except AttributeError:  # an object around the field is absent
                return list(map(careful, events))

        return read


Tree = Any  # kinds at a leaf; else a dictionary of trees by key, or by position in a list


def _tree(kinds: Mapping[Path, Kinds]) -> Tree:
    root: dict[str | int, Tree] = {}
    for path, leaf in kinds.items():
        node = root
        for i, part in enumerate(path):
            if node and isinstance(next(iter(node)), int) != isinstance(part, int):
                message = f"the field {format_path(path[:i])} is used as an object and, in another place, as a list"
                raise ValueError(message)
            last = i == len(path) - 1
            below = node.setdefault(part, leaf if last else {})
            if (below is not leaf) if last else not isinstance(below, dict):
                message = (
                    f"the field {format_path(path[: i + 1])} is used as a value and, in another place, as an object"
                )
                raise ValueError(message)
            node = below
    return root


def _type(tree: Tree) -> Any:
    if not isinstance(tree, dict):
        return _union(tree)
    # Elements stay raw: those that nobody asked for may be of any shape.
    return (list[msgspec.Raw] if isinstance(next(iter(tree)), int) else _struct(tree)) | None


def _struct(tree: Tree) -> type[msgspec.Struct]:
    fields = [(_attribute(name), _type(below), None) for name, below in tree.items()]
    return msgspec.defstruct("Event", fields, rename={_attribute(n): n for n in tree}, kw_only=True, gc=False)


def _union(kinds: Kinds) -> Any:
    if kinds == ANY:
        return Any  # compared only, so any value will do
    union: Any = None
    for kind in sorted(kinds, key=lambda k: k.__name__):
        union = kind if union is None else union | kind
    return union | None


def _reader(tree: Tree, beyond: Tree, path: Path, before: Path) -> Callable[[Any], Any]:
    """What reads `path` from a parsed value of one of the trees' types, None included."""
    if not path:
        return lambda value: value
    head, at = path[0], (*before, path[0])
    inner = _reader(tree[head], beyond[head], path[1:], at)
    if isinstance(head, str):
        get = attrgetter(_attribute(head))
        return lambda value: None if value is None else inner(get(value))
    decode, decode_beyond = _decoder(_type(tree[head])), _decoder(_type(beyond[head]))

    def element(values: list[msgspec.Raw] | None) -> Any:
        return None if values is None or len(values) <= head else inner(_parse(decode, decode_beyond, values[head], at))

    return element


def _decoder(of: Any) -> Callable[[Any], Any]:
    return msgspec.json.Decoder(of, float_hook=float).decode  # the hook makes 1e999 infinite where anything is taken


def _parse(decode: Callable[[Any], Any], decode_beyond: Callable[[Any], Any], value: Any, at: Path) -> Any:
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        if decode is not decode_beyond and "Number out of range" in str(error):
            return _parse(decode_beyond, decode_beyond, value, at)
        found = _AT.search(str(error))
        inside = () if found is None else (found[1],)
        raise WrongTypeError(_plain(error, at), ".".join(map(str, (*at, *inside)))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotJsonError(_plain(error, at)) from None


def _plain(error: Exception, at: Path) -> str:
    """The decoder's own sentence, with the JSON path in words a user knows."""
    text = str(error).replace("`$.", "`").replace("`", "'").replace(" - at '$'", "") or type(error).__name__
    return f"{text} (in {format_path(at)})" if at else text


def _attribute(name: str | int) -> str:
    """A Python attribute name for any JSON field name."""
    return "f_" + str(name).encode().hex()
