"""Session profiles: what is told from training's sessions, and how it joins a session's surprise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.combined import Combined, Scale
from detectors.profiles import LEVELS, MOST_COLUMNS, KnownProfiles, Profiles
from features.profiles import MOST, OTHERS, count_sessions, count_token, token_key
from features.tokens import stable_hash

ENTRIES = 6
sessions_of = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), min_size=1, max_size=20)


def profiles_of(sessions: Sequence[Sequence[str]], entries: int = ENTRIES) -> Profiles:
    """Profiles of sessions of one token field, a second between two events."""
    lengths = np.array(list(map(len, sessions)))
    tokens = np.array([[stable_hash(token)] for session in sessions for token in session], np.uint64)
    numbers = np.repeat(np.arange(len(sessions)), lengths).astype(np.int32)
    return Profiles(*count_sessions(numbers, tokens, len(sessions), entries), lengths, 1_000 * (lengths - 1))


def learned(sessions: Sequence[Sequence[str]]) -> KnownProfiles:
    """What is known of them."""
    return KnownProfiles.learn(profiles_of(sessions), 1)


USUAL = ["oab", "oaabb", "oaaabbb"] * 40  # as many b as a


def test_a_known_profile_is_at_no_distance() -> None:
    """Order does not matter, and what was seen is near; what was never seen is the further the more differs."""
    found = learned(USUAL).score(profiles_of(["boa", "oaab", "zzzzz"]))
    assert found.nearest[0] == 0
    assert 0 < found.nearest[1] < found.nearest[2]
    assert found.neighbour[0] != found.neighbour[1] or found.nearest[1] > 0


def test_pairs_see_one_event_too_many() -> None:
    """A relation of two counts that always held is broken by a single event; where it holds nothing is strange."""
    found = learned(USUAL).score(profiles_of(["oaabb", "oaabbb"]))
    assert found.pairs[1] > found.pairs[0] + 2


def test_a_profile_that_is_not_whole_has_no_score() -> None:
    """A session that began before its tokens were counted is not held against whole ones."""
    profiles = profiles_of(["oab", "oab"])
    profiles.events[1] += 4
    found = learned(USUAL).score(profiles)
    assert np.isnan(found.columns).tolist() == [[False, False], [True, True]]


@given(sessions_of, sessions_of, st.data())
def test_each_session_is_judged_alone(taught: list[list[str]], judged: list[list[str]], data: st.DataObject) -> None:
    """Whatever stands beside a session, its scores have the same bits."""
    known, profiles = learned(taught), profiles_of(judged)
    together = known.score(profiles)
    some = np.array(data.draw(st.lists(st.integers(0, len(judged) - 1), min_size=1)))
    np.testing.assert_array_equal(known.score(profiles.take(some)).columns, together.columns[some])


@given(sessions_of)
def test_what_taught_is_near(taught: list[list[str]]) -> None:
    """Each session that taught is at no distance, as long as all profiles are kept."""
    assert not learned(taught).score(profiles_of(taught)).nearest.any()


@given(sessions_of)
def test_arrays_and_back(taught: list[list[str]]) -> None:
    """A bundle's arrays hold all of it."""
    known, judged = learned(taught), profiles_of([*taught, "zab"])
    again = KnownProfiles.from_arrays(known.to_arrays())
    np.testing.assert_array_equal(again.score(judged).columns, known.score(judged).columns)


def test_memory_is_bounded() -> None:
    """However many tokens and profiles there are, what is kept has a bound."""
    rng = np.random.default_rng(0)
    sessions = [[f"token {n}" for n in rng.integers(0, 5_000, 20)] for _ in range(3_000)]
    known = learned(sessions)
    assert len(known.keys) == MOST_COLUMNS
    assert sum(array.nbytes for array in known.to_arrays().values()) < 2 << 20
    assert known.score(profiles_of(["never"])).nearest[0] > 0


