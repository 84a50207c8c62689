"""Which of two bundles is better, on records that neither has learned from."""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from detectors.calibration import Calibration
from detectors.comparison import Figures, Judged, Labels, Seen, compare, judge, look
from detectors.fit import fit
from detectors.packing import unpack
from detectors.parts import Learned, Parts
from detectors.replay import replay
from features.events import Events
from features.tokens import TokenEncoder
from models.bundle import Bundle
from models.training import TrainingOptions
from tests.detectors.test_first_checks import UNLEARNED
from tests.kafka import shop_events
from tests.pipeline.test_outputs import DECODER, Given

RATE = 0.05
NEW = {"ok": "settled", "add": "put"}
GOOD = Figures(10_000, 500, 1_000, 50, 0.01, 1.0)
BAD = dataclasses.replace(GOOD, alarms_of_records=4_000)


def events(seed: int, sessions: int, *, changed: bool) -> Events:
    """A history; a changed one has other names for some tokens."""
    names = NEW if changed else {}
    told = (
        {k: names.get(v, v) if isinstance(v, str) else v for k, v in event.items()}
        for event in shop_events(seed, sessions)
    )
    return DECODER.decode([Given(json.dumps(e).encode(), i) for i, e in enumerate(told)], check_key=False)


def trained(history: Events) -> Parts:
    """The parts with a bundle that learned a history, not for long."""
    options = TrainingOptions(max_epochs=8)
    fitted = fit([history], UNLEARNED, 0, lambda _epoch: None, time.monotonic, options=options)
    learned: Learned = unpack(Bundle("a" * 64, fitted.content, fitted.files), UNLEARNED)
    return dataclasses.replace(UNLEARNED, encoder=TokenEncoder(2, learned.vocabulary), learned=learned)


@pytest.fixture(scope="module")
def worlds() -> tuple[Events, int, Parts, Parts]:
    """A history of a changed stream, where its end begins, and bundles of the stream before and after the change."""
    history = events(3, 600, changed=True)
    kept = int(0.85 * len(history))
    old, new = trained(events(4, 500, changed=False)), trained(history.take(np.arange(kept)))
    return history, int(history.offsets[kept]), old, new


def judged(worlds: tuple[Events, int, Parts, Parts], *, swapped: bool = False, **given: Any) -> Judged | None:
    history, cut, old, new = worlds
    pair = [look([history], [cut], parts, given.pop("after_ms", -1)) for parts in (new, old)]
    a, b = pair[::-1] if swapped else pair
    return compare(a, b, RATE, given.pop("labels", {}), given.pop("comparable", (True, True)))


def test_after_a_change_the_one_that_learned_it_is_better(worlds: tuple[Events, int, Parts, Parts]) -> None:
    """It knows the tokens that to the other are news; the other way round it is not better."""
    found = judged(worlds)
    assert found is not None
    assert found.serving is not None
    assert found.better, found.why
    assert "fewer tokens are unknown to it" in found.why
    assert found.new.unknown < 0.05
    assert found.serving.unknown > 0.2
    assert found.new.records == found.serving.records > 500
    assert found.new.sessions == found.serving.sessions > 50
    assert set(found.to_json()["new"]) == {field.name for field in dataclasses.fields(Figures)}
    other = judged(worlds, swapped=True)
    assert other is not None
    assert not other.better
    assert "more tokens are unknown to it" in other.why


def test_two_of_one_world_are_told_apart_by_likelihood(worlds: tuple[Events, int, Parts, Parts]) -> None:
    """Both keep the promise on what both know: the better predictor wins, and equals are no worse."""
    history, cut, _, new = worlds
    learned = new.learned
    assert learned is not None
    blunt = dataclasses.replace(new, learned=dataclasses.replace(learned, model=_Blunted(learned.model)))
    sharp, dull = (look([history], [cut], parts, -1) for parts in (new, blunt))
    for a, b, better in ((sharp, dull, True), (dull, sharp, False), (sharp, sharp, True)):
        found = compare(a, b, RATE, {}, (True, True))
        assert found is not None
        assert (found.better, "nats a normal record" in found.why) == (better, True), found.why
    without = compare(sharp, dull, RATE, {}, ())
    assert without is not None
    assert without.new.nats is None


