"""Numbers in the tokens of log lines, with the units that stand at them: `42`, `size=4,`, `(3.5MB)`, `17ms`.

No number is what only looks like one: hexadecimal and other ids (`0x1f`, `blk_12`, `user7`), addresses, times, dates,
and numbers of more than 15 digits before the point, which a float does not hold and which are ids as well. Grouped
digits (`1,024`) and times of several units (`1m3s`) are not read either.
"""

from __future__ import annotations

import math
import re

from features.shapes import WILDCARD, Memory

_QUANTITY = re.compile(
    r"""
    [\[({<"'`]* (?: [A-Za-z_.-]+ [=:] )? [\[({<"'`]*        # what opens, and a name: `size=`
    ( [-+]? [0-9]{1,15} (?: \.[0-9]{1,300} )? (?: [eE] [-+]? [0-9]{1,2} )? )
    ( [kKMGTP]?i?B | ns | us | µs | μs | ms | s | secs? | m | min | h | % )?
    [\])}>"'`,;.:!?]*                                       # what closes
    """,
    re.VERBOSE,
)
# Sizes in bytes and times in seconds. Programs that write KB count in 1,024 as often as in 1,000.
_SCALES = {f"{prefix}{i}B": 1024.0**n for n, prefix in enumerate(["", "K", "M", "G", "T", "P"]) for i in ("", "i")}
_SCALES |= {"kB": 1024.0, "kiB": 1024.0}
_SCALES |= {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}
_UNIT_GIVEN = re.compile(re.escape(WILDCARD) + r"[^\W\d_]|" + re.escape(WILDCARD) + "%")


def read_quantity(token: str, *, scaled: bool) -> float:
    """The number in a token, NaN if there is none; never infinite.

    Parameters
    ----------
    scaled
        Turn units into bytes and seconds, where lines of one kind differ in them; else the number is as it is written.

    >>> [read_quantity(token, scaled=False) for token in ("(17ms),", "size=4,", "blk_12", "10.0.0.7:80", "0x1f")]
    [17.0, 4.0, nan, nan, nan]
    >>> read_quantity("took=17ms", scaled=True), read_quantity("3.5KB", scaled=True)
    (0.017, 3584.0)
    """
    found = _QUANTITY.fullmatch(token)
    if found is None:
        return math.nan
    number, unit = found.groups()
    return float(number) * _SCALES.get(unit, 1.0) if scaled else float(number)


def has_unit(token: str) -> bool:
    """Whether a template's token says the unit, so that no line of that template differs in it.

    >>> has_unit("<*>ms"), has_unit("<*>"), has_unit("<*><*>")
    (True, False, False)
    """
    return _UNIT_GIVEN.search(token) is not None


class Quantities(Memory[str, float]):
    """Token to number as `read_quantity` has it, remembered."""

    def __init__(self, *, scaled: bool) -> None:
        super().__init__()
        self._scaled = scaled

    def __missing__(self, token: str) -> float:
        number = read_quantity(token, scaled=self._scaled)
        self.make_room(len(token))
        self[token] = number
        return number
