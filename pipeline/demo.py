"""`offbeat demo`: a storefront on a Kafka of its own, models trained on it, faults, and Offbeat finding them.

Everything here talks to Offbeat as a user would: a config file, the commands `topics`, `train` and `worker`, and the
topics of anomalies and of incidents. The schedule of faults never leaves this process; it is what the outcome is held
against.
"""

from __future__ import annotations

import secrets
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import orjson
from confluent_kafka import Consumer
from rich.console import Console

from pipeline.broker import LocalBroker, StopAskedError, free_port, signals_stop_us
from pipeline.clients import Clients
from pipeline.demo_child import Child
from pipeline.demo_screen import Screen
from pipeline.demo_script import CONFIG, LOGS, METRICS, ORDERS, STREAMS, Flow, history, live_records
from pipeline.demo_traffic import Sender, Watcher, await_worker, drain, now_ms, settle
from pipeline.demo_truth import Report, Tally
from pipeline.incident_stage import stage_route
from pipeline.kafka_jars import KAFKA_VERSION
from pipeline.settings import Settings, load_settings
from pipeline.topics import output_topic

INTERRUPTED = 130


def run_demo(*, seed: int | None, keep: bool, seconds: int = 45) -> int:
    """Run the demo; return 0 if three of four faults were found, and no more than twice the promised false alarms.

    Parameters
    ----------
    seed
        Decides shoppers and faults; None draws one. It is printed.
    keep
        Go on, round after round of faults, until Ctrl-C.
    seconds
        Length of the live streams, or of a round.
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
    clients, topics = Clients(settings), {stream: settings.stream(stream).topic for stream in STREAMS}
    _command("topics", "-c", str(config), "--create", folder=folder)
    sender = Sender(clients, topics)
    _write_history(sender, seed, screen)
    for stream in STREAMS:
        _train(stream, config, folder, screen)
    worker = stack.enter_context(Child("worker", "-c", str(config), folder=folder))
    worker.launch()  # only now, when leaving the stack would end it
    group = clients.confluent_consumer(settings.app, from_start=True)
    stack.callback(group.close)
    await_worker(group, [*topics.values()], worker)
    return _stream(seed, keep, seconds * 1000, settings, sender, group, worker, screen, stack)


def _command(name: str, *arguments: str, folder: Path, shows: bool = False) -> str:
    with Child(name, *arguments, folder=folder, shows=shows) as child:
        return child.finish()


def _write_history(sender: Sender, seed: int, screen: Screen) -> None:
    records: Counter[str] = Counter()
    sessions: dict[str, set[str]] = {stream: set() for stream in STREAMS}
    for stream, record in history(seed, now_ms()):
        sender.send(stream, record)
        sessions[stream].add(record.session_id)
        records[stream] += 1
    sender.flush()
    screen.note(
        f"Healthy minutes of a storefront lie in Kafka: {records[ORDERS]:,} events of {len(sessions[ORDERS]):,} "
        f"visits, {records[LOGS]:,} log lines of {len(sessions[LOGS]):,} requests, {records[METRICS]:,} samples of "
        f"{len(sessions[METRICS]):,} instances."
    )


def _train(stream: str, config: Path, folder: Path, screen: Screen) -> None:
    screen.note(f"Training on them: offbeat train --stream {stream} --from-topic --promote")
    arguments = ("-c", str(config), "--stream", stream, "--from-topic", "--promote", "--json")
    lines = _command("train", *arguments, folder=folder, shows=screen.is_terminal).splitlines()
    said = orjson.loads(next(line for line in reversed(lines) if line.startswith("{")))
    kept, training = said["calibration"], said["training"]
    how = f"learned in {training['epochs']} epochs" if training["epochs"] else "fitted"  # a linear one has none
    screen.note(
        f"Model {said['digest'][:12]} {how}; calibrated on {kept['sessions']:,} sessions ({kept['records']:,} records) "
        "it never saw."
    )
    for warning in said["warnings"]:
        # Instances are few, so that none of them can be judged as a whole; their samples are.
        if stream != METRICS or "sessions were held back" not in warning:
            screen.note(f"Warning: {warning}")


def _stream(
    seed: int, keep: bool, round_ms: int, settings: Settings, sender: Sender, group: Consumer, worker: Child,
    screen: Screen, stack: ExitStack,
) -> Report:  # fmt: skip
    """Send records as their times come, read what is found beside it, and hold them against the truth at the end."""
    http, streams = settings.http, {stream: settings.stream(stream) for stream in STREAMS}
    consumer = Clients(settings).confluent_consumer("demo-screen", from_start=True)
    stack.callback(consumer.close)
    start_ms = now_ms() + 200
    tallies = {
        name: Tally(name, stream.session.gap, stream.promise.rate(None), start_ms) for name, stream in streams.items()
    }
    watcher = Watcher(
        consumer, output_topic(settings, "anomalies"), output_topic(settings, "incidents"), tallies, screen, start_ms,
        worker, f"http://{http.host}:{http.port}/metrics",
    )  # fmt: skip
    screen.open(round_ms // 1000, keep=keep)
    end_ms = None if keep else start_ms + round_ms
    records = live_records(seed, start_ms, round_ms, lambda stream, fault: tallies[stream].plan(fault))
    try:
        _send_live(records, end_ms, sender, tallies, watcher)
    except StopAskedError:
        if not keep:
            raise
    sender.flush()
    drain(group, [stream.topic for stream in streams.values()], watcher)
    route = stage_route(settings)
    makers = Clients(settings).confluent_consumer(route.group, from_start=True)
    stack.callback(makers.close)
    drain(makers, [route.feed], watcher)
    settle(watcher)
    screen.close()
    return Report.of(tallies.values(), watcher.incidents, start_ms)


def _send_live(records: Flow, end_ms: int | None, sender: Sender, tallies: dict[str, Tally], watcher: Watcher) -> None:
    for stream, record in records:
        if end_ms is not None and record.ts_ms >= end_ms:
            return
        watcher.watch(0)
        while (wait_ms := record.ts_ms - now_ms()) > 0:
            watcher.watch(wait_ms / 1000)
        sender.send(stream, record)
        tallies[stream].send(record, now_ms())
