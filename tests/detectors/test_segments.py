"""Segments: those with enough data are judged by their own scores, the others by the stream's."""

from __future__ import annotations

import numpy as np

from detectors.calibration import Calibration
from detectors.segments import LEAST_SCORES, calibrate_segments, segment_arrays, segment_p_values, segments_of
from features.tokens import stable_hash

RATE = 0.01


def drawn(seed: int, sizes: dict[str | None, int]) -> tuple[np.ndarray, list[str | None]]:
    """Scores ten times as large in the second segment, mixed as they would come."""
    rng = np.random.default_rng(seed)
    names = [name for name, count in sizes.items() for _ in range(count)]
    order = rng.permutation(len(names))
    names = [names[i] for i in order.tolist()]
    loud = np.array([10.0 if name == "loud" else 1.0 for name in names])
    return (rng.gamma(4, 1, len(names)) * loud).astype(np.float32), names


def test_segments_keep_the_promise_each() -> None:
    """With one calibration the loud segment has all alarms; with its own each has about the promised share."""
    scores, names = drawn(0, {"quiet": 4_000, "loud": 1_000})
    stream, own = Calibration.learn(scores), calibrate_segments(scores, names, RATE)
    assert sorted(own) == sorted(map(stable_hash, ("quiet", "loud")))
    fresh, of = drawn(1, {"quiet": 40_000, "loud": 10_000})
    together, apart = stream.p_values(fresh) <= RATE, segment_p_values(fresh, of, stream, own) <= RATE
    is_loud = np.array([name == "loud" for name in of])
    assert (together[is_loud].mean() > 4 * RATE, together[~is_loud].any()) == (True, False)
    for chosen in (is_loud, ~is_loud):
        assert 0.5 * RATE < apart[chosen].mean() < 1.7 * RATE


def test_segments_with_too_little_share_the_streams() -> None:
    """Too few scores, or too few for the promise: the stream's p-values, and so without a segment."""
    scores, names = drawn(2, {"quiet": LEAST_SCORES, "loud": LEAST_SCORES - 1, None: 100})
    assert list(calibrate_segments(scores, names, RATE)) == [stable_hash("quiet")]
    assert calibrate_segments(scores, names, 1e-4) == {}
    stream, own = Calibration.learn(scores), calibrate_segments(scores, names, RATE)
    of: list[str | None] = ["loud", None, "never seen", "quiet"]
    found = segment_p_values(np.full(4, 9, np.float32), of, stream, own)
    assert found[:3].tolist() == stream.p_values(np.full(3, 9, np.float32)).tolist()
    assert found[3] != found[0]


def test_segments_are_saved_without_their_names() -> None:
    """Read again they give the same p-values; a file from before segments has none."""
    scores, names = drawn(3, {"quiet": 900, "loud": 900})
    records, sessions = calibrate_segments(scores, names, RATE), calibrate_segments(scores[5:], names[5:], RATE)
    del sessions[stable_hash("loud")]
    whole = Calibration.learn(scores).to_arrays("records") | segment_arrays(records, sessions)
    assert not any("quiet" in key or "loud" in key for key in whole)
    again = segments_of(whole)
    for before, after in zip((records, sessions), again, strict=True):
        assert sorted(after) == sorted(before)
        for name in before:
            assert after[name].p_values(scores).tolist() == before[name].p_values(scores).tolist()
    assert segments_of(Calibration.learn(scores).to_arrays("records")) == ({}, {})
