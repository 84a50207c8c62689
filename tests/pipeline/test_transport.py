"""Faust over slices: what we override still exists, slices nobody takes are held back, nothing is committed."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import aiokafka
import faust.app.base
import pytest
from aiokafka.consumer.group_coordinator import GroupCoordinator
from faust.tables.recovery import Recovery
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from pipeline import transport
from tests.kafka import PATIENCE_S, Stack, as_records, shop_events

# Each method we override, its owner, and its parameters in the pinned versions.
OVERRIDDEN = {
    (faust.App, "_new_transport"): ["self"],
    (driver.AIOKafkaConsumerThread, "_create_worker_consumer"): ["self", "transport"],
    (driver.AIOKafkaConsumerThread, "on_start"): ["self"],
    (driver.Consumer, "_new_consumer_thread"): ["self"],
    (driver.Consumer, "perform_seek"): ["self"],
    (driver.Consumer, "getmany"): ["self", "timeout"],
    (driver.Consumer, "ack"): ["self", "message"],
    (driver.Consumer, "_new_offset"): ["self", "tp"],
    (driver.Consumer, "verify_event_path"): ["self", "now", "tp"],
    (driver.Consumer, "on_partitions_assigned"): ["self", "assigned", "generation_id"],
    (driver.Consumer, "on_partitions_revoked"): ["self", "revoked"],
    (driver.Consumer, "on_start"): ["self"],
    (driver.Consumer, "on_stop"): ["self"],
}
# What we call or replace without overriding.
RELIED_ON = {
    (driver.Consumer, "_getmany"): ["self", "active_partitions", "timeout"],
    (driver.Consumer, "_get_active_partitions"): ["self"],
    (driver.Consumer, "seek_wait"): ["self", "partitions"],
    (driver.Consumer, "highwater"): ["self", "tp"],
    (driver.AIOKafkaConsumerThread, "call_thread"): None,
    (faust.Worker, "_sentinel_task"): ["self"],  # overridden in the worker module
    (GroupCoordinator, "_do_heartbeat"): ["self"],
    (aiokafka.AIOKafkaConsumer, "committed"): ["self", "partition"],
    (aiokafka.AIOKafkaConsumer, "position"): ["self", "partition"],
    (aiokafka.AIOKafkaConsumer, "end_offsets"): ["self", "partitions"],
    (Recovery, "_resume_streams"): ["self", "generation_id"],
}


@pytest.mark.parametrize(("where", "parameters"), [*OVERRIDDEN.items(), *RELIED_ON.items()])
def test_what_we_build_on_is_there(where: tuple[type, str], parameters: list[str] | None) -> None:
    """Each name we override or call exists with the parameters we know; an upgrade that changes one fails here."""
    owner, name = where
    found = list(inspect.signature(getattr(owner, name)).parameters)
    assert parameters is None or found == parameters


def test_the_table_of_overrides_is_complete() -> None:
    """Every method that a subclass in the transport module shares with its parent stands in the table above."""
    mine = {
        (base, name)
        for cls, base in (
            (transport.SliceApp, faust.App), (transport.SliceThread, driver.AIOKafkaConsumerThread),
            (transport.SliceConsumer, driver.Consumer),
        )
        for name in vars(cls)
        if hasattr(base, name) and inspect.isfunction(vars(cls)[name]) and name != "__init__"
    }  # fmt: skip
    assert mine == set(OVERRIDDEN)


def test_versions_are_the_ones_read() -> None:
    """The exact versions whose code was read are installed."""
    assert (version("faust-streaming"), version("aiokafka")) == ("0.15.3", "0.14.0")


def test_one_factory_makes_every_client() -> None:
    """No module but the factory (and the broker's own readiness probe) names a client's constructor."""
    makers = {"AIOKafkaConsumer", "AIOKafkaProducer", "Consumer", "Producer", "AdminClient"}
    folder = Path(transport.__file__).parent
    guilty = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in makers:
                guilty.add(path.name)
    assert guilty - {"broker.py", "demo.py"} == {"clients.py"}


# Runs a real worker app whose partitions are opened but not scored for some seconds, then scored.
HOLDING_BACK = textwrap.dedent(
    """
    import asyncio, json, sys
    from pathlib import Path
    import faust
    import pipeline.partition as partition
    from pipeline.app import build_app
    from pipeline.health import Health
    from pipeline.instance import Instance
    from pipeline.metrics import Metrics
    from pipeline.serving import load_serving
    from pipeline.settings import load_settings

    settings = load_settings(Path("offbeat.yaml"))
    opened, start = [], partition.Partition.start
    partition.Partition.start = lambda self: opened.append(self)
    with Instance(settings.data_dir, None) as instance:
        learned = {"orders": load_serving(settings, "orders")}
        app = build_app(settings, learned, instance, Metrics(), Health(), {"orders": 1})

        async def watch():
            while len(opened) < 1:
                await asyncio.sleep(0.1)
            while opened[0].slices.qsize() < 2:
                await asyncio.sleep(0.1)
            await asyncio.sleep(4)  # in which no more may come
            held = opened[0].slices.qsize()
            position = await app.consumer.position(next(iter(app.consumer.assignment())))
            for each in opened:
                start(each)
            total = int(sys.argv[1])
            while sum(p.state.next_offset for p in opened) < total:
                await asyncio.sleep(0.1)
            pending = {str(tp): app.consumer._new_offset(tp) for tp in app.consumer.assignment()}
            print(json.dumps({"held": held, "fetched": position, "pending": pending}), flush=True)
            import os, signal
            os.kill(os.getpid(), signal.SIGTERM)

        @app.task
        async def watching():
            await watch()

        worker = faust.Worker(app, loglevel="CRITICAL", quiet=True, override_logging=False, redirect_stdouts=False)
        worker.spinner = None
        worker.execute_from_commandline()
    """
)


@dataclass
class Opened:
    """As much of a partition as a fetch touches."""

    closed: bool = False
    in_transit: int = 0


def test_slices_of_a_fetch() -> None:
    """By topic, of partitions that are open still and have records; only these are on their way."""
    a0, a1, a2, b0 = Opened(), Opened(closed=True), Opened(), Opened()
    opened = {TP("a", 0): a0, TP("a", 1): a1, TP("a", 2): a2, TP("b", 0): b0}
    records = {TP("a", 0): [1, 2], TP("b", 0): [3], TP("a", 1): [4], TP("a", 2): [5], TP("c", 0): [6]}
    records |= {TP("b", 1): []}
    found = transport.slices_of(records, opened, 7.0, lambda tp: 10 * tp.partition)  # type: ignore[arg-type]
    told = {topic: [(one, s.records, s.fetched_at, s.highwater) for one, s in of] for topic, of in found.items()}
    assert told == {"a": [(a0, [1, 2], 7.0, 0), (a2, [5], 7.0, 20)], "b": [(b0, [3], 7.0, 0)]}
    assert [one.in_transit for one in (a0, a1, a2, b0)] == [1, 0, 1, 1]


def test_slices_nobody_takes_are_held_back(kafka_address: str, tmp_path: Path) -> None:
    """While a partition does not score, a few slices wait and the rest stays in Kafka; then all of it is scored."""
    stack = Stack(kafka_address, tmp_path, partitions=1)
    stack.configure(topics={"prefix": stack.name, "partitions": 1})
    stack.run("topics", "--create")
    value = json.dumps({"session": "s", "action": "view", "ts": 1_700_000_000_000, "filler": "x" * 400}).encode()
    stack.produce((b"s", value) for _ in range(150_000))
    done = subprocess.run(
        [sys.executable, "-c", HOLDING_BACK, "150000"], cwd=tmp_path, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.startswith('{"held"')]
    assert found, done.stdout + done.stderr
    seen = json.loads(found[0])
    assert seen["held"] == 2
    assert 0 < seen["fetched"] < 100_000
    assert set(seen["pending"].values()) == {None}


def test_faust_commits_nothing(stack: Stack) -> None:
    """The group's offsets are those of checkpoints: they never run ahead of the saved partition row."""
    from pipeline.cold_rows import PARTITION, ColdRows
    from pipeline.partition_row import decode_partition_row
    from tests.kafka import WorkerProcess

    stack.produce(as_records(shop_events(8, 400)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    for p, offset in stack.committed().items():
        cold = ColdRows(stack.saved_rows(p))
        saved = decode_partition_row(cold.get(PARTITION) or b"")
        cold.close()
        assert saved.next_offset == offset
