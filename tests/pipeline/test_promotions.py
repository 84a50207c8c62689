"""Promotions on their topic: what is sent is what is read, and the last message names what serves."""

from __future__ import annotations

import json
import subprocess
from typing import Any, ClassVar

import pytest
import yaml
from confluent_kafka.admin import AdminClient, ConfigResource
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from models.bundle import serving_digest
from pipeline.promotions import encode_promotion, parse_promotion, tell_workers
from pipeline.registry import Registry
from pipeline.settings import load_settings
from pipeline.wire import Promotion
from tests.kafka import COMMAND, PATIENCE_S, QUIET, Stack
from tests.pipeline.test_models_commands import write

SENT = {
    "type": "promote", "stream": "orders", "digest": "ab" * 32, "previous": None, "issued_ms": 1_800_000_000_123,
    "by": "ann@host", "reason": "fewer false alarms",
}  # fmt: skip
KEY = b"orders"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(
    st.builds(
        Promotion, type=st.sampled_from(["promote", "rollback"]), stream=st.text("abcxyz019._-", min_size=1),
        digest=digests, previous=st.none() | digests, issued_ms=st.integers(0, 2**47), by=texts,
        reason=st.none() | texts,
    )
)  # fmt: skip
def test_a_promotion_round_trips(promotion: Promotion) -> None:
    """What is parsed is what was encoded, whatever was said about it."""
    key, value, _ = encode_promotion(promotion)
    assert parse_promotion(key, value) == promotion


def test_a_promotion_on_the_wire() -> None:
    """Key, value and headers are as documented; keys of a later version are passed over."""
    key, value, headers = encode_promotion(Promotion.model_validate(SENT))
    assert (key, json.loads(value)) == (KEY, SENT)
    assert dict(headers) == {
        "ce_specversion": b"1.0", "ce_id": b"orders/" + b"ab" * 32 + b"/1800000000123", "ce_source": b"/offbeat/orders",
        "ce_type": b"io.offbeat.promotion", "ce_time": b"2027-01-15T08:00:00.123Z", "content-type": b"application/json",
    }  # fmt: skip
    later = json.dumps(SENT | {"ticket": "42"}).encode()
    assert parse_promotion(KEY, later) == Promotion.model_validate(SENT)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (KEY, b"no json", "value: Invalid JSON"),
        (KEY, json.dumps(SENT | {"type": "shadow"}).encode(), "type: Input should be 'promote' or 'rollback'"),
        (KEY, json.dumps(SENT | {"digest": "../" + "a" * 61}).encode(), "digest: String should match pattern"),
        (KEY, json.dumps(SENT | {"digest": "a" * 64 + "\n"}).encode(), "digest: String should match pattern"),
        (KEY, json.dumps(SENT | {"issued_ms": "1"}).encode(), "issued_ms: Input should be a valid integer"),
        (b"other", json.dumps(SENT).encode(), "its key is not its stream"),
        (None, json.dumps(SENT).encode(), "its key is not its stream"),
    ],
)
def test_what_is_no_promotion_is_passed_over(key: bytes | None, value: bytes, why: str) -> None:
    """A message that is malformed, not ours or of a later version is left out with one warning that says why."""
    with capture_logs() as logged:
        assert parse_promotion(key, value) is None
    (line,) = logged
    assert line["event"].startswith("promotion passed over")
    assert why in line["why"]


@given(st.none() | st.binary(), st.none() | st.binary())
def test_no_bytes_stop_a_worker(key: bytes | None, value: bytes | None) -> None:
    """Any key and value at all give a promotion or None, never an exception."""
    with capture_logs():
        assert parse_promotion(key, value) is None


# --- on a broker -----------------------------------------------------------------------------------------------------


def sent(stack: Stack) -> list[tuple[bytes, dict[str, Any]]]:
    return [(m.key(), json.loads(m.value())) for m in stack.read(f"{stack.name}.models")]


def test_promotions_reach_the_topic(stack: Stack) -> None:
    """Each promotion and rollback is a message in the words of its record; the topic is made, compacted."""
    settings = load_settings(stack.config_path, {})
    a, b = write(settings), write(settings, 1)
    for arguments in (("promote", a, "--reason", "the first"), ("promote", b), ("rollback",), ("promote", "serving")):
        done = stack.run("models", *arguments, "-s", "orders", "--json")
        assert json.loads(done.stdout)["told"] is True
        assert "have not been told" not in done.stderr
    promotions = [promotion.model_dump() for promotion in Registry(settings, "orders").promotions()]
    assert sent(stack) == [(KEY, promotion) for promotion in [*promotions, promotions[-1]]]
    assert [p["digest"] for p in promotions] == [a, b, a]
    admin = AdminClient({"bootstrap.servers": stack.address, **QUIET})
    topic = f"{stack.name}.models"
    assert len(admin.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions) == 1
    (config,) = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]).values()
    assert config.result(PATIENCE_S)["cleanup.policy"].value == "compact"


def test_two_that_promote_at_once_agree(stack: Stack) -> None:
    """Whoever is last, `serving` holds one digest whole, and the topic's last message names it."""
    settings = load_settings(stack.config_path, {})
    bundles = [write(settings, seed) for seed in range(3)]
    stack.run("topics", "--create")
    running = [
        subprocess.Popen(
            [*COMMAND, "models", "promote", digest, "-s", "orders", "-c", str(stack.config_path)],
            stdout=subprocess.DEVNULL, cwd=stack.folder,
        )
        for digest in bundles
    ]  # fmt: skip
    assert [process.wait(PATIENCE_S) for process in running] == [0, 0, 0]
    serves = serving_digest(stack.folder / "bundles" / "orders")
    assert serves in bundles
    assert sent(stack)[-1][1]["digest"] == serves
    assert {p.digest for p in Registry(settings, "orders").promotions()} == set(bundles)


def test_who_is_overtaken_sends_again(stack: Stack) -> None:
    """Where another bundle came to serve while a promotion was sent, that one's is sent after it."""
    first, second = (Promotion.model_validate(SENT | {"digest": mark * 64}) for mark in "ab")

    class Overtaken:
        answers: ClassVar = [first, second, second]

        def current(self) -> Promotion:
            return self.answers.pop(0)

    tell_workers(load_settings(stack.config_path, {}), Overtaken())
    assert [value["digest"] for _, value in sent(stack)] == [first.digest, second.digest]


def test_a_topic_that_may_not_be_made(stack: Stack) -> None:
    """With topics.create off a missing topic is said in the note, and what serves has changed all the same."""
    config = yaml.safe_load(stack.config_path.read_text())
    config["topics"]["create"] = False
    stack.config_path.write_text(yaml.safe_dump(config))
    settings = load_settings(stack.config_path, {})
    a = write(settings)
    done = stack.run("models", "promote", a, "-s", "orders")
    said = " ".join(done.stderr.split())
    assert f"have not been told (topic {stack.name}.models does not exist and topics.create is off: run" in said
    assert serving_digest(stack.folder / "bundles" / "orders") == a
