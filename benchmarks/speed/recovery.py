"""From nothing to ready: sessions rebuilt from the changelog, a restart that finds them on disk, a takeover.

The changelog is filled with the rows a worker would have saved. Then it is replayed by `Recovery` alone, by a worker
with an empty disk, and by the same worker, killed, with what it had saved.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicCollection, TopicPartition
from rich.console import Console

from benchmarks.kafka import new_producer
from benchmarks.stack import PARTITIONS, STREAM, Stack, WorkerProcess
from benchmarks.workloads import START_MS, VOCABULARY
from detectors.rows import RowShape, SessionRows
from pipeline.broker import LocalBroker
from pipeline.clients import Clients
from pipeline.cold_rows import PARTITION, ColdRows, Memory, session_key
from pipeline.partition_row import PartitionRow
from pipeline.recovery import Recovery, Replay
from pipeline.row_format import RowFormat
from pipeline.serving import load_serving, make_parts, state_fingerprint
from pipeline.topic_ids import TopicIds
from pipeline.topics import changelog_topic

_ROWS = {"model": {"hidden": 64, "context": 42}}  # 1,004 bytes a row with its key
_CHUNK = 10_000


def run(sessions: int, screen: Console) -> dict[str, Any]:
    """Measure once; rates in rows/s, times in seconds."""
    found: dict[str, Any] = {"benchmark": "recovery", "sessions": sessions}
    with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name) / "broker", ephemeral=True) as broker:
        stack = Stack.make(broker.address, Path(name) / "stack", "recovery", stream=_ROWS)
        began = time.monotonic()
        found["row_bytes"] = fill(stack, sessions)
        screen.print(f"  {sessions:,} rows of {found['row_bytes']} bytes written in {time.monotonic() - began:.1f} s")
        found["rows_per_s"] = asyncio.run(replay(stack, Path(name) / "rows"))
        found["goal"] = 150_000
        screen.print(f"  replayed: {found['rows_per_s']:,.0f} rows/s")
        with WorkerProcess(stack) as worker:
            began = worker.wait_started()
            found["empty_disk_s"] = worker.wait_ready() - began
        with WorkerProcess(stack) as worker:
            began = worker.wait_started()
            found["intact_disk_s"] = worker.wait_ready() - began
            replayed = sum(line["changelog_rows"] for line in worker.lines("partition opened"))
        found["worker_rows_per_s"] = sessions / found["empty_disk_s"]
        screen.print(
            f"  a worker is ready after {found['empty_disk_s']:.1f} s with an empty disk, after "
            f"{found['intact_disk_s']:.1f} s with an intact one ({replayed:,} rows replayed)"
        )
        found |= takeover(broker.address, Path(name) / "takeover", max(400, sessions // 10))
        screen.print(
            f"  with a standby, the survivor of a kill -9 has opened {found['takeover_sessions']:,} sessions "
            f"{found['takeover_s']:.2f} s after the rebalance, {found['takeover_rows']:,} rows replayed"
        )
    return found


def takeover(address: str, folder: Path, sessions: int) -> dict[str, Any]:
    """Two workers with a standby of each partition; one is killed. From the rebalance to the last opening."""
    stack = Stack.make(address, folder, "takeover", stream=_ROWS, state={"standby_replicas": 1})
    fill(stack, sessions)
    with WorkerProcess(stack, "w0") as one, WorkerProcess(stack, "w1") as two:
        one.wait_ready()
        two.wait_ready()
        two.wait_for(lambda: sum(w.metric("offbeat_standby_partitions") for w in (one, two)) == PARTITIONS)
        time.sleep(2.0 + sessions / 20_000)  # until the standbys are in step
        before = len(two.lines("partition opened"))
        one.kill()
        # Its partitions are revoked: the rebalance begins. It may be over before anybody looks.
        began = two.wait_for(lambda: not two.ready() or len(two.lines("partition opened")) > before)
        ended = two.wait_ready()
        opened = [line for line in two.lines("partition opened")[before:] if not line["kept"]]
    return {
        "takeover_s": ended - began, "takeover_goal_s": 3.0,
        "takeover_sessions": sum(line["open_sessions"] for line in opened),
        "takeover_rows": sum(line["changelog_rows"] for line in opened),
    }  # fmt: skip


async def replay(stack: Stack, folder: Path) -> float:
    """Rows read back in a second from all partitions at once, by `Recovery` alone."""
    settings = stack.settings
    parts = make_parts(settings, STREAM, None)
    clients, memory = Clients(settings), Memory()
    recovery = Recovery(clients, TopicIds(clients), lambda: time.time_ns() // 1_000_000)
    await recovery.start()
    colds = [ColdRows(folder / str(p), memory) for p in range(PARTITIONS)]
    began = time.monotonic()
    replays: list[Replay] = await asyncio.gather(
        *(
            recovery.restore(
                cold, changelog_topic(settings, STREAM), p, RowFormat(parts.shape), parts.rules.lead_ms, lambda _: None
            )
            for p, cold in enumerate(colds)
        )
    )
    taken = time.monotonic() - began
    for cold in colds:
        cold.close()
    await recovery.stop()
    return sum(replay.rows for replay in replays) / taken


def fill(stack: Stack, sessions: int) -> int:
    """Write what checkpoints would have: session rows, partition rows, the group's offsets. Returns a row's bytes."""
    settings = stack.settings
    learned = load_serving(settings, STREAM)
    assert learned is not None
    format_ = RowFormat(make_parts(settings, STREAM, learned).shape)
    changelog = changelog_topic(settings, STREAM)
    producer = new_producer(stack.address, **{"linger.ms": 20, "queue.buffering.max.messages": 200_000})
    row = b""
    for number, row in _rows(format_, learned.number, sessions):
        _produce(producer, changelog, session_key(f"session-{number:08d}"), row, number % PARTITIONS)
    admin = Clients(settings).admin()  # a client that is let go of takes its answers along
    ids = admin.describe_topics(TopicCollection([stack.source]))
    saved = PartitionRow(
        next_offset=0, watermark_ms=START_MS + sessions, records=0, sessions=sessions // PARTITIONS,
        fingerprint=state_fingerprint(settings, STREAM), bundle=learned.digest, runtime="kernel",
        topic_id=str(ids[stack.source].result(30).topic_id), epoch=0, controls=0,
    )  # fmt: skip
    for p in range(PARTITIONS):
        _produce(producer, changelog, PARTITION, saved.encode(), p)
    assert producer.flush(60) == 0
    _commit(stack)
    return len(session_key("session-00000000")) + len(row)


def _rows(format_: RowFormat, bundle: int, sessions: int) -> Iterator[tuple[int, bytes]]:
    """Each session's number and its row, with random states: rows that repeat themselves would compress."""
    rng = np.random.default_rng(0)
    for low in range(0, sessions, _CHUNK):
        numbers = np.arange(low, min(low + _CHUNK, sessions))
        rows = _random_rows(rng, numbers, format_.shape)
        rows.bundle.fill(bundle)
        yield from zip(numbers.tolist(), format_.encode(rows), strict=True)


def _random_rows(rng: np.random.Generator, numbers: np.ndarray, shape: RowShape) -> SessionRows:
    rows = SessionRows.empty(len(numbers), shape)
    rows.events.fill(shape.context)
    rows.first_ms[:] = rows.last_ms[:] = START_MS + numbers
    rows.worst.fill(1.0)
    rows.hidden[:] = rng.uniform(-1, 1, rows.hidden.shape)
    rows.context_ms[:] = rows.first_ms[:, None]
    rows.context_tokens[:] = rng.integers(0, len(VOCABULARY), rows.context_tokens.shape)
    return rows


def _produce(producer: Producer, topic: str, key: bytes, value: bytes, partition: int) -> None:
    while True:
        try:
            producer.produce(topic, value, key=key, partition=partition)
            return
        except BufferError:
            producer.poll(0.05)


def _commit(stack: Stack) -> None:
    consumer = Consumer({"bootstrap.servers": stack.address, "group.id": stack.app})
    consumer.commit(offsets=[TopicPartition(stack.source, p, 0) for p in range(PARTITIONS)], asynchronous=False)
    consumer.close()
