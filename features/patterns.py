"""What detectors are made of: a cheap look at a text, a mask, and where a word begins and ends."""

from __future__ import annotations

from collections.abc import Callable
from re import Match, Pattern
from typing import NamedTuple

# The character before these ends an escape and so belongs to no word, for logs hold JSON and URLs as text: `\n4111...`,
# `%204111...`.
ESCAPED = r"(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2})"
# A find stands alone: no letter, digit or underscore touches it.
START = rf"(?:(?<![0-9A-Za-z_])|{ESCAPED})"
END = r"(?![0-9A-Za-z_])"

_SHAPES = bytes(
    ord("0") if chr(c).isdigit() else ord("a") if chr(c).isalpha() else ord(" ") if chr(c) == "?" else c
    for c in range(128)
) + bytes(128)  # fmt: skip
# START where only the shape is known, behind a group that may begin a find
SHAPE_START = r"(?:(?<![a0_]{0})|(?<=\\a{0})|(?<=%[a0]{{2}}{0}))"


def shape_of(text: str) -> str:
    r"""What kinds of characters a text has: digits as 0, letters as a, ? and all beyond ASCII as a space.

    A search in it is quicker than one in the text, and each character keeps its place.

    >>> shape_of("Paid with 4111-1111")
    'aaaa aaaa 0000-0000'
    """
    return text.encode("ascii", "replace").translate(_SHAPES).decode("ascii")


class Detector(NamedTuple):
    """One kind of thing that free text should not say.

    Attributes
    ----------
    name
        What it finds, in a word or two.
    may_hold
        Told a text, the text in lower case and its shape: False only where `mask` would change nothing. Most texts
        hold nothing, so this decides how fast masking is.
    mask
        The text with each find replaced by its label, in time linear in the text's length.
    """

    name: str
    may_hold: Callable[[str, str, str], bool]
    mask: Callable[[str], str]


def replace(pattern: Pattern[str], length: Callable[[Match[str]], int], label: str, text: str) -> str:
    """Replace candidates that stand a check.

    Parameters
    ----------
    pattern
        Finds candidates of bounded length.
    length
        How many characters of a candidate are to be replaced; 0 if it is none. The search then goes on at the
        candidate's second character, because a true find may begin within a false one.
    label
        What stands there instead.
    """
    parts: list[str] = []
    done = at = 0
    while (candidate := pattern.search(text, at)) is not None:
        at = candidate.start() + 1
        if found := length(candidate):
            parts += text[done : candidate.start()], label
            done = at = candidate.start() + found
    return "".join([*parts, text[done:]]) if parts else text
