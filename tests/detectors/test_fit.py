"""From history to a bundle: who learns from what, what the manifest says, and when training is refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from detectors.calibration import Calibration
from detectors.fit import Fit, fit
from detectors.history import MIN_SESSIONS
from detectors.packing import pack, unpack
from detectors.parts import Learned, Parts
from detectors.process import process_batch
from detectors.rows import PartitionState, RowShape, SessionRows
from features.decode import Decoder
from features.events import Events
from features.tokens import OOV, RARE, TokenEncoder, stable_hash
from models.bundle import Bundle
from models.errors import BundleError, UnsuitableDataError
from models.spec import KERNELS, ModelSpec, state_size
from pipeline.outputs import Place
from pipeline.score import Line
from tests.conftest import CONTEXT, HIDDEN, random_weights
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
    learned = unpack(bundle_of(fitted), parts)
    served = replace(parts, learned=learned, encoder=TokenEncoder(2, learned.vocabulary))
    rows = SessionRows.empty(len(events[0].sessions), parts.shape)
    verdicts, _, _ = process_batch(events[0], rows, PartitionState(0), served)
    assert np.isfinite(verdicts.score).all()
    assert 0.05 < verdicts.anomaly.mean() < 0.2


def test_a_fit_knows_how_many_records_are_usual(parts: Parts) -> None:
    """Of each partition's minutes what came, whoever learned from it, and it is read back."""
    given = [replace(e, time_ms=e.time_ms[0] + np.arange(len(e)) * 2_000) for e in history(400)]
    fitted = train(parts, given)
    usual = unpack(bundle_of(fitted), parts).rates
    assert usual is not None
    assert (usual.bucket_ms, usual.segments) == (60_000, (None,))
    assert usual.hourly.mean() == pytest.approx(30, rel=0.1)
    del fitted.files["rates.json"]
    assert unpack(bundle_of(fitted), parts).rates is None


def test_no_score_is_rarer_than_it_is_in_the_history(parts: Parts, events: list[Events]) -> None:
    """Folds calibrate where sessions are few; a share of records that score alike is no smaller for that.

    Without this, first records of sessions, a score each of its own in every model, were anomalies by the thousand.
    """
    strict = replace(parts, rate=0.01)
    learned = unpack(bundle_of(train(strict, events)), strict)
    served = replace(strict, learned=learned, encoder=TokenEncoder(2, learned.vocabulary))
    of_partitions = [
        process_batch(columns, SessionRows.empty(len(columns.sessions), parts.shape), PartitionState(0), served)[0]
        for columns in events
    ]
    score, p_value = (np.concatenate([getattr(v, name) for v in of_partitions]) for name in ("score", "p_value"))
    reached = (score[None, :] >= score[:, None]).sum(axis=1)
    usual = reached >= 30
    assert usual.sum() > 1_000
    assert (p_value[usual] >= reached[usual] / (len(score) + 1)).all()


def test_the_manifest_says_what_was_learned(fitted: Fit, parts: Parts, events: list[Events]) -> None:
    """Counts, span, schema, rules and versions stand in the content, which is JSON."""
    content = json.loads(json.dumps(fitted.content))
    assert content["data"]["records"] == sum(map(len, events))
    assert content["data"]["first_ms"] == min(int(e.time_ms.min()) for e in events)
    assert content["schema"] == {
        "tokens": ["action", "status"], "hidden": HIDDEN, "core": "gru", "numbers": [], "counters": [], "gaps": False,
        "seasonal": [],
    }  # fmt: skip
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


def markers(sessions: int, seed: int, start_ms: int) -> list[Events]:
    """Sessions of three records, whose markers are drawn from a long tail: some come often, many once or never."""
    rng = np.random.default_rng(seed)
    lines = [
        Line(0, PLACE, i, 0, None, json.dumps(event).encode())
        for i, event in enumerate(
            {"session": f"m{seed}-{s}", "action": f"t{int(rng.pareto(0.7) * 3)}", "status": ["ok", "end"][k == 2],
             "ts": start_ms + s * 9_000 + k}
            for s in range(sessions) for k in range(3)
        )
    ]  # fmt: skip
    decoder = Decoder("session", "ts", ["action", "status"], {"status": "end"})
    return [decoder.decode(lines, check_key=False)]


