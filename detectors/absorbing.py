"""Sessions whose profile is known by now: their ends are judged by surprise alone. A pure step of `process_batch`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detectors.contexts import Window
from detectors.patterns import pattern_of_end
from detectors.profile_sightings import NAME, Sightings, count_profiles, moments, sightings_of
from features.profiles import profile_hashes

if TYPE_CHECKING:
    from detectors.kept import Kept
    from detectors.parts import Parts
    from detectors.process import SessionEnds, Taken
    from detectors.rows import SessionRows


def absorb(
    taken: Taken, ends: SessionEnds, rows: SessionRows, kept: Mapping[str, Kept], parts: Parts
) -> tuple[SessionEnds, Mapping[str, Kept]]:
    """Count the profiles of ended sessions that training never met, and let those be that are known by now.

    A session with a pattern that people have called an anomaly is neither counted nor absorbed.

    Parameters
    ----------
    rows
        Those before the slice.
    """
    if ends.by_profile is None or parts.learned is None or not parts.absorbs:
        return ends, kept
    state = sightings_of(kept, parts.learned.number)
    absorbed, unmet = np.zeros(len(ends.operation), np.bool_), ends.by_profile.nearest > 0.0
    unmet &= ~_labelled(taken, ends, unmet, frozenset(state.labelled), rows, parts)
    if len(absorbed):
        when = moments(taken.walk, ends.last_offset, taken.ordered, parts.rules)
        hashes = profile_hashes(ends.profiles.keys, ends.profiles.counts)
        absorbed, state = count_profiles(state, hashes, unmet, when, ends.last_offset, parts.absorbs_after)
        kept = {**kept, NAME: state}
    return replace(ends, absorbed=absorbed, by_profile=ends.by_profile.without(absorbed)), kept


def with_label(
    kept: Mapping[str, Kept], pattern: int, *, is_anomaly: bool, parts: Parts
) -> Mapping[str, Kept]:  # fmt: skip
    """What detectors remember once a pattern was labelled."""
    state = sightings_of(kept, 0 if parts.learned is None else parts.learned.number)
    after = state.with_label(pattern, is_anomaly=is_anomaly)
    return kept if after.labelled == state.labelled else {**kept, NAME: after}


def only_labels(kept: Mapping[str, Kept]) -> Mapping[str, Kept]:
    """What detectors remember where a stream begins anew: what people have said."""
    labelled = sightings_of(kept, 0).labelled
    return {NAME: Sightings(0, labelled=labelled)} if labelled else {}


def _labelled(
    taken: Taken, ends: SessionEnds, among: NDArray[np.bool_], labelled: frozenset[int], rows: SessionRows, parts: Parts
) -> NDArray[np.bool_]:  # fmt: skip
    """(E,) which of some sessions have a pattern that was called an anomaly."""
    found = np.zeros(len(among), np.bool_)
    for e in np.flatnonzero(among).tolist() if labelled else ():
        window = Window.before(taken, int(ends.operation[e]), rows)
        found[e] = pattern_of_end(ends, e, window, parts) in labelled
    return found
