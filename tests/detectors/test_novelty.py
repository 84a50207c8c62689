"""News: told while rare, absorbed by blocks and by records, the same however the stream is cut."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.kept import MAX_BYTES, READERS
from detectors.novelty import (
    ABSORBED,
    BLOCK,
    HEAD,
    KNOWN,
    LEAST_BLOCKS,
    NAME,
    NEWS,
    OF_RECORDS,
    TOKENS,
    Novelty,
    NoveltyState,
    count_tokens,
    of_scores,
    with_news,
)
from detectors.parts import Learned, Parts
from detectors.rows import PartitionState
from features.decode import Decoder
from pipeline.outputs import Place
from pipeline.score import Line
from pipeline.slices import Processed, process_slice
from pipeline.store import RowStore

EVERY = np.array([True])


def count(tokens: list[int], state: NoveltyState | None = None) -> tuple[list[int], NoveltyState]:
    """What is found of records with one token each, of which 0 is known."""
    hashes = np.array(tokens, np.uint64)[:, None]
    found, state = count_tokens(NoveltyState.empty(1) if state is None else state, hashes, hashes > 0, EVERY)
    return found[:, 0].tolist(), state


def test_a_burst_is_news_to_its_end_and_a_flood_is_not() -> None:
    """A token that comes now and then is news each time; one that makes up more than its share is absorbed."""
    found, _ = count([0, 7] * 20 + [0] * 100 + [7])
    assert found == [KNOWN, NEWS] * 20 + [KNOWN] * 100 + [NEWS]
    flood, _ = count([7] * 1_000)
    absorbed_from = flood.index(ABSORBED)
    assert flood == [NEWS] * absorbed_from + [ABSORBED] * (1_000 - absorbed_from)
    assert absorbed_from == pytest.approx(OF_RECORDS * HEAD, rel=0.05)


def test_what_comes_in_block_after_block_is_no_news() -> None:
    """Prevalence counts blocks, so however few records have it, what is always there is absorbed."""
    found, _ = count(([7] + [0] * (BLOCK - 1)) * (LEAST_BLOCKS + 4))
    first = [n for n in found if n != KNOWN]
    assert first[0] == NEWS
    assert first == [NEWS] * LEAST_BLOCKS + [ABSORBED] * 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 5, 6, 7]), max_size=900), st.lists(st.integers(0, 900), max_size=6))
def test_any_slicing_and_restoring_is_the_same(tokens: list[int], cuts: list[int]) -> None:
    """Cut anywhere, saved and read back: the same is found, and the same is remembered."""
    whole, at_once = count(tokens)
    state, found = NoveltyState.empty(1), []
    for low, high in pairwise([0, *sorted(min(c, len(tokens)) for c in cuts), len(tokens)]):
        part, state = count(tokens[low:high], NoveltyState.unpack(state.pack()))
        found += part
    assert found == whole
    assert state.pack() == at_once.pack()


def test_memory_is_bounded() -> None:
    """A flood of tokens that come once each: so many are news, then none is until old ones have gone."""
    found, state = count(list(range(1, 5_000)))
    assert found == [NEWS] * TOKENS + [ABSORBED] * (4_999 - TOKENS)
    assert len(state.pack()) < MAX_BYTES
    later = replace(state, sizes=state.sizes + np.array([0, 0, 5_000 * BLOCK]))
    assert count([9_999], later)[0] == [NEWS]


def test_what_came_long_ago_counts_half() -> None:
    """After a million records the counts are halved, so what is common now is absorbed however old the stream."""
    _, state = count([7] * 50)
    old = replace(state, sizes=np.array([1, (1 << 20) - 1, (1 << 20) - 1]))
    _, after = count([7], old)
    assert after.sizes.tolist() == [1, 1 << 19, 1 << 20]
    assert after.records[0] == 25


def test_a_state_is_what_it_was() -> None:
    """Every number comes back through the registry; other bytes are refused."""
    _, state = count([3, 4, 3, 0])
    again = READERS[NAME](state.pack())
    for column in fields(NoveltyState):
        np.testing.assert_array_equal(getattr(again, column.name), getattr(state, column.name))
    for harm in (b"", b"\1" * 33, state.pack()[:-3]):
        with pytest.raises(ValueError, match="o"):
            READERS[NAME](harm)


@given(st.floats(1e-4, 0.5), st.lists(st.floats(1e-6, 1), min_size=1, max_size=4))
def test_the_promise_is_shared_out(promise: float, rates: list[float]) -> None:
    """News never take more than half of the promise; what scores lose is what news were among held-back records."""
    watched, share = Novelty(tuple(rates)).share(promise)
    assert share <= 0.5 + 1e-9
    assert share * promise == pytest.approx(np.array(rates)[watched].sum())
    p_values = np.array([promise * (1 - share), promise, 1.0])
    found = np.array([[KNOWN], [NEWS], [ABSORBED]], np.int8)
    told = with_news(of_scores(p_values, share), found, promise)
    assert told[0] == pytest.approx(promise)
    assert told[1] <= promise
    assert told[2] == 1.0


def score(actions: list[str], parts: Parts) -> tuple[Processed, PartitionState]:
    """Records of one session each."""
    lines = [
        Line(i, Place("t", 0), i, 0, None, json.dumps({"s": f"s{i}", "action": action, "status": "ok"}).encode())
        for i, action in enumerate(actions)
    ]
    events = Decoder("s", None, ["action", "status"], {}).decode(lines, check_key=False)
    done = process_slice(RowStore(parts.shape, parts.rules), events, PartitionState(0), parts)
    assert done is not None
    return done, done.state


def test_a_stream_that_is_new_from_its_first_record(parts: Parts, learned: Learned) -> None:
    """News are anomalies until they are absorbed; then the record's other fields alone decide, for good."""
    knowing = replace(parts, rate=0.02, learned=replace(learned, novelty=Novelty((0.001, 0.001))))
    done, state = score(["brand new"] * 600, knowing)
    alarmed, news = done.verdicts.anomaly, (done.verdicts.news == NEWS).any(axis=1)
    assert alarmed[news].all()
    assert news[:90].all()
    assert not news[200:].any()
    assert (done.verdicts.surprise[200:, 0] == 0).all()
    assert (done.verdicts.surprise[:90, 0] > 0).all()
    assert state.kept[NAME] is not None


