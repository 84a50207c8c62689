"""Time gaps: what is one, what it costs to have none, and that an answer which comes far too late is found."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.fit import _recipe, fit
from detectors.history import find_sessions
from detectors.learned_fields import learn_fields
from detectors.packing import unpack
from detectors.parts import Parts
from detectors.process import Verdicts, rebuild_stale
from detectors.rows import PartitionState
from features.numbers import MISSING
from features.time_gaps import GAP
from models.bundle import Bundle
from models.errors import BundleError
from models.sequences import Sequence, Sequences
from models.spec import ModelSpec
from models.torch_runtime import TorchRuntime
from models.training import TrainingOptions, _Training
from pipeline.outputs import Emitter, Place
from pipeline.score import Line
from pipeline.sentences import why_of
from pipeline.serving import make_decoder, make_parts
from pipeline.settings import Settings, parse_settings
from pipeline.slices import process_slice
from pipeline.store import RowStore
from tests.conftest import make_learned, random_weights, with_gaps
from tests.detectors.test_process import (
    as_columns,
    as_events,
    columns_of,
    cut,
    cuts_of_a_stream,
    events_of_a_stream,
    property_test,
    rules_of_a_stream,
    with_rules,
)
from tests.naive import Event

PLACE = Place("shop.orders", 0)
START_MS = 1_700_000_000_000


def judged(slices: list[list[Event]], parts: Parts) -> tuple[list[Verdicts], RowStore]:
    """The verdicts of each slice."""
    store, state, out = RowStore(parts.shape, parts.rules), PartitionState(0), []
    for part in slices:
        done = process_slice(store, as_columns(part, columns_of(parts)), state, parts)
        assert done is not None
        state = done.state
        out.append(done.verdicts)
    return out, store


def gaps_of(verdicts: list[Verdicts]) -> dict[int, tuple[float, float]]:
    """Each event's gap and what it adds to the score, by offset."""
    return {
        int(v.events.offsets[i]): (float(v.measures[i, -1]), float(v.surprise[i, -1]))
        for v in verdicts
        for i in range(len(v.events))
    }


def test_what_a_gap_is(parts: Parts) -> None:
    """Seconds since the session's latest event: none for a first event and a late one, 0 where the clock went back."""
    parts = with_rules(with_gaps(parts), {"allowed_ms": 2_000})
    moments = [("a", 10_000), ("b", 10_200), ("a", 14_500), ("a", 13_000), ("a", 14_750), ("a", 1_000), ("b", 16_000)]
    events = [Event(i, name, at, ("view", "ok"), False) for i, (name, at) in enumerate(moments)]
    found = [gap for gap, _ in gaps_of(judged([events], parts)[0]).values()]
    np.testing.assert_array_equal(found, [math.nan, math.nan, 4.5, 0.0, 0.25, math.nan, math.nan])  # b was silent: anew


@property_test
@given(
    drawn=events_of_a_stream, cuts=cuts_of_a_stream, rules=rules_of_a_stream, by=st.sampled_from([None, 0])
)  # fmt: skip
def test_gaps_are_the_same_for_any_slicing_and_none_costs_nothing(
    drawn: list[Any], cuts: list[int], rules: dict[str, Any], by: int | None, parts: Parts
) -> None:
    """Cut anywhere, each event has the same gap and score of it; where there is none, that score is 0 exactly."""
    parts = with_rules(with_gaps(parts, by=by), {**rules, "reorder_ms": 0})
    events = as_events(drawn, parts)
    whole, sliced = gaps_of(judged([events], parts)[0]), gaps_of(judged(cut(events, cuts), parts)[0])
    np.testing.assert_equal(sliced, whole)
    firsts = [nats for gap, nats in whole.values() if math.isnan(gap)]
    assert firsts == [0.0] * len(firsts)
    assert bool(firsts) == bool(events)


def test_torch_agrees_that_none_costs_nothing(parts: Parts) -> None:
    """What the kernel says of gaps torch says within its tolerance, and 0 of none."""
    parts = with_gaps(parts)
    assert parts.learned is not None
    spec = dataclasses.replace(parts.model, sizes=(*parts.learned.vocabulary.sizes, *parts.learned.numbers.sizes))
    torch_runs = TorchRuntime(spec, random_weights(0, spec.sizes, spec.hidden))
    other = dataclasses.replace(parts, learned=dataclasses.replace(parts.learned, model=torch_runs))
    events = [Event(i, "ab"[i % 2], 700 * i * i, (["view", "add"][i % 3 % 2], "ok"), False) for i in range(9)]
    kernel, torch = (gaps_of(judged([events], of)[0]) for of in (parts, other))
    for offset, (gap, nats) in kernel.items():
        assert torch[offset][1] == (0.0 if math.isnan(gap) else pytest.approx(nats, abs=2e-4))


