"""What leaves for Kafka: messages as `pipeline/wire.py` says, ids and headers as the design, samples as their share."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from detectors.parts import Parts, SecondStage
from detectors.rows import PartitionState
from detectors.severity import severity_of
from features.decode import Decoder
from features.errors import NotJsonError
from features.events import Reject
from models.spec import ModelSpec, state_size
from models.torch_runtime import TorchRuntime
from pipeline.outputs import MAX_PAYLOAD, Emitter, Output, Place, is_sampled, message_id
from pipeline.sentences import sentence_of
from pipeline.slices import process_slice
from pipeline.store import RowStore
from pipeline.wire import MESSAGES
from tests.conftest import CONTEXT
from tests.kafka import shop_events, untrained

PLACE = Place("shop.orders", 3)
NOW_MS = 1_800_000_000_123
DECODER = Decoder("session", "ts", ["action", "status"], {"action": "close"})


@dataclass(frozen=True)
class Given:
    """A record as any source gives it."""

    value: bytes | None
    offset: int = 0
    key: bytes | None = b"a"
    timestamp: int = 0


def validate(output: Output) -> Any:
    """The message as its wire model; a field too many, too few or of another type raises."""
    kinds = MESSAGES[output.topic]
    one_of: Any = kinds[0]
    for kind in kinds[1:]:
        one_of = one_of | kind
    message = TypeAdapter(one_of).validate_json(output.value, strict=True)
    assert set(json.loads(output.value)) == set(type(message).model_fields), "the schemas name every key we write"
    return message


def outputs_of(parts: Parts, sessions: int = 200, sample: float = 1.0, slice_size: int = 500) -> list[Output]:
    """Everything the worker would send for a stream of shopping sessions."""
    emitter, store, state = Emitter(parts, PLACE, sample), RowStore(parts.shape, parts.rules), PartitionState(0)
    records = [Given(json.dumps(e).encode(), i) for i, e in enumerate(shop_events(3, sessions))]
    out = []
    for low in range(0, len(records), slice_size):
        events = DECODER.decode(records[low : low + slice_size], check_key=False)
        done = process_slice(store, events, state, parts)
        assert done is not None
        state = done.state
        out += emitter.outputs(done, NOW_MS)
    return out


def test_every_message_is_as_the_wire_models_say(parts: Parts) -> None:
    """Each message of a worker validates strictly, and all kinds were among them."""
    seen = {type(validate(output)).__name__ for output in outputs_of(parts)}
    assert seen == {"RecordAnomaly", "SessionAnomaly", "RecordDecision", "SessionDecision"}


def test_severity_and_tags_are_told(parts: Parts) -> None:
    """Anomaly and decision have one tag; what goes on is graded a level higher than the same rarity elsewhere."""
    messages = [validate(output) for output in outputs_of(parts)]
    decided = {m.id: (m.tag, m.tag_confidence) for m in messages if type(m).__name__.endswith("Decision")}
    alarms = [m for m in messages if type(m).__name__.endswith("Anomaly")]
    assert all((m.tag, m.tag_confidence) == decided[m.id] for m in alarms)
    assert all(m.severity == severity_of(m.p_value, parts.rate, persists=m.tag == "I") for m in alarms)
    assert {tag for tag, _ in decided.values()} == {"B", "I", "O"}
    assert {m.tag for m in messages if m.type == "session"} <= {"I", "O"}


def test_what_a_second_stage_says_has_messages_of_its_own(parts: Parts) -> None:
    """Each names its anomaly, leaves right after it, and validates; without a pass left there is none."""
    assert parts.learned is not None
    spec = ModelSpec("tcn", 16, parts.learned.vocabulary.sizes, (), CONTEXT)
    runtime, width = TorchRuntime(spec, untrained("tcn")), state_size("tcn", 16, CONTEXT, 2)
    second = SecondStage("tcn", runtime, width, parts.learned.records, parts.learned.sessions)
    parts = replace(parts, learned=replace(parts.learned, second=second), second="tcn", passes=3)
    outputs = outputs_of(parts)
    at = [i for i, output in enumerate(outputs) if output.topic == "rescores"]
    for i in at:
        about = json.loads(outputs[i].value)
        assert about["anomaly"] == json.loads(outputs[i - 1].value)["id"]
        assert about["id"] == dict(outputs[i].headers)["ce_id"].decode()
        validate(outputs[i])
    anomalies = sum(output.topic == "anomalies" for output in outputs)
    assert 0 < len(at) < anomalies


def test_before_a_bundle_serves_messages_hold_too(unlearned_parts: Parts) -> None:
    """While warming up all says so; the first decisions have null for score, p-value and confidence."""
    messages = [validate(output) for output in outputs_of(unlearned_parts)]
    assert {m.status for m in messages} == {"warming_up"}
    assert {(m.tag, m.tag_confidence) for m in messages} == {(None, None)}
    records = [m for m in messages if type(m).__name__ == "RecordDecision"]
    first, later = records[:256], records[256:]
    assert all((m.score, m.p_value, m.confidence, m.anomaly) == (None, None, None, False) for m in first)
    assert all(None not in {m.score, m.p_value, m.confidence} for m in later)
    kinds = {"RecordDecision", "SessionDecision", "RecordAnomaly", "SessionAnomaly"}
    assert {type(m).__name__ for m in messages} == kinds
    alarms = [m for m in messages if type(m).__name__.endswith("Anomaly")]
    assert {m.model.digest for m in alarms} == {"online"}
    assert all(sentence_of("anomalies", m.model_dump()) for m in alarms)
    spoken = sentence_of("anomalies", next(m for m in alarms if m.type == "record").model_dump())
    assert "warming up, confidence 0." in spoken


def test_ids_keys_and_headers(parts: Parts) -> None:
    """Ids name the record for ever, the key is the session, and headers are CloudEvents 1.0 in binary mode."""
    for output in outputs_of(parts, 50):
        message, headers = json.loads(output.value), dict(output.headers)
        stream, topic, partition, offset, what = message["id"].split("/")
        assert (stream, topic, partition, what) == ("orders", "shop.orders", "3", message["type"])
        assert output.key == message["session"].encode()
        assert headers == {
            "ce_specversion": b"1.0", "ce_id": message["id"].encode(), "ce_source": b"/offbeat/orders",
            "ce_type": {"anomalies": b"io.offbeat.anomaly", "decisions": b"io.offbeat.decision"}[output.topic],
            "ce_time": b"2027-01-15T08:00:00.123Z", "content-type": b"application/json",
        }  # fmt: skip
        assert datetime.fromisoformat(headers["ce_time"].decode()).astimezone(UTC).timestamp() * 1000 == NOW_MS
        if output.topic == "anomalies":
            assert message["source"] == {"topic": "shop.orders", "partition": 3, "offset": int(offset)}
            assert message["detected_ms"] == NOW_MS
            assert message["model"] == {"name": "orders", "digest": parts.learned and parts.learned.digest}


def test_an_id_comes_once_a_topic(parts: Parts) -> None:
    """Within a topic ids are unique, and each anomaly is among the decisions, with the same verdict."""
    by_topic: dict[str, dict[str, Any]] = {"anomalies": {}, "decisions": {}}
    for output in outputs_of(parts):
        message = json.loads(output.value)
        assert by_topic[output.topic].setdefault(message["id"], message) is message
    anomalies, decisions = by_topic["anomalies"], by_topic["decisions"]
    assert {i for i, d in decisions.items() if d["anomaly"]} == set(anomalies)
    for identity, anomaly in anomalies.items():
        shared = decisions[identity].keys() & anomaly.keys()
        assert {k: anomaly[k] for k in shared} == {k: decisions[identity][k] for k in shared}


def test_slices_do_not_change_messages(parts: Parts) -> None:
    """The same stream in other slices gives the same messages."""

    def by_id(slice_size: int) -> list[tuple[str, bytes]]:
        return sorted((o.topic, o.value) for o in outputs_of(parts, 60, slice_size=slice_size))

    assert by_id(1) == by_id(17) == by_id(10_000)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_sampling_by_id(share: float, parts: Parts) -> None:
    """A sample is the same each time, near its share, part of any larger one, and never leaves out an anomaly."""
    identities = [
        message_id("orders", PLACE, offset, what) for offset in range(20_000) for what in ("record", "session")
    ]
    taken = {i for i in identities if is_sampled(i, share)}
    assert abs(len(taken) / len(identities) - share) < 0.01
    assert taken <= {i for i in identities if is_sampled(i, min(1.0, share + 0.1))}
    whole = outputs_of(parts, 100)
    decisions = {json.loads(o.value)["id"] for o in whole if o.topic == "decisions"}
    sampled = outputs_of(parts, 100, sample=share)
    assert {json.loads(o.value)["id"] for o in sampled if o.topic == "decisions"} == {
        i for i in decisions if is_sampled(i, share)
    }
    assert [o for o in sampled if o.topic == "anomalies"] == [o for o in whole if o.topic == "anomalies"]


def dead_letter(parts: Parts, value: bytes | None, key: bytes | None = b"a") -> dict[str, Any]:
    record = Given(value, 7, key)
    output = Emitter(parts, PLACE, 1.0).dead_letter(Reject(0, NotJsonError("it is broken")), record, NOW_MS)
    validate(output)
    assert output.topic == "dead-letters"
    assert output.key == key
    assert dict(output.headers)["ce_type"] == b"io.offbeat.dead-letter"
    return dict(json.loads(output.value))


def test_a_dead_letter_says_what_and_where(parts: Parts) -> None:
    """Reason, detail, source and payload stand in it; its id is the record's."""
    letter = dead_letter(parts, b"no json")
    assert letter == {
        "id": "orders/shop.orders/3/7/dead-letter", "stream": "orders", "reason": "not_json", "detail": "it is broken",
        "source": {"topic": "shop.orders", "partition": 3, "offset": 7}, "origin": None, "key": "a",
            "payload": "no json", "payload_base64": None, "truncated": False, "alert": None,
            "detected_ms": NOW_MS,
    }  # fmt: skip