def test_unknown_and_rare_tokens_are_expected_as_often_as_they_come(parts: Parts) -> None:
    """On later data of the same kind, both are about as probable as they are frequent; `<rare>` at least 0.4 times."""
    fitted = train(parts, markers(1_200, 1, 1_700_000_000_000))
    learned = unpack(bundle_of(fitted), parts)
    assert learned.vocabulary == fitted.vocabulary
    served = replace(parts, learned=learned, encoder=TokenEncoder(2, learned.vocabulary))
    (later,) = markers(1_200, 2, 1_800_000_000_000)
    verdicts, _, _ = process_batch(
        later, SessionRows.empty(len(later.sessions), parts.shape), PartitionState(0), served
    )
    ids = served.encoder.ids(later.tokens)[:, 0]
    steps = verdicts.states[verdicts.walk.steps]
    expected = np.exp(learned.model.log_probabilities(steps)[0])
    for token, counted in ((OOV, verdicts.unknown[0]), (RARE, verdicts.rare[0])):
        share = float((ids == token).mean())
        assert counted == (ids == token).sum()
        assert share > 0.02
        assert 0.4 < float(expected[:, token].mean()) / share < 1.3


def test_hashed_fields_are_served_as_they_were_learned(parts: Parts) -> None:
    """A field in buckets has that many ids, none of them unknown; the bundle keeps the number."""
    fitted = fit(markers(300, 1, 0), replace(parts, learned=None), 0, lambda epoch: None, time.monotonic, {"action": 8})
    learned = unpack(bundle_of(fitted), parts)
    assert fitted.content["vocabulary"]["fields"]["action"] == {"buckets": 8}
    assert learned.vocabulary.sizes[0] == 8 + 3
    assert set(TokenEncoder(2, learned.vocabulary).ids([["new", "x"], ["ok", "ok"]], 2)[:, 0].tolist()) <= set(
        range(3, 11)
    )


def test_a_vocabulary_of_before_is_served_as_it_was(parts: Parts, learned: Learned) -> None:
    """Without a version in its file there is no `<rare>`, and tokens count from 2; a later version is refused."""
    nothing = Calibration.learn([])
    weights = random_weights(0, learned.vocabulary.sizes, HIDDEN)
    files = pack(learned.vocabulary, weights, nothing, nothing)
    schema = {"schema": {"tokens": list(parts.fields), "hidden": HIDDEN}}
    assert json.loads(files["vocabulary.json"]).keys() == {"fields", "tokens"}
    found = unpack(Bundle("ab" * 32, schema, files), parts)
    assert found.vocabulary == learned.vocabulary
    assert TokenEncoder(2, found.vocabulary).ids([["view", "new"], ["ok", None]], 2).tolist() == [[2, 2], [0, 1]]
    words = json.loads(files["vocabulary.json"]) | {"version": 9}
    with pytest.raises(BundleError, match="version 9"):
        unpack(Bundle("ab" * 32, schema, files | {"vocabulary.json": json.dumps(words).encode()}), parts)


def test_too_little_for_the_promise_is_said(fitted: Fit, parts: Parts, events: list[Events]) -> None:
    """Where the held-back scores cannot vouch for the promised rate, a warning names what would suffice."""
    assert fitted.warnings == []
    assert fitted.content["calibration"]["supports_promise"]
    strict = train(replace(parts, rate=1e-6), events)
    assert len(strict.warnings) == 2
    assert "were held back for calibration" in strict.warnings[0]
    kept = strict.content["calibration"]
    assert not kept["supports_promise"]
    assert 1e-6 < kept["vouches_for"]["records"] < kept["vouches_for"]["sessions"] < 0.1


def test_too_few_sessions_are_refused(parts: Parts) -> None:
    """Fewer sessions than can be split raise, with the number there are and the number needed."""
    with pytest.raises(UnsuitableDataError, match=f"at least {MIN_SESSIONS} are needed"):
        train(parts, history(10))


def test_a_bundle_for_another_config_is_refused(fitted: Fit, parts: Parts) -> None:
    """Other fields or another hidden size do not fit, and a bundle that lacks a part is named."""
    with pytest.raises(BundleError, match="was trained with tokens"):
        unpack(bundle_of(fitted), replace(parts, fields=("action",), shape=RowShape(HIDDEN, 6, 1)))
    with pytest.raises(BundleError, match="config says hidden 32"):
        unpack(bundle_of(fitted), replace(parts, model=replace(parts.model, hidden=32)))
    broken = replace(fitted, files=fitted.files | {"calibration.safetensors": b"x"})
    with pytest.raises(BundleError, match="lacks a part"):
        unpack(bundle_of(broken), parts)


