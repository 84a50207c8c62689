"""Verdicts that labels begin to contradict are told once, whoever reads the labels, and however often."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clients import Clients
from pipeline.label_drift import LabelDrift
from pipeline.settings import load_settings
from pipeline.topics import Topic, create_topics
from pipeline.wire import MESSAGES
from tests.kafka import Stack
from tests.pipeline.test_retrain_signals import Said


def said(*parts: tuple[int, float], seed: int = 0) -> list[Any]:
    """Labels a minute apart, in stretches with a share called normal each."""
    random = np.random.default_rng(seed)
    is_wrong = np.concatenate([random.random(n) < share for n, share in parts])
    return [
        Said({"stream": "orders", "id": f"orders/t/{i % 2}/{10 * i}/record", "label": "normal" if w else "anomaly"},
             60_000 * i)
        for i, w in enumerate(is_wrong.tolist())
    ]  # fmt: skip


def read(messages: list[Any], drift: LabelDrift | None = None) -> LabelDrift:
    drift = LabelDrift(["orders", "other"]) if drift is None else drift
    for message in messages:
        drift.take_label(message)
    return drift


BAD = said((300, 0.1), (300, 0.7))


def told(drift: LabelDrift) -> dict[str, Any] | None:
    """The message that is due, of the schema."""
    output = drift.due("orders", 5)
    if output is None:
        return None
    MESSAGES["drift"][0].model_validate_json(output.value)
    return dict(json.loads(output.value))


def test_a_change_is_told_once_and_its_end() -> None:
    """And after a restart not again, for the topic says so; of other streams nothing is."""
    drift = read(BAD)
    began = told(drift)
    assert began is not None
    assert (began["type"], began["phase"], began["amount_unit"]) == ("concept_drift", "began", "labels")
    assert 3_000 < began["source"]["offset"] < 5_000
    assert 60_000 * 250 < began["since_ms"] < 60_000 * 400
    drift.was_told("orders")
    assert told(drift) is None
    assert drift.due("other", 5) is None
    restarted = read(BAD)
    assert told(restarted) == began
    restarted.take_drift(Said(began))
    assert told(restarted) is None
    ended = told(read(said((300, 0.1), (300, 0.7), (1_500, 0.05))[600:], restarted))
    assert ended is not None
    assert ended["phase"] == "ended"
    assert ended["source"]["partition"] == began["source"]["partition"]
    assert ended["id"] != began["id"]


def test_what_never_changes_is_quiet() -> None:
    """Whether people agree always, sometimes or never."""
    for share in (0.0, 0.4, 1.0):
        assert told(read(said((400, share)))) is None


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 600), max_size=4), st.lists(st.integers(0, 599), max_size=5))
def test_what_is_told_follows_from_what_the_topic_holds(cuts: list[int], again: list[int]) -> None:
    """Looked at now and then, with messages that come twice and minds that change: as the compacted topic gives it."""
    drift = LabelDrift(["orders"])
    for low, high in pairwise([0, *sorted(cuts), 600]):
        read(BAD[low:high], drift).due("orders", 5)
    changed = [
        Said(json.loads(BAD[at].value()) | {"label": "anomaly"}, 60_000 * (600 + n)) for n, at in enumerate(again)
    ]
    read([*changed, *changed[-1:]], drift)
    latest = {json.loads(m.value())["id"]: m for m in [*BAD, *changed]}
    compacted = sorted(latest.values(), key=lambda m: m.timestamp()[1])
    assert told(drift) == told(read(compacted))


@pytest.mark.parametrize("body", [{"id": "nonsense"}, {"id": 7}, {"stream": "nobody"}, {"label": "perhaps"}, {}])
def test_what_others_write_is_passed_over(body: dict[str, Any]) -> None:
    """Unknown ids, streams and labels, and drift that is none."""
    good = {"stream": "orders", "id": "orders/t/0/1/record", "label": "normal"}
    drift = read([Said(good | body if body else {}, 3)])
    drift.take_drift(Said({"type": "concept_drift", "stream": "orders", "phase": "perhaps"}))
    drift.take_drift(Said([1]))  # type: ignore[arg-type]
    assert told(drift) is None


def test_trainers_tell_it_once(stack: Stack) -> None:
    """On the real topic, whichever trainer runs and however often; and it asks for a training as other drifts do."""
    stack.configure(stream={"retrain": {"triggers": ["drift"], "settle": "0s", "least_records": 1_000_000}})
    config = load_settings(stack.config_path, {})
    topics = [Topic(f"{stack.name}.{what}", "output", 1) for what in ("labels", "drift")]
    create_topics(Clients(config).admin(), config, topics)
    stack.produce([(b"k", message.value()) for message in BAD], f"{stack.name}.labels")
    for _ in range(2):
        stack.run("trainer", "--once")
    (only,) = stack.read_json("drift")
    MESSAGES["drift"][0].model_validate(only)
    assert (only["type"], only["phase"], only["action"]) == ("concept_drift", "began", "retrain")