def test_a_new_bundle_replays_gaps(parts: Parts) -> None:
    """Under another bundle a row equals a fresh run over its events: gaps are in what it keeps of them."""
    parts = with_gaps(parts)
    events = [Event(i, "a", 400 * i * i, (["view", "add", "pay"][i % 3], "ok"), False) for i in range(5)]
    other = with_gaps(dataclasses.replace(parts, learned=make_learned(7), fields=parts.fields[:-1],
                      shape=dataclasses.replace(parts.shape, numbers=0)), seed=7)  # fmt: skip
    assert other.learned is not None
    other = dataclasses.replace(other, learned=dataclasses.replace(other.learned, digest="8" * 64))
    rebuilt = rebuild_stale(judged([events], parts)[1].take(["a"]), other)
    fresh, store = judged([events], other)
    np.testing.assert_array_equal(rebuilt.hidden, store.take(["a"]).hidden)
    silenced = judged([[dataclasses.replace(e, time_ms=0) for e in events]], other)[1].take(["a"])
    assert (rebuilt.hidden != silenced.hidden).any(), "gaps are no part of the state, and the test could not fail"
    assert rebuilt.worst[0] == max(fresh[0].score)


# --- from settings to sentences --------------------------------------------------------------------------------------


def configured(**model: Any) -> Settings:
    """A shop's stream; `model` is laid over its model."""
    section = {
        "topic": "shop.orders", "time": "ts", "tokens": ["action"], "promise": {"false_alarm_rate": 0.05},
        "session": {"by": "session", "gap": "5m", "end_when": {"action": "close"}}, "model": {"hidden": 16} | model,
        "detectors": {"profile": False},  # it sees how long a session takes, with gaps and without
    }  # fmt: skip
    return parse_settings({"streams": {"orders": section}}, {})


def regular(sessions: int, seed: int, slow: dict[int, int] | None = None) -> list[Line]:
    """Sessions of view, add, pay, close: people take seconds, payments answer at once, but for `slow` ones."""
    rng, events = random.Random(seed), []
    for s in range(sessions):
        now = START_MS + 500 * s
        for action in ("view", "add", "pay", "paid", "close"):
            events.append({"session": f"s-{s}", "action": action, "ts": now})
            now += rng.randrange(80, 160) if action == "pay" else rng.randrange(400, 6_000)
            now += (slow or {}).get(s, 0) if action == "pay" else 0
    events.sort(key=lambda e: e["ts"])
    return [Line(0, PLACE, i, 0, None, json.dumps(e).encode()) for i, e in enumerate(events)]


def trained(settings: Settings) -> Bundle:
    decoder, parts = make_decoder(settings, "orders"), make_parts(settings, "orders", None)
    history = decoder.decode(regular(600, seed=1), check_key=False)
    options = TrainingOptions(max_epochs=20)  # enough to know who takes seconds and who does not
    fitted = fit([history], parts, 0, lambda _: None, time.monotonic, options=options)
    return Bundle("ab" * 32, fitted.content, fitted.files)


@pytest.fixture(scope="module")
def bundles() -> dict[bool | str, Bundle]:
    """Trained with the gaps of each action, with those of all, and without."""
    return {gaps: trained(configured(gaps=gaps)) for gaps in ("action", True, False)}


def anomalies(settings: Settings, bundle: Bundle, lines: list[Line]) -> list[dict[str, Any]]:
    """With their explanations, as messages have them."""
    parts = make_parts(settings, "orders", unpack(bundle, make_parts(settings, "orders", None)))
    events = make_decoder(settings, "orders").decode(lines, check_key=False)
    done = process_slice(RowStore(parts.shape, parts.rules), events, PartitionState(0), parts)
    assert done is not None
    decisions = Emitter(parts, PLACE, 1.0).decisions(done)
    return [d for _, d in decisions if d["anomaly"]]


def test_an_answer_far_too_late_is_found(bundles: dict[bool | str, Bundle]) -> None:
    """Forty seconds where a tenth of one is usual are an anomaly with gaps and none without, and the line says so.

    A second is too, and is the stranger where each action has usual times of its own: a person takes as long.
    """
    lines = regular(300, seed=2, slow={40: 41_000, 70: 1_000, 150: 41_000})
    found = {gaps: anomalies(configured(gaps=gaps), bundle, lines) for gaps, bundle in bundles.items()}
    assert not {"s-40", "s-70", "s-150"} & {a["session"] for a in found[False]}
    nats: dict[bool | str, list[float]] = {}
    for gaps in ("action", True):
        assert len(found[gaps]) < 0.1 * 300 * 6, "about five in a hundred records and sessions are promised"
        paid = [a for a in found[gaps] if a["type"] == "record" and a["observed"]["action"] == "paid"]
        late = {a["session"]: a for a in paid if a["observed"][GAP] > 1}
        assert late.keys() == {"s-40", "s-70", "s-150"}
        nats[gaps] = [late[session]["contributions"][GAP] for session in ("s-40", "s-70")]
        for anomaly in late.values():
            assert max(anomaly["contributions"], key=anomaly["contributions"].get) == GAP
            (expected,) = anomaly["expected"][GAP]
            assert 0 <= expected["low"] < expected["median"] < expected["high"] < (0.2 if gaps == "action" else 6)
            why = why_of(anomaly)
            assert why.startswith(f"gap: after pay came {anomaly['observed'][GAP]:.3g} s (")
            assert " %), expected " in why
            assert re.search(r", expected [^;]* m?s(;|$)", why)
    assert all(more > less for more, less in zip(nats["action"], nats[True], strict=True))
    assert nats["action"][1] > 2 * nats[True][1]


