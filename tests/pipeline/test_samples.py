"""Exports of metrics: every sample is an event, in files as through the worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from features.decode import Decoder
from pipeline.errors import ConfigError
from pipeline.samples import events_of
from pipeline.serving import state_fingerprint
from pipeline.settings import Settings, parse_settings
from tests.features.test_otlp import attribute, export
from tests.kafka import WorkerProcess, by_id
from tests.pipeline.test_repartition import Internal, scored_by_file, source_of, wait_until_all_is_scored
from tests.pipeline.test_worker import decisions_of

HOST = 'resource["host.name"]'
SECTION: dict[str, Any] = {
    "topic": "t", "format": "otlp_metrics", "session": {"by": HOST}, "tokens": ["type"],
}  # fmt: skip


def settings(**section: Any) -> Settings:
    return parse_settings({"streams": {"s": SECTION | section}, "mask_secret": "0" * 16}, {})


def exported(i: int) -> bytes:
    """Two samples of one of seven hosts."""
    point = {"timeUnixNano": str((1_700_000_000 + i) * 10**9), "asInt": i}
    metrics = [{"name": name, "gauge": {"dataPoints": [point]}} for name in ("load", f"memory.{i % 3}")]
    return export(*metrics, resource=[attribute("host.name", stringValue=f"h-{i % 7}")])


@dataclass(frozen=True)
class Given:
    """A record of a file."""

    offset: int
    value: bytes | None
    key: bytes | None = None
    timestamp: int = 0
    place: int = 0


def test_every_sample_has_an_offset_of_its_own() -> None:
    """Offsets grow, exports that cannot be read keep their place, and samples that were written back keep theirs."""
    stream = settings().stream("s")
    found = list(events_of(stream, [Given(0, exported(1)), Given(1, b"bad"), Given(2, exported(2)), Given(9, None)]))
    assert [r.offset for r in found] == [0, 1, 2, 3, 4, 9]
    assert [r.value for r in found if r.value in {b"bad", None}] == [b"bad", None]
    again = [Given(r.offset + 20, r.value, place=1) for r in found]
    assert list(events_of(stream, again)) == again
    plain = parse_settings({"streams": {"s": SECTION | {"format": "json"}}}, {}).stream("s")
    assert list(events_of(plain, again)) == again


def test_the_section_says_what_it_is() -> None:
    """Such streams are repartitioned unasked, cannot be masked, and their rows are no others'."""
    made = settings()
    assert made.topic_of("s") == "offbeat.s.repartition"
    assert settings(format="json").topic_of("s") == "t"
    assert state_fingerprint(made, "s") != state_fingerprint(settings(format="json"), "s")
    with pytest.raises(ConfigError, match="before anything is masked"):
        settings(mask={"metric": "hash"})


def test_what_could_not_be_flattened_says_why() -> None:
    """The decoder of samples gives the flattening's own reason."""
    decoder = Decoder(HOST, "time", ["metric"], {}, of_exports=True)
    bad = [b"no json", b'{"resourceLogs": []}', exported(1)]
    rejects = decoder.decode([Given(i, value) for i, value in enumerate(bad)], check_key=True).rejects
    assert [r.error.reason for r in rejects] == ["not_json", "wrong_type", "wrong_type"]
    assert "no export of metrics" in str(rejects[1].error)


def test_worker_and_file_agree_on_exports(kafka_address: str, tmp_path: Path) -> None:
    """Each sample is scored once, under its session; what is no export is a dead letter with its reason."""
    stack = Internal(kafka_address, tmp_path)
    section = {key: value for key, value in SECTION.items() if key != "topic"} | {
        "session": {"by": HOST, "gap": "1h"}
    }  # fmt: skip
    stack.configure(stream=section | {"time": "time"})
    stack.run("topics", "--create")
    records = [(None, exported(i)) for i in range(300)]
    (tmp_path / "exports.jsonl").write_bytes(b"\n".join(value for _, value in records) + b"\n")
    trained = stack.run("train", "-s", "orders", "--input", "exports.jsonl", "--json", check=False)
    assert "sessions; at least 100 are needed" in trained.stderr
    with WorkerProcess(stack) as worker:
        stack.produce([*records, (b"k", b"no json"), (b"k", b"{}")], source_of(stack))
        wait_until_all_is_scored(stack, 602)
        assert worker.stop() == 0
    letters = stack.read_json("dead-letters")
    assert Counter(letter["reason"] for letter in letters) == {"not_json": 1, "wrong_type": 1}
    assert {letter["origin"]["topic"] for letter in letters} == {source_of(stack)}
    decisions = [d for d in stack.read_json("decisions") if d["type"] == "record"]
    assert Counter(d["session"] for d in decisions) == Counter(f"h-{i % 7}" for i in range(300) for _ in "ab")
    found = {i: v for i, v in scored_by_file(stack).items() if v["status"] != "dead_letter"}
    assert by_id(stack.read_json("decisions")) == decisions_of(found)
