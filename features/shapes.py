"""The shape of a log line: its tokens, with what varies masked. Miner and matcher share it, so they cannot differ."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import TypeVar

WILDCARD = "<*>"
MAX_CHARACTERS = 4_096  # of a line; what follows is not read, so that a line of 1 MB costs no more than one of 4 KB

Shape = tuple[str, ...]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_VARIABLE = re.compile(
    r"""(
      <\*>                                                  # the line itself holds a wildcard
    | [\ud800-\udfff]+                                      # no UTF-8 can hold these, so no template may
    | (?<![A-Za-z0-9]) (?:
          0[xX][0-9A-Fa-f]+
        | [0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}
        | [0-9A-Fa-f]{1,4}(?: ::?[0-9A-Fa-f]{1,4}){3,}      # addresses of networks and devices
        | (?=[A-Fa-f]*[0-9])(?=[0-9]*[A-Fa-f])[0-9A-Fa-f]{4,}
      ) (?![A-Za-z0-9])
    | (?<![A-Za-z]) [KMGTP]?i?B (?![A-Za-z0-9])             # a size's unit changes as its number grows
    | (?: (?<![A-Za-z0-9])[-+] )? [0-9]+ (?: [.:][0-9]+ )* (?: [eE][-+]?[0-9]+(?![A-Za-z0-9]) )?
    )""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"[-+]?[0-9]{1,300}(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2})?")  # none of these is infinite
_CACHED_BYTES = 16_000_000  # more is no faster: words fit many times, and a number seldom comes twice
_ENTRY_BYTES = 500


def split_line(line: str) -> list[str]:
    """Tokens of a line: what stands between white space, in its first 4,096 characters."""
    return line[:MAX_CHARACTERS].split()


def mask(token: str) -> tuple[str, tuple[str, ...]]:
    """Replace what varies in a token by wildcards; their texts, in order.

    Masked are numbers (with sign, point, colon, exponent: so times and addresses too), hexadecimal ones, UUIDs and
    other runs of hexadecimal digits, units of size, and lone surrogates. The mask depends on nothing but the token.

    >>> mask("blk_-3544"), mask("10.0.0.7:80,"), mask("(5.4"), mask("ready")
    (('blk_<*>', ('-3544',)), ('<*>,', ('10.0.0.7:80',)), ('(<*>', ('5.4',)), ('ready', ()))
    """
    parts = _VARIABLE.split(token)
    return (token, ()) if len(parts) == 1 else (WILDCARD.join(parts[::2]), tuple(parts[1::2]))


def shape_of(line: str) -> Shape:
    """The masked tokens of a line.

    >>> shape_of("Took 1.2 s for user7")
    ('Took', '<*>', 's', 'for', 'user<*>')
    """
    return tuple(mask(token)[0] for token in split_line(line))


def as_number(value: str) -> float | None:
    """A wildcard's text as a finite number, or None if it is none.

    >>> as_number("-12.5"), as_number("10.0.0.7"), as_number("nan"), as_number("1e99")
    (-12.5, None, None, 1e+99)
    """
    return float(value) if _NUMBER.fullmatch(value) else None


class Memory(dict[K, V]):
    """A cache that starts anew when it is full, because a flood of distinct lines must not fill memory."""

    def __init__(self) -> None:
        super().__init__()
        self._room = _CACHED_BYTES

    def make_room(self, characters: int) -> None:
        """Before an entry whose texts hold so many characters."""
        self._room -= characters + _ENTRY_BYTES
        if self._room < 0:
            self.clear()
            self._room = _CACHED_BYTES - characters - _ENTRY_BYTES


class Masks(Memory[str, str]):
    """Token to masked token, remembered. `values_of` gives a token's wildcards' texts."""

    def __init__(self) -> None:
        super().__init__()
        self.values_of = _Values()

    def __missing__(self, token: str) -> str:
        masked, values = mask(token)
        self.make_room(3 * len(token))
        if values:
            self.values_of[token] = values
        self[token] = masked
        return masked

    def clear(self) -> None:
        """Forget all; a token whose values are asked for afterwards is masked once more."""
        super().clear()
        self.values_of.clear()


class _Values(dict[str, tuple[str, ...]]):
    def __missing__(self, token: str) -> tuple[str, ...]:
        return mask(token)[1]


def shape_characters(shape: Shape) -> int:
    """What a remembered shape takes, as a number of characters."""
    return 9 * len(shape) + sum(map(len, shape))
