"""What detectors remember of a partition beside its sessions: one small state each, by the detector's name.

A state is plain numbers and never changed in place, so that a checkpoint may keep one while scoring goes on with the
next. It learns in the order of offsets and at fixed counts of records, never at a slice's end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from detectors.drift_watch import NAME as DRIFT
from detectors.drift_watch import DriftState
from detectors.novelty import NAME as NOVELTY
from detectors.novelty import NoveltyState
from detectors.profile_sightings import NAME as PROFILES
from detectors.profile_sightings import Sightings
from detectors.rate_watch import NAME as RATE
from detectors.rate_watch import RateState

MAX_BYTES = 256 << 10  # of one state: it is a row of the changelog


class Kept(Protocol):
    """A detector's state."""

    def pack(self) -> bytes:
        """As it is saved: at most `MAX_BYTES`."""
        ...


# By the detector's name, what turns `pack`'s bytes into the state again; None where another release wrote them, and the
# detector begins anew. It raises ValueError or KeyError where they say nothing.
READERS: Mapping[str, Callable[[bytes], Kept | None]] = {
    DRIFT: DriftState.unpack, NOVELTY: NoveltyState.unpack, PROFILES: Sightings.unpack, RATE: RateState.unpack,
}  # fmt: skip