def test_a_first_event_expects_no_gap(bundles: dict[bool | str, Bundle]) -> None:
    """It has none, nothing is expected of it, and the line is of what came."""
    lines = regular(20, seed=3)
    odd = Line(0, PLACE, len(lines), 0, None, json.dumps({"session": "x", "action": "close", "ts": START_MS}).encode())
    for gaps in ("action", True):
        found = [a for a in anomalies(configured(gaps=gaps), bundles[gaps], [*lines, odd]) if a["session"] == "x"]
        (record,) = [a for a in found if a["type"] == "record"]
        assert (record["observed"][GAP], record["expected"][GAP], record["contributions"][GAP]) == (None, [], 0.0)
        assert why_of(record).startswith("action: as the first event came close")


def test_gaps_wanted_and_gaps_learned_must_agree(bundles: dict[bool | str, Bundle]) -> None:
    """A bundle without gaps is refused by a config with them, and the other way round: in a sentence."""
    for learned, wanted in ((False, True), (True, False), (True, "action"), ("action", False)):
        sentence = f"trained with gaps {learned}, but the config says gaps {wanted}; run `offbeat train --promote`"
        with pytest.raises(BundleError, match=sentence):
            unpack(bundles[learned], make_parts(configured(gaps=wanted), "orders", None))
        unpack(bundles[learned], make_parts(configured(gaps=learned), "orders", None))


def test_gaps_stand_after_the_numbers_of_log_lines() -> None:
    """Templates and parameters are learned after the gaps were taken, and leave them as they are."""
    section = {
        "kind": "logs", "topic": "t", "time": "ts", "message": "m", "parameters": 1, "numbers": ["size"],
        "session": {"by": "session", "gap": "5m"}, "model": {"gaps": "m"},
    }  # fmt: skip
    settings = parse_settings({"streams": {"orders": section}}, {})
    parts = make_parts(settings, "orders", None)
    assert parts.number_fields == ("size", "m[0]", GAP)
    events = [
        {"session": f"s-{i // 4}", "ts": START_MS + i * i, "m": f"took {90 + i * 7 % 13} ms", "size": 5_000 + i}
        for i in range(400)
    ]
    lines = [Line(0, PLACE, i, 0, None, json.dumps(e).encode()) for i, e in enumerate(events)]
    history = find_sessions([make_decoder(settings, "orders").decode(lines, check_key=False)], parts)
    fields, history = learn_fields(history, np.ones(100, np.bool_), parts, None)
    (measures,) = (p.measures for p in history.partitions)
    squares = np.arange(400, dtype=np.float64) ** 2
    gaps = np.where(np.arange(400) % 4 == 0, np.nan, np.diff(squares, prepend=0) / 1_000)
    np.testing.assert_allclose(measures[:, 2], gaps, rtol=1e-6)
    assert (measures[:, 0].min(), measures[:, 1].min()) == (5_000, 90)
    said = "took <*> ms"
    of_size, of_line, of_gap = (fields.numbers.of(c, name) for c, name in enumerate((None, said, said)))
    assert fields.numbers.of(2, "another line") is None
    edges = [binning.edges for binning in (of_gap, of_line, of_size) if binning is not None]
    assert edges[0][-1] <= np.nanmax(gaps) * 1.001 < edges[1][0] < edges[2][0]


def test_training_draws_and_delays_by_what_came() -> None:
    """Sessions that differ in their times alone are of one kind, and events that change places leave them there."""
    rng = np.random.default_rng(0)
    tokens = np.column_stack([np.tile([2, 3, 4, 5], 40), rng.integers(MISSING, 9, 160)]).astype(np.int32)
    sessions = Sequences.of(Sequence(part, np.zeros(4, np.float32), True) for part in np.split(tokens, 40))
    for gaps, kinds in ((1, 1), (0, 40)):
        options = TrainingOptions(by_square_root=True, gaps=gaps, delayed=0.5)
        training = _Training(
            sessions, sessions, ModelSpec("gru", 16, (6, 9)), options, time.monotonic, lambda _: None
        )  # fmt: skip
        assert training._kind is not None
        assert len(np.unique(training._kind)) == kinds
        varied = Sequences.of(training._varied(session, rng) for session in sessions)
        assert (varied.tokens[:, 0] != tokens[:, 0]).any()
        assert (varied.tokens[:, 1] == tokens[:, 1]).all() == bool(gaps)
    assert all(_recipe(make_parts(configured(gaps=gaps), "orders", None))["by_square_root"] for gaps in (True, False))
