"""Help for tests on a real broker: topics of their own, worker processes, and reading topics whole.

Reads and writes go through confluent-kafka, a second implementation of the protocol, so that our worker's client and
the tests do not share a bug.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self
from uuid import uuid4

import yaml
from confluent_kafka import Consumer, Message
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.kafka import committed_offsets, new_producer, read_topic
from pipeline.log_bounds import log_bounds
from tests.fork_server import Forked, run_command

QUIET = {"log_level": 0}
MODEL = {"hidden": 16, "context": 6, "max_epochs": 8}  # what is trained is as sensitive as any, and soon there
# How long tests wait for what must come, in seconds: nothing but a flaw takes as long, even on a machine that is busy.
PATIENCE_S = 300.0
COMMAND = [sys.executable, "-P", "-m", "pipeline.cli"]  # -P: a folder with a pipeline/ of its own is not in the way


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Poll until `condition` gives something true, and return that."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    message = f"waited {timeout_s:.0f} s in vain for {what}"
    raise AssertionError(message)


@dataclass
class Stack:
    """A config of its own on the shared broker: unique app, prefix and source topic in a folder of its own."""

    address: str
    folder: Path
    partitions: int = 4
    name: str = field(default_factory=lambda: f"t{uuid4().hex[:8]}")
    stream: str = "orders"

    @property
    def source(self) -> str:
        """The stream's topic."""
        return f"{self.name}.{self.stream}"

    @property
    def config_path(self) -> Path:
        """The config file."""
        return self.folder / "offbeat.yaml"

    def configure(self, stream: dict[str, Any] | None = None, **settings: Any) -> None:
        """Write offbeat.yaml; `stream` and `settings` are laid over the defaults here."""
        config: dict[str, Any] = {
            "broker": self.address, "app": self.name, "data_dir": str(self.folder / "data"),
            "models_dir": str(self.folder / "bundles"), "http": {"port": 0}, "decisions": {"sample": 1.0},
            "topics": {"prefix": self.name},
            "streams": {
                "orders": {
                    "topic": self.source, "start": "earliest", "time": "ts", "tokens": ["action", "status"],
                    # Not ended by the wall clock: a file has none, and a machine may stand still for a minute.
                    "session": {
                        "by": "session", "gap": "5s", "idle": "1h", "end_when": {"action": "close"}, "max_events": 12,
                    },
                    "model": MODEL, "promise": {"false_alarm_rate": 0.1},
                }
                | (stream or {})
            },
        } | settings  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(yaml.safe_dump(config))

    def create_source(self, **config: str) -> None:
        """Make the source topic."""
        admin = AdminClient({"bootstrap.servers": self.address, **QUIET})
        topic = NewTopic(self.source, self.partitions, 1, config=config)
        admin.create_topics([topic])[self.source].result(PATIENCE_S)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = run_command([*arguments, "-c", str(self.config_path)], self.folder, PATIENCE_S)
        assert not check or done.returncode == 0, done.stderr
        return done

    def produce(self, records: Iterable[tuple[bytes | None, bytes | None]], topic: str | None = None) -> None:
        """Send (key, value) records, keys placed as Java's clients do, and wait for all acknowledgements."""
        producer = new_producer(self.address, **{"partitioner": "murmur2_random", "linger.ms": 5})
        for key, value in records:
            while True:
                try:
                    producer.produce(topic or self.source, value, key=key)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
        assert producer.flush(60) == 0

    def produce_to(self, topic: str, partition: int, records: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Send records to one partition of any topic."""
        producer = new_producer(self.address)
        for key, value in records:
            producer.produce(topic, value, key=key, partition=partition)
        assert producer.flush(60) == 0

    def read(self, topic: str) -> list[Message]:
        """Everything the topic holds now, read_committed, partition by partition in offset order."""
        return read_topic(self.address, topic)

    def read_json(self, what: str) -> list[dict[str, Any]]:
        """Values of one of the output topics."""
        return [json.loads(m.value()) for m in self.read(f"{self.name}.{what}")]

    def write_back(self, path: Path, *, as_text: bool = False) -> None:
        """Write the source topic as `offbeat score` reads it, with each record's key, partition and offset."""
        with path.open("w") as file:
            for m in self.read(self.source):
                about = {"_key": m.key().decode(), "_partition": m.partition(), "_offset": m.offset()}
                about["_timestamp_ms"] = m.timestamp()[1]
                event = {"_value": m.value().decode()} if as_text else json.loads(m.value())
                file.write(json.dumps(event | about) + "\n")

    def committed(self) -> dict[int, int]:
        """The group's offset of each source partition; absent where there is none."""
        return committed_offsets(self.address, self.name, self.source, self.partitions)

    def ends(self) -> dict[int, int]:
        """The offset after the last record of each source partition."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": self.name, **QUIET})
        try:
            return {p: log_bounds(consumer, self.source, p)[1] for p in range(self.partitions)}
        finally:
            consumer.close()

    def saved_rows(self, partition: int, instance: str = "w0") -> Path:
        """The RocksDB folder of a partition."""
        return self.folder / "data" / instance / self.name / f"{self.stream}-{partition}"

    def score(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Produce, let a worker score all of it, and stop the worker."""
        with WorkerProcess(self) as worker:
            self.produce(records)
            self.wait_until_scored()
            assert worker.stop() == 0

    def wait_until_scored(self) -> None:
        """Wait until a checkpoint covers every record produced so far."""
        ends = self.ends()
        wait_until(lambda: self.committed() == ends, f"offsets {ends}")


class Child:
    """One of Offbeat's processes, its log in a file. STARTS and OPENS are what it logs then.

    Parameters
    ----------
    forked
        Not where its memory is measured: what another process has imported counts among what it holds.
    """

    STARTS: ClassVar[str]
    OPENS: ClassVar[str]
    process: Forked | subprocess.Popen[bytes]

    def __init__(
        self, stack: Stack, instance: str, command: Sequence[str], environment: Mapping[str, str], *,
        forked: bool = True,
    ) -> None:  # fmt: skip
        self.log_path = stack.folder / f"{instance}-{uuid4().hex[:6]}.log"
        environ = os.environ | {"OFFBEAT_INSTANCE": instance} | environment
        words = [*command, "-c", str(stack.config_path)]
        with self.log_path.open("wb") as log, Path(os.devnull).open() as nothing:
            if forked:
                self.process = Forked(words, (nothing.fileno(), log.fileno(), log.fileno()), stack.folder, environ)
            else:
                self.process = subprocess.Popen(
                    [*COMMAND, *words], stdin=nothing, stdout=log, stderr=log, cwd=stack.folder, env=environ
                )

    def log(self) -> list[dict[str, Any]]:
        """Log lines so far; a line that is no JSON (a traceback, say) comes under `raw`."""
        lines = []
        for line in self.log_path.read_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"event": "", "raw": line})
        return lines

    def opened(self) -> int:
        """How often it has opened a partition."""
        return sum(line["event"] == self.OPENS for line in self.log())

    def wait_ready(self, partitions: int) -> None:
        """Wait until that many partitions have been opened."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.log_path.read_text()[-3000:]
            return self.opened() >= partitions

        wait_until(is_ready, f"'{self.OPENS}' {partitions} times")

    @property
    def address(self) -> str:
        """HOST:PORT of its pages."""
        started = next(line for line in self.log() if line["event"] == self.STARTS)
        return str(started["metrics"]).removeprefix("http://")

    def metrics(self) -> str:
        """The /metrics page."""
        return self.page("/metrics")

    def page(self, path: str) -> str:
        """One of its pages."""
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=PATIENCE_S) as page:
            return page.read().decode()

    def kill(self) -> None:
        """SIGKILL, as kill -9."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


