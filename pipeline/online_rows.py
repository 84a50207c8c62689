"""What a partition has learned online, as small rows beside the partition row, written when they have changed.

Rows are framed as `pipeline/framed.py` says. `online/sizes` is JSON, and says what the others hold; these are numbers,
little endian, at most 1,024 entries in a row:

- `online/counts/N`: the names of the counts (u64), then the counts (f64). What came first stands first, and what comes
  often comes early: so most rows of a large table stay as they are for long.
- `online/scores/N`: the last scores (f32), a ring.
- `online/numbers`: the names of the numbers (u64), then count, mean and variance of each (f64).
- `online/before`, `online/now`: the trees' counts (u16).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from detectors.online import OnlineRules, OnlineState
from detectors.online_kernels import ENTRIES, MOMENTS, SCORES
from pipeline.cold_rows import Changes
from pipeline.errors import DamagedStateError
from pipeline.framed import content_of, frame, version_of

PREFIX = b"online/"
VERSION = 1
_PAGE = 1_024  # entries: 16 KB of counts
_SIZES, _COUNTS, _SCORES = PREFIX + b"sizes", PREFIX + b"counts/", PREFIX + b"scores/"
_NUMBERS, _BEFORE, _NOW = PREFIX + b"numbers", PREFIX + b"before", PREFIX + b"now"


class OnlineRows:
    """Which rows are saved, so that only what changed is written.

    Parameters
    ----------
    saved
        Every row whose key begins with `PREFIX`.
    """

    def __init__(self, saved: Mapping[bytes, bytes]) -> None:
        self._saved, self._state = dict(saved), None

    _state: OnlineState | None

    def changes(self, state: OnlineState | None, rules: OnlineRules) -> dict[bytes, bytes | None]:
        """Rows to write so that they say this state, None for those to delete; `settle` once they are written."""
        if state is self._state and (state is not None or not self._saved):
            return {}
        wanted = {} if state is None else encode_online(state, rules)
        changed: dict[bytes, bytes | None] = {k: v for k, v in wanted.items() if self._saved.get(k) != v}
        return changed | {key: None for key in self._saved if key not in wanted}

    def settle(self, state: OnlineState | None, changes: Changes) -> None:
        """They are written."""
        self._state = state
        for key, value in changes.items():
            if value is None:
                self._saved.pop(key, None)
            else:
                self._saved[key] = value


def encode_online(state: OnlineState, rules: OnlineRules) -> dict[bytes, bytes]:
    """The state as rows, by key."""
    entries, moments = int(state.sizes[ENTRIES]), int(state.sizes[MOMENTS])
    kept = min(int(state.sizes[SCORES]), len(state.scores))
    about = {"rules": asdict(rules), "sizes": state.sizes.tolist(), "trees": len(state.before)}
    rows = {_SIZES: orjson.dumps(about)}
    for page, low in enumerate(range(0, entries, _PAGE)):
        chosen = slice(low, min(low + _PAGE, entries))
        rows[_COUNTS + b"%04d" % page] = _bytes(state.keys[chosen], "<u8") + _bytes(state.counts[chosen], "<f8")
    for page, low in enumerate(range(0, kept, _PAGE)):
        rows[_SCORES + b"%04d" % page] = _bytes(state.scores[low : min(low + _PAGE, kept)], "<f4")
    if len(state.before):
        rows[_NUMBERS] = _bytes(state.number_keys[:moments], "<u8") + _bytes(state.moments[:moments], "<f8")
        rows[_BEFORE], rows[_NOW] = _bytes(state.before, "<u2"), _bytes(state.now, "<u2")
    return {key: frame(content, VERSION) for key, content in rows.items()}


def decode_online(saved: Mapping[bytes, bytes], rules: OnlineRules, numbers: int) -> OnlineState | None:
    """The state that rows hold; None where there are none, or where a release with other rules wrote them.

    Raises
    ------
    DamagedStateError
        A checksum differs, a row is missing, or one has another size than it must have.
    """
    if not saved:
        return None
    try:
        if version_of(saved[_SIZES]) != VERSION:
            return None
        about = orjson.loads(_content(saved, _SIZES))
        state = OnlineState.empty(rules, numbers)
        if about["rules"] != asdict(rules) or about["trees"] != len(state.before):
            return None
        state.sizes[:] = about["sizes"]
        _read_into(state, saved)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        message = f"what was learned online cannot be read ({error!r})"
        raise DamagedStateError(message) from None
    return state.indexed()


def _read_into(state: OnlineState, saved: Mapping[bytes, bytes]) -> None:
    entries, moments = int(state.sizes[ENTRIES]), int(state.sizes[MOMENTS])
    kept = min(int(state.sizes[SCORES]), len(state.scores))
    for page, low in enumerate(range(0, entries, _PAGE)):
        content, count = _content(saved, _COUNTS + b"%04d" % page), min(_PAGE, entries - low)
        state.keys[low : low + count] = np.frombuffer(content[: 8 * count], "<u8")
        state.counts[low : low + count] = np.frombuffer(content[8 * count :], "<f8")
    for page, low in enumerate(range(0, kept, _PAGE)):
        state.scores[low : min(low + _PAGE, kept)] = np.frombuffer(_content(saved, _SCORES + b"%04d" % page), "<f4")
    if len(state.before):
        content = _content(saved, _NUMBERS)
        state.number_keys[:moments] = np.frombuffer(content[: 8 * moments], "<u8")
        state.moments[:moments] = np.frombuffer(content[8 * moments :], "<f8").reshape(moments, 3)
        for key, masses in ((_BEFORE, state.before), (_NOW, state.now)):
            masses[:] = np.frombuffer(_content(saved, key), "<u2").reshape(masses.shape)


def _bytes(values: NDArray[Any], kind: str) -> bytes:
    return values.astype(kind).tobytes()


def _content(saved: Mapping[bytes, bytes], key: bytes) -> bytes:
    return content_of(saved[key], f"what was learned online, {key.decode()},")
