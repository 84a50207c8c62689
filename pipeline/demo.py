"""`offbeat demo`: a storefront on a Kafka of its own, a model trained on it, faults, and Offbeat finding them.

Everything here talks to Offbeat as a user would: a config file, the commands `topics`, `train` and `worker`, and the
topic of anomalies. The schedule of faults never leaves this process; it is what the outcome is held against.
"""

from __future__ import annotations

import heapq
import os
import secrets
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition
from rich.console import Console

from pipeline.broker import LocalBroker, StopAskedError, free_port, signals_stop_us
from pipeline.clients import Clients
from pipeline.demo_screen import Screen, why_here
from pipeline.demo_truth import Alarm, Report, Tally
from pipeline.errors import OffbeatError
from pipeline.jvm import BoundProcess
from pipeline.kafka_jars import KAFKA_VERSION
from pipeline.settings import Settings, load_settings
from pipeline.storefront import FAULTS, Event, FaultySessions, Storefront
from pipeline.topics import output_topic

STREAM = "storefront"
CONFIG = """\
broker: {broker}
app: demo
data_dir: {folder}/state
http: {{host: 127.0.0.1, port: {port}}}
topics: {{partitions: 2}}
streams:
  storefront:
    kind: events
    topic: shop.events
    start: latest
    session: {{by: session_id, gap: 10s, end_when: {{action: session_closed}}}}
    time: ts
    tokens: [service, action, status]
    model: {{core: gru, hidden: 32}}
    promise: {{false_alarm_rate: 0.001}}
"""

HISTORY_MS = 600_000
# 9,700 sessions in all. A fifth is calibrated on, just under 2,000: at a promise of one in a thousand, a session is an
# anomaly when it is stranger than every one of those. More would take longer to learn, and tell no more before 3,000.
HISTORY_SESSIONS_PER_S = 16.1
HISTORY_AGE_MS = 120_000  # its last session ended before this, so nothing of it reaches into the live stream
LIVE_SESSIONS_PER_S = 150.0  # about 1,100 events/s: enough to count false alarms, few enough to read them

FAULT_SESSIONS = 5
FAULT_SPREAD_MS = 3_000
# Shares of a round: the first fault needs sessions that began after the start, the last one time to be found.
FIRST_FAULT, LAST_FAULT = 0.25, 0.88

_READY_S = 90.0  # of the worker; 4 s on two quiet cores, longer when numba has to compile
_DRAIN_S = 20.0
_LOOK_MS = 250
INTERRUPTED = 130


# ---- The script of the live stream


def live_events(seed: int, start_ms: int, round_ms: int, plan: Callable[[FaultySessions], None]) -> Iterator[Event]:
    """Yield healthy visits and, in each round, all faults at moments drawn from the seed; without end, by time.

    Parameters
    ----------
    plan
        Told of each fault before the first event of its round.
    """
    healthy = _storefront(seed, "live").healthy(start_ms, sys.maxsize, LIVE_SESSIONS_PER_S)
    draw, broken = _random(seed, "schedule"), _storefront(seed, "faults")
    waiting: list[tuple[int, int, Event]] = []
    next_round_ms, number = start_ms, 0
    for event in healthy:
        if event.ts_ms >= next_round_ms:
            for fault in _round(draw, broken, next_round_ms, round_ms):
                plan(fault)
                for number, bad in enumerate(fault.events, number + 1):  # noqa: B020 (it goes on counting)
                    heapq.heappush(waiting, (bad.ts_ms, number, bad))
            next_round_ms += round_ms
        while waiting and waiting[0][0] <= event.ts_ms:
            yield heapq.heappop(waiting)[2]
        yield event


def _round(draw: Random, storefront: Storefront, start_ms: int, round_ms: int) -> list[FaultySessions]:
    """Each kind of fault once, in any order, one in each quarter of the time there is."""
    first, last = round_ms * FIRST_FAULT, round_ms * LAST_FAULT - FAULT_SPREAD_MS
    slot = (last - first) / len(FAULTS)
    return [
        storefront.faulty(kind, int(start_ms + first + slot * (k + draw.random())), FAULT_SPREAD_MS, FAULT_SESSIONS,
                          opens_ms=start_ms)
        for k, kind in enumerate(draw.sample(FAULTS, len(FAULTS)))
    ]  # fmt: skip