class WorkerProcess(Child):
    """`offbeat worker`."""

    STARTS, OPENS = "worker starts", "partition opened"

    def __init__(
        self, stack: Stack, instance: str = "w0", options: tuple[str, ...] = (), *, forked: bool = True
    ) -> None:  # fmt: skip
        super().__init__(stack, instance, ["worker", *options], {}, forked=forked)


@contextmanager
def two_workers(
    stack: Stack, records: Iterable[tuple[bytes | None, bytes | None]]
) -> Iterator[tuple[WorkerProcess, WorkerProcess]]:
    """The first has had all partitions and was given records; the second has joined, and both have theirs."""
    with WorkerProcess(stack, "w0") as one:
        one.wait_ready(stack.partitions)
        stack.produce(records)
        with WorkerProcess(stack, "w1") as two:
            two.wait_ready(stack.partitions // 2)
            yield one, two


def by_id(verdicts: Iterable[dict[str, Any]], *, ignore: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Messages by id; one that came twice must have the same content, `ignore` apart."""
    found: dict[str, dict[str, Any]] = {}
    for verdict in verdicts:
        kept = {k: v for k, v in verdict.items() if k not in set(ignore)}
        assert found.setdefault(verdict["id"], kept) == kept, f"two contents for {verdict['id']}"
    return found


def shop_events(seed: int, sessions: int, *, start_ms: int = 1_700_000_000_000) -> Iterator[dict[str, Any]]:
    """Seeded shopping events in time order, many sessions at once; some end, some fall silent, some run long."""
    import heapq
    import random

    rng = random.Random(seed)
    pending: list[tuple[int, int, int]] = []  # time, session, events left
    for s in range(sessions):
        heapq.heappush(pending, (start_ms + rng.randrange(sessions * 40), s, rng.choice([3, 4, 5, 8, 30])))
    while pending:
        now, s, left = heapq.heappop(pending)
        action = rng.choices(["view", "add", "pay", "ship", "teleport"], [40, 30, 20, 9, 1])[0]
        if left == 1 and s % 3:
            action = "close"
        yield {"session": f"s-{s}", "action": action, "status": rng.choice(["ok", "ok", "failed", None]), "ts": now}
        if left > 1:
            heapq.heappush(pending, (now + rng.choice([50, 400, 900, 6_000]), s, left - 1))


def as_records(events: Iterable[dict[str, Any]]) -> list[tuple[bytes, bytes]]:
    """Events as Kafka records, keyed by session."""
    return [(e["session"].encode(), json.dumps(e).encode()) for e in events]


def untrained(core: str) -> dict[str, Any]:
    """Weights of any core for the shop's fields, hidden size 16 and a context of 6."""
    import torch

    from models.family import make_model
    from models.spec import ModelSpec
    from tests.conftest import make_learned

    torch.manual_seed(0)
    model = make_model(ModelSpec(core, 16, make_learned().vocabulary.sizes, (), 6))
    with torch.no_grad():
        model.start.normal_()
        model.head.weight.mul_(8)
    return model.weights()


def write_untrained_bundle(
    stack: Stack, seed: int = 0, core: str = "gru", second: str | None = None, data: dict[str, int] | None = None
) -> str:
    """A serving bundle with random weights: made in no time, and as sensitive as a trained one. Returns its digest."""
    import numpy as np

    from detectors.calibration import Calibration
    from detectors.packing import joined, pack
    from models.bundle import promote, write_bundle
    from tests.conftest import make_learned, random_weights

    learned = make_learned()
    rng = np.random.default_rng(5 + seed)
    weights = random_weights(seed, learned.vocabulary.sizes, 16) if core == "gru" else untrained(core)
    records, sessions = Calibration.learn(rng.gamma(4, 1, 500)), Calibration.learn(rng.gamma(9, 1, 300))
    files = pack(
        learned.vocabulary, joined([weights], None if second is None else untrained(second)), records, sessions,
        second=None if second is None else (records, sessions),
    )  # fmt: skip
    directory = stack.folder / "bundles" / "orders"
    schema = {"tokens": ["action", "status"], "hidden": 16, "core": core, "context": 6}
    content = {
        "schema": schema | ({} if second is None else {"second_stage": second}),
        **({"data": data} if data else {}),
    }
    digest = write_bundle(directory, content, files, "2026-01-01T00:00:00+00:00")
    promote(directory, digest)
    return digest
