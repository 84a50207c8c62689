"""Streams of single series under the seasonal core: trained, saved, judged, explained, and carried over promotions."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detectors.explanation import explain_record
from detectors.fit import Fit, fit
from detectors.packing import unpack
from detectors.parts import Parts
from detectors.process import Verdicts, process_batch
from detectors.rows import PartitionState, RowShape, SessionRows
from features.decode import Decoder
from features.events import Events
from features.measures import NumberRules
from features.sessions import SessionRules
from features.tokens import TokenEncoder
from models.bundle import Bundle
from models.errors import BundleError, UnsuitableDataError
from models.spec import SEASONAL, ModelSpec, state_size
from models.training import TrainingOptions
from pipeline.outputs import Place
from pipeline.score import Line
from tests.conftest import CONTEXT, HIDDEN

EVERY_MS, A_DAY = 600_000, 144
START_MS = 1_700_006_400_000
SHORT = TrainingOptions(max_epochs=2)


def samples(days: int, seed: int) -> list[dict[str, Any]]:
    """Two shops' orders and waits every ten minutes; orders come in a cycle of a day, waits do not."""
    rng, found = np.random.default_rng(seed), []
    for k in range(days * A_DAY):
        for shop in ("north", "south"):
            orders = 50 + 40 * np.sin(2 * np.pi * k / A_DAY) + rng.normal()
            found.append({"shop": shop, "ts": START_MS + EVERY_MS * k, "orders": orders, "wait": 3 + rng.normal()})
    return found


def read(events: list[dict[str, Any]]) -> Events:
    decoder = Decoder("shop", "ts", [], {}, numbers=("orders", "wait"))
    return decoder.decode(
        [Line(0, Place("t", 0), i, 0, None, json.dumps(e).encode()) for i, e in enumerate(events)], check_key=False
    )


def parts_of(parts: Parts, ensemble: tuple[str, ...] = (), refractory_ms: int = 0) -> Parts:
    """A stream of these samples, before any bundle."""
    width = sum(state_size(core, HIDDEN, CONTEXT, 2) for core in ("seasonal", *ensemble))
    return replace(
        parts, fields=("orders", "wait"), shape=RowShape(width, CONTEXT, 0, 2), learned=None,
        model=ModelSpec("seasonal", HIDDEN, (), (), CONTEXT), ensemble=ensemble, refractory_ms=refractory_ms,
        measures=NumberRules(), encoder=TokenEncoder(0, None), rate=0.01,
        rules=SessionRules(gap_ms=10 * 86_400_000, max_events=1_000_000),
    )  # fmt: skip


def fit_on(parts: Parts, events: Events, options: TrainingOptions = SHORT) -> Fit:
    return fit([events], parts, 0, lambda _: None, time.monotonic, options=options)


def serving(fitted: Fit, parts: Parts, digest: str = "ab" * 32) -> Parts:
    learned = unpack(Bundle(digest, fitted.content, fitted.files), parts)
    return replace(parts, learned=learned, encoder=TokenEncoder(0, learned.vocabulary))


def judge(events: Events, rows: SessionRows, state: PartitionState, parts: Parts) -> tuple[Verdicts, SessionRows]:
    verdicts, after, _ = process_batch(events, rows, state, parts)
    return verdicts, after


@pytest.fixture(scope="module")
def history() -> list[dict[str, Any]]:
    return samples(20, 1)


def test_a_wrong_hour_is_found_and_explained(parts: Parts, history: list[dict[str, Any]]) -> None:
    """Orders at night as at noon are within the range of all days, yet an anomaly; the hour's range was expected."""
    untaught = parts_of(parts)
    fitted = fit_on(untaught, read(history))
    assert fitted.content["schema"]["core"] == "seasonal"
    assert fitted.content["calibration"]["records"] == len(history)  # it scores before it learns, so all may count
    served, later = serving(fitted, untaught), samples(22, 2)
    at = 2 * (21 * A_DAY + 108)  # when orders are fewest
    later[at]["orders"] = 90.0
    events = read(later)
    rows = SessionRows.empty(2, served.shape)
    verdicts, _ = judge(events, rows, PartitionState(0), served)
    late = verdicts.events.time_ms > START_MS + 20 * A_DAY * EVERY_MS
    assert int(np.argmax(np.where(late, verdicts.score, 0))) == at
    assert verdicts.anomaly[at]
    assert verdicts.anomaly[late].mean() < 5 * served.rate
    why = explain_record(verdicts, int(np.flatnonzero(verdicts.walk.record == at)[0]), rows, served)
    (where,) = why["expected"]["orders"]
    assert where["low"] < where["median"] < where["high"] < 40
    assert why["contributions"]["orders"] > 5 * why["contributions"]["wait"]
    assert served.unit == "score"


@pytest.mark.parametrize("ensemble", [(), ("linear",)])
def test_a_promotion_keeps_what_the_series_taught(
    parts: Parts, history: list[dict[str, Any]], ensemble: tuple[str, ...]
) -> None:
    """No bundle shapes it: under the next, trained on another history, it goes on as if there had been one."""
    untaught = parts_of(parts, ensemble)
    one, other = (
        serving(fit_on(untaught, read(of)), untaught, digest)
        for of, digest in ((history, "ab" * 32), (samples(15, 3), "cd" * 32))
    )
    events = read(samples(10, 4))
    half = len(events) // 2
    first, second = events.take(np.arange(half)), events.take(np.arange(half, len(events)))
    rows = SessionRows.empty(2, one.shape)
    _, between = judge(first, rows, PartitionState(0), one)
    promoted, after = judge(second, between, PartitionState(half), other)
    same, wanted = judge(second, between, PartitionState(half), one)
    width = 2 * SEASONAL
    np.testing.assert_array_equal(after.hidden[:, :width], wanted.hidden[:, :width])
    assert (after.bundle != wanted.bundle).all()
    if not ensemble:
        np.testing.assert_array_equal(promoted.score, same.score)
        np.testing.assert_array_equal(after.worst, wanted.worst)


def test_a_bundle_of_another_refractory_period_is_refused(parts: Parts, history: list[dict[str, Any]]) -> None:
    """Its calibration is of other scores."""
    fitted = fit_on(parts_of(parts, refractory_ms=3_600_000), read(history))
    with pytest.raises(BundleError, match="refractory_ms 3600000, but the config says refractory_ms 0"):
        serving(fitted, parts_of(parts))


def test_it_cannot_leave_bad_sessions_out(parts: Parts, history: list[dict[str, Any]]) -> None:
    """For it learns from none."""
    with pytest.raises(UnsuitableDataError, match="the seasonal core cannot leave bad sessions out"):
        fit_on(parts_of(parts), read(history), replace(SHORT, contamination=0.1))
