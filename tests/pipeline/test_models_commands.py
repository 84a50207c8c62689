"""`offbeat models`: what it shows, and that promotions leave what serves, and who changed it, as they should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.calibration import Calibration
from detectors.packing import pack
from features.tokens import Vocabulary
from models.bundle import promote, serving_digest, write_bundle
from models.errors import BundleError, StoreUnavailableError
from pipeline.errors import ConfigError, UsageError
from pipeline.lineage import commit, lineage
from pipeline.registry import Registry, _served
from pipeline.serving import load_bundle, load_serving
from pipeline.settings import Settings, load_settings, parse_settings
from pipeline.wire import Promotion
from tests.conftest import WORDS, random_weights
from tests.kafka import Stack
from tests.pipeline.test_commands import Done, Offbeat, change, files, offbeat, write_events
from tests.stores import FrailStore, frail_store

__all__ = ["files", "offbeat"]  # fixtures
NONE_TOLD = "note: running workers have not been told (no Kafka broker answers at 127.0.0.1:1)"


@pytest.fixture
def store() -> Iterator[type[FrailStore]]:
    with frail_store() as made:
        yield made


@pytest.fixture(params=["disk", "store"])
def settings(request: pytest.FixtureRequest, files: Stack, store: type[FrailStore]) -> Settings:
    """The config of `files`, whose bundles are on a disk or in a store; there is none yet."""
    change(files, "models_dir", "models" if request.param == "disk" else "frail://bucket/models")
    change(files, "user", "ann")
    return load_settings(files.config_path, {})


def write(settings: Settings, seed: int = 0, actions: tuple[str, ...] = WORDS[0], hidden: int = 16) -> str:
    """A bundle with random weights, as training would describe it."""
    vocabulary = Vocabulary(("action", "status"), (actions, WORDS[1]))
    rng = np.random.default_rng(seed)
    parts = pack(
        vocabulary, random_weights(seed, vocabulary.sizes, hidden),
        Calibration.learn(rng.gamma(4, 1, 500 + seed)), Calibration.learn(rng.gamma(9, 1, 300)),
    )  # fmt: skip
    content = {
        "stream": "orders", "schema": {"tokens": ["action", "status"], "hidden": hidden, "core": "gru"},
        "data": {"records": 1_000 + seed, "sessions": 300, "first_ms": 1_800_000_000_000,
                 "last_ms": 1_800_003_600_000, "sha256": "ab" * 32},
        "training": {"seed": seed, "epochs": 3, "best_validation_loss": 0.25 + seed},
        "vocabulary": {"fields": vocabulary.summary()}, "rules": {"gap_ms": 5_000},
    }  # fmt: skip
    told = lineage(settings, parent=None, source="file history.jsonl", reason=f"seed {seed}")
    return write_bundle(settings.bundles_dir / "orders", content, parts, f"2026-11-0{seed + 1}T10:00:00+00:00", told)


def serving(settings: Settings) -> str | None:
    return serving_digest(settings.bundles_dir / "orders")


def models(offbeat: Offbeat, command: str, *arguments: str) -> Any:
    """What a command prints as JSON."""
    done = offbeat("models", command, "-s", "orders", *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


# --- promote and roll back -------------------------------------------------------------------------------------------


def test_promote_and_roll_back(offbeat: Offbeat, settings: Settings) -> None:
    """Each promotion is kept with who, why and from what; rolling back goes back one by one, and says so when done."""
    a, b, c = (write(settings, seed) for seed in range(3))
    for digest, reason in ((a, "the first"), (b, "more data"), (c, "even more")):
        said = models(offbeat, "promote", digest[:8], "--reason", reason)
        assert (said["type"], said["digest"], said["by"], said["reason"]) == ("promote", digest, "ann", reason)
        assert said["told"] is False
        assert serving(settings) == digest
    assert [p.previous for p in Registry(settings, "orders").promotions()] == [None, a, b]

    back = models(offbeat, "rollback", "--reason", "false alarms")
    assert (back["type"], back["digest"], back["previous"], serving(settings)) == ("rollback", b, c, b)
    done = offbeat("models", "rollback", "-s", "orders")
    assert done.out == f"Bundle {a[:12]} serves orders now; before, {b[:12]} did.\n"
    assert NONE_TOLD in " ".join(done.err.split())
    assert "`offbeat models promote --stream orders serving` tells them" in " ".join(done.err.split())
    assert offbeat("models", "rollback", "-s", "orders").failed(
        2, "no other bundle served stream orders before", "models list"
    )
    assert serving(settings) == a
    models(offbeat, "promote", c)
    assert models(offbeat, "show", "previous")["digest"] == a, "what was rolled back does not count"


def test_promoting_what_serves_changes_nothing(offbeat: Offbeat, settings: Settings) -> None:
    """It only tells workers again, in the words of the promotion that let it serve."""
    a = write(settings)
    first = models(offbeat, "promote", a, "--reason", "the first")
    assert models(offbeat, "promote", "serving") == first
    assert f"Bundle {a[:12]} serves orders already." in offbeat("models", "promote", "-s", "orders", a).out
    assert len(Registry(settings, "orders").promotions()) == 1


def test_what_cannot_serve_is_not_promoted(offbeat: Offbeat, settings: Settings) -> None:
    """A damaged bundle and one of another config are refused with their sentences; what serves stays."""
    a, b, c = write(settings), write(settings, 1), write(settings, 2, hidden=8)
    models(offbeat, "promote", a)
    (Registry(settings, "orders").folder / b).write("vocabulary.json", b"{}")
    assert offbeat("models", "promote", "-s", "orders", b).failed(1, "vocabulary.json", "is cut short")
    assert offbeat("models", "promote", "-s", "orders", c).failed(1, "trained with hidden 8, but the config says")
    assert serving(settings) == a
    assert len(Registry(settings, "orders").promotions()) == 1


def test_references(offbeat: Offbeat, settings: Settings) -> None:
    """A unique beginning of a digest names a bundle; anything else is one sentence."""
    assert offbeat("models", "show", "-s", "orders").failed(2, "no bundle serves stream orders")
    digests = sorted(write(settings, seed) for seed in range(9))
    assert offbeat("models", "show", "-s", "orders", "previous").failed(2, "no other bundle served stream")
    for wrong in ("x", "", "A" + digests[0][1:], "../orders", "serving "):
        assert offbeat("models", "show", "-s", "orders", wrong).failed(
            2, "bundles of stream" if not wrong else "no bundle"
        )
    assert offbeat("models", "show", "-s", "nobody").failed(2, "the config has no stream 'nobody'")
    for digest in digests:
        length = next(n for n in range(1, 65) if sum(d.startswith(digest[:n]) for d in digests) == 1)
        assert models(offbeat, "show", digest[:length])["digest"] == digest
        if length > 1:
            done = offbeat("models", "show", "-s", "orders", digest[: length - 1])
            assert done.failed(2, f"bundles of stream orders begin with {digest[: length - 1]!r}; write more")


def test_a_pointer_without_digest_is_mended(offbeat: Offbeat, settings: Settings) -> None:
    """Where `serving` holds no digest, the list still shows, and a promotion makes it right."""
    a, b = write(settings), write(settings, 1)
    models(offbeat, "promote", a)
    Registry(settings, "orders").folder.write("serving", b"?\n")
    assert offbeat("models", "show", "-s", "orders").failed(1, "holds no digest; run `offbeat train --promote`")
    assert {row["state"] for row in models(offbeat, "list")} == {""}
    models(offbeat, "promote", b)
    assert serving(settings) == b


def test_a_promotion_that_fails_half_way_counts_for_nothing(offbeat: Offbeat, settings: Settings) -> None:
    """Its record is there and `serving` is as before: a rollback finds what served, not what never did."""
    a, b, c = (write(settings, seed) for seed in range(3))
    models(offbeat, "promote", a)
    models(offbeat, "promote", b)
    registry = Registry(settings, "orders")
    registry._record(registry._promotion("promote", c, b, "it died here"))
    assert registry.previous() == a
    (registry.folder / "promotions").write("9999999999999-00000000.json", b'{"type": "promote"')
    assert models(offbeat, "rollback")["digest"] == a


def said(digest: str, previous: str | None, kind: Any = "promote") -> Promotion:
    return Promotion(
        type=kind, stream="orders", digest=digest * 64, previous=None if previous is None else previous * 64,
        issued_ms=0, by="ann", reason=None,
    )  # fmt: skip


def test_of_two_promotions_at_once_one_counts() -> None:
    """Both follow the same bundle; whichever serves in the end, that one is what a rollback brings back."""
    both = [said("a", None), said("b", "a"), said("c", "a")]
    for winner in "bc":
        assert [digest[0] for digest in _served(both, winner * 64)] == ["a", winner]


@given(st.lists(st.sampled_from("abcdef") | st.none(), max_size=30))
def test_rolling_back_is_undoing(steps: list[str | None]) -> None:
    """Whatever was promoted and rolled back (None), what served before is the top of a stack of promotions."""
    stack: list[str] = []
    story: list[Promotion] = []
    for step in steps:
        if step is None and len(stack) > 1:
            story.append(said(stack[-2], stack[-1], "rollback"))
            stack.pop()
        elif step is not None and stack[-1:] != [step]:
            story.append(said(step, stack[-1] if stack else None))
            stack.append(step)
    if stack:
        assert [digest[0] for digest in _served(story, stack[-1] * 64)] == stack


# --- list, show, compare ---------------------------------------------------------------------------------------------


def test_list(offbeat: Offbeat, settings: Settings) -> None:
    """Each bundle with where it stands, the newest first; a damaged one is in the list and has its sentence."""
    assert "There is no bundle in" in offbeat("models", "list").out
    assert models(offbeat, "list") == []
    a, b, c = (write(settings, seed) for seed in range(3))
    models(offbeat, "promote", a, "--reason", "[first]")
    models(offbeat, "promote", c)
    rows = models(offbeat, "list")
    assert [(row["digest"], row["state"]) for row in rows] == [(c, "serves"), (b, ""), (a, "previous")]
    assert (rows[2]["lineage"]["by"], rows[2]["lineage"]["reason"]) == ("ann", "seed 0")
    assert [p["reason"] for p in rows[2]["promotions"]] == ["[first]"]
    shown = offbeat("models", "list").out
    assert all(text in shown for text in (a[:12], b[:12], c[:12], "serves", "previous", "1,002", "[first]"))
    (Registry(settings, "orders").folder / b).write("manifest.json", b"{}")
    damaged = next(row for row in models(offbeat, "list") if row["digest"] == b)
    assert (damaged["state"], "manifest of bundle" in damaged["fault"]) == ("damaged", True)
    assert "is damaged; restore it or run `offbeat train`" in " ".join(offbeat("models", "list").err.split())


def test_show(offbeat: Offbeat, settings: Settings) -> None:
    """All of a manifest in words: lineage, span and fingerprint, training, calibration, vocabulary, limits, files."""
    a = write(settings)
    models(offbeat, "promote", a, "--reason", "the first")
    shown = offbeat("models", "show", "-s", "orders").out
    words = (
        f"Bundle {a[:12]} of stream orders, which serves.", "ann", "seed 0", "file history.jsonl", "the first",
        "2027-01-15T08:00:00.000Z", "2027-01-15T09:00:00.000Z", "ab" * 20, "1,000", "best validation loss", "0.25",
        "gap", "5s", "p-value", "no record gets a p-value below 0.002", "no session gets a p-value below 0.0033",
        "weights.safetensors", "never",
    )  # fmt: skip
    assert [text for text in words if text not in shown] == []
    told = models(offbeat, "show")
    assert told["serving"] is True
    assert told["content"]["training"] == {"seed": 0, "epochs": 3, "best_validation_loss": 0.25}
    assert told["quantiles"]["records"]["0.0001"] is None
    assert told["quantiles"]["records"]["0.01"] > told["quantiles"]["records"]["0.5"] > 0
    assert set(told["files"]) == {"calibration.safetensors", "vocabulary.json", "weights.safetensors"}


def test_compare(offbeat: Offbeat, settings: Settings) -> None:
    """What differs, and only that: figures, tokens added and removed, scores at p-values, files."""
    a, b = write(settings), write(settings, 1, (*WORDS[0][:-1], "[refund]"))
    told = models(offbeat, "compare", a, b)
    assert told["differs"]["training.seed"] == [0, 1]
    assert told["differs"]["data.records"] == [1_000, 1_001]
    assert "training.epochs" not in told["differs"]
    assert told["vocabulary"] == {"action": {"added": ["[refund]"], "removed": ["close"]}}
    assert told["quantiles"]["sessions"][0] != told["quantiles"]["sessions"][1]
    assert told["files"] == ["calibration.safetensors", "vocabulary.json", "weights.safetensors"]
    shown = offbeat("models", "compare", "-s", "orders", a, b).out
    assert all(text in shown for text in (a[:12], b[:12], "[refund]", "close", "training.seed", "1,001"))
    assert offbeat("models", "compare", "-s", "orders", a, a).out == f"Both are bundle {a[:12]}.\n"
    wide = write(settings, 2, hidden=8)
    assert models(offbeat, "compare", a, wide)["differs"]["schema.hidden"] == [16, 8]


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify(offbeat: Offbeat, settings: Settings) -> None:
    """Whole bundles pass, all of the stream where none is named; each fault is one sentence and exit code 1."""
    assert offbeat("models", "verify", "-s", "orders").failed(2, "stream orders has no bundle to verify")
    a, b = write(settings), write(settings, 1)
    models(offbeat, "promote", a)
    done = offbeat("models", "verify", "-s", "orders")
    assert (done.code, done.out.count("is whole: 4 files, ")) == (0, 2)
    folder = Registry(settings, "orders").folder / a
    weights = folder.read("weights.safetensors")
    for name, data, parts in (
        ("weights.safetensors", weights[:-9], ("is cut short",)),
        ("weights.safetensors", weights[:-1] + bytes([weights[-1] ^ 1]), ("is damaged (its SHA-256 differs)",)),
        ("more.json", b"{}", ("holds more.json, which is no part of it; remove that file",)),
        ("manifest.json", b"", ("the manifest of bundle", "is damaged")),
    ):
        folder.write(name, data)
        assert offbeat("models", "verify", "-s", "orders", "serving").failed(1, *parts)
        done = offbeat("models", "verify", "-s", "orders", "--json")
        assert [row["fault"] is None for row in json.loads(done.out)] == [d != a for d in sorted([a, b])]
        assert done.code == 1
        write(settings)  # mends it


@pytest.mark.parametrize("fault", ["nan", "shape", "lacking"])
def test_verify_looks_at_weights(fault: str, offbeat: Offbeat, settings: Settings) -> None:
    """Weights that are not finite, of a wrong shape or missing are found though every digest is right."""
    vocabulary = Vocabulary(("action", "status"), WORDS)
    weights = random_weights(0, vocabulary.sizes, 16)
    if fault == "nan":
        weights["head.bias"][3] = np.nan
    elif fault == "shape":
        weights["head.weight"] = weights["head.weight"][:-1]
    else:
        del weights["start"]
    scores = Calibration.learn([1.0])
    content = {"schema": {"tokens": ["action", "status"], "hidden": 16, "core": "gru"}}
    write_bundle(settings.bundles_dir / "orders", content, pack(vocabulary, weights, scores, scores), "now")
    expected = {"nan": "not finite", "shape": "do not fit its vocabulary", "lacking": "has no weight start"}
    assert offbeat("models", "verify", "-s", "orders").failed(1, expected[fault])


def test_verify_says_what_cannot_serve(offbeat: Offbeat, settings: Settings) -> None:
    """A whole bundle of another config is whole, and a note says why it cannot serve."""
    write(settings, hidden=8)
    done = offbeat("models", "verify", "-s", "orders")
    assert done.code == 0
    assert "it cannot serve with this config" in " ".join(done.err.split())


def test_verify_reads_the_store_itself(offbeat: Offbeat, files: Stack, store: type[FrailStore]) -> None:
    """A copy here that is whole hides no damage in the store."""
    change(files, "models_dir", "frail://bucket/models")
    settings = load_settings(files.config_path, {})
    a = write(settings)
    promote(settings.bundles_dir / "orders", a)
    assert load_serving(settings, "orders") is not None
    (Registry(settings, "orders").folder / a).write("vocabulary.json", b"")
    assert offbeat("models", "verify", "-s", "orders").failed(1, "vocabulary.json")
    assert load_serving(settings, "orders") is not None


# --- training --------------------------------------------------------------------------------------------------------


def test_training_keeps_its_lineage(offbeat: Offbeat, settings: Settings, files: Stack) -> None:
    """Who, why, from what and after what, beside the digest: another person's training gives the same bundle."""
    write_events(files.folder / "history.jsonl", 160)
    train = ("train", "-s", "orders", "--input", "history.jsonl", "--json")
    done = offbeat(*train, "--reason", "the first")
    assert NONE_TOLD in " ".join(done.err.split())
    first = json.loads(done.out)["digest"]
    told = models(offbeat, "show")
    assert told["digest"] == first
    assert told["lineage"] | {"code": None} == {
        "parent": None, "source": "file history.jsonl", "by": "ann", "reason": "the first", "code": None,
    }  # fmt: skip
    assert told["lineage"]["code"]["offbeat"] == "0.1.0"
    assert [p["reason"] for p in told["promotions"]] == ["the first"]

    second = json.loads(offbeat(*train, "--seed", "1", "--promote").out)["digest"]
    assert models(offbeat, "show", second)["lineage"]["parent"] == first
    change(files, "user", "bob")
    assert json.loads(offbeat(*train, "--reason", "again").out) | {"warnings": 0} == json.loads(offbeat(*train).out) | {
        "warnings": 0
    }
    assert models(offbeat, "show", first)["lineage"]["by"] == "ann", "a bundle is never changed"
    assert serving(settings) == second