def test_a_row_counts_what_it_has_no_entry_for() -> None:
    """Once the entries are taken, others count together, and nothing overflows."""
    keys, counts = np.zeros(3, np.uint64), np.zeros(3, np.uint16)
    names = [np.uint64(token_key(0, np.uint64(stable_hash(token)))) for token in "aabcdd"]
    for name in names:
        count_token(keys, counts, name)
    assert counts.tolist() == [2, 1, 3]
    assert keys.tolist() == [names[0], names[2], OTHERS]
    counts[0] = MOST
    count_token(keys, counts, names[0])
    assert counts[0] == MOST


def test_the_same_token_of_two_fields_counts_apart() -> None:
    """`ok` as a status is not `ok` as an answer."""
    token = np.uint64(stable_hash("ok"))
    assert token_key(0, token) != token_key(1, token)


def test_one_kind_of_session_and_one_session() -> None:
    """Constant training is no special case."""
    for taught in (["ab"], ["ab"] * 50):
        found = learned(taught).score(profiles_of(["ab", "abb"]))
        assert found.nearest[0] == 0 < found.nearest[1]
        assert np.isfinite(found.columns).all()


def test_long_sessions_and_durations_have_a_level() -> None:
    """A count, a length and a time beyond all levels are the last one."""
    profiles = profiles_of(["a" * 40])
    profiles.duration_ms[:] = 2**60
    known = learned(USUAL)
    assert known.nats.shape[2:] == (LEVELS, LEVELS)
    assert np.isfinite(known.score(profiles).pairs).all()


# --- combined ----------------------------------------------------------------------------------------------------


def test_one_sure_detector_suffices() -> None:
    """What one finds far beyond everything is strange, however usual it looks to the others."""
    rng = np.random.default_rng(1)
    scores = rng.gamma(2, 1, (2_000, 3)).astype(np.float32)
    combined = Combined.learn(scores)
    told = combined.score(np.array([[60, 0.5, 0.5], [2, 2, 2]], np.float32))
    assert told[0] > combined.score(scores).max() > told[1]


def test_detectors_that_say_the_same_count_as_one() -> None:
    """Three copies of a detector say what one says, so that a rank among held-back sessions is the same."""
    scores = np.random.default_rng(2).gamma(2, 1, (500, 1)).astype(np.float32)
    alone, thrice = Combined.learn(scores).score(scores), Combined.learn(np.tile(scores, 3)).score(np.tile(scores, 3))
    np.testing.assert_allclose(alone, thrice, rtol=1e-6)


def test_what_is_not_known_counts_for_nothing() -> None:
    """A detector without a score takes part as one that finds nothing strange."""
    scores = np.random.default_rng(3).gamma(2, 1, (500, 2)).astype(np.float32)
    combined = Combined.learn(scores)
    nothing = combined.score(np.array([[3, np.nan]], np.float32))
    assert nothing < combined.score(np.array([[3, 9]], np.float32))
    assert nothing == combined.score(np.array([[3, scores[:, 1].min()]], np.float32))


@pytest.mark.parametrize("scores", [np.zeros(200), np.full(200, 7.0), np.r_[np.zeros(199), 5.0]])
def test_scores_that_are_all_alike(scores: np.ndarray) -> None:
    """Constant scores are usual, and any larger one is not."""
    scale = Scale.learn(scores.astype(np.float32))
    usual, strange = scale.nats(np.array([scores[0], scores.max() + 1], np.float32))
    assert 0 <= usual < 0.1
    assert np.isfinite(strange)
    assert strange > 3


@given(st.lists(st.floats(0, 50, width=32), min_size=20, max_size=200), st.data())
def test_strangeness_never_falls_as_scores_rise(drawn: list[float], data: st.DataObject) -> None:
    """A higher score is at least as strange, over the join of counting and tail too."""
    scale = Scale.learn(np.array(drawn, np.float32))
    asked = np.sort(np.array(data.draw(st.lists(st.floats(-5, 99, width=32), min_size=2)), np.float32))
    assert (np.diff(scale.nats(asked)) >= -1e-9).all()
