"""Partitions that move: rows are kept where they may be, followed where they will be needed, and never wrong."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from typing import Any

from tests.kafka import PATIENCE_S, Stack, WorkerProcess, as_records, by_id, shop_events, two_workers, wait_until
from tests.pipeline.test_worker import decisions_of, scored_by_file


def page(worker: WorkerProcess, path: str) -> tuple[int, Any]:
    """Status and body of one of the worker's pages."""
    wait_until(lambda: lines(worker, "worker starts"), "the worker to start")
    address = lines(worker, "worker starts")[0]["metrics"]
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=PATIENCE_S) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def lines(worker: WorkerProcess, event: str) -> list[dict[str, Any]]:
    return [line for line in worker.log() if line["event"] == event]


def sessions_in_changelog(stack: Stack) -> dict[bytes, bytes]:
    """Session rows as a compacted reader sees them."""
    rows: dict[bytes, bytes | None] = {m.key(): m.value() for m in stack.read(f"{stack.name}.orders.changelog")}
    return {key: value for key, value in rows.items() if value is not None and key[:1] == b"s"}


def test_kept_rows_are_as_good_as_read_ones(stack: Stack) -> None:
    """Partitions that come back after a rebalance go on from the rows in memory; rows and verdicts are the same."""
    records = as_records(shop_events(41, 1_200))
    quarter = len(records) // 4
    with WorkerProcess(stack, "w0") as one:
        one.wait_ready(4)
        stack.produce(records[:quarter])
        with WorkerProcess(stack, "w1") as two:
            stack.produce(records[quarter : 2 * quarter])
            two.wait_ready(2)
            stack.produce(records[2 * quarter : 3 * quarter])
            stack.wait_until_scored()
            two.kill()
        stack.produce(records[3 * quarter :])
        stack.wait_until_scored()
        assert one.stop() == 0
    opened = lines(one, "partition opened")
    assert sum(line["kept"] for line in opened) >= 2, opened
    assert by_id(stack.read_json("decisions")) == decisions_of(scored_by_file(stack))
    with_keeping = sessions_in_changelog(stack)

    stack.configure(app=f"{stack.name}-b", topics={"prefix": f"{stack.name}-b"})
    dropping = Stack(stack.address, stack.folder, name=f"{stack.name}-b")
    with WorkerProcess(stack, "w0") as worker:  # restarted, so that every row is dropped and read again
        wait_until(lambda: len(lines(worker, "partition opened")) == 4, "the first opening")
        assert worker.stop() == 0
    with WorkerProcess(stack, "w0") as worker:
        wait_until(lambda: sum(stack_offsets(stack, dropping).values()) == len(records), "all to be scored")
        assert worker.stop() == 0
    assert sessions_in_changelog(dropping) == with_keeping


def stack_offsets(stack: Stack, other: Stack) -> dict[int, int]:
    """Offsets of another app's group on the stack's source."""
    from benchmarks.kafka import committed_offsets

    return committed_offsets(stack.address, other.name, stack.source, stack.partitions)


def test_a_standby_takes_over_with_the_tail_alone(stack: Stack) -> None:
    """With a standby, the survivor of a kill -9 has nearly all rows already; without, it reads them all."""
    stack.configure(state={"standby_replicas": 1}, stream={"session": {"by": "session", "gap": "10h"}})
    records = as_records(shop_events(42, 1_500))
    half = len(records) // 2
    with WorkerProcess(stack, "w0") as one, WorkerProcess(stack, "w1") as two:
        wait_until(lambda: page(one, "/ready")[0] == page(two, "/ready")[0] == 200, "both to be ready")
        stack.produce(records[:half])
        stack.wait_until_scored()
        wait_until(lambda: "offbeat_standby_partitions 2.0" in two.metrics(), "the standbys")
        time.sleep(5.0)  # the changelog's last rows are on their way
        before = len(lines(two, "partition opened"))
        one.kill()
        wait_until(lambda: len(lines(two, "partition opened")) > before, "the takeover")
        stack.produce(records[half:])
        stack.wait_until_scored()
        assert two.stop() == 0
        taken = [line for line in lines(two, "partition opened")[before:] if not line["kept"]]
    assert len(taken) == 2
    open_sessions = sum(line["open_sessions"] for line in taken)
    assert sum(line["changelog_rows"] for line in taken) < open_sessions / 10
    assert by_id(stack.read_json("decisions")) == decisions_of(scored_by_file(stack))


def test_a_worker_without_partitions_keeps_standbys(stack: Stack) -> None:
    """Where there are more workers than partitions, the one too many still follows, and is ready."""
    single = Stack(stack.address, stack.folder, partitions=1)
    single.configure(state={"standby_replicas": 1}, models_dir=str(stack.folder / "bundles"))
    single.create_source()
    with WorkerProcess(single, "w0") as one, WorkerProcess(single, "w1") as two:
        both = (one, two)
        wait_until(lambda: all(page(w, "/ready")[0] == 200 for w in both), "both to be ready")
        wait_until(lambda: any("offbeat_standby_partitions 1.0" in w.metrics() for w in both), "the standby")
        assert [page(w, "/healthz")[0] for w in both] == [200, 200]
        assert [w.stop() for w in both] == [0, 0]


def test_a_zombie_changes_nothing(stack: Stack) -> None:
    """Stopped for longer than the session timeout and woken when another has taken over, it moves nothing."""
    records = as_records(shop_events(43, 900))
    third = len(records) // 3
    with two_workers(stack, records[:third]) as (one, two):
        stack.wait_until_scored()
        one.process.send_signal(signal.SIGSTOP)
        stack.produce(records[third : 2 * third])
        wait_until(lambda: sum(stack.committed().values()) == 2 * third, "the other to take over")
        offsets = stack.committed()
        one.process.send_signal(signal.SIGCONT)
        time.sleep(3.0)
        assert stack.committed() == offsets
        stack.produce(records[2 * third :])
        stack.wait_until_scored()
        assert one.stop() == 0
        assert two.stop() == 0
    assert by_id(stack.read_json("decisions")) == decisions_of(scored_by_file(stack))