def _random(seed: int, what: str) -> Random:
    return Random(f"{seed}/{what}")  # noqa: S311 (shoppers are no secret)


def _storefront(seed: int, what: str) -> Storefront:
    return Storefront(_random(seed, what))


# ---- What it starts


class Child(BoundProcess):
    """A command of ours as a process of its own; leaving it ends it, and the kernel does so if we die first.

    Parameters
    ----------
    folder
        Where it runs; what it says goes to `NAME.log` there.
    shows
        Its standard error is ours instead, for progress in a terminal.
    """

    def __init__(self, name: str, *arguments: str, folder: Path, shows: bool = False) -> None:
        self._name = f"offbeat {name}"
        self._log = folder / f"{name}.log"
        # -P: a folder called `pipeline` where the demo is started is not ours. OFFBEAT_* would go before the config.
        command = [sys.executable, "-P", "-m", "pipeline.cli", name, *arguments]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("OFFBEAT_")}
        environ["TMPDIR"] = str(folder)  # importing torch makes a folder there, which goes with ours
        super().__init__(command, folder, environ, output=self._log.name, shows_errors=shows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(signal.SIGTERM)

    def finish(self) -> str:
        """Start it and wait until it has done its work; return what it printed.

        Raises
        ------
        OffbeatError
            It failed; with its last lines.
        """
        self.launch()
        self.ended.wait()
        if self.exit_code != 0:
            raise self._failed()
        return self._log.read_text("utf-8", "replace")

    def check(self) -> None:
        """Raise if it has ended, which one that serves must not."""
        if self.ended.is_set():
            raise self._failed()

    def _failed(self) -> OffbeatError:
        said = self._log.read_text("utf-8", "replace").splitlines()[-8:]
        lines = "".join(f"\n  {line[:300]}" for line in said)
        return OffbeatError(f"`{self._name}` ended with exit code {self.exit_code}, so the demo cannot go on.{lines}")


class _Sender:
    """Sends events, keyed by session; a record that Kafka refuses ends the demo, for its figures would be wrong."""

    def __init__(self, clients: Clients, topic: str) -> None:
        self._producer, self._topic = clients.confluent_producer(), topic
        self._refused: str | None = None

    def send(self, event: Event) -> None:
        while True:
            try:
                self._producer.produce(
                    self._topic, event.value, event.key, timestamp=event.ts_ms, on_delivery=self._delivered
                )
                break
            except BufferError:  # full speed is more than the broker takes at once
                self._producer.poll(0.05)
        self._producer.poll(0)

    def flush(self) -> None:
        """Return when Kafka has all of them."""
        if self._producer.flush(30) or self._refused is not None:
            message = (
                f"the demo's Kafka did not take all events: {self._refused or 'no answer for 30 s'}; start it again"
            )
            raise OffbeatError(message)

    def _delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._refused = str(error)


class _Watcher:
    """Reads anomalies while the stream flows, and keeps the screen up to date."""

    def __init__(
        self, consumer: Consumer, topic: str, tally: Tally, screen: Screen, start_ms: int, worker: Child, metrics: str
    ) -> None:
        self._consumer, self._topic, self._tally, self._screen = consumer, topic, tally, screen
        self._start_ms, self._worker, self._metrics = start_ms, worker, metrics
        self._look_ms = 0
        self._partitions = sorted(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in self._partitions])

    def watch(self, wait_s: float) -> None:
        """Read what has come, waiting that long for a first message."""
        message = self._consumer.poll(wait_s)
        while message is not None:
            if message.error() is not None:
                raise KafkaException(message.error())
            self._read(orjson.loads(message.value()), now_ms())
            message = self._consumer.poll(0)
        if (now := now_ms()) >= self._look_ms:
            self._look_ms = now + _LOOK_MS
            self._worker.check()
            self._screen.status(
                (now - self._start_ms) / 1000,
                self._tally.sent,
                scored_records(self._metrics),
                self._tally.latencies_ms(),
            )

    def read_to_end(self) -> None:
        """Read all that the topic holds now."""
        parts = [TopicPartition(self._topic, p) for p in self._partitions]
        ends = {part.partition: self._consumer.get_watermark_offsets(part, timeout=10)[1] for part in parts}
        while any(0 <= at.offset < ends[at.partition] or (at.offset < 0 < ends[at.partition])
                  for at in self._consumer.position(parts)):  # fmt: skip
            self.watch(0.05)

    def _read(self, anomaly: dict[str, Any], now: int) -> None:
        alarm = Alarm(
            anomaly["id"], anomaly["type"], anomaly["session"], anomaly["time_ms"], now, why_here(anomaly)
        )  # fmt: skip
        if self._tally.read(alarm):
            self._screen.alarm((now - self._start_ms) / 1000, alarm.session, alarm.why)


