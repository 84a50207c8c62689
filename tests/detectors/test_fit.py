"""From history to a bundle: who learns from what, what the manifest says, and when training is refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from detectors.fit import MIN_SESSIONS, Fit, fit
from detectors.parts import Parts, unpack
from detectors.process import process_batch
from detectors.rows import PartitionState, RowShape, SessionRows
from features.decode import Decoder
from features.events import Events
from features.tokens import TokenEncoder
from models.bundle import Bundle
from models.errors import BundleError, UnsuitableDataError
from pipeline.outputs import Place
from pipeline.score import Line
from tests.conftest import HIDDEN
from tests.kafka import shop_events

PLACE = Place("shop.orders", 0)
DECODER = Decoder("session", "ts", ["action", "status"], {"action": "close"})


def history(sessions: int, seed: int = 1, partitions: int = 2) -> list[Events]:
    """Shopping sessions, spread over partitions by name."""
    by_partition: list[list[Line]] = [[] for _ in range(partitions)]
    for event in shop_events(seed, sessions):
        lines = by_partition[int(event["session"][2:]) % partitions]
        lines.append(Line(0, PLACE, len(lines), 0, None, json.dumps(event).encode()))
    return [DECODER.decode(lines, check_key=False) for lines in by_partition]


def train(parts: Parts, events: list[Events], seed: int = 0) -> Fit:
    return fit(events, replace(parts, learned=None), seed, lambda epoch: None, time.monotonic)


@pytest.fixture(scope="module")
def events() -> list[Events]:
    return history(400)


@pytest.fixture
def fitted(parts: Parts, events: list[Events]) -> Fit:
    return train(parts, events)


def bundle_of(fitted: Fit) -> Bundle:
    return Bundle("ab" * 32, fitted.content, fitted.files)


def test_a_fit_can_be_served(fitted: Fit, parts: Parts, events: list[Events]) -> None:
    """What was fitted unpacks and scores: on its own history about the promised share is alarmed."""
    learned = unpack(bundle_of(fitted), parts.fields, HIDDEN)
    served = replace(parts, learned=learned, encoder=TokenEncoder(2, learned.vocabulary))
    rows = SessionRows.empty(len(events[0].sessions), parts.shape)
    verdicts, _, _ = process_batch(events[0], rows, PartitionState(0), served)
    assert np.isfinite(verdicts.score).all()
    assert 0.05 < verdicts.anomaly.mean() < 0.2


def test_the_manifest_says_what_was_learned(fitted: Fit, parts: Parts, events: list[Events]) -> None:
    """Counts, span, schema, rules and versions stand in the content, which is JSON."""
    content = json.loads(json.dumps(fitted.content))
    assert content["data"]["records"] == sum(map(len, events))
    assert content["data"]["first_ms"] == min(int(e.time_ms.min()) for e in events)
    assert content["schema"] == {"tokens": ["action", "status"], "hidden": HIDDEN, "core": "gru"}
    assert content["rules"] == {"gap_ms": parts.rules.gap_ms, "max_events": parts.rules.max_events}
    assert set(content["versions"]) == {"offbeat", "torch", "numpy", "numba"}
    sessions = content["data"]["sessions"]
    assert abs(content["training"]["sessions"] - 0.7 * sessions) <= 1
    assert 0 < content["calibration"]["sessions"] <= 0.2 * sessions + 1


def test_the_same_seed_and_data_give_the_same_bundle(fitted: Fit, parts: Parts, events: list[Events]) -> None:
    """Training is repeatable to the byte; another seed or one event less is another bundle."""
    again, other, less = train(parts, events), train(parts, events, seed=1), train(parts, history(399))
    assert (again.content, again.files) == (fitted.content, fitted.files)
    assert other.files != fitted.files
    assert less.content["data"]["sha256"] != fitted.content["data"]["sha256"]


def test_held_back_sessions_teach_nothing(parts: Parts) -> None:
    """A token that only the last sessions have is unknown to the vocabulary: the split is by time."""
    whole = history(300)
    late = max(int(e.time_ms.max()) for e in whole) + 1
    events = [{"session": f"x{i // 2}", "action": "late", "ts": late + i} for i in range(20)]
    lines = [Line(0, PLACE, i, 0, None, json.dumps(event).encode()) for i, event in enumerate(events)]
    fitted = train(parts, [*whole, DECODER.decode(lines, check_key=False)])
    vocabulary = json.loads(fitted.files["vocabulary.json"])
    assert "late" not in vocabulary["tokens"][0]
    assert "view" in vocabulary["tokens"][0]


def test_too_little_for_the_promise_is_said(fitted: Fit, parts: Parts, events: list[Events]) -> None:
    """Where the held-back scores cannot reach the promised rate, a warning names what would suffice."""
    assert fitted.warnings == []
    strict = train(replace(parts, rate=1e-6), events)
    assert len(strict.warnings) == 2
    assert "none will ever be an anomaly" in strict.warnings[0]


def test_too_few_sessions_are_refused(parts: Parts) -> None:
    """Fewer sessions than can be split raise, with the number there are and the number needed."""
    for given in ([], history(10)):
        with pytest.raises(UnsuitableDataError, match=f"at least {MIN_SESSIONS} are needed"):
            train(parts, given)


def test_a_bundle_for_another_config_is_refused(fitted: Fit, parts: Parts) -> None:
    """Other fields or another hidden size do not fit, and a bundle that lacks a part is named."""
    with pytest.raises(BundleError, match="was trained with tokens"):
        unpack(bundle_of(fitted), ("action",), HIDDEN)
    with pytest.raises(BundleError, match="hidden 32"):
        unpack(bundle_of(fitted), parts.fields, RowShape(32, 1, 2).hidden)
    broken = replace(fitted, files=fitted.files | {"calibration.safetensors": b"x"})
    with pytest.raises(BundleError, match="lacks a part"):
        unpack(bundle_of(broken), parts.fields, HIDDEN)
