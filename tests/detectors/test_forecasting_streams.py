"""Streams whose numbers a sequence model forecasts: fitted, bundled, served, explained; and what does not fit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from detectors.explanation import explain_record
from detectors.first_checks import check_first
from detectors.fit import Fit, fit
from detectors.packing import unpack
from detectors.parts import Parts
from detectors.process import Verdicts, process_batch, rebuild_stale
from detectors.rows import PartitionState, RowShape, SessionRows
from features.decode import Decoder
from features.events import Events
from features.measures import NumberRules
from features.tokens import TokenEncoder
from models.bundle import Bundle
from models.errors import BundleError, UnsuitableDataError
from models.spec import CORES, ModelSpec, state_size
from models.training import TrainingOptions
from pipeline.outputs import Place
from pipeline.score import Line
from tests.conftest import CONTEXT, HIDDEN

NUMBERS = ("load", "heat")
START_MS = 1_700_000_000_000
QUICK = TrainingOptions(max_epochs=8)


def samples(sessions: int, seed: int, length: int = 12) -> list[dict[str, Any]]:
    """A load that swings about 50, as wide as its session does, at times missing; a heat that hardly moves; a mode."""
    rng, found = np.random.default_rng(seed), []
    for s in range(sessions):
        swing, heat = rng.normal(0, 10), rng.normal(1_000, 30)
        for k in range(length):
            heat += rng.normal()
            load = None if rng.random() < 0.03 else 50 + swing * (-1) ** k + rng.normal()
            mode = "high" if k % 2 else "low"
            found.append({"host": f"h{s}", "ts": START_MS + 60_000 * s + 1_000 * k, "mode": mode, "load": load})
            found[-1]["heat"] = heat
            found[-1]["end"] = "over" if k == length - 1 else "on"
    return found


def read(events: Iterable[dict[str, Any]], tokens: tuple[str, ...] = ("mode", "end")) -> list[Events]:
    decoder = Decoder("host", "ts", list(tokens), {"end": "over"} if tokens else {}, numbers=NUMBERS)
    lines = [Line(0, Place("t", 0), i, 0, None, json.dumps(event).encode()) for i, event in enumerate(events)]
    return [decoder.decode(lines, check_key=False)]


def parts_of(parts: Parts, core: str = "gru", tokens: tuple[str, ...] = ("mode", "end")) -> Parts:
    """A stream of these samples, before any bundle."""
    model = ModelSpec(core, HIDDEN, (), (), CONTEXT, values=2)
    state = replace(model, sizes=(2,) * len(tokens)).state_numbers
    return replace(
        parts, fields=(*tokens, *NUMBERS), shape=RowShape(state, CONTEXT, len(tokens), 2), learned=None, model=model,
        measures=NumberRules(), encoder=TokenEncoder(len(tokens), None),
        rules=replace(parts.rules, max_events=50), rate=0.01,
    )  # fmt: skip


def fit_on(parts: Parts, events: list[Events], options: TrainingOptions = QUICK) -> Fit:
    return fit(events, parts, 0, lambda _: None, time.monotonic, options=options)


def serving(fitted: Fit, parts: Parts) -> Parts:
    learned = unpack(Bundle("ab" * 32, fitted.content, fitted.files), parts)
    return replace(parts, learned=learned, encoder=TokenEncoder(parts.shape.fields, learned.vocabulary))


def judge(events: Events, parts: Parts) -> Verdicts:
    rows = SessionRows.empty(len(events.sessions), parts.shape)
    return process_batch(events, rows, PartitionState(0), parts, close_all=True)[0]


def broken(session: int) -> list[dict[str, Any]]:
    """New sessions, in one of which the load falls still on one side and then leaps."""
    found = samples(20, 7)
    mine = [event for event in found if event["host"] == f"h{session}"]
    for k, event in enumerate(mine[4:], 4):
        event["load"] = 50 + 60 * (k % 3)
    return found


@pytest.fixture(scope="module")
def history() -> list[Events]:
    return read(samples(150, 1))


@pytest.mark.parametrize("core", CORES)
def test_what_moves_otherwise_is_found(core: str, parts: Parts, history: list[Events]) -> None:
    """Each core fits, bundles, unpacks and scores; leaps of the load are the strangest, by the load's own share."""
    untaught = parts_of(parts, core)
    served = serving(fit_on(untaught, history), untaught)
    verdicts = judge(read(broken(3))[0], served)
    assert np.isfinite(verdicts.score).all()
    assert verdicts.surprise.shape[1] == 4
    worst = int(np.argmax(verdicts.score))
    assert verdicts.events.sessions[int(verdicts.events.session[worst])] == "h3"
    assert int(np.argmax(verdicts.surprise[worst])) == 2
    assert verdicts.anomaly[worst]
    healthy = verdicts.events.session != verdicts.events.session[worst]
    assert verdicts.anomaly[healthy].mean() < 0.1


def test_numbers_alone_are_fitted_and_served(parts: Parts) -> None:
    """Without tokens there is no softmax; a score is the mean over numbers of what forecasts miss by."""
    events, untaught = read(samples(150, 1), ()), parts_of(parts, tokens=())
    fitted = fit_on(untaught, events)
    verdicts = judge(read(broken(3), ())[0], serving(fitted, untaught))
    assert verdicts.surprise.shape[1] == 2
    worst = verdicts.events.sessions[int(verdicts.events.session[int(np.argmax(verdicts.score))])]
    assert worst == "h3"
    assert fitted.content["training"]["heads"] == {}
    checked = check_first(events, [10**6], serving(fitted, untaught), 1.0)
    assert "nats" not in checked.figures


