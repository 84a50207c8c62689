"""Records out of order, late, doubled and from wrong clocks, through Kafka as from a file."""

from __future__ import annotations

import json
import random
import time
from typing import Any

from tests.kafka import Stack, WorkerProcess, as_records, by_id, shop_events, wait_until
from tests.pipeline.test_worker import decisions_of, scored_by_file

_LAST_MS = 1_800_000_000_000


def shaken(seed: int, sessions: int) -> list[dict[str, Any]]:
    """Events whose order Kafka would see from many producers: some seconds late, some twice, some far behind."""
    rng = random.Random(seed)
    out = []
    for i, event in enumerate(shop_events(seed, sessions)):
        named = event | {"id": f"e{i}"}
        delay = rng.choice([0] * 6 + [300, 900, 2_000, 60_000])
        out.append((event["ts"] + delay, i, named))
        if rng.random() < 0.05:
            out.append((event["ts"] + delay + rng.choice([0, 1_000]), i, named))
    return [event for _, _, event in sorted(out, key=lambda entry: entry[:2])]


def ends_of_time(stack: Stack) -> None:
    """To each partition an event so much later that all before it are released and over."""
    for partition in range(stack.partitions):
        name = f"last-{partition}"
        value = {"session": name, "action": "view", "status": "ok", "ts": _LAST_MS, "id": name}
        stack.produce_to(stack.source, partition, [(name.encode(), json.dumps(value).encode())])


def test_order_lateness_and_duplicates_equal_the_file(stack: Stack) -> None:
    """Worker, killed once, and file agree bit by bit; what is late or doubled is counted, and sent where asked."""
    late = {"allowed": "1s", "reorder": "1500ms", "reorder_events": 6, "max_ahead": "3650d"}
    stack.configure(stream={"late": late, "duplicates": {"id": "id", "remember": 500}})
    events = as_records(shaken(61, 400))
    with WorkerProcess(stack) as worker:
        stack.produce(events[: len(events) // 2])
        wait_until(stack.committed, "a checkpoint")
        worker.kill()
    with WorkerProcess(stack) as worker:
        stack.produce(events[len(events) // 2 :])
        ends_of_time(stack)
        stack.wait_until_scored()
        page = worker.metrics()
        assert worker.stop() == 0
    decisions = by_id(stack.read_json("decisions"))
    expected = {
        identity: decision
        for identity, decision in decisions_of(scored_by_file(stack)).items()
        # No decision is written on a duplicate, and the last events wait on.
        if decision["status"] != "duplicate" and not decision["session"].startswith("last-")
    }
    assert decisions == expected
    assert {d["status"] for d in decisions.values()} == {"ok", "late"}
    assert not any(d["anomaly"] for d in decisions.values() if d["status"] == "late")
    for name in ("late", "duplicate"):
        (line,) = [line for line in page.splitlines() if line.startswith(f"offbeat_{name}_records_total{{")]
        assert float(line.split()[-1]) > 10


def test_late_records_are_sent_away(stack: Stack) -> None:
    """With `late.send` a late record becomes a message on a topic of its own, with what it held, and no decision."""
    stack.configure(stream={"late": {"allowed": "1s", "send": True}})
    at = [1_700_000_000_000 + ms for ms in (0, 5_000, 4_500, 1_000)]
    events = [{"session": "a", "action": "view", "status": "ok", "ts": ts} for ts in at]
    with WorkerProcess(stack) as worker:
        stack.produce(as_records(events))
        stack.wait_until_scored()
        assert worker.stop() == 0
    (late,) = stack.read_json("late")
    assert (late["session"], late["time_ms"], late["behind_ms"]) == ("a", at[3], 4_000)
    assert late["observed"] == {"action": "view", "status": "ok"}
    assert len([d for d in stack.read_json("decisions") if d["type"] == "record"]) == 3
    line = stack.run("tail", "late", "--from-start", "--limit", "1").stdout
    assert "a  4.0 s behind" in line


def test_a_wrong_clock_ends_nothing(stack: Stack) -> None:
    """A time far ahead of Kafka's is not believed: the other sessions stay open, and it is counted."""
    now = int(time.time() * 1000)
    times: dict[str, Any] = {"a": now, "b": now + 10**11, "c": now + 100}
    events = [{"session": name, "action": "view", "status": "ok", "ts": ts} for name, ts in times.items()]
    del events[2]["ts"]
    with WorkerProcess(stack) as worker:
        stack.produce(as_records(events))
        stack.wait_until_scored()
        page = worker.metrics()
        assert worker.stop() == 0
    decisions = [d for d in stack.read_json("decisions") if d["type"] == "record"]
    assert all(abs(d["time_ms"] - now) < 60_000 for d in decisions)
    assert 'offbeat_time_fallbacks_total{reason="ahead",stream="orders"} 1.0' in page
    assert 'offbeat_time_fallbacks_total{reason="missing",stream="orders"} 1.0' in page


def test_silence_releases_what_waits(stack: Stack) -> None:
    """Where nothing more comes, events are released after `late.reorder`, long before their session is over."""
    stack.configure(stream={"late": {"reorder": "1s"}, "session": {"by": "session", "gap": "1h"}})
    now = int(time.time() * 1000)
    events = [{"session": "a", "action": a, "status": "ok", "ts": now + ms} for a, ms in (("pay", 500), ("view", 0))]
    with WorkerProcess(stack) as worker:
        worker.wait_ready(4)
        stack.produce(as_records(events))
        wait_until(lambda: len(stack.read_json("decisions")) == 2, "both decisions")
        assert worker.stop() == 0
    assert [d["time_ms"] for d in stack.read_json("decisions")] == [now, now + 500]
