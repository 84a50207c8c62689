"""Time gaps on a real broker: the worker, killed once, says what the file says, and finds what comes too late."""

from __future__ import annotations

import json

from features.time_gaps import GAP
from tests.kafka import MODEL, Stack, shop_events
from tests.pipeline.test_metrics_streams import score_both_ways, train_on

START_MS = 1_700_000_000_000


def test_worker_and_file_agree_on_gaps(stack: Stack) -> None:
    """Gaps go on over a kill -9: verdicts equal the file's, an event after 4 minutes is found and told in minutes."""
    stack.configure(stream={
        "model": MODEL | {"gaps": "action"}, "promise": {"false_alarm_rate": 0.05},
        "session": {"by": "session", "gap": "10m", "end_when": {"action": "close"}, "max_events": 12},
    })  # fmt: skip
    train_on(stack, shop_events(1, 700))
    live = list(shop_events(2, 300, start_ms=START_MS + 10_000_000))
    last = next(e for e in reversed(live) if e["action"] != "close")
    name = last["session"]
    late = last | {"ts": last["ts"] + 240_000}
    _, anomalies = score_both_ways(stack, [*live, late])
    (found,) = [a for a in anomalies.values() if (a["observed"].get(GAP) or 0) > 100]
    assert (found["session"], found["observed"][GAP]) == (name, 240.0)
    told = stack.run("tail", "anomalies", "--from-start", "--limit", str(len(anomalies))).stdout
    assert "came 4 min (<0.01 %), expected " in told
    shown = json.loads(stack.run("sessions", "show", "-s", "orders", name, "--json").stdout)
    assert shown["context"][-1][GAP] == 240.0
