"""A real worker whose partition hangs ends by itself: exit code 1, and a last line that says why."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap

from tests.kafka import Stack, WorkerProcess, as_records, shop_events, wait_until

# The worker with one flaw, that scoring never returns, and watched more closely than by the minute.
HANGING = textwrap.dedent(
    """
    import asyncio
    import pipeline.partition, pipeline.transport, pipeline.watchdog

    async def never(self, slice_):
        await asyncio.sleep(3600)

    pipeline.partition.Partition._score = never
    pipeline.transport._WATCH_S = 0.5
    pipeline.transport.Stall = lambda: pipeline.watchdog.Stall(stall_s=4.0)
    from pipeline.cli import main
    main()
    """
)


def test_a_hanging_partition_ends_the_worker(stack: Stack) -> None:
    """Lag grows, nothing is saved: the worker leaves with a sentence, and the next one has lost nothing."""
    records = as_records(shop_events(51, 400))
    log_path = stack.folder / "hanging.log"
    with log_path.open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-c", HANGING, "worker", "-c", str(stack.config_path)], stdout=log, stderr=log,
            env=os.environ | {"OFFBEAT_INSTANCE": "w0"},
        )  # fmt: skip
    try:
        wait_until(lambda: log_path.read_text().count("partition opened") == 4, "it to open")
        fed = itertools.cycle(range(0, len(records), 20))

        def ended_while_fed() -> bool:
            at = next(fed)
            stack.produce(records[at : at + 20])
            return worker.poll() is not None

        wait_until(ended_while_fed, "it to leave")
    finally:
        worker.kill()
    assert worker.returncode == 1
    assert "while its source grew" in log_path.read_text().splitlines()[-1]
    with WorkerProcess(stack) as healthy:
        stack.wait_until_scored()
        assert healthy.stop() == 0