class _Blunted:
    """A runtime that is a tenth of a nat less sure of all, which no p-value shows."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def score_and_step(self, *given: Any) -> Any:
        scores = self._runtime.score_and_step(*given)
        return dataclasses.replace(scores, surprise=scores.surprise + np.float32(1e-3))


def test_any_slicing_sees_the_same(worlds: tuple[Events, int, Parts, Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    """Histories are scored piece by piece; of what counts not a bit changes."""
    history, cut, _, new = worlds
    whole = _sorted(look([history], [cut], new, -1))
    for most in (37, 1_000):
        monkeypatch.setattr("detectors.comparison.replay", partial(replay, most=most))
        for name, column in _sorted(look([history], [cut], new, -1)).items():
            np.testing.assert_array_equal(column, whole[name])


def _sorted(seen: Seen) -> dict[str, Any]:
    columns, records, ends = vars(seen), np.argsort(seen.offset), np.argsort(seen.end_offset)
    return {name: c[ends if name.startswith("end_") else records] for name, c in columns.items()}


def test_what_the_serving_one_may_have_learned_does_not_count(worlds: tuple[Events, int, Parts, Parts]) -> None:
    """Records up to the last that it learned from are left out; with too few others nothing is said."""
    history, cut, _, new = worlds
    middle_ms = int(np.median(history.time_ms[history.offsets >= cut]))
    seen = look([history], [cut], new, middle_ms)
    assert set(seen.offset) == set(history.offsets[(history.offsets >= cut) & (history.time_ms > middle_ms)])
    nothing = look([history], [cut], new, int(history.time_ms.max()))
    assert len(nothing.offset) == len(nothing.end_offset) == 0
    assert compare(nothing, nothing, RATE, {}) is None
    assert compare(look([], [], new, -1), None, RATE, {}) is None


def test_labels_count(worlds: tuple[Events, int, Parts, Parts]) -> None:
    """An alarm on what is labelled as an anomaly is none too many, and who finds less of that is not better."""
    history, cut, old, _ = worlds
    seen = look([history], [cut], old, -1)
    alarmed = seen.offset[seen.anomaly][:20].tolist()
    labels: Labels = {(0, offset, "record"): True for offset in alarmed}
    found, bare = judged(worlds, labels=labels), judged(worlds)
    assert found is not None
    assert bare is not None
    assert found.serving is not None
    assert bare.serving is not None
    assert found.serving.f1 == 1.0
    assert found.serving.alarms_of_records == bare.serving.alarms_of_records - len(alarmed)
    assert not found.better
    assert "finds less of what is labelled" in found.why
    normal: Labels = {(0, offset, "record"): False for offset in alarmed}
    assert judged(worlds, labels=normal) == bare


@pytest.mark.parametrize(
    ("new", "serving", "better", "why"),
    [
        (GOOD, None, True, "no bundle serves, and this one keeps the promise"),
        (BAD, None, False, "no bundle serves, and this one breaks the promise"),
        (GOOD, BAD, True, "keeps the promise, which the serving one breaks"),
        (BAD, GOOD, False, "breaks the promise, which that one keeps"),
        (dataclasses.replace(BAD, alarms_of_records=2_000), BAD, True, "both break the promise"),
        (dataclasses.replace(BAD, alarms_of_records=2_001), BAD, False, "both break the promise"),
        (dataclasses.replace(GOOD, unknown=0.02), GOOD, False, "more tokens are unknown to it"),
        (dataclasses.replace(GOOD, nats=0.9), GOOD, True, "0.900 against 1.000 nats"),
        (dataclasses.replace(GOOD, nats=1.1), GOOD, False, "1.100 against 1.000 nats"),
        (dataclasses.replace(GOOD, nats=None, alarms_of_records=499), GOOD, True, "both keep the promise: 4.99%"),
        (dataclasses.replace(GOOD, nats=None), dataclasses.replace(GOOD, alarms_of_records=499), False, "both keep"),
        (dataclasses.replace(GOOD, f1=0.5), dataclasses.replace(BAD, f1=0.6), False, "F1 0.500 against 0.600"),
        (dataclasses.replace(GOOD, alarms_of_sessions=500), GOOD, False, "breaks the promise, which that one keeps"),
        (dataclasses.replace(GOOD, sessions=10, alarms_of_sessions=10), GOOD, True, "nats"),
    ],
)  # fmt: skip
def test_the_rule(new: Figures, serving: Figures | None, better: bool, why: str) -> None:
    """Each line of the rule, and which comes first."""
    found = judge(new, serving, RATE)
    assert found[0] is better
    assert why in found[1]


def test_the_calibration_decides_alarms(worlds: tuple[Events, int, Parts, Parts]) -> None:
    """A bundle whose calibration finds all strange is not offered, however well it predicts."""
    history, cut, _, new = worlds
    assert new.learned is not None
    of_zeros = dataclasses.replace(new.learned, records=Calibration.learn(np.zeros(999)))
    strict = dataclasses.replace(new, learned=of_zeros)
    found = compare(look([history], [cut], strict, -1), look([history], [cut], new, -1), RATE, {}, (True, True))
    assert found is not None
    assert not found.better
