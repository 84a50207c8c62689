"""A second stage says what its core would have said of the whole session, as often as its budget lets it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.calibration import Calibration
from detectors.packing import unpack
from detectors.parts import Parts, SecondStage
from detectors.rescoring import Rescore
from detectors.rows import PartitionState
from models.bundle import read_bundle, write_bundle
from models.errors import BundleError
from models.torch_runtime import TorchRuntime
from pipeline.slices import Processed, process_slice
from pipeline.store import RowStore
from tests.conftest import CONTEXT, make_number_parts
from tests.detectors.test_fit import history, train
from tests.detectors.test_process import as_columns, as_events, columns_of, cut, cuts_of_a_stream, events_of_a_stream
from tests.detectors.test_process_cores import NATS, parts_of

CALIBRATION = Calibration.learn(np.random.default_rng(0).gamma(12, 1, 400))
MANY = 1_000


def watched(core: str, passes: int = MANY) -> tuple[Parts, Parts]:
    """A stream under a GRU that alarms half of all, with that core behind it, and the same under that core alone."""
    alone, light = parts_of(core), make_number_parts("wide")
    assert alone.learned is not None
    assert light.learned is not None
    assert isinstance(alone.learned.runtime, TorchRuntime)
    second = SecondStage(core, alone.learned.runtime, alone.shape.hidden, CALIBRATION, CALIBRATION)
    learned = replace(light.learned, second=second)
    return replace(light, learned=learned, second=core, passes=passes, rate=0.5), replace(alone, rate=1.0)


def run(slices: list[list[Any]], parts: Parts, state: PartitionState | None = None) -> list[Processed]:
    """A stream from its beginning."""
    store, done = RowStore(parts.shape, parts.rules), []
    state = PartitionState(0) if state is None else state
    for piece in slices:
        processed = process_slice(store, as_columns(piece, columns_of(parts)), state, parts)
        assert processed is not None
        state = processed.state
        done.append(processed)
    return done


def anomalies(done: Processed) -> set[tuple[str, int]]:
    """Those it may look at."""
    verdicts, ends = done.verdicts, done.verdicts.ends
    short = verdicts.walk.ended_events[ends.operation] <= CONTEXT
    records = {("record", int(verdicts.events.offsets[i])) for i in np.flatnonzero(verdicts.anomaly).tolist()}
    return records | {("session", int(o)) for o in ends.last_offset[ends.anomaly & short]}


def said(done: list[Processed]) -> dict[tuple[str, int], Rescore]:
    """What was said, by record or session and the offset it is named by."""
    found = {}
    for each in done:
        verdicts = each.verdicts
        found |= {("record", int(verdicts.events.offsets[i])): r for i, r in each.rescored.records.items()}
        found |= {("session", int(verdicts.ends.last_offset[e])): r for e, r in each.rescored.sessions.items()}
    return found


@settings(max_examples=30, deadline=None)
@given(drawn=events_of_a_stream, cuts=cuts_of_a_stream, core=st.sampled_from(["transformer", "tcn"]))
def test_it_says_what_its_core_would_have_said(drawn: list[Any], cuts: list[int], core: str) -> None:
    """Of each anomaly, however the stream is cut: a record's score is that of the core served alone.

    So is that of a session no longer than the context; at a longer one it does not look.
    """
    parts, alone = watched(core)
    events = as_events(drawn, parts)
    done, theirs = run(cut(events, cuts), parts), run([events], alone)
    found = said(done)
    assert found.keys() == {key for d in done for key in anomalies(d)}
    assert sum(d.rescored.skipped for d in done) == sum(d.verdicts.ends.anomaly.sum() for d in done) - sum(
        key[0] == "session" for key in found
    )
    for whole in theirs:
        verdicts, ends = whole.verdicts, whole.verdicts.ends
        wanted = {("record", int(o)): s for o, s in zip(verdicts.events.offsets, verdicts.score, strict=True)}
        wanted |= {("session", int(o)): s for o, s in zip(ends.last_offset, ends.score, strict=True)}
        for key in found.keys() & wanted.keys():
            assert found[key].score == pytest.approx(wanted[key], abs=NATS, rel=1e-4)
    for rescore in found.values():
        (p_value,) = CALIBRATION.p_values(np.array([rescore.score], np.float32))
        assert (rescore.core, rescore.p_value, rescore.confirmed) == (core, p_value, p_value <= parts.rate)


@settings(max_examples=20, deadline=None)
@given(drawn=events_of_a_stream.filter(lambda drawn: len(drawn) > 10), cuts=cuts_of_a_stream, passes=st.integers(1, 5))
def test_a_budget_is_for_a_thousand_offsets(drawn: list[Any], cuts: list[int], passes: int) -> None:
    """The first anomalies have their turn, others are counted; the next thousand has a budget of its own.

    Which records these are does not depend on how the stream is cut.
    """
    parts, _ = watched("tcn", passes)
    events = [replace(e, offset=e.offset if i < 8 else e.offset + 1_000) for i, e in enumerate(as_events(drawn, parts))]
    done = run(cut(events, cuts), parts)
    found, (everything, _) = said(done), watched("tcn")
    would = said(run(cut(events, cuts), everything))
    assert found.keys() <= would.keys()
    both = sum(int(d.verdicts.anomaly.sum() + d.verdicts.ends.anomaly.sum()) for d in done)
    assert len(found) + sum(d.rescored.skipped for d in done) == both
    for block in (0, 1):
        records = sorted(k for k in would if k[0] == "record" and k[1] // 1_000 == block)
        assert {k for k in found if k[0] == "record" and k[1] // 1_000 == block} == set(records[:passes])
    assert sum(key[0] == "session" for key in found) <= 2 * passes
    again = run(
        [events], parts, PartitionState(0, rescoring=((7, passes), (7, passes)))
    )  # the source was made anew since
    assert len(said(again)) == len(said(run([events], parts)))


def test_numbers_have_tails_behind_a_core_without_bins() -> None:
    """Forecasts have no tails; what looks again by bins does, or a value far beyond all would be usual to it."""
    parts, _ = watched("tcn")
    linear = replace(parts, model=replace(parts.model, core="linear"))
    far = np.array([[1e9, 0.0]], np.float32)
    hashes = np.zeros((1, 2), np.uint64)
    ids = linear.ids_of_context(hashes, far, np.zeros(1, np.int64))
    assert linear.tails_of_context(hashes, far, ids)[0, 0] > 5
    assert replace(linear, second=None).tails_of_context(hashes, far, ids)[0, 0] == 0


def test_it_is_off_where_the_config_says_so() -> None:
    """A bundle that was trained with one may serve a stream that no longer wants it."""
    parts, _ = watched("tcn")
    events = as_events([("a", 0, ("view", "ok"), False, (0.0, 0.0, 0.0))] * 3, parts)
    (done,) = run([events], replace(parts, second=None, rate=1.0))
    assert done.verdicts.anomaly.any()
    assert (said([done]), done.rescored.skipped) == ({}, 0)


def test_it_is_trained_saved_and_read_back(parts: Parts, tmp_path: Path) -> None:
    """With calibrations of its own: it agrees with part of what the first core finds; another config is refused."""
    asked = replace(parts, rate=0.05, learned=None, second="tcn", passes=MANY, model=replace(parts.model, window=8))
    fitted = train(asked, history(300))
    digest = write_bundle(tmp_path, fitted.content, fitted.files, "2026-01-01T00:00:00Z")
    bundle = read_bundle(tmp_path / digest)
    assert bundle.content["schema"]["second_stage"] == "tcn"
    assert bundle.content["training"]["second_stage"]["epochs"] > 1
    learned = unpack(bundle, asked)
    assert learned.second is not None
    assert learned.second.records.count == learned.records.count
    served = replace(asked, learned=learned, encoder=replace_vocabulary(parts, learned.vocabulary))
    events = history(300, seed=2)[0]
    processed = process_slice(RowStore(served.shape, served.rules), events, PartitionState(0), served)
    assert processed is not None
    agreed = [rescore.confirmed for rescore in processed.rescored]
    assert len(agreed) > 10
    assert 0.2 < np.mean(agreed) < 1
    with pytest.raises(BundleError, match="was trained with second_stage tcn, but the config says second_stage"):
        unpack(bundle, replace(asked, second="transformer"))


def replace_vocabulary(parts: Parts, vocabulary: Any) -> Any:
    """An encoder of other words."""
    return type(parts.encoder)(parts.shape.fields, vocabulary)