def test_a_fingerprint_sees_numbers(offbeat: Offbeat, files: Stack) -> None:
    """Two histories that differ in one number have different fingerprints."""
    change(files, "streams.*.numbers", ["amount"])
    found = []
    for amount in (1.0, 2.0):
        write_events(files.folder / "plain.jsonl", 160)
        events = [json.loads(line) for line in (files.folder / "plain.jsonl").read_text().splitlines()]
        lines = [json.dumps(e | {"amount": amount if n == 5 else n % 7}) for n, e in enumerate(events)]
        (files.folder / "history.jsonl").write_text("\n".join(lines))
        found.append(json.loads(offbeat("train", "-s", "orders", "--input", "history.jsonl", "--json").out)["data"])
    assert found[0] | {"sha256": ""} == found[1] | {"sha256": ""}
    assert found[0]["sha256"] != found[1]["sha256"]


def test_the_commit_is_known_in_a_checkout_only(tmp_path: Path) -> None:
    """Code that runs from an installed package, or beside no repository of its own, names no commit."""
    assert commit(tmp_path) is None
    (tmp_path / ".git").mkdir()  # damaged
    assert commit(tmp_path) is None


def test_who(monkeypatch: pytest.MonkeyPatch) -> None:
    """OFFBEAT_USER names who trains; without it USER@HOST does, also where the user has no name."""
    demand = {"streams": {"s": {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}}}
    named = parse_settings(demand, {"OFFBEAT_USER": "ann"})
    assert lineage(named, parent=None, source="x", reason=None)["by"] == "ann"
    monkeypatch.setenv("LOGNAME", "bob")
    unnamed = parse_settings(demand, {})
    assert lineage(unnamed, parent=None, source="x", reason=None)["by"].startswith("bob@")

    def nobody() -> str:
        raise OSError

    monkeypatch.setattr("getpass.getuser", nobody)
    assert lineage(unnamed, parent=None, source="x", reason=None)["by"].startswith("unknown@")


