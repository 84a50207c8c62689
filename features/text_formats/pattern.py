"""A user's pattern for lines: checked when it is made, because a slow one stops a worker on the first evil line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from re import _constants as ops  # type: ignore[attr-defined]  # private, and the only way to a pattern's tree
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from features.errors import NoMatchError, TooLongError
from features.text_formats.fields import Fields

MAX_PATTERN_CHARACTERS = (
    4_096  # of a line: time may grow with its square, 70 ms here and minutes at 256 KB, and a slice has 1,000 lines
)
_FEW = 8  # a part repeated at most so often counts as written out

_BACKTRACKS = (ops.MAX_REPEAT, ops.MIN_REPEAT)
_SEALED = (ops.POSSESSIVE_REPEAT, ops.ATOMIC_GROUP)


class Pattern:
    """A regular expression with named groups, matched from the beginning of a line.

    Parameters
    ----------
    pattern
        In Python's syntax. It need not reach the line's end.

    Raises
    ------
    ValueError
        It is no regular expression, names no group, matches the empty line, or holds what can take exponential time:
        a repetition of something that is itself of varying length, or a reference back.
    """

    def __init__(self, pattern: str) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)  # [[:alpha:]] means something else elsewhere
                tree = parser.parse(pattern)
                self._match = re.compile(pattern).match
        except (re.error, OverflowError, RecursionError, FutureWarning) as error:
            message = f"the pattern is no regular expression: {error}"
            raise ValueError(message) from None
        self.fields = tuple(tree.state.groupdict)
        if not self.fields:
            message = "the pattern names no group; write (?P<message>.*) around what is to be the field message"
            raise ValueError(message)
        if self._match("") is not None:
            message = "the pattern matches the empty line, so it would match every line; make a part of it obligatory"
            raise ValueError(message)
        _refuse_slow(tree)

    def read(self, line: str) -> Fields:
        """Read the groups that took part in the match.

        Raises
        ------
        TooLongError
            The line has more than `MAX_PATTERN_CHARACTERS` characters.
        NoMatchError
            The line does not match.
        """
        if len(line) > MAX_PATTERN_CHARACTERS:
            message = f"the line has {len(line)} characters; {MAX_PATTERN_CHARACTERS} are allowed with a pattern"
            raise TooLongError(message)
        found = self._match(line)
        if found is None:
            message = "the line does not match the stream's pattern"
            raise NoMatchError(message)
        return {name: text for name, text in found.groupdict().items() if text is not None}


def _refuse_slow(tree: Any) -> None:
    for op, argument in _walk(tree, into_sealed=True):
        if op in (ops.GROUPREF, ops.GROUPREF_EXISTS):
            message = "the pattern refers back to one of its groups, which can take exponential time; write it out"
            raise ValueError(message)
        if op in _BACKTRACKS and argument[1] > _FEW and _varies(argument[2]):
            message = (
                "the pattern repeats a part that can match the same text in several ways, which can take exponential "
                "time; make the repetition possessive, as in (?:\\w+ ?)*+"
            )
            raise ValueError(message)


def _varies(body: Any) -> bool:
    return any(
        op is ops.BRANCH or (op in _BACKTRACKS and argument[0] != argument[1])
        for op, argument in _walk(body, into_sealed=False)
    )


def _walk(tree: Any, *, into_sealed: bool) -> Iterator[tuple[Any, Any]]:
    """Every node of a pattern's tree; possessive and atomic parts, which are matched in one way only, as asked."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple) and len(node) == 2 and isinstance(node[0], type(ops.BRANCH)):
            op, argument = node
            yield op, argument
            if op in _SEALED and not into_sealed:
                continue
            node = argument
        if isinstance(node, tuple | list | parser.SubPattern):
            waiting.extend(node)
