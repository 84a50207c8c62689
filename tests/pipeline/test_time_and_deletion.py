"""What is no record and changes state: the idle clock and deletions. Each acts once, also over a crash."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.kafka import PATIENCE_S, Stack, WorkerProcess, by_id, wait_until

START_MS = 1_700_000_000_000
SESSION = {"by": "session", "gap": "5s", "idle": "2s", "end_when": {"action": "close"}}


def event(session: str, at_ms: int, action: str = "view") -> tuple[bytes, bytes]:
    value = {"session": session, "action": action, "status": "ok", "ts": START_MS + at_ms}
    return session.encode(), json.dumps(value).encode()


def ends(stack: Stack) -> dict[str, str]:
    """How each session that ended did; by its id, so that one that ended twice would show as two contents."""
    found = by_id(stack.read_json("decisions")).values()
    return {v["session"]: v["ended"] for v in found if v["type"] == "session"}


def test_silence_ends_sessions_once(stack: Stack) -> None:
    """When nothing comes for `idle`, open sessions end by their gap; a later event opens a session as if in time."""
    stack.configure(stream={"session": SESSION})
    with WorkerProcess(stack) as worker:
        worker.wait_ready(4)
        stack.produce([event(f"s{i}", i) for i in range(40)])
        wait_until(lambda: len(ends(stack)) == 40, "the silence to end them")
        assert set(ends(stack).values()) == {"gap"}
        time.sleep(2.5)
        assert 'offbeat_partition_failures_total{stream="orders"} 0.0' in worker.metrics()
        # Newer than all before: the moved watermark does not make it late.
        stack.produce([event(f"s{i}", 100 + i) for i in range(40)] + [event(f"s{i}", 200, "close") for i in range(40)])
        stack.wait_until_scored()
        assert worker.stop() == 0
    sessions = [v for v in by_id(stack.read_json("decisions")).values() if v["type"] == "session"]
    assert sorted((v["ended"], v["events"]) for v in sessions) == [("event", 2)] * 40 + [("gap", 1)] * 40


@pytest.mark.parametrize("point", ["checkpoint/3:2", "checkpoint/1:3"])
def test_silence_survives_a_crash(point: str, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the idle clock's checkpoints are under way, the sessions still end, and each has one verdict."""
    single = Stack(stack.address, stack.folder, partitions=1)
    single.configure(stream={"session": SESSION}, models_dir=str(stack.folder / "bundles"))
    single.create_source()
    single.produce([event(f"s{i}", i) for i in range(40)])
    monkeypatch.setenv("FAIL_POINT", point)
    with WorkerProcess(single) as worker:
        assert worker.process.wait(PATIENCE_S) == -9
    monkeypatch.delenv("FAIL_POINT")
    with WorkerProcess(single) as worker:
        wait_until(lambda: len(ends(single)) == 40, "the silence to end them")
        assert worker.stop() == 0
    assert set(ends(single).values()) == {"gap"}


def on_disk(folder: Path, text: bytes) -> bool:
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(("MANIFEST", "w0"))]
    return any(text in path.read_bytes() for path in files)


@pytest.mark.parametrize("while_down", [False, True])
def test_a_deleted_session_is_gone_everywhere(while_down: bool, stack: Stack) -> None:
    """After the control is applied neither memory, RocksDB's files nor a recovery gives the session back."""
    import shutil

    stack.configure(stream={"session": SESSION | {"gap": "10h", "idle": "1h"}})
    names = [f"person-{i}" for i in range(20)]
    with WorkerProcess(stack) as worker:
        stack.produce([event(name, i) for i, name in enumerate(names)])
        stack.wait_until_scored()
        if while_down:
            assert worker.stop() == 0
            stack.run("sessions", "delete", "-s", "orders", "person-7", "--yes", "--wait", "0")
            with WorkerProcess(stack) as later:
                wait_until(lambda: any(line["event"] == "sessions deleted" for line in later.log()), "the deletion")
                stack.run("sessions", "delete", "-s", "orders", "person-7", "--verify")
                assert later.stop() == 0
        else:
            stack.run("sessions", "delete", "-s", "orders", "person-7", "--yes", "--verify")
            assert stack.run("sessions", "show", "-s", "orders", "person-7", check=False).returncode == 1
            assert stack.run("sessions", "show", "-s", "orders", "person-8").returncode == 0
            assert worker.stop() == 0
    assert not on_disk(stack.folder / "data" / "w0", b"person-7")
    assert on_disk(stack.folder / "data" / "w0", b"person-8")

    shutil.rmtree(stack.folder / "data" / "w0")  # a recovery from the changelog alone
    with WorkerProcess(stack) as worker:
        stack.produce([event(name, 1_000, "close") for name in names])
        stack.wait_until_scored()
        assert worker.stop() == 0
    sessions = [v for v in by_id(stack.read_json("decisions")).values() if v["type"] == "session"]
    assert {v["session"]: v["events"] for v in sessions} == dict.fromkeys(names, 2) | {"person-7": 1}