# --- a store that is away --------------------------------------------------------------------------------------------


def test_a_restart_while_the_store_is_away(files: Stack, store: type[FrailStore], caplog: Any) -> None:
    """What served when the store last answered serves on, from a verified copy; a damaged copy is fetched again."""
    change(files, "models_dir", "frail://bucket/models")
    settings = load_settings(files.config_path, {})
    a, b = write(settings), write(settings, 1)
    directory = settings.bundles_dir / "orders"
    promote(directory, a)
    store.refuses = staticmethod(lambda _op, _path: True)
    with pytest.raises(StoreUnavailableError, match="cannot be read"):
        load_serving(settings, "orders")
    store.refuses = staticmethod(lambda _op, _path: False)
    assert load_serving(settings, "orders").digest == a  # type: ignore[union-attr]
    promote(directory, b)
    assert load_serving(settings, "orders").digest == b  # type: ignore[union-attr]

    store.refuses = staticmethod(lambda _op, _path: True)
    assert load_serving(settings, "orders").digest == b  # type: ignore[union-attr]
    assert f"going on with bundle {b[:12]}, which served when the store last answered" in caplog.text
    assert load_bundle(settings, "orders", a).digest == a

    assert settings.copies_dir is not None
    copy = settings.copies_dir / "orders" / b / "vocabulary.json"
    copy.write_bytes(b"{}")
    with pytest.raises(BundleError):
        load_serving(settings, "orders")
    store.refuses = staticmethod(lambda _op, _path: False)
    assert load_serving(settings, "orders").digest == b  # type: ignore[union-attr]
    assert len(copy.read_bytes()) > 2