def test_fields_full_of_unknown_tokens_are_left_to_the_model(parts: Parts, learned: Learned) -> None:
    """Where training itself held back many unknown tokens, none is news, and the score stays as it is."""
    knowing = replace(parts, learned=replace(learned, novelty=Novelty((0.3, 0.3))))
    done, state = score(["brand new"] * 300, knowing)
    without, _ = score(["brand new"] * 300, parts)
    np.testing.assert_array_equal(done.verdicts.score, without.verdicts.score)
    np.testing.assert_array_equal(done.verdicts.p_value, without.verdicts.p_value)
    assert NAME not in state.kept


def test_nothing_is_news_where_the_order_is_not_known(parts: Parts, learned: Learned) -> None:
    """Events that wait are released when somebody looks; counting them would depend on that."""
    knowing = replace(parts, learned=replace(learned, novelty=Novelty((0.001, 0.001))))
    assert knowing.news[0].all()
    assert not replace(knowing, rules=replace(parts.rules, reorder_ms=100)).news[0].any()
    assert not replace(knowing, rules=replace(parts.rules, windowed=True)).news[0].any()
    assert not replace(knowing, finds_news=False).news[0].any()


def test_another_bundle_begins_anew(parts: Parts, learned: Learned) -> None:
    """To another bundle other tokens are unknown."""
    knowing = replace(parts, learned=replace(learned, novelty=Novelty((0.001, 0.001))))
    _, state = score(["brand new"] * 300, knowing)
    other = replace(knowing, learned=replace(knowing.learned, digest="f" * 64))  # type: ignore[type-var]
    lines = [Line(0, Place("t", 0), 900, 0, None, b'{"s": "x", "action": "brand new", "status": "ok"}')]
    events = Decoder("s", None, ["action", "status"], {}).decode(lines, check_key=False)
    done = process_slice(RowStore(parts.shape, parts.rules), events, state, other)
    assert done is not None
    assert done.verdicts.news.tolist() == [[NEWS, KNOWN]]
