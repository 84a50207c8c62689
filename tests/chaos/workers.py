"""One worker of a storm: a name under which processes come and go, and how each of them ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.fork_server import Forked
from tests.kafka import Stack

LAST_LINES = 25
_LOOK_S = 0.05
_END_S = 180.0
# Sentences with which no fault is an excuse to end: saved state that does not fit.
_NEVER = ("somebody reset it", "sessions are gone", "same instance name", "was deleted and made anew", "cannot follow")


class StormError(AssertionError):
    """Something happened that the schedule does not explain."""


class Worker:
    """Processes under one instance name; at most one at a time.

    Parameters
    ----------
    command
        What runs `offbeat`, without its arguments.
    environ
        Variables it gets on top of ours.
    """

    def __init__(self, stack: Stack, name: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name, self.lock = name, asyncio.Lock()  # held by the fault that it suffers
        self.is_wanted = False  # whoever finds it ended starts it again
        self.process: Forked | subprocess.Popen[bytes] | None = None
        self.logs: list[Path] = []
        self._stack, self._command, self._environ = stack, command, environ
        self._expected: set[int] = set()  # exit codes that the present fault explains
        self._copier: threading.Thread | None = None

    # --- starting and ending -------------------------------------------------------------------------------------

    def start(self, fail_point: str = "", fail_signal: str = "KILL") -> None:
        """Start a process; where `fail_point` is given, it will kill itself there (or stop: mutants know that)."""
        assert not self.is_running
        self.is_wanted = True
        self._expected = {-signal.SIGKILL} if fail_point and fail_signal == "KILL" else set()
        log = self._stack.folder / f"{self.name}-{len(self.logs):03}.log"
        environ = {**os.environ, **self._environ, "OFFBEAT_INSTANCE": self.name}
        environ |= {"FAIL_POINT": fail_point, "FAIL_SIGNAL": fail_signal}
        # Through a pipe: with a full disk, simulated by a limit on files, the log would be the first to suffer.
        said, says = os.pipe()
        arguments, folder = ["worker", "-c", str(self._stack.config_path)], self._stack.folder
        with os.fdopen(says, "wb") as end, Path(os.devnull).open() as nothing:
            if self._command == worker_command() and len(self.logs) % 2:
                self.process = Forked(arguments, (nothing.fileno(), says, says), folder, environ)
            else:
                self.process = subprocess.Popen(
                    [*self._command, *arguments], cwd=folder, env=environ, stdin=nothing, stdout=end, stderr=end
                )
        self._copier = threading.Thread(target=_copy, args=(os.fdopen(said, "rb"), log), daemon=True)
        self._copier.start()
        self.logs.append(log)

    def send(self, what: signal.Signals) -> None:
        """Signal the process; one that must end of it may."""
        if what is signal.SIGKILL:
            self._expected.add(-signal.SIGKILL)
        if what is signal.SIGTERM:
            # Before it listens to signals SIGTERM ends it at once, which is as good: it holds nothing yet.
            self._expected |= {0} if self._has_said("partition opened") else {0, -signal.SIGTERM}
        if self.is_running:
            assert self.process is not None
            self.process.send_signal(what)

    async def end(self, what: signal.Signals, timeout_s: float = _END_S) -> None:
        """Signal the process and wait until it is gone."""
        self.send(what)
        await self.ended(timeout_s)

    async def ended(self, timeout_s: float = _END_S) -> None:
        """Wait until a process that was told to end is gone; a second SIGTERM would end it without its exit code."""
        if await self.gone(timeout_s) is None:
            message = f"{self.name} has not ended {timeout_s:.0f} s after it was told to; {self._state}\n{self.tail()}"
            raise StormError(message)

    async def gone(self, timeout_s: float) -> int | None:
        """Its exit code as soon as it has ended; None where it has not in that time."""
        end = time.monotonic() + timeout_s
        while self.is_running and time.monotonic() < end:
            await asyncio.sleep(_LOOK_S)
        if self.is_running or self.process is None:
            return None
        assert self._copier is not None
        self._copier.join(5)
        return self.process.returncode

    async def opened(self, timeout_s: float) -> bool:
        """Wait until it has opened a partition."""
        return await self._said("partition opened", timeout_s)

    async def stopped(self, timeout_s: float) -> bool:
        """Wait until it is about to stop itself."""
        return await self._said("stopped", timeout_s)

    async def _said(self, event: str, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while self.is_running and time.monotonic() < end:
            if self._has_said(event):
                return True
            await asyncio.sleep(_LOOK_S)
        return False

    def _has_said(self, event: str) -> bool:
        return any(line.get("event") == event for line in read_log(self.logs[-1]))

    # --- how it is -----------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether there is a process, stopped ones included."""
        return self.process is not None and self.process.poll() is None

    @property
    def _state(self) -> str:
        """What the system says its process does."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(line for line in status if line.startswith("State:"))

    def explain(self, code: int) -> None:
        """Expect an exit code for as long as this process lives."""
        self._expected.add(code)

    def explain_end(self, *, outage: bool) -> None:
        """Accept that it has ended, or raise: a fault must explain it.

        Parameters
        ----------
        outage
            The broker is, or was a moment ago, away: ending is right, and whoever runs workers starts them again.
        """
        assert self.process is not None
        code, tail = self.process.returncode, self.tail()
        if code in self._expected and not any(sentence in tail for sentence in _NEVER):
            return
        if outage and code > 0 and not any(sentence in tail for sentence in _NEVER):
            return
        message = f"{self.name} ended with {code}, which no fault explains; its last lines:\n{tail}"
        raise StormError(message)

    def tail(self) -> str:
        """The last lines of the last process's log."""
        if not self.logs or not self.logs[-1].exists():
            return ""
        return "\n".join(self.logs[-1].read_text(errors="replace").splitlines()[-LAST_LINES:])

    # --- its disk ------------------------------------------------------------------------------------------------

    @property
    def databases(self) -> list[Path]:
        """Folders of its RocksDBs."""
        return sorted((self._stack.folder / "data" / self.name / self._stack.name).glob("orders-*"))


def _copy(source: IO[bytes], path: Path) -> None:
    with source, path.open("wb", buffering=0) as log:
        for line in source:
            log.write(line)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a worker's log that are JSON."""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def worker_command(entry: Path | None = None, *arguments: str) -> list[str]:
    """What runs `offbeat`: its own command line, or a script that changes something first."""
    # -P: a folder with a pipeline/ of its own is not in the way.
    return [sys.executable, "-P", *(["-m", "pipeline.cli"] if entry is None else [str(entry), *arguments])]
