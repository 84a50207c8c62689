"""A storm: workers, a broker and a stream of records, faults by a schedule, and afterwards the comparison.

What is promised is written down in `checks.py` and `oracle.py`; here is only who does what, when.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from pipeline.broker import LocalBroker
from pipeline.log_bounds import log_bounds
from tests.chaos import oracle
from tests.chaos.checks import OffsetWatch, check_anomalies, check_committed, check_messages, check_rows
from tests.chaos.faults import suffer
from tests.chaos.rows import read_rocksdb
from tests.chaos.schedule import WORKERS, Fault
from tests.chaos.workers import StormError, Worker, read_log, worker_command
from tests.chaos.workload import GAP_MS, MAX_EVENTS, RECORDS_PER_S, Feed
from tests.kafka import QUIET, Stack, write_untrained_bundle

PARTITIONS = 4
_FIRST_WORKERS = 2
_STANDSTILL_S = 60.0  # in the calm the group's offsets move at least that often, until they cover everything
_RESTART_S = 0.5
# Compaction goes on during a storm: small segments, and a cleaner that looks often.
_BROKER = {
    "log.segment.bytes": str(4 << 20),
    "log.cleaner.backoff.ms": "3000",
    "log.cleaner.min.cleanable.ratio": "0.2",
}


@dataclass(frozen=True)
class Plan:
    """All that a storm depends on."""

    seed: int
    seconds: float
    delivery: str
    faults: list[Fault]
    command: list[str] = field(default_factory=worker_command)
    environ: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    rate: int = RECORDS_PER_S

    def __str__(self) -> str:
        repeat = f"make chaos SECONDS={self.seconds:g} SEED={self.seed} DELIVERY={self.delivery}"
        return "\n".join([*map(str, self.faults), "", f"Repeat it by: {repeat}"])


@dataclass
class Report:
    """How a storm went."""

    plan: Plan
    records: int = 0
    sessions: int = 0
    done: Counter[str] = field(default_factory=Counter)
    reached: set[str] = field(default_factory=set)
    restarts: int = 0
    openings: int = 0
    doubled: float = 0.0
    took_s: float = 0.0
    complaints: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all that must hold held."""
        return not self.complaints

    @property
    def missed(self) -> set[str]:
        """Fail points that a worker should have died at and did not come by."""
        return {fault.point.partition(":")[0] for fault in self.plan.faults if fault.kind == "point"} - self.reached

    def line(self) -> str:
        """The figures in one line."""
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(self.done.items()))
        return (
            f"{'PASS' if self.passed else 'FAIL'} seed {self.plan.seed}, {self.plan.seconds:g} s, "
            f"{self.plan.delivery}: {self.records:,} records, {self.sessions:,} sessions ended, "
            f"{self.done.total()} faults ({faults}), {len(self.reached)} fail points reached, {self.restarts} workers "
            f"ended in an outage, {self.openings} openings, {100 * self.doubled:.2f} % of outputs doubled, "
            f"{self.took_s:.0f} s"
        )

    def __str__(self) -> str:
        what = [f"- {complaint}" for complaint in self.complaints]
        what += [f"- not reached: {', '.join(missed)}"] if (missed := self.missed) else []
        return "\n".join([self.line(), *what, "", "The schedule was:", str(self.plan)])


