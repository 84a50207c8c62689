"""The certificate: the same for the same features, another for any that differ, and a bundle is refused by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import features.decode
import features.tokens
from features.certificate import certify
from features.decode import Decoder
from features.masking import make_masker, parse_rules
from features.messages import MessageReader
from features.templates import Templates
from features.tokens import Vocabulary
from tests.kafka import Stack, shop_events

TEMPLATES = Templates.of(["Query <*> took <*> ms", "Cache miss"])
VOCABULARY = Vocabulary(
    ("action", "user.plan", "items[1].sku", "message"),
    (("view", "pay"), ("free", "pro"), ("a", "b"), ("Cache miss", "Query <*> took <*> ms")),
)


def fingerprints(
    *, session: str = "session", time: str | None = "ts", end: Any = "pay", mask: Any = None, secret: bytes = b"0" * 16,
    templates: Templates = TEMPLATES, parameters: int = 0,
) -> dict[str, str]:  # fmt: skip
    decoder = Decoder(
        session, time, ["action", "user.plan", "items[1].sku"], {"action": end}, "message",
        read_messages=MessageReader(templates, parameters=parameters).read,
        masker=make_masker(parse_rules(mask or {}), secret),
    )  # fmt: skip
    return certify(decoder, VOCABULARY, session, time, [("action", end)])


def differing(**other: Any) -> set[str]:
    """Which parts differ from those of the usual features."""
    usual, found = fingerprints(), fingerprints(**other)
    assert usual.keys() == found.keys()
    return {part for part in usual if usual[part] != found[part]}


def test_the_same_features_have_the_same_certificate() -> None:
    """Computed twice, and with nothing degenerate in it: every part sees values, known and unknown."""
    assert differing() == set()
    assert len(set(fingerprints().values())) == len(fingerprints())


def test_several_fields_name_a_session() -> None:
    """Each of them is seen: left out, it shows under `session`."""
    both, one = ["user.id", "host"], ["user.id"]
    decoders = [Decoder(by, None, ["action"], {}) for by in (both, one)]
    vocabulary = Vocabulary(("action",), (("view", "pay"),))
    found = [certify(d, vocabulary, by, None, []) for d, by in zip(decoders, (both, one), strict=True)]
    assert found[0] != found[1]
    assert certify(decoders[1], vocabulary, "user.id", None, []) == found[1]


def test_what_differs_is_named() -> None:
    """Config, templates and secret each show where they act."""
    assert "end" in differing(end="view")
    assert "time" in differing(time=None)
    assert differing(templates=Templates.of(["Cache miss"])) == {"field message"}
    masked = {"mask": {"user": "hash"}}
    assert differing(**masked) == {"field user.plan"}
    assert fingerprints(**masked) != fingerprints(**masked, secret=b"1" * 16)


def test_numbers_in_messages_are_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other places of numbers, or another way to read them, show under a name of their own."""
    text = "Query <*> took <*> ms"
    templates, other = (replace(Templates.of([text]), numbers={text: places}) for places in ((1, 3), (3,)))
    usual = fingerprints(templates=templates, parameters=2)
    assert usual["parameters"] != fingerprints(templates=other, parameters=2)["parameters"]
    monkeypatch.setattr("features.quantities.read_quantity", lambda token, scaled: float(len(token)))
    changed = {part for part, mark in fingerprints(templates=templates, parameters=2).items() if mark != usual[part]}
    assert changed == {"parameters"}


def test_a_change_of_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another text for truth values, or another hash, is seen in the fields; another unit of times in the time."""
    usual = fingerprints()
    monkeypatch.setattr(features.decode, "_text", lambda value: None if value is None else str(value))
    changed = {part for part, mark in fingerprints().items() if mark != usual[part]}
    assert {"field action", "field user.plan", "field items[1].sku"} <= changed
    monkeypatch.undo()
    monkeypatch.setattr("features.event_time._SECONDS", 10**8)
    assert "time" in {part for part, mark in fingerprints().items() if mark != usual[part]}


def test_a_bundle_of_other_features_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`offbeat score` names the field, whose values another secret would make unknown tokens without a sign."""
    stack = Stack("127.0.0.1:1", tmp_path, name="t")
    stack.configure(stream={"mask": {"status": "hash"}})
    monkeypatch.setenv("OFFBEAT_MASK_SECRET", "the first secret, of 16 bytes")
    history = tmp_path / "history.jsonl"
    history.write_text("".join(json.dumps(event) + "\n" for event in shop_events(1, 300)))
    stack.run("train", "-s", "orders", "--input", str(history))
    score = ("score", "-s", "orders", "--input", str(history), "--output", "verdicts.jsonl")
    stack.run(*score)
    monkeypatch.setenv("OFFBEAT_MASK_SECRET", "another secret, also of 16 bytes")
    refused = stack.run(*score, check=False)
    assert refused.returncode == 1
    assert "was trained with other features (field status, section)" in refused.stderr