def test_a_bundle_says_that_its_softmax_has_classes(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not say so is of before there were any, and its softmaxes are flat whatever their size."""
    events = history(150)
    flat = train(parts, events)
    assert "softmax" not in flat.content["schema"]
    monkeypatch.setattr("models.spec.LARGE", 6)
    fitted = train(parts, events)
    assert fitted.content["schema"]["softmax"] == "classes"
    for given in (fitted, flat):
        learned = unpack(bundle_of(given), parts)
        log_p = learned.runtime.log_probabilities(np.zeros((1, HIDDEN), np.float32))
        assert [part.shape[1] for part in log_p] == [learned.vocabulary.sizes[0] + 1, learned.vocabulary.sizes[1]]
    schema = {k: v for k, v in fitted.content["schema"].items() if k != "softmax"}
    with pytest.raises(BundleError, match="do not fit its vocabulary"):
        unpack(bundle_of(replace(fitted, content=fitted.content | {"schema": schema})), parts)


def test_weights_as_float16(parts: Parts) -> None:
    """A bundle holds them in half the bytes, is calibrated and served on what it holds, and says what that costs."""
    events = history(200)
    wide, half = train(parts, events), train(replace(parts, weights="float16"), events)
    name = "weights.safetensors"
    assert len(half.files[name]) < 0.6 * len(wide.files[name])
    assert abs(half.content["training"].pop("float16_loss_change")) < 1e-3
    assert half.content["training"] == wide.content["training"]
    assert half.files["calibration.safetensors"] != wide.files["calibration.safetensors"]
    learned = unpack(bundle_of(half), parts)
    served = replace(parts, learned=learned, encoder=TokenEncoder(2, learned.vocabulary))
    rows = SessionRows.empty(len(events[0].sessions), parts.shape)
    verdicts, _, _ = process_batch(events[0], rows, PartitionState(0), served)
    assert np.isin(verdicts.score[-20:], learned.records.levels).mean() > 0.5  # held back, so it was calibrated on them


@pytest.mark.parametrize("core", ["lstm", "tcn", "transformer"])
def test_each_core_is_fitted_and_served(core: str, parts: Parts) -> None:
    """By its kernel, else by torch; a bundle says its core and, where weights depend on that, for which context."""
    model = ModelSpec(core, HIDDEN, (), (), CONTEXT)
    parts = replace(parts, model=model, shape=RowShape(state_size(core, HIDDEN, CONTEXT, 2), CONTEXT, 2))
    events = history(150)
    fitted = train(parts, events)
    learned = unpack(bundle_of(fitted), parts, "auto", "cpu")
    assert learned.runtime.name == ("kernel" if core in KERNELS else "torch-cpu")
    assert unpack(bundle_of(fitted), parts, "torch", "cpu").runtime.name == "torch-cpu"
    served = replace(parts, learned=learned, encoder=TokenEncoder(2, learned.vocabulary))
    rows = SessionRows.empty(len(events[0].sessions), parts.shape)
    verdicts, _, _ = process_batch(events[0], rows, PartitionState(0), served)
    assert 0.02 < verdicts.anomaly.mean() < 0.3
    with pytest.raises(BundleError, match=f"was trained with core {core}, but the config says core gru"):
        unpack(bundle_of(fitted), replace(parts, model=replace(model, core="gru")))
    longer = replace(parts, model=replace(model, window=CONTEXT + 1))
    if core == "lstm":
        unpack(bundle_of(fitted), longer)
        return
    with pytest.raises(BundleError, match="was trained with context 6, but the config says context 7"):
        unpack(bundle_of(fitted), longer)


def test_what_is_served_is_what_was_learned(parts: Parts) -> None:
    """A history doubled and in disorder teaches what the clean one does: training takes it in as serving would."""
    clean, messy = [], []
    for events in history(150):
        named = replace(events, ids=np.arange(1, len(events) + 1, dtype=np.uint64))
        clean.append(named)
        order = np.lexsort((np.arange(len(events)) * 7 % 5, events.time_ms // 1_000))
        messy.append(named.take(np.repeat(order, 2)))
    rules = replace(parts.rules, reorder_ms=5_000, reorder_events=256)
    parts = replace(parts, rules=rules, remembered=100)
    one, other = (train(parts, given) for given in (clean, messy))
    assert one.content["calibration"] == other.content["calibration"]
    assert one.content["training"]["sessions"] == other.content["training"]["sessions"]
    assert one.files["vocabulary.json"] == other.files["vocabulary.json"]


def test_segments_with_enough_data_have_calibrations(parts: Parts) -> None:
    """Records by their own segment, sessions by their first record's; the manifest says how many have one."""
    decoder = Decoder("session", "ts", ["action", "status"], {"action": "close"}, segment="shop")
    lines = []
    for event in shop_events(1, 1_200):
        shop = {0: None, 1: "rare"}.get(int(event["session"][2:]) % 12, "north")
        lines.append(Line(0, PLACE, len(lines), 0, None, json.dumps(event | {"shop": shop}).encode()))
    fitted = train(replace(parts, rate=0.02), [decoder.decode(lines, check_key=False)])
    assert fitted.content["calibration"]["segments"] == {"records": 1, "sessions": 1}
    learned = unpack(bundle_of(fitted), parts)
    for stream, segments in (
        (learned.records, learned.segment_records), (learned.sessions, learned.segment_sessions),
    ):  # fmt: skip
        assert list(segments) == [stable_hash("north")]
        assert 0.7 * stream.count < segments[stable_hash("north")].count < 0.95 * stream.count
