"""What cannot be learned from is refused in a sentence; what is doubtful is said; hard data is learned all the same."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from detectors.fit import Fit, fit
from detectors.guards import doubts
from detectors.history import read_history
from detectors.history import sequences as sequences_of
from detectors.learned_fields import MAX_VOCABULARY, learn_fields
from detectors.parts import Parts
from detectors.rows import RowShape
from features.decode import Decoder
from features.events import Events
from features.measures import NumberRules
from features.tokens import TokenEncoder
from models.errors import UnsuitableDataError
from models.training import TrainingOptions
from pipeline.outputs import Place
from pipeline.score import Line
from tests.conftest import HIDDEN

PLACE = Place("shop.orders", 0)
START_MS = 1_700_000_000_000
QUICK = TrainingOptions(max_epochs=2)


def read(events: Iterable[dict[str, Any]], numbers: tuple[str, ...] = ()) -> list[Events]:
    decoder = Decoder("session", "ts", ["action", "status"], {}, numbers=numbers)
    lines = [Line(0, PLACE, i, 0, None, json.dumps(event).encode()) for i, event in enumerate(events)]
    return [decoder.decode(lines, check_key=False)]


def sessions(count: int = 150, length: int = 4, **values: Any) -> list[dict[str, Any]]:
    """Sessions that vary in all, but for what is given: a value, or a function of session and place."""
    usual = {"action": lambda s, k: f"a{(s + k) % 3}", "status": "ok", "ts": lambda s, k: START_MS + 10_000 * s + k}
    return [
        {"session": f"s{s}"} | {n: v(s, k) if callable(v) else v for n, v in (usual | values).items()}
        for s in range(count) for k in range(length)
    ]  # fmt: skip


def with_numbers(parts: Parts, *names: str) -> Parts:
    fields = (*parts.fields[:2], *names)
    shape = RowShape(HIDDEN, parts.shape.context, 2, len(names))
    return replace(parts, fields=fields, shape=shape, measures=NumberRules(), encoder=TokenEncoder(2, None))


def train(parts: Parts, history: list[Events]) -> Fit:
    return fit(history, replace(parts, learned=None), 0, lambda _: None, time.monotonic, options=QUICK)


def warnings(fitted: Fit) -> list[str]:
    return [said for said in fitted.warnings if "held back" not in said]


def test_an_empty_history_is_refused(parts: Parts) -> None:
    """Without any record, or with none that can be read, and how many those were."""
    with pytest.raises(UnsuitableDataError, match="there is no record in it"):
        train(parts, [])
    with pytest.raises(UnsuitableDataError, match="none of its 2 records could be read"):
        train(parts, read([{"no": "session"}, {"session": 3.5}]))


def test_sessions_of_one_event_are_refused(parts: Parts) -> None:
    """However many: there is no order in them. One longer session is enough to go on."""
    alone = sessions(length=1)
    with pytest.raises(UnsuitableDataError, match="holds one event only"):
        train(parts, read(alone))
    assert (
        train(parts, read([*alone[:1], {**alone[0], "ts": START_MS + 1}, *alone[1:]])).content["training"]["epochs"]
        == 2
    )


def test_one_value_in_every_field_is_refused(parts: Parts) -> None:
    """Fields that never vary, or whose values never come again, tell nothing; each is named with what it is."""
    with pytest.raises(UnsuitableDataError, match="the field action has one value only, the field status has"):
        train(parts, read(sessions(action="view")))
    with pytest.raises(UnsuitableDataError, match="the field action hardly ever repeats a value, the field status"):
        train(parts, read(sessions(action=lambda s, k: f"id-{s}-{k}")))
    assert warnings(train(parts, read(sessions()))) == []


def test_constant_numbers_are_refused_or_said(parts: Parts) -> None:
    """Where nothing else varies they are refused; beside what does they are warned of, and so are missing ones."""
    parts = with_numbers(parts, "load", "size")
    nothing = read(sessions(action="view", load=7, size=None), ("load", "size"))
    with pytest.raises(UnsuitableDataError, match="the number load is always the same, the number size is missing"):
        train(parts, nothing)
    fitted = train(parts, read(sessions(load=7, size=lambda s, k: s * k), ("load", "size")))
    assert len(warnings(fitted)) == 1
    assert "the number load is always the same" in warnings(fitted)[0]


def test_nan_in_numbers_is_missing_and_learned(parts: Parts) -> None:
    """A number that is NaN in a third of the records is missing there: no warning, and weights that are finite."""
    parts = with_numbers(parts, "load")
    history = read(sessions(load=lambda s, k: s % 7 + k), ("load",))
    numbers = history[0].numbers.copy()
    numbers[::3] = np.nan
    fitted = train(parts, [replace(history[0], numbers=numbers)])
    assert warnings(fitted) == []
    assert np.isfinite(fitted.content["training"]["best_validation_loss"])


def test_equal_clocks_are_said(parts: Parts) -> None:
    """Events of one moment can be learned from, but not how fast they come."""
    fitted = train(parts, read(sessions(ts=START_MS)))
    assert [said[:35] for said in warnings(fitted)] == ["all events have the same time, so s"]


def test_a_vocabulary_of_a_million_is_said_and_bounded(parts: Parts) -> None:
    """Of a million values beside twenty thousand that come again, ten thousand have ids; one sentence says so."""
    n, each = 2_000_000, 5_000  # events, and of a session
    tokens = [f"u{i // 2}" if i % 2 else f"v{i % 40_000}" for i in range(n)]
    (short,) = read(sessions(count=2))
    arrived = replace(
        short, index=np.arange(n, dtype=np.int32), offsets=np.arange(n), time_ms=START_MS + np.arange(n),
        session=(np.arange(n) // each).astype(np.int32), sessions=[f"s{i}" for i in range(n // each)],
        tokens=[tokens, ["ok"] * n], ends=np.zeros(n, np.bool_), numbers=np.empty((n, 0)),
    )  # fmt: skip
    history = read_history([arrived], replace(parts, rules=replace(parts.rules, max_events=each)))
    everything = np.ones(len(history.first_ms), np.bool_)
    fields, history = learn_fields(history, everything, parts, None)
    learning = sequences_of(history, everything, fields.knowing(parts, learning=True))
    assert fields.vocabulary.sizes[0] == MAX_VOCABULARY + 3
    (said,) = doubts(history, learning, fields, parts)
    assert "the field action has at least 60,000 different values: the 10,000 most frequent" in said
    assert "give it `buckets`" in said