class Storm:
    """One run of a plan in a folder of its own.

    Parameters
    ----------
    tell
        Hears what happens while it happens.
    address
        Of a broker to use, where the plan leaves the broker alone; None starts one.
    """

    def __init__(
        self, plan: Plan, folder: Path, tell: Callable[[str], None] = lambda _: None, address: str | None = None
    ) -> None:
        self.plan, self.report, self._tell = plan, Report(plan), tell
        self.broker = LocalBroker(folder / "kafka", ephemeral=True, settings=_BROKER)
        self.broker_lock, self.point_lock = asyncio.Lock(), asyncio.Lock()
        self.outage_until = 0.0
        self.reached = self.report.reached
        self.workers: list[Worker] = []
        self.stack: Stack
        self._address = address
        self._folder, self._began = folder, time.monotonic()
        self._watch = OffsetWatch()

    def note(self, what: str) -> None:
        """Tell what happens, and when."""
        self._tell(f"{time.monotonic() - self._began:7.2f} s  {what}")

    async def run(self) -> Report:
        """Run it to its end: the report says what held and what did not."""
        began = time.monotonic()
        try:
            if self._address is None:
                await asyncio.to_thread(self.broker.start)
            self._set_up(self._address or self.broker.address)
            await self._rage()
            self.note("the storm is over; comparing")
            await asyncio.to_thread(self._compare)
        except StormError as error:
            self.report.complaints.append(str(error))
        finally:
            for worker in self.workers:
                if worker.is_running:
                    await worker.end(SIGKILL)
            for log in self.broker.data_dir.glob("kafka.log*"):  # what the broker says goes with its data
                shutil.copy(log, self._folder)
            await asyncio.to_thread(self.broker.stop)
        self.report.took_s = time.monotonic() - began
        return self.report

    # --- before and during ---------------------------------------------------------------------------------------

    def _set_up(self, address: str) -> None:
        self.stack = Stack(address, self._folder / "stack", PARTITIONS)
        self.stack.configure(
            stream={
                "session": {
                    "by": "session", "gap": f"{GAP_MS}ms", "end_when": {"action": "close"}, "max_events": MAX_EVENTS,
                },
                "model": {"hidden": oracle.HIDDEN, "context": oracle.CONTEXT},
                "promise": {"false_alarm_rate": oracle.RATE},
            },
            state={"hot_sessions": 2_000},  # far fewer than there are sessions, so that rows come and go
            **({"delivery": self.plan.delivery} if self.plan.delivery != "at_least_once" else {}),
            **self.plan.settings,
        )  # fmt: skip
        self.stack.create_source()
        write_untrained_bundle(self.stack)
        self.workers = [Worker(self.stack, f"w{i}", self.plan.command, self.plan.environ) for i in range(WORKERS)]

    async def _rage(self) -> None:
        """Records and faults until the time is over, then calm until everything is covered, then an orderly end."""
        for worker in self.workers[:_FIRST_WORKERS]:
            worker.start()
        feed = Feed(self.stack.address, self.stack.source, self.plan.seed, self.plan.rate)
        watching = _Watching(self.stack, self._watch)
        self._began = time.monotonic()
        feed.start()
        watching.start()
        supervisor = asyncio.create_task(self._supervise())
        try:
            storm = asyncio.gather(*(self._suffer(fault) for fault in self.plan.faults), self._until_over())
            await _first_to_fail(storm, supervisor)
            self.note("calm")
            await asyncio.to_thread(feed.stop)
            self.report.complaints += feed.failures
            self.report.records = feed.sent
            await _first_to_fail(asyncio.ensure_future(self._covered()), supervisor)
            supervisor.cancel()
            await self._stop_workers()
        finally:
            supervisor.cancel()
            await asyncio.to_thread(feed.stop)
            await asyncio.to_thread(watching.stop)
            self.report.complaints += self._watch.complaints[:3]
            self.report.openings = len(self._openings())

    async def _until_over(self) -> None:
        await asyncio.sleep(max(0.0, self._began + self.plan.seconds - time.monotonic()))

    async def _suffer(self, fault: Fault) -> None:
        await asyncio.sleep(max(0.0, self._began + fault.at_s - time.monotonic()))
        await suffer(fault, self)
        self.report.done[fault.kind] += 1

    async def _supervise(self) -> None:
        """Start again what ended while it suffered no fault, where an earlier one explains that."""
        while True:
            await asyncio.sleep(_RESTART_S)
            if self._watch.complaints:
                raise StormError(self._watch.complaints.pop())
            for worker in self.workers:
                if worker.is_wanted and not worker.is_running and not worker.lock.locked():
                    async with worker.lock:
                        worker.explain_end(outage=time.monotonic() < self.outage_until)
                        self.note(f"{worker.name} had ended; it starts again")
                        self.report.restarts += 1
                        worker.start()

    async def _covered(self) -> None:
        ends, seen, moved_at = await asyncio.to_thread(self.stack.ends), dict[int, int](), time.monotonic()
        while (found := dict(self._watch.highest)) != ends:
            if found != seen:
                seen, moved_at = found, time.monotonic()
            elif time.monotonic() - moved_at > _STANDSTILL_S:
                logs = "\n".join(f"{w.name}:\n{w.tail()}" for w in self.workers)
                message = f"in the calm the group stands still at {found}, not at {ends}\n{logs}"
                raise StormError(message)
            await asyncio.sleep(0.2)

    async def _stop_workers(self) -> None:
        running = [worker for worker in self.workers if worker.is_wanted]
        for worker in running:
            worker.send(SIGTERM)
        for worker in running:
            await worker.ended()
            worker.explain_end(outage=False)

    # --- afterwards ----------------------------------------------------------------------------------------------

    def _openings(self) -> list[dict[str, Any]]:
        """Log lines on opened partitions, of all workers in order of time."""
        lines = [
            line | {"worker": worker.name}
            for worker in self.workers
            for log in worker.logs
            for line in read_log(log)
            if line.get("event") == "partition opened"
        ]
        return sorted(lines, key=lambda line: line["timestamp"])

    def _compare(self) -> None:
        stack, report = self.stack, self.report
        logs = [[(m.offset(), m.key(), m.value()) for m in read(stack, stack.source, p)] for p in range(PARTITIONS)]
        bundles = stack.folder / "bundles"
        expected = oracle.expect(logs, bundles, stack.source, GAP_MS, MAX_EVENTS)
        report.complaints += check_committed(stack.committed(), expected)
        owners = {line["partition"]: line["worker"] for line in self._openings()}
        for p, e in enumerate(expected):
            saved: dict[bytes, bytes] = {}
            for m in read(stack, f"{stack.name}.orders.changelog", p):
                if m.value() is None:
                    saved.pop(m.key(), None)
                else:
                    saved[m.key()] = m.value()
            report.complaints += check_rows(f"changelog {p}", saved, e)
            folder = stack.saved_rows(p, owners[p])
            report.complaints += check_rows(f"RocksDB {p} of {owners[p]}", read_rocksdb(folder), e)
        once = self.plan.delivery == "exactly_once"
        contents = {identity: content for e in expected for identity, content in e.messages.items()}
        report.sessions = sum(identity.endswith("/session") for identity in contents)
        outputs = check_messages(self._values("decisions", "dead-letters"), contents, once=once)
        alarms = check_anomalies(self._values("anomalies"), set().union(*(e.anomalies for e in expected)), once=once)
        report.complaints += outputs.complaints + alarms.complaints
        report.doubled = outputs.doubled

    def _values(self, *topics: str) -> Iterator[bytes]:
        for topic in topics:
            for p in range(PARTITIONS):
                for m in read(self.stack, f"{self.stack.name}.{topic}", p):
                    yield m.value()


