"""The faults themselves: for each kind a script that makes it happen, and puts things right again."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from pipeline.broker import LocalBroker
from tests.chaos.schedule import Fault
from tests.chaos.workers import Worker

_REACH_S = 60.0  # a point that is not reached in that time is given up; a later rebalance would have to come by
_TRIES = 3  # after the first
_OUTAGE_S = 120.0  # for so long after the broker is back a worker may end because it was away
_TOO_OLD_MS = 13 * 3_600_000  # past half of the time for which the changelog keeps tombstones
_DAMAGED = 5  # rows of each RocksDB: one alone is often replaced by the changelog's before anybody reads it
_FILE_BYTES = 4_096  # a file that large cannot grow while the disk is full; RocksDB's log passes it at once


class Scene(Protocol):
    """What a fault acts on."""

    broker: LocalBroker
    broker_lock: asyncio.Lock
    point_lock: asyncio.Lock
    workers: list[Worker]
    outage_until: float
    reached: set[str]

    def note(self, what: str) -> None:
        """Tell what happens."""


async def suffer(fault: Fault, scene: Scene) -> None:
    """Run a fault's script to its end."""
    await _SCRIPTS[fault.kind](fault, scene)


@asynccontextmanager
async def _a_worker(fault: Fault, scene: Scene) -> AsyncIterator[Worker]:
    """The fault's worker, or the next that runs and suffers nothing; waits for one."""
    count = len(scene.workers)
    while True:
        for i in range(count):
            worker = scene.workers[(fault.worker + i) % count]
            if not worker.lock.locked() and worker.is_running:
                async with worker.lock:
                    scene.note(f"{fault.kind} {worker.name} {fault.point}")
                    yield worker
                return
        await asyncio.sleep(0.1)


async def _down(worker: Worker, scene: Scene, how: signal.Signals) -> None:
    await worker.end(how)
    worker.explain_end(outage=time.monotonic() < scene.outage_until)


# --- workers -----------------------------------------------------------------------------------------------------


async def _kill(fault: Fault, scene: Scene) -> None:
    async with _a_worker(fault, scene) as worker:
        await _down(worker, scene, signal.SIGKILL)
        await asyncio.sleep(fault.seconds)
        worker.start()


async def _term(fault: Fault, scene: Scene) -> None:
    async with _a_worker(fault, scene) as worker:
        await _down(worker, scene, signal.SIGTERM)
        await asyncio.sleep(fault.seconds)
        worker.start()


async def _point(fault: Fault, scene: Scene) -> None:
    """Restarted so that it kills itself at a point; one worker at a time, or nobody would come by anything."""
    async with scene.point_lock, _a_worker(fault, scene) as worker:
        name = fault.point.partition(":")[0]
        for point in (fault.point, *[f"{name}:1"] * _TRIES):  # where it does not come by, again
            await _down(worker, scene, signal.SIGTERM)
            async with scene.broker_lock:  # without a broker it would come by nothing
                pass
            worker.start(fail_point=point)
            if name.startswith("close/"):
                await worker.opened(_REACH_S)
                await asyncio.sleep(1.0)
                worker.send(signal.SIGTERM)
            if await worker.gone(_REACH_S) == -signal.SIGKILL:
                scene.reached.add(name)
                break
            scene.note(f"{worker.name} did not come by {point}")
        await _down(worker, scene, signal.SIGKILL)
        await asyncio.sleep(fault.seconds)
        worker.start()