def test_a_copy_that_cannot_be_kept(files: Stack, store: type[FrailStore], caplog: Any) -> None:
    """Where no copy can be written the bundle serves all the same, with a warning."""
    change(files, "models_dir", "frail://bucket/models")
    settings = load_settings(files.config_path, {})
    a = write(settings)
    promote(settings.bundles_dir / "orders", a)
    assert settings.copies_dir is not None
    settings.copies_dir.parent.parent.mkdir(exist_ok=True)
    settings.copies_dir.parent.write_text("a file where the folder should be")
    assert load_serving(settings, "orders").digest == a  # type: ignore[union-attr]
    assert "no copy of what serves is kept" in caplog.text


def test_scoring_and_training_need_the_store_in_time(offbeat: Offbeat, files: Stack, store: type[FrailStore]) -> None:
    """A store that does not answer is said before minutes go into training."""
    change(files, "models_dir", "frail://bucket/models")
    write_events(files.folder / "history.jsonl", 160)
    store.refuses = staticmethod(lambda _op, _path: True)
    train = offbeat("train", "-s", "orders", "--input", "history.jsonl")
    assert train.failed(1, "frail://bucket/models/orders cannot be listed (Could not connect to the endpoint)")
    for command in (("list",), ("show", "-s", "orders"), ("verify", "-s", "orders"), ("rollback", "-s", "orders")):
        done: Done = offbeat("models", *command)
        assert done.failed(1, "Could not connect to the endpoint", "correct models_dir")


def test_stores_that_cannot_be_reached_are_refused_by_the_config(files: Stack) -> None:
    """An unknown protocol and one whose package is missing have each a sentence that says what to do."""
    config = {"streams": {"s": {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}}}
    with pytest.raises(ConfigError, match="teapot:// is no store that is known; expected a path"):
        parse_settings(config | {"models_dir": "teapot://x"}, {})
    fsspec.register_implementation("lacking", "offbeat_lacking.Store", errtxt="Install it", clobber=True)
    with pytest.raises(ConfigError, match="the package for lacking:// is missing: install offbeat_lacking"):
        parse_settings(config, {"OFFBEAT_MODELS_DIR": "lacking://x"})
    local = parse_settings(config | {"models_dir": f"file://{files.folder}/m"}, {})
    assert (local.bundles_dir, local.copies_dir) == (files.folder / "m", None)
    with pytest.raises(UsageError, match="models_dir is ''"):
        parse_settings(config | {"models_dir": ""}, {})
