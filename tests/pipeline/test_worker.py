"""The worker on a real broker: the same verdicts as from a file, and the same again after any kill -9."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.stages import STAGES
from tests.kafka import PATIENCE_S, Stack, WorkerProcess, as_records, by_id, shop_events, two_workers, wait_until

DECISION_KEYS = (
    "type", "id", "stream", "session", "segment", "time_ms", "score", "p_value", "anomaly", "confidence", "tag",
    "tag_confidence", "status", "labelled", "events", "ended", "first_ms",
)  # fmt: skip
CLOCK_KEYS = ("detected_ms",)


def scored_by_file(stack: Stack, *, as_text: bool = False) -> dict[str, dict[str, Any]]:
    """What `offbeat score` says of the topic's records; sessions that only end with the file left out."""
    stack.write_back(stack.folder / "records.jsonl", as_text=as_text)
    stack.run("score", "-s", stack.stream, "--input", str(stack.folder / "records.jsonl"), "--output", "verdicts.jsonl")
    lines = map(json.loads, (stack.folder / "verdicts.jsonl").read_text().splitlines())
    return {v["id"]: v for v in lines if v.get("ended") != "input"}


def decisions_of(verdicts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {i: {k: v[k] for k in DECISION_KEYS if k in v} for i, v in verdicts.items()}


def explained(verdicts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The anomalies' contents as both sides give them."""
    keys = (
        "score", "p_value", "observed", "expected", "contributions", "context", "session", "time_ms", "pattern",
        "would_be_normal", "earlier", "explained",
    )  # fmt: skip
    return {i: {k: v[k] for k in keys} for i, v in verdicts.items() if v.get("anomaly", True)}


@pytest.mark.parametrize(("hot", "sessions"), [(100_000, 900), (100, 1_200)])
def test_worker_and_file_agree(hot: int, sessions: int, stack: Stack) -> None:
    """Decisions and anomalies equal `offbeat score`'s, id by id and bit by bit, also with rows evicted all the time."""
    stack.configure(state={"hot_sessions": hot})
    stack.produce(as_records(shop_events(1, sessions)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0

    decisions = by_id(stack.read_json("decisions"))
    anomalies = by_id(stack.read_json("anomalies"), ignore=CLOCK_KEYS)
    expected = scored_by_file(stack)

    assert decisions == decisions_of(expected)
    assert explained(anomalies) == explained(expected)
    assert {v["ended"] for v in decisions.values() if v["type"] == "session"} == {"event", "gap", "limit"}
    assert 0 < len(anomalies) < len(decisions)


@pytest.mark.parametrize("flaw", ["weight", "feature", "offset"])
def test_the_agreement_sees_a_flaw(flaw: str, stack: Stack) -> None:
    """One changed weight, one changed feature or one shifted offset makes the comparison fail: it can."""
    stack.produce(as_records(shop_events(2, 100)))
    with WorkerProcess(stack):
        stack.wait_until_scored()
    decisions = by_id(stack.read_json("decisions"))
    assert decisions == decisions_of(scored_by_file(stack))
    records = stack.folder / "records.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    if flaw == "weight":
        _promote_with_a_changed_weight(stack)
    elif flaw == "feature":
        lines[7]["action"] = "ship" if lines[7]["action"] != "ship" else "pay"
    else:
        lines[-1]["_offset"] += 1
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    stack.run("score", "-s", "orders", "--input", str(records), "--output", "flawed.jsonl")
    flawed = map(json.loads, (stack.folder / "flawed.jsonl").read_text().splitlines())
    assert decisions_of({v["id"]: v for v in flawed if v.get("ended") != "input"}) != decisions


def _promote_with_a_changed_weight(stack: Stack) -> None:
    from safetensors.numpy import load, save

    from models.bundle import promote, read_bundle, serving_digest, write_bundle

    directory = stack.folder / "bundles" / "orders"
    bundle = read_bundle(directory / str(serving_digest(directory)))
    weights = {k: v.copy() for k, v in load(bundle.files["weights.safetensors"]).items()}
    weights["core.weight_hh_l0"][3, 5] += 0.01
    files = bundle.files | {"weights.safetensors": save(weights)}
    promote(directory, write_bundle(directory, bundle.content, files, "now"))


def test_a_killed_workers_partitions_are_taken_over(stack: Stack) -> None:
    """Two workers share the partitions; one is killed while records flow; the other loses nothing."""
    records = as_records(shop_events(4, 1_200))
    third = len(records) // 3
    with two_workers(stack, records[:third]) as (one, two):
        stack.produce(records[third : 2 * third])
        one.kill()
        stack.produce(records[2 * third :])
        stack.wait_until_scored()
        assert two.stop() == 0

    assert by_id(stack.read_json("decisions")) == decisions_of(scored_by_file(stack))


def test_without_a_bundle_verdicts_say_so(stack: Stack) -> None:
    """No bundle serves: every score is null, the status warming_up, no anomaly; later one takes over."""
    serving = stack.folder / "bundles" / "orders" / "serving"
    digest = serving.read_text()
    serving.unlink()
    records = as_records(shop_events(5, 200))
    stack.score(records[:300])
    early = stack.read_json("decisions")
    assert early
    assert all(v["score"] is None and v["p_value"] is None and v["status"] == "warming_up" for v in early)
    assert stack.read_json("anomalies") == []

    serving.write_text(digest)
    stack.score(records[300:])
    later = [v for v in stack.read_json("decisions") if v["id"] not in {e["id"] for e in early}]
    assert later
    assert all(v["score"] is not None and v["status"] == "ok" for v in later)


def test_bad_records_go_to_dead_letters_and_the_stream_goes_on(stack: Stack) -> None:
    """Each kind of bad record is set aside with its reason and source; the good ones around it are scored."""
    good = {"session": "a", "action": "view", "status": "ok", "ts": 1_700_000_000_000}

    def value(**changes: Any) -> bytes:
        return json.dumps(good | changes).encode()

    bad: list[tuple[bytes | None, bytes | None, str]] = [
        (b"a", b"\xff\xfe not json", "not_json"),
        (b"a", b"[1, 2]", "wrong_type"),
        (b"a", b'"text"', "wrong_type"),
        (b"a", json.dumps({"action": "view"}).encode(), "missing_session"),
        (b"a", value(action=7.5), "wrong_type"),
        (b"a", b'{"session": "a", "action": "view", "ts": NaN}', "not_json"),
        (b"a", value(ts="yesterday"), "bad_time"),
        (b"b", value(), "key_is_not_session"),
        (None, value(), "key_is_not_session"),
        (b"a", b"{" * 5_000, "not_json"),
        (b"a", b"x" * 100_000, "not_json"),
        (b"k" * 700_000, b"\x01" * 140_000, "not_json"),  # whole, its dead letter would be larger than Kafka takes
        (b"a", value(action="t" * 500_000), "wrong_type"),
    ]
    records: list[tuple[bytes | None, bytes | None]] = [(b"a", value())]
    records += [(key, body) for key, body, _ in bad]
    records += [(b"a", None), (b"a", value(ts=1_700_000_000_500))]
    stack.produce(records)
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        page = worker.metrics()

    letters = stack.read_json("dead-letters")
    assert sorted(letter["reason"] for letter in letters) == sorted(reason for *_, reason in bad)
    source = {(m.partition(), m.offset()): m for m in stack.read(stack.source)}
    for letter in letters:
        original = source[letter["source"]["partition"], letter["source"]["offset"]].value()
        if letter["truncated"]:
            assert len(letter["payload"]) == 64_000
        elif letter["payload"] is not None:
            assert letter["payload"].encode() == original
        else:
            assert letter["payload_base64"]
    assert [v["session"] for v in stack.read_json("decisions")] == ["a", "a"]
    families = {f.name: f for f in text_string_to_metric_families(page)}
    assert sum(s.value for s in families["offbeat_dead_letters"].samples if s.name.endswith("_total")) == len(bad)
    assert next(s.value for s in families["offbeat_tombstones"].samples if s.name.endswith("_total")) == 1


def test_metrics(stack: Stack) -> None:
    """/metrics on loopback shows records, latency, lag, checkpoint age and the digest, and never a session."""
    stack.produce(as_records(shop_events(6, 200)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        page = worker.metrics()
    families = {f.name: f for f in text_string_to_metric_families(page)}
    total = sum(stack.ends().values())
    assert next(s.value for s in families["offbeat_records"].samples if s.name.endswith("_total")) == total
    assert {int(s.labels["partition"]) for s in families["offbeat_lag_records"].samples} == set(range(4))
    assert all(s.value == 0 for s in families["offbeat_lag_records"].samples)
    assert any(s.name.endswith("_count") and s.value > 0 for s in families["offbeat_slice_latency_seconds"].samples)
    assert "offbeat_checkpoint_age_seconds" in families
    digest = (stack.folder / "bundles" / "orders" / "serving").read_text().strip()
    assert [s.labels["digest"] for s in families["offbeat_bundle_info"].samples] == [digest]
    assert {s.labels["stage"] for s in families["offbeat_stage_seconds"].samples if s.name.endswith("_sum")} == set(
        STAGES
    )
    looked = sum(s.value for s in families["offbeat_row_lookups"].samples if s.name.endswith("_total"))
    assert looked > 0
    assert [s.value for s in families["offbeat_bundle_trained_timestamp_seconds"].samples] == [1_767_225_600]
    assert [s.value for s in families["offbeat_source_partitions"].samples] == [4]
    assert [s.value for s in families["offbeat_ready"].samples] == [1]
    assert {s.value for s in families["offbeat_recovery_progress_ratio"].samples} == {1}
    assert "s-1" not in page


def test_the_worker_never_imports_torch(stack: Stack) -> None:
    """Neither importing the worker's modules nor scoring maps torch into the process."""
    probe = "import sys, pipeline.worker, pipeline.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
    stack.produce(as_records(shop_events(6, 20)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert "libtorch" not in Path(f"/proc/{worker.process.pid}/maps").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tokens": ["action"]}, "was trained with tokens"),
        ({"session": {"by": "session", "gap": "9s"}}, "cannot follow"),
    ],
)
def test_a_changed_section_is_refused(change: dict[str, Any], sentence: str, stack: Stack) -> None:
    """A change that saved sessions or the bundle cannot follow ends the worker with a sentence, not a traceback."""
    stack.produce(as_records(shop_events(10, 20)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    stack.configure(stream=change)
    with WorkerProcess(stack) as worker:
        assert worker.process.wait(PATIENCE_S) == 1
        log = worker.log_path.read_text()
    assert sentence in log
    assert "Traceback" not in log


def test_a_lost_disk_is_rebuilt_from_the_changelog(stack: Stack) -> None:
    """With every RocksDB deleted between two runs, verdicts are as if nothing had happened."""
    import shutil

    records = as_records(shop_events(11, 1_500))
    half = len(records) // 2
    for part in (records[:half], records[half:]):
        with WorkerProcess(stack) as worker:
            stack.produce(part)
            stack.wait_until_scored()
            assert worker.stop() == 0
            opened = [line for line in worker.log() if line["event"] == "partition opened"]
        shutil.rmtree(stack.folder / "data")
    assert sum(line["changelog_rows"] for line in opened) > 0
    assert by_id(stack.read_json("decisions")) == decisions_of(scored_by_file(stack))


def test_latest_is_decided_once(stack: Stack) -> None:
    """A new stream with `start: latest` skips what was there, but not what comes while the worker is down."""
    stack.configure(stream={"start": "latest"})
    records = as_records(shop_events(12, 60))
    stack.produce(records[:50])
    with WorkerProcess(stack) as worker:
        worker.wait_ready(4)
        worker.kill()
    stack.produce(records[50:])
    with WorkerProcess(stack):
        stack.wait_until_scored()
    records_decided = [v for v in stack.read_json("decisions") if v["type"] == "record"]
    assert len(records_decided) == len(records) - 50


def test_two_workers_of_one_name_do_not_fight_for_ever(stack: Stack) -> None:
    """Two workers that both call themselves w0 end with one of them leaving with a sentence; nothing is lost."""
    stack.produce(as_records(shop_events(13, 100)))
    with WorkerProcess(stack, "w0") as one:
        one.wait_ready(4)
        stack.configure(data_dir=str(stack.folder / "other-data"))
        with WorkerProcess(stack, "w0") as two:
            wait_until(lambda: any(w.process.poll() is not None for w in (one, two)), "one of them to leave")
            gone = one if one.process.poll() is not None else two
            assert gone.process.wait(PATIENCE_S) == 1
            assert "same instance name" in gone.log_path.read_text()
            assert "Traceback" not in gone.log_path.read_text()
    with WorkerProcess(stack, "w1"):
        stack.wait_until_scored()
    assert by_id(stack.read_json("decisions")) == decisions_of(scored_by_file(stack))


@pytest.mark.parametrize("why", ["too old", "another log's"])
def test_rows_out_of_step_are_rebuilt(why: str, stack: Stack) -> None:
    """A RocksDB that missed tombstones, or stands beyond the log's end, is not trusted: ended sessions stay ended."""
    from pipeline.cold_rows import ColdRows, session_key

    records = as_records(shop_events(14, 300))
    half = len(records) // 2
    stack.score(records[:half])
    for p in range(4):
        cold = ColdRows(stack.saved_rows(p))
        ghost = next(row for _, row in cold.sessions())
        position = cold.position if why == "too old" else cold.position + 1_000_000
        now_ms = 1 if why == "too old" else cold.in_step_ms
        cold.write({session_key(f"ghost-{p}"): ghost}, position, now_ms)
        cold.close()
    with WorkerProcess(stack) as worker:
        stack.produce(records[half:])
        stack.wait_until_scored()
        assert worker.stop() == 0
        assert sum(line["event"] == "rebuilding from the whole changelog" for line in worker.log()) == 4
    decisions = by_id(stack.read_json("decisions"))
    assert not any(v["session"].startswith("ghost") for v in decisions.values())
    assert decisions == decisions_of(scored_by_file(stack))


def test_another_app_begins_anew(stack: Stack) -> None:
    """With another `app` the same instance keeps other state, even where the stream's section has changed."""
    stack.produce(as_records(shop_events(15, 40)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0

    def records() -> list[str]:
        return [v["id"] for v in stack.read_json("decisions") if v["type"] == "record"]

    first = records()
    stack.configure(app=f"{stack.name}-b", stream={"session": {"by": "session", "gap": "9s"}})
    with WorkerProcess(stack) as worker:
        wait_until(lambda: len(records()) == 2 * len(first), "all records to be scored again")
        assert worker.stop() == 0
    assert sorted(records()) == sorted(first * 2)


def damage(stack: Stack, *, changelog: bool) -> set[str]:
    """Change a byte of saved rows of a stopped worker, in RocksDB and, if asked, in the changelog; whose they are."""
    from pipeline.cold_rows import ColdRows, session_key

    names = set()
    for p in range(stack.partitions):
        cold = ColdRows(stack.saved_rows(p))
        damaged = {name: row[:50] + bytes([row[50] ^ 1]) + row[51:] for name, row in cold.sessions()}
        cold.write({session_key(name): row for name, row in damaged.items()}, cold.position, cold.in_step_ms)
        cold.close()
        names |= damaged.keys()
        if changelog:
            stack.produce_to(f"{stack.name}.orders.changelog", p, [(session_key(n), row) for n, row in damaged.items()])
    return names


def test_damaged_rows_are_rebuilt(stack: Stack) -> None:
    """Saved rows that fail their check are never trusted: they come from the changelog, and no verdict differs."""
    records = as_records(shop_events(16, 60))
    half = len(records) // 2
    stack.score(records[:half])
    assert damage(stack, changelog=False)
    stack.produce(records[half:])
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert "offbeat_rebuilds_total" in worker.metrics()
        assert worker.stop() == 0
        assert any("fails its check" in line.get("why", "") for line in worker.log())
    assert by_id(stack.read_json("decisions")) == decisions_of(scored_by_file(stack))
    assert stack.read_json("drift") == []


def test_a_damaged_database_is_rebuilt(stack: Stack) -> None:
    """A RocksDB whose files are no longer whole is thrown away, and its rows come from the changelog."""
    records = as_records(shop_events(18, 60))
    half = len(records) // 2
    stack.score(records[:half])
    (stack.saved_rows(0) / "CURRENT").write_text("nonsense")
    for path in stack.saved_rows(1).glob("*.sst"):
        path.unlink()
    stack.produce(records[half:])
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    assert by_id(stack.read_json("decisions")) == decisions_of(scored_by_file(stack))


def test_sessions_damaged_everywhere_begin_anew_by_name(stack: Stack) -> None:
    """Rows damaged on disk and in the changelog are counted and named; exactly those sessions start anew."""
    records = as_records(shop_events(19, 60))
    half = len(records) // 2
    stack.score(records[:half])
    names = damage(stack, changelog=True)
    stack.produce(records[half:])
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    told = by_id(stack.read_json("drift"), ignore=CLOCK_KEYS).values()
    assert {v["type"] for v in told} == {"sessions_lost"}
    assert {name for v in told for name in v["sessions"]} == names
    assert sum(v["amount"] for v in told) == len(names)
    found, whole = by_id(stack.read_json("decisions")), decisions_of(scored_by_file(stack))
    assert {v["session"] for i, v in whole.items() if found.get(i) != v} <= names
    assert {i for i, v in found.items() if v["type"] == "record"} == {
        i for i, v in whole.items() if v["type"] == "record"
    }


def test_a_lost_changelog_is_not_passed_over(stack: Stack) -> None:
    """Offsets without rows mean that state was lost: the worker stops with a sentence instead of skipping records."""
    import shutil

    from confluent_kafka.admin import AdminClient

    stack.score(as_records(shop_events(17, 20)))
    admin = AdminClient({"bootstrap.servers": stack.address, "log_level": 0})
    changelog = f"{stack.name}.orders.changelog"
    admin.delete_topics([changelog])[changelog].result(PATIENCE_S)
    wait_until(lambda: changelog not in admin.list_topics(timeout=PATIENCE_S).topics, "the changelog to go")
    shutil.rmtree(stack.folder / "data")
    with WorkerProcess(stack) as worker:
        assert worker.process.wait(PATIENCE_S) == 1
        assert "saved sessions are gone" in worker.log_path.read_text()