class _Watching(threading.Thread):
    """Looks at the group's offsets all the time."""

    def __init__(self, stack: Stack, watch: OffsetWatch) -> None:
        super().__init__(name="watch", daemon=True)
        self._stack, self._watch, self._over = stack, watch, threading.Event()

    def run(self) -> None:
        """Look eight times a second while the broker answers."""
        consumer = Consumer({"bootstrap.servers": self._stack.address, "group.id": self._stack.name, **QUIET,
                             "reconnect.backoff.max.ms": 500, "error_cb": lambda _: None})  # fmt: skip
        wanted = [TopicPartition(self._stack.source, p) for p in range(self._stack.partitions)]
        while not self._over.wait(0.12):
            with suppress(KafkaException):  # the broker is away
                found = consumer.committed(wanted, timeout=5)
                self._watch.see({tp.partition: tp.offset for tp in found if tp.offset >= 0})
        consumer.close()

    def stop(self) -> None:
        """End."""
        self._over.set()
        self.join(30)


def read(stack: Stack, topic: str, partition: int) -> Iterator[Any]:
    """A partition's messages from first to last, read_committed, one by one: a long storm's would not fit at once."""
    consumer = Consumer({
        "bootstrap.servers": stack.address, "group.id": f"{stack.name}-reader", "enable.auto.commit": False,
        "isolation.level": "read_committed", "auto.offset.reset": "earliest", **QUIET,
    })  # fmt: skip
    try:
        tp = TopicPartition(topic, partition, 0)
        low, end = log_bounds(consumer, topic, partition)
        consumer.assign([TopicPartition(topic, partition, low)])
        # Positions, not last records: transaction markers take offsets too.
        while low < end and consumer.position([tp])[0].offset < end:
            yield from (m for m in consumer.consume(5_000, 0.2) if m.error() is None)
    finally:
        consumer.close()


async def _first_to_fail(work: asyncio.Future[Any], guard: asyncio.Task[None]) -> None:
    """Wait for `work`; what `guard` raises meanwhile ends it."""
    try:
        await asyncio.wait([work, guard], return_when=asyncio.FIRST_COMPLETED)
        if guard.done():
            guard.result()
        await work
    finally:
        work.cancel()
