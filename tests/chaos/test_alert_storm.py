"""The storms of deliveries of `make test`; `make chaos-alerts` runs one at full size."""

from __future__ import annotations

import time
from pathlib import Path

from pipeline.broker import LocalBroker
from tests.alerting import Alerts, Answer, configure, incident, receiver, tell
from tests.chaos.alert_storm import Plan, run
from tests.kafka import Stack, wait_until


def test_a_storm_of_deliveries_loses_nothing(stack: Stack) -> None:
    """A receiver that fails, stalls and throttles, three kills: each change comes, in order, under one id."""
    report = run(Plan(changes=300, parallel=4), stack)
    print(report)
    assert not report.complaints, str(report)
    assert report.kills == 3
    assert {204, 429, 500, 0} == set(report.answers)


def test_a_receiver_that_is_down_fills_no_memory(stack: Stack) -> None:
    """Fifty megabytes that nobody takes wait on disk; once somebody listens, they are told in order."""
    size, count = 5_000, 10_000
    with receiver() as ops, receiver() as down:
        down.close()
        configure(stack, {"ops": ops.settings(), "down": down.settings(retries=["1h"] * 3)})
        with Alerts(stack, forked=False) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident("warm", r, size=size) for r in range(1, 200)])
            wait_until(lambda: len(ops.delivered) == 199, "a first few")
            before_mb = alerts.rss_mb()
            tell(stack, [incident(f"i{n}", 1, size=size) for n in range(count)])
            pending = 'offbeat_alerts_pending{receiver="down"}'
            wait_until(lambda: alerts.value(pending) == count + 199, "all to be taken in")
            time.sleep(3.0)
            assert alerts.rss_mb() < before_mb + 40
            assert alerts.value('offbeat_alerts_throttled{receiver="down"}') == 1, "it is asked rarely"
            assert alerts.value('offbeat_alert_deliveries_total{outcome="retry",receiver="down"}') < 20


def test_a_broker_that_goes_away_loses_nothing(kafka: None, tmp_path: Path) -> None:
    """Deliveries stop with the broker, which is killed in the middle, and go on once it is back; order is kept."""
    with LocalBroker(tmp_path / "kafka", ephemeral=True) as broker, receiver(lambda _: Answer(late_s=0.05)) as ops:
        stack = Stack(broker.address, tmp_path / "stack")
        configure(stack, {"ops": ops.settings(parallel=2)})
        with Alerts(stack) as alerts:
            alerts.wait_ready(stack.partitions)
            tell(stack, [incident(f"i{n}", r) for r in (1, 2, 3) for n in range(50)])
            wait_until(lambda: len(ops.got) > 20, "some deliveries")
            broker.kill()
            time.sleep(8.0)
            broker.start()
            wait_until(lambda: len(set(ops.changes())) == 150, "all")
            assert alerts.stop() == 0, alerts.log_path.read_text()[-3000:]
        for n in range(50):
            of = list(dict.fromkeys(c for c in ops.changes() if c.startswith(f"i{n}/")))
            assert of == [f"i{n}/{r}" for r in (1, 2, 3)]
        assert len(ops.got) <= 160