@pytest.mark.parametrize("character", ["x", "é", "€", "😀"])
@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_a_payload_is_cut_also_inside_a_character(character: str, shift: int, parts: Parts) -> None:
    """64 kB are kept; a character cut in two at the end is left off, and the rest stays text."""
    text = "a" * shift + character * (MAX_PAYLOAD + 1)
    letter = dead_letter(parts, text.encode())
    assert letter["truncated"] is True
    assert text.startswith(letter["payload"])
    assert MAX_PAYLOAD - 4 < len(letter["payload"].encode()) <= MAX_PAYLOAD
    assert letter["payload_base64"] is None


@given(st.binary(max_size=200), st.none() | st.binary(max_size=20), st.booleans())
def test_any_payload_and_key_make_a_dead_letter(value: bytes, key: bytes | None, is_long: bool) -> None:
    """Bytes that are no UTF-8 go as base64, and nothing of the kept part is lost."""
    from tests.conftest import make_learned

    learned = make_learned()
    parts = Parts("orders", "shop.orders", (), None, None, 0.1, None, learned)  # type: ignore[arg-type]
    whole = value * (MAX_PAYLOAD // max(1, len(value)) + 2) if is_long else value
    letter = dead_letter(parts, whole, key)
    assert letter["truncated"] is (len(whole) > MAX_PAYLOAD)
    if letter["payload"] is None:
        assert b64decode(letter["payload_base64"]) == whole[:MAX_PAYLOAD]
    else:
        kept = letter["payload"].encode()
        assert whole[:MAX_PAYLOAD].startswith(kept)
        assert len(whole[:MAX_PAYLOAD]) - len(kept) < 4


def test_a_stream_has_its_name_in_ids(parts: Parts) -> None:
    """Two streams never share an id."""
    other = replace(parts, stream="other")
    mine, theirs = ({json.loads(o.value)["id"] for o in outputs_of(p, 20)} for p in (parts, other))
    assert not mine & theirs
