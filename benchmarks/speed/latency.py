"""How long from a record's production to its anomaly in a consumer's hands, under a steady load; and from a start.

The worker is at least once and saves every 250 ms. A producer sends at its pace, in bursts of a few milliseconds as
clients that linger do, each record with the moment as its event time; a consumer of the anomalies topic looks at its
clock. About 1 % of records are anomalies.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from confluent_kafka import Consumer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.kafka import new_producer
from benchmarks.stack import Stack, WorkerProcess, send
from benchmarks.workloads import keyed_events, zipf_events
from pipeline.broker import LocalBroker

_SESSIONS = 10_000
_BURST_S = 0.002
_PATIENCE_S = 300.0  # until the first anomaly
_WARM_UP = 0.5  # of the time, not counted: for half a minute a broker compiles its own code on all cores
_QUIET = {"log_level": 0}


def run(records_per_s: int, seconds: float, screen: Console) -> dict[str, Any]:
    """Milliseconds at p50, p99 and p99.9; and seconds from a worker's start to its first anomaly, caches warm."""
    found: dict[str, Any] = {"benchmark": "latency", "asked_records_per_s": records_per_s}
    with tempfile.TemporaryDirectory() as name, LocalBroker(Path(name) / "broker", ephemeral=True) as broker:
        stack = Stack.make(broker.address, Path(name) / "stack", "latency")
        with WorkerProcess(stack) as worker:
            worker.wait_ready()
            found |= _under_load(stack, worker, records_per_s, seconds)
            worker.stop()
        found["start_to_first_anomaly_s"] = _from_a_start(broker.address, Path(name))
    screen.print(
        f"  {found['records_per_s']:,.0f} records/s: p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f}, "
        f"p99.9 {found['p999_ms']:.1f} over {found['anomalies']:,} anomalies; "
        f"a start to its first anomaly {found['start_to_first_anomaly_s']:.2f} s"
    )
    return found


def _under_load(stack: Stack, worker: WorkerProcess, records_per_s: int, seconds: float) -> dict[str, float]:
    stop, sent = threading.Event(), list[int]()
    feeder = threading.Thread(target=_feed, args=(stack, records_per_s, stop, sent))
    began = time.time()
    feeder.start()
    took = _latencies(stack, began + seconds, since_ms=(began + _WARM_UP * seconds) * 1000)
    stop.set()
    feeder.join()
    ended = time.time()
    p50, p99, p999 = np.percentile(took, [50, 99, 99.9]).tolist()
    return {
        "records_per_s": len(sent) / (ended - began), "anomalies": len(took), "p50_ms": p50, "p99_ms": p99,
        "p999_ms": p999, "processor_share": worker.processor_s() / (ended - began),
    }  # fmt: skip


def _feed(stack: Stack, records_per_s: int, stop: threading.Event, sent: list[int]) -> None:
    producer = new_producer(stack.address, **{"partitioner": "murmur2_random", "linger.ms": 1})
    events, began = keyed_events(1, _SESSIONS), time.monotonic()
    while not stop.is_set():
        due = int((time.monotonic() - began) * records_per_s) - len(sent)
        now_ms = round(time.time() * 1000)
        for _ in range(due):
            key, value = next(events)
            producer.produce(stack.source, orjson.dumps(orjson.loads(value) | {"ts": now_ms}), key=key)
            sent.append(now_ms)
        producer.poll(0)
        time.sleep(_BURST_S)
    assert producer.flush(60) == 0


def _latencies(stack: Stack, until_s: float, since_ms: float) -> NDArray[np.float64]:
    """Milliseconds from event time to our hands of anomalies that come until then, one at least; of records since."""
    consumer = _anomalies_of(stack)
    took = list[float]()
    try:
        while time.time() < until_s or not took:
            assert time.time() < until_s + _PATIENCE_S, "no anomaly came"
            messages = consumer.consume(1, 0.01)  # more would wait for more
            now = time.time() * 1000
            for message in messages:
                anomaly = orjson.loads(message.value() or b"{}")
                if anomaly.get("type") == "record" and anomaly["time_ms"] >= since_ms:
                    took.append(now - anomaly["time_ms"])
    finally:
        consumer.close()
    return np.array(took)


def _anomalies_of(stack: Stack) -> Consumer:
    consumer = Consumer(
        {
            "bootstrap.servers": stack.address, "group.id": f"{stack.app}-reader", "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "fetch.wait.max.ms": 5, "topic.metadata.refresh.interval.ms": 1_000,
            **_QUIET,
        }
    )  # fmt: skip
    consumer.subscribe([f"{stack.app}.anomalies"])
    return consumer


def _from_a_start(address: str, folder: Path) -> float:
    """Seconds from the command to the first anomaly, of records that lie there; kernels are compiled already."""
    stack = Stack.make(address, folder / "start", "start")
    send(address, stack.source, zipf_events(1, 2_000, 100))
    consumer = _anomalies_of(stack)
    consumer.consume(1, 1.0)  # until it has its partitions
    began = time.monotonic()
    try:
        with WorkerProcess(stack):
            while not [m for m in consumer.consume(1, 0.02) if m.error() is None]:
                assert time.monotonic() - began < _PATIENCE_S, "no anomaly came"
            return time.monotonic() - began
    finally:
        consumer.close()