def scored_records(metrics: str) -> int | None:
    """Return how many records the worker has taken in, by its /metrics; None while that does not answer."""
    try:
        with urllib.request.urlopen(metrics, timeout=0.5) as page:  # noqa: S310 (our own http address)
            lines = page.read().decode().splitlines()
    except OSError:
        return None
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("offbeat_records_total{")))


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


# ---- The demo


def run_demo(*, seed: int | None, keep: bool, seconds: int = 45) -> int:
    """Run the demo; return 0 if it found three of four faults at no more than twice the promised false alarms.

    Parameters
    ----------
    seed
        Decides shoppers and faults; None draws one. It is printed.
    keep
        Go on, round after round of faults, until Ctrl-C.
    seconds
        Length of the live stream, or of a round.
    """
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    screen = Screen(Console(highlight=False))
    screen.note(
        f"Offbeat demo with seed {seed} (`offbeat demo --seed {seed}` has the same shoppers and the same faults)."
    )
    try:
        with signals_stop_us(), screen, ExitStack() as stack:
            report = _run(seed, keep, seconds, screen, stack)
            screen.report(report)
    except StopAskedError:
        screen.note("Stopped before the end; all that the demo started is gone.")
        return INTERRUPTED
    screen.farewell()
    return 0 if report.passed else 1


def _run(seed: int, keep: bool, seconds: int, screen: Screen, stack: ExitStack) -> Report:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="offbeat-demo-", ignore_cleanup_errors=True)))
    broker = stack.enter_context(LocalBroker(folder / "kafka", ephemeral=True))
    screen.note(f"Apache Kafka {KAFKA_VERSION} runs at {broker.address}.")
    config = folder / "offbeat.yaml"
    config.write_text(CONFIG.format(broker=broker.address, folder=folder, port=free_port()), "utf-8")
    settings = load_settings(config, {})
    clients, topic = Clients(settings), settings.stream(STREAM).topic
    _command("topics", "-c", str(config), "--create", folder=folder)
    sender = _Sender(clients, topic)
    _write_history(sender, seed, screen)
    _train(config, folder, screen)
    worker = stack.enter_context(Child("worker", "-c", str(config), folder=folder))
    worker.launch()  # only now, when leaving the stack would end it
    group = clients.confluent_consumer(settings.app, from_start=True)
    stack.callback(group.close)
    _await_worker(group, topic, worker)
    return _stream(seed, keep, seconds * 1000, settings, sender, group, worker, screen, stack)


def _command(name: str, *arguments: str, folder: Path, shows: bool = False) -> str:
    with Child(name, *arguments, folder=folder, shows=shows) as child:
        return child.finish()


def _write_history(sender: _Sender, seed: int, screen: Screen) -> None:
    start_ms = now_ms() - HISTORY_MS - HISTORY_AGE_MS
    records, sessions = 0, set()
    for event in _storefront(seed, "history").healthy(start_ms, HISTORY_MS, HISTORY_SESSIONS_PER_S):
        sender.send(event)
        sessions.add(event.session_id)
        records += 1
    sender.flush()
    screen.note(f"Ten healthy minutes of a storefront lie in Kafka: {len(sessions):,} sessions, {records:,} events.")