async def _stop(fault: Fault, scene: Scene) -> None:
    async with _a_worker(fault, scene) as worker:
        worker.send(signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        worker.send(signal.SIGCONT)


async def _stop_at_point(fault: Fault, scene: Scene) -> None:
    """A zombie caught between two steps; only the entry in `mutants.py` can stop itself."""
    async with _a_worker(fault, scene) as worker:
        for _ in range(1 + _TRIES):
            await _down(worker, scene, signal.SIGTERM)
            worker.start(fail_point=fault.point, fail_signal="STOP")
            if await worker.stopped(_REACH_S):
                scene.reached.add(fault.point.partition(":")[0])
                await asyncio.sleep(fault.seconds)
                worker.send(signal.SIGCONT)
                return
            # It may stop a moment from now, and nobody would wake it.
            await _down(worker, scene, signal.SIGKILL)
            worker.start()


async def _members(fault: Fault, scene: Scene) -> None:
    """The third worker joins where it is absent, and leaves where it is there."""
    worker = scene.workers[fault.worker]
    async with worker.lock:
        scene.note(f"{worker.name} {'leaves' if worker.is_running else 'joins'}")
        if worker.is_running:
            await _down(worker, scene, signal.SIGTERM)
            worker.is_wanted = False
        else:
            worker.start()


# --- the broker --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _outage(scene: Scene) -> AsyncIterator[None]:
    async with scene.broker_lock:
        scene.outage_until = float("inf")
        yield
        scene.outage_until = time.monotonic() + _OUTAGE_S


async def _broker(fault: Fault, scene: Scene) -> None:
    async with _outage(scene):
        scene.note("the broker is killed")
        await asyncio.to_thread(scene.broker.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(scene.broker.start)
        scene.note("the broker is back")


async def _slow(fault: Fault, scene: Scene) -> None:
    async with _outage(scene):
        scene.note("the broker is stopped")
        os.kill(scene.broker.pid, signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        os.kill(scene.broker.pid, signal.SIGCONT)


# --- disks -------------------------------------------------------------------------------------------------------


async def _with_its_disk(fault: Fault, scene: Scene, change: Callable[[Path], None]) -> None:
    """Kill a worker that has partitions, do something to each of its RocksDBs, start it again."""
    async with _a_worker(fault, scene) as worker:
        await worker.opened(_REACH_S)
        await _down(worker, scene, signal.SIGKILL)
        for folder in worker.databases:
            change(folder)
        await asyncio.sleep(fault.seconds)
        worker.start()


async def _rows_deleted(fault: Fault, scene: Scene) -> None:
    await _with_its_disk(fault, scene, shutil.rmtree)


async def _rows_too_old(fault: Fault, scene: Scene) -> None:
    await _with_its_disk(fault, scene, set_back)


async def _row_damaged(fault: Fault, scene: Scene) -> None:
    await _with_its_disk(fault, scene, lambda folder: damage(folder, random.Random(f"{fault}")))


async def _disk_full(fault: Fault, scene: Scene) -> None:
    """Files of the worker cannot grow: Python ignores the signal, so writes fail, as on a full disk."""
    async with _a_worker(fault, scene) as worker:
        assert worker.process is not None
        worker.explain(1)  # it may end with a sentence
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (_FILE_BYTES, resource.RLIM_INFINITY))
        await asyncio.sleep(fault.seconds)
        if worker.is_running:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, unlimited)


def set_back(folder: Path) -> None:
    """Let a RocksDB say that it was last in step with its changelog long ago."""
    from pipeline.cold_rows import ColdRows
    from pipeline.errors import DamagedStateError

    try:
        cold = ColdRows(folder)
    except DamagedStateError:  # the worker died while it made it, and will find that out itself
        return
    try:
        cold.write({}, cold.position, cold.in_step_ms - _TOO_OLD_MS)
    finally:
        cold.close()


def damage(folder: Path, rng: random.Random) -> None:
    """Change one byte of some session rows."""
    from pipeline.cold_rows import ColdRows, session_key
    from pipeline.errors import DamagedStateError

    try:
        cold = ColdRows(folder)
    except DamagedStateError:  # as above
        return
    try:
        rows = list(cold.sessions())
        for name, value in rng.sample(rows, min(len(rows), _DAMAGED)):
            at = rng.randrange(len(value))
            changed = value[:at] + bytes([value[at] ^ 0x40]) + value[at + 1 :]
            cold.write({session_key(name): changed}, cold.position, cold.in_step_ms)
    finally:
        cold.close()


_SCRIPTS: dict[str, Callable[[Fault, Scene], Awaitable[None]]] = {
    "kill": _kill, "point": _point, "term": _term, "stop": _stop, "members": _members, "broker": _broker,
    "slow": _slow, "rows-deleted": _rows_deleted, "rows-too-old": _rows_too_old, "row-damaged": _row_damaged,
    "disk-full": _disk_full, "stop-at-point": _stop_at_point,
}  # fmt: skip