@pytest.mark.parametrize("tokens", [("mode", "end"), ()])
def test_beside_a_linear_core(parts: Parts, tokens: tuple[str, ...]) -> None:
    """An ensemble of both: trained, saved, read back; the first tells where numbers should lie."""
    untaught = parts_of(parts, tokens=tokens)
    shape = replace(untaught.shape, hidden=untaught.shape.hidden + state_size("linear", 0, 0, 2))
    untaught = replace(untaught, ensemble=("linear",), shape=shape)
    served = serving(fit_on(untaught, read(samples(150, 1), tokens)), untaught)
    events = read(broken(3), tokens)[0]
    rows = SessionRows.empty(len(events.sessions), served.shape)
    verdicts, after, _ = process_batch(events, rows, PartitionState(0), served)
    worst = int(np.argmax(verdicts.score))
    assert verdicts.events.sessions[int(verdicts.events.session[worst])] == "h3"
    assert verdicts.anomaly[worst]
    stale = replace(after.copy(), bundle=np.ones_like(after.bundle))
    assert np.isfinite(rebuild_stale(stale, served).worst[stale.events > 0]).all()
    (operation,) = np.flatnonzero(verdicts.walk.record[: len(verdicts.walk.kind)] == worst)[:1]
    why = explain_record(verdicts, int(operation), rows, served)
    assert why["expected"]["heat"][0].keys() == {"low", "median", "high"}
    assert set(why["expected"]) == set(served.fields)


def test_an_anomaly_says_where_numbers_should_lie(parts: Parts, history: list[Events]) -> None:
    """Tokens with their probabilities, numbers with low, median and high; a first number has no forecast."""
    untaught = parts_of(parts)
    served = serving(fit_on(untaught, history), untaught)
    events = read(samples(10, 9))[0]
    rows = SessionRows.empty(len(events.sessions), served.shape)
    verdicts, _, _ = process_batch(events, rows, PartitionState(0), served)
    within, told = 0, 0
    for operation in np.flatnonzero(verdicts.walk.kind == 0).tolist():
        why = explain_record(verdicts, operation, rows, served)
        assert why["expected"]["mode"][0].keys() == {"token", "probability"}
        assert sum(why["contributions"].values()) == pytest.approx(
            float(verdicts.score[verdicts.walk.record[operation]]), rel=1e-5
        )
        if verdicts.walk.first[verdicts.walk.record[operation]]:
            assert why["expected"]["heat"] == []
            continue
        (heat,) = why["expected"]["heat"]
        assert heat["low"] <= heat["median"] <= heat["high"]
        told += 1
        within += heat["low"] <= why["observed"]["heat"] <= heat["high"]
    assert 0.8 < within / told < 0.98


def test_the_same_seed_and_data_give_the_same_bundle(parts: Parts, history: list[Events]) -> None:
    """To the byte; a number that differs in one place makes another."""
    untaught = parts_of(parts)
    one, again = (fit_on(untaught, history) for _ in range(2))
    assert (one.content, one.files) == (again.content, again.files)
    changed = samples(150, 1)
    changed[0]["heat"] += 1
    assert fit_on(untaught, read(changed)).content["data"]["sha256"] != one.content["data"]["sha256"]


def test_rounded_and_robust(parts: Parts, history: list[Events]) -> None:
    """float16 leaves means and spreads whole; a share of bad sessions is left out by their errors."""
    half = fit_on(replace(parts_of(parts), weights="float16"), history)
    weights = load(half.files["weights.safetensors"])
    assert weights["change.weight"].dtype == np.float16
    assert weights["values.mean"].dtype == np.float64
    assert "float16_loss_change" in half.content["training"]
    robust = fit_on(parts_of(parts), history, replace(QUICK, contamination=0.1))
    assert robust.content["training"]["left_out"] > 0


def test_a_bundle_for_another_config_is_refused(parts: Parts, history: list[Events]) -> None:
    """What forecasts is not taken for what bins, or the other way round, and damaged arrays are a sentence."""
    untaught = parts_of(parts)
    fitted = fit_on(untaught, history)
    binned = replace(untaught, model=replace(untaught.model, values=0))
    with pytest.raises(BundleError, match=r"with model\.numbers forecast, but the config says model\.numbers bins"):
        unpack(Bundle("ab" * 32, fitted.content, fitted.files), binned)
    before = {k: v for k, v in fitted.content["schema"].items() if k != "model.numbers"}
    with pytest.raises(BundleError, match=r"with model\.numbers bins, but the config says model\.numbers forecast"):
        unpack(Bundle("ab" * 32, fitted.content | {"schema": before}, fitted.files), untaught)
    weights = {k: w for k, w in load(fitted.files["weights.safetensors"]).items() if k != "values.mean"}
    files = fitted.files | {"weights.safetensors": save(weights)}
    with pytest.raises(BundleError, match=r"has no weight values\.mean; train it again"):
        unpack(Bundle("ab" * 32, fitted.content, files), untaught)


def test_constant_numbers_are_refused_or_said(parts: Parts) -> None:
    """As where numbers have bins."""
    alike = [event | {"mode": "low", "end": "on", "load": 7, "heat": None} for event in samples(110, 1)]
    with pytest.raises(UnsuitableDataError, match="the number load is always the same, the number heat is missing"):
        fit_on(parts_of(parts), read(alike))
    beside = [event | {"load": 7} for event in samples(110, 1)]
    said = [w for w in fit_on(parts_of(parts), read(beside), replace(QUICK, max_epochs=1)).warnings if "number" in w]
    assert len(said) == 1
    assert "the number load is always the same" in said[0]