def _train(config: Path, folder: Path, screen: Screen) -> None:
    screen.note("Training on them: offbeat train --stream storefront --from-topic --promote")
    arguments = ("-c", str(config), "--stream", STREAM, "--from-topic", "--promote", "--json")
    lines = _command("train", *arguments, folder=folder, shows=screen.is_terminal).splitlines()
    said = orjson.loads(next(line for line in reversed(lines) if line.startswith("{")))
    kept, training = said["calibration"], said["training"]
    screen.note(
        f"Model {said['digest'][:12]} learned in {training['epochs']} epochs; calibrated on {kept['sessions']:,} "
        f"sessions ({kept['records']:,} records) it never saw."
    )
    for warning in said["warnings"]:
        screen.note(f"Warning: {warning}")


def _await_worker(group: Consumer, topic: str, worker: Child) -> None:
    """Return when the worker has decided, for each partition, where it begins: all that is sent from now on is its."""
    deadline = time.monotonic() + _READY_S
    while any(at.offset < 0 for at in _committed(group, topic)):
        worker.check()
        if time.monotonic() > deadline:
            message = f"the demo's worker was not ready in {_READY_S:.0f} s; is the machine busy? Start the demo again"
            raise OffbeatError(message)
        time.sleep(0.05)


def _committed(group: Consumer, topic: str) -> Sequence[TopicPartition]:
    partitions = group.list_topics(topic, timeout=10).topics[topic].partitions
    committed: Sequence[TopicPartition] = group.committed([TopicPartition(topic, p) for p in partitions], timeout=10)
    return committed


def _stream(
    seed: int, keep: bool, round_ms: int, settings: Settings, sender: _Sender, group: Consumer, worker: Child,
    screen: Screen, stack: ExitStack,
) -> Report:  # fmt: skip
    """Send events as their times come, read anomalies beside it, and hold them against the truth at the end."""
    stream, http = settings.stream(STREAM), settings.http
    consumer = Clients(settings).confluent_consumer("demo-screen", from_start=True)
    stack.callback(consumer.close)
    tally, start_ms = Tally(stream.session.gap), now_ms() + 200
    watcher = _Watcher(
        consumer, output_topic(settings, "anomalies"), tally, screen, start_ms, worker,
        f"http://{http.host}:{http.port}/metrics",
    )  # fmt: skip
    screen.open(round_ms // 1000, keep=keep)
    end_ms = None if keep else start_ms + round_ms
    try:
        _send_live(live_events(seed, start_ms, round_ms, tally.plan), end_ms, sender, tally, watcher)
    except StopAskedError:
        if not keep:
            raise
    sender.flush()
    _drain(group, stream.topic, watcher)
    screen.close()
    return tally.report(stream.promise.false_alarm_rate)


def _send_live(events: Iterable[Event], end_ms: int | None, sender: _Sender, tally: Tally, watcher: _Watcher) -> None:
    for event in events:
        if end_ms is not None and event.ts_ms >= end_ms:
            return
        watcher.watch(0)
        while (wait_ms := event.ts_ms - now_ms()) > 0:
            watcher.watch(wait_ms / 1000)
        sender.send(event)
        tally.send(event, now_ms())


def _drain(group: Consumer, topic: str, watcher: _Watcher) -> None:
    """Return when the worker has scored all that was sent, and its anomalies are read."""
    ends = {
        at.partition: group.get_watermark_offsets(TopicPartition(topic, at.partition), timeout=10)[1]
        for at in _committed(group, topic)
    }
    deadline = time.monotonic() + _DRAIN_S
    # A checkpoint commits an offset after the outputs before it are in Kafka.
    while left := sum(max(0, ends[at.partition] - at.offset) for at in _committed(group, topic)):
        if time.monotonic() > deadline:
            message = (
                f"the worker is {left:,} records behind {_DRAIN_S:.0f} s after the stream's end; is the machine busy?"
            )
            raise OffbeatError(message)
        watcher.watch(0.05)
    watcher.read_to_end()
