"""Profiles that training never met: absorbed after so many sightings, the same however the stream is cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors import profile_sightings
from detectors.absorbing import only_labels, with_label
from detectors.kept import MAX_BYTES, READERS
from detectors.parts import Parts
from detectors.patterns import pattern_of_session
from detectors.profile_explanation import explain_profile
from detectors.profile_sightings import MOST, MOST_LABELLED, NAME, SHARE, Sightings, count_profiles, sightings_of
from detectors.profiles import KnownProfiles
from detectors.rows import PartitionState
from features.events import Events
from features.profiles import ENTRIES, token_key
from features.sessions import NEVER_MS
from features.tokens import stable_hash
from pipeline.kept_rows import PREFIX, decode_kept, encode
from pipeline.slices import Processed, process_slice
from pipeline.store import RowStore
from tests.conftest import with_profiles
from tests.detectors.test_process import as_columns, property_test
from tests.naive import Event

AFTER = 2
Key = tuple[str, int]  # a session's name and its last record
Moment = tuple[int, int, int]


@dataclass
class Open:
    """A session, as the definition follows it."""

    first_ms: int
    last_ms: int = -1
    watermark_ms: int = -1
    offset: int = -1
    words: Counter[tuple[int, str | None]] = field(default_factory=Counter)

    def over_ms(self, parts: Parts) -> int:
        """After which watermark it is over."""
        return min(self.last_ms + parts.rules.gap_ms, self.first_ms + parts.rules.max_duration_ms)


def by_definition(events: list[Event], parts: Parts) -> dict[Key, bool]:
    """Which sessions are absorbed, found from all of them at once and each moment of an end as it is defined."""
    ends: dict[Key, tuple[Moment, Any]] = {}
    open_: dict[str, Open] = {}

    def end(name: str, moment: Moment) -> None:
        session = open_.pop(name)
        ends[name, session.offset] = moment, frozenset(session.words.items())

    def end_by_time(name: str) -> None:
        session, over_ms = open_[name], open_[name].over_ms(parts)
        late = over_ms < session.watermark_ms
        end(name, (session.watermark_ms, 0, session.offset) if late else (over_ms, 1, 0))

    watermark_ms, seen = -1, set[str | None]()
    for event in events:
        if event.id is not None and event.id in seen:
            continue
        seen.add(event.id)
        watermark_ms = max(watermark_ms, event.time_ms)
        for name in [name for name, session in open_.items() if session.over_ms(parts) < watermark_ms]:
            end_by_time(name)
        session = open_.setdefault(event.session, Open(event.time_ms))
        session.last_ms = max(session.last_ms, event.time_ms)
        session.watermark_ms, session.offset = watermark_ms, event.offset
        session.words.update(enumerate(event.tokens))
        if event.is_end or session.words.total() == 2 * parts.rules.max_events:
            end(event.session, (watermark_ms, 0, event.offset))
    for name in list(open_):
        end_by_time(name)
    unmet = {key for key, (_, words) in ends.items() if is_unmet(words, parts)}

    def is_absorbed(key: Key) -> bool:
        moment, words = ends[key]
        before = [ends[other][0] for other in unmet if ends[other][0] < moment and ends[other][1] == words]
        since = sum(min(before, default=moment) <= other < moment for other, _ in ends.values())
        return len(before) >= max(AFTER, SHARE * since)

    return {key: key in unmet and is_absorbed(key) for key in ends}


def is_unmet(words: frozenset[tuple[tuple[int, str | None], int]], parts: Parts) -> bool:
    """Whether training met no session with these counts."""
    known = known_profiles(parts)
    column = {int(key): at + 1 for at, key in enumerate(known.keys)}
    counts = np.zeros(1 + len(known.keys), np.int64)
    for (number, word), count in words:
        counts[column.get(int(token_key(number, np.uint64(stable_hash(word)))), 0)] += count
    return not (known.known == counts).all(axis=1).any()


def known_profiles(parts: Parts) -> KnownProfiles:
    """What the bundle knows."""
    assert parts.learned is not None
    assert parts.learned.profiles is not None
    return parts.learned.profiles


def cut_up(
    events: list[Event], cuts: list[int], parts: Parts, limit: int | None = None
) -> Iterator[tuple[Processed, PartitionState]]:
    """A stream in slices, as a worker scores them, with what is remembered saved and read back between any two."""
    store, state = RowStore(parts.shape, parts.rules), PartitionState(0)
    for low, high in pairwise([0, *sorted(min(c, len(events)) for c in cuts), len(events)]):
        left: Events | None = as_columns(events[low:high])
        more_due = True
        while left is not None or more_due:
            given = as_columns([]) if left is None else left
            done = process_slice(store, given, state, parts, limit=limit)
            assert done is not None
            state, left, more_due = restored(done.state), done.left, done.more_due
            yield done, state
    done = process_slice(store, as_columns([]), state, parts, closing=store.open_names())
    assert done is not None
    yield done, done.state


def restored(state: PartitionState) -> PartitionState:
    """After a checkpoint and a restart."""
    rows = {PREFIX + name.encode(): encode(kept) for name, kept in state.kept.items()}
    return replace(state, kept=decode_kept(rows))


def told(run: list[tuple[Processed, PartitionState]]) -> tuple[dict[Key, tuple[bool, float]], bytes]:
    """Which sessions were absorbed, with their p-values, and what is remembered in the end."""
    found: dict[Key, tuple[bool, float]] = {}
    for done, _ in run:
        ends, walk = done.verdicts.ends, done.verdicts.walk
        assert ends.absorbed is not None
        names = [done.names[row] for row in walk.row[ends.operation].tolist()]
        found |= dict(
            zip(
                zip(names, ends.last_offset.tolist(), strict=True),
                zip(ends.absorbed.tolist(), ends.p_value.tolist(), strict=True),
                strict=True,
            )
        )
    return found, sightings_of(run[-1][1].kept, 1).pack()


def absorbing(parts: Parts, **rules: Any) -> Parts:
    """Parts that absorb after a few sightings, and keep no promise online: that is another matter."""
    return replace(with_profiles(parts, ENTRIES), absorbs_after=AFTER, rules=replace(parts.rules, **rules))


streams = st.lists(
    st.tuples(
        st.sampled_from([f"s{n}" for n in range(20)]),
        st.sampled_from([0, 0, 0, 400, 800]) | st.sampled_from([30_000, 1_200, 3_000, -3_000, -9_000]),
        st.sampled_from([("teleport", "ok")] * 5 + [("teleport", None), ("view", "<oov>")]),
        st.sampled_from([False] * 4 + [True]),
        st.sampled_from([None] * 9 + ["again"]),
    ),
    min_size=4,
    max_size=40,
)
cuts_of_a_stream = st.just(list(range(40))) | st.lists(st.integers(0, 40), max_size=8)
rules = st.builds(dict, max_duration_ms=st.sampled_from([NEVER_MS, 4_000]), max_events=st.sampled_from([2, 100]))


@property_test
@given(streams, rules, cuts_of_a_stream, st.sampled_from([None, 1, 1, 2]))
def test_any_slicing_is_the_definition(
    parts: Parts, drawn: list[Any], of_sessions: dict[str, int], cuts: list[int], limit: int | None
) -> None:
    """Cut anywhere, saved and read back anywhere, few sessions ended in one go: what is absorbed is as defined."""
    parts = replace(absorbing(parts, **of_sessions), remembered=100)
    now, events = 1_000_000, []
    for offset, (session, step, tokens, is_end, identity) in enumerate(drawn):
        now += step
        events.append(Event(2 * offset, session, now, tokens, is_end, identity or f"e{offset}"))
    whole, kept = told(list(cut_up(events, [], parts)))
    assert {key: absorbed for key, (absorbed, _) in whole.items()} == by_definition(events, parts)
    assert told(list(cut_up(events, cuts, parts, limit))) == (whole, kept)


def events_of(words: list[str], name: str = "s", at_ms: int = 1_000_000) -> list[Event]:
    """Sessions of one record that each ends its own."""
    return [Event(i, f"{name}{i}", at_ms + i, (word, "ok"), True) for i, word in enumerate(words)]


def test_what_is_absorbed_alarms_no_more(parts: Parts) -> None:
    """Ten sightings are strange, the next are judged by surprise alone; other profiles stay strange; 0 switches off."""
    ten = replace(absorbing(parts), absorbs_after=10)
    words = ["teleport"] * 15 + ["pay"]
    (done, state), *_ = cut_up(events_of(words), [], ten)
    (without, unchanged), *_ = cut_up(events_of(words), [], replace(ten, absorbs_after=0))
    ends, usual = done.verdicts.ends, without.verdicts.ends
    assert ends.absorbed is not None
    assert ends.absorbed.tolist() == [False] * 10 + [True] * 5 + [False]
    assert (ends.p_value[10:15] > usual.p_value[10:15]).all()
    np.testing.assert_array_equal(np.delete(ends.p_value, range(10, 15)), np.delete(usual.p_value, range(10, 15)))
    assert usual.absorbed is None
    assert NAME in state.kept
    assert NAME not in unchanged.kept


def test_an_explanation_says_so(parts: Parts) -> None:
    """Of a session that is strange for another reason it says that its profile is known by now."""
    alarming = replace(absorbing(parts), rate=1.0)
    (done, _), *_ = cut_up(events_of(["teleport"] * 4), [], alarming)
    told = [explain_profile(done.verdicts.ends, end, alarming) for end in range(4)]
    assert [profile is not None and profile["absorbed"] for profile in told] == [False, False, True, True]
    assert told[3] is not None
    assert told[3]["nats"]["nearest"] == told[3]["nats"]["pairs"] == 0.0
    assert told[3]["pair"] is None


@pytest.mark.parametrize("labelled_at", [0, 3])
def test_what_people_call_an_anomaly_is_never_absorbed(parts: Parts, labelled_at: int) -> None:
    """Whether it was absorbed before or not; and is once they call it normal."""
    parts = absorbing(parts)
    events = events_of(["teleport"] * 6)
    (done, _), *_ = cut_up(events, [], parts)
    pattern = pattern_of_session(done.verdicts, 5, done.rows, parts)

    def absorbed(label: bool | None) -> list[bool]:
        store, state, found = RowStore(parts.shape, parts.rules), PartitionState(0), list[bool]()
        for at, event in enumerate(events):
            if at == labelled_at and label is not None:
                state = replace(state, kept=with_label(state.kept, pattern, is_anomaly=True, parts=parts))
                if not label:
                    state = replace(state, kept=with_label(state.kept, pattern, is_anomaly=False, parts=parts))
            done = process_slice(store, as_columns([event]), state, parts)
            assert done is not None
            assert done.verdicts.ends.absorbed is not None
            state = restored(done.state)
            found += done.verdicts.ends.absorbed.tolist()
        return found

    assert absorbed(None) == absorbed(False) == [False, False, True, True, True, True]
    assert absorbed(True) == ([False, False, True, True, True, True][:labelled_at] + [False] * 6)[:6]


def test_labels_outlive_bundles_and_new_topics() -> None:
    """What was counted was of other profiles; what people said holds. The oldest labels give way."""
    _, state = count(Sightings(1, labelled=(5,)), [(7, 3)])
    after = sightings_of({NAME: state}, 2)
    assert (after.bundle, len(after.profiles), after.labelled) == (2, 0, (5,))
    assert only_labels({NAME: state}) == {NAME: Sightings(0, labelled=(5,))}
    assert only_labels({}) == {}
    for pattern in range(MOST_LABELLED + 3):
        state = state.with_label(pattern, is_anomaly=True)
    assert state.labelled[0] == 3
    assert len(state.labelled) == MOST_LABELLED


def count(
    state: Sightings, drawn: list[tuple[int, int]], offsets: np.ndarray | None = None
) -> tuple[list[bool], Sightings]:
    """Count sessions with profiles that training never met, by their profiles and moments; profile 0 is known."""
    profiles, moments = np.array(drawn, np.int64).reshape(-1, 2).T
    at = np.arange(len(drawn)) if offsets is None else offsets
    absorbed, after = count_profiles(state, profiles.astype(np.uint64), profiles > 0, moments, at, AFTER)
    return absorbed.tolist(), after


def test_what_is_rare_is_never_absorbed() -> None:
    """One session in five is soon usual, one in fifty stays what it is, however often it has come."""
    for every, expected in ((5, True), (50, False)):
        drawn = [(7 if at % every == 0 else 0, 2 * at) for at in range(2_000)]
        found, _ = count(Sightings(1), drawn)
        assert found[-every:] == [expected] + [False] * (every - 1)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0, 0, 1, 1, 2])), max_size=60),
    st.randoms(use_true_random=False),
    st.lists(st.integers(0, 60), max_size=5),
)
def test_what_is_forgotten_does_not_depend_on_the_order_within_a_moment(drawn: Any, random: Any, cuts: Any) -> None:
    """However those of one moment of time come, and are cut: the same is found and remembered, and no more than may."""
    most, profile_sightings.MOST = profile_sightings.MOST, 3
    try:
        moments = np.cumsum([2 * step for _, step in drawn]) + 1
        given_ = [(profile, int(moment)) for (profile, _), moment in zip(drawn, moments, strict=True)]
        found, whole = count(Sightings(1), given_)
        order = sorted(range(len(given_)), key=lambda i: (given_[i][1], random.random()))
        state, again = Sightings(1), [False] * len(given_)
        for low, high in pairwise([0, *sorted(min(c, len(given_)) for c in cuts), len(given_)]):
            at = order[low:high]
            part, state = count(Sightings.unpack(state.pack()) or state, [given_[i] for i in at], np.array(at))
            for i, absorbed in zip(at, part, strict=True):
                again[i] = absorbed
            assert len(state.profiles) <= 6
    finally:
        profile_sightings.MOST = most
    assert again == found
    assert state == whole


def test_memory_is_bounded() -> None:
    """A flood of profiles that come once each, one after the other and all at once; the newest are remembered."""
    flood = [(profile, 2 * profile) for profile in range(1, 3 * MOST)]
    _, state = count(Sightings(1, labelled=tuple(range(MOST_LABELLED))), flood)
    assert len(state.profiles) == MOST + 1
    assert min(state.profiles) == 2 * MOST - 1
    together = [(profile, 10 * MOST + 1) for profile in range(1, 4 * MOST)]
    _, state = count(state, together)
    assert len(state.profiles) == 2 * MOST
    assert len(state.pack()) < MAX_BYTES


def test_a_state_is_what_it_was() -> None:
    """Everything comes back through the registry; other bytes are refused, and those of another version begin anew."""
    _, state = count(Sightings(1, labelled=(9, 8)), [(3, 2), (4, 3), (3, 5), (5, 5)])
    read = READERS[NAME]
    assert read(state.pack()) == state
    assert read(b"\x07" + state.pack()[1:]) is None
    for harm in (b"", state.pack()[:-3], state.pack() + b"\0"):
        with pytest.raises(ValueError, match="cannot be unpacked"):
            read(harm)


def test_nothing_is_absorbed_where_the_order_is_not_known(parts: Parts) -> None:
    """Events that wait are released when somebody looks; counting them would depend on that."""
    knowing = absorbing(parts)
    assert knowing.absorbs
    assert not absorbing(parts, reorder_ms=100).absorbs
    assert not absorbing(parts, windowed=True).absorbs
    assert not replace(knowing, absorbs_after=0).absorbs
    assert not replace(knowing, learned=None).absorbs
