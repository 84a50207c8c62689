"""What detectors remember of a partition, as a small row each, written when it has changed.

The key is `kept/NAME`, the row framed as `pipeline/framed.py` says around what the state packs itself into.
"""

from __future__ import annotations

from collections.abc import Mapping

from detectors.kept import MAX_BYTES, READERS, Kept
from pipeline.errors import DamagedStateError
from pipeline.framed import content_of, frame, version_of

PREFIX = b"kept/"
VERSION = 1


class KeptRows:
    """Which states are saved, so that only what changed is written.

    Parameters
    ----------
    saved
        Every row whose key begins with `PREFIX`.
    """

    def __init__(self, saved: Mapping[bytes, bytes]) -> None:
        self._saved, self._states = set(saved), dict[str, Kept]()

    def changes(self, states: Mapping[str, Kept]) -> dict[bytes, bytes | None]:
        """Rows to write so that they say these states, None for those to delete; `settle` once they are written."""
        wanted = {name: state for name, state in states.items() if self._states.get(name) is not state}
        changed: dict[bytes, bytes | None] = {_key(name): encode(state) for name, state in wanted.items()}
        return changed | {key: None for key in self._saved - set(map(_key, states))}

    def settle(self, states: Mapping[str, Kept]) -> None:
        """They are written."""
        self._states, self._saved = dict(states), set(map(_key, states))


def encode(state: Kept) -> bytes:
    """A state as a row."""
    packed = state.pack()
    assert len(packed) <= MAX_BYTES, "what a detector remembers is bounded"
    return frame(packed, VERSION)


def decode_kept(saved: Mapping[bytes, bytes]) -> dict[str, Kept]:
    """The states that rows hold, by their detectors' names; those of detectors there are not any more are left out.

    Raises
    ------
    DamagedStateError
        A row cannot be read.
    """
    states = {}
    for key, row in saved.items():
        name = key.removeprefix(PREFIX).decode()
        if name not in READERS or version_of(row) != VERSION:
            continue
        what = f"what the detector {name} remembers"
        try:
            state = READERS[name](content_of(row, what))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            message = f"{what} cannot be read ({error!r})"
            raise DamagedStateError(message) from None
        if state is not None:
            states[name] = state
    return states


def _key(name: str) -> bytes:
    return PREFIX + name.encode()
