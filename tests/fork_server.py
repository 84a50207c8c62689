"""Commands of `offbeat` forked off a process that has imported all they need: a start takes milliseconds, not seconds.

Tests start hundreds of them, and imports were most of what that costs. Each process that runs tests has two to fork
from, one of them without torch: workers never import that, and are to have no more in memory than a user's. What comes
out is a process like any other, with a pid, an environment, a folder and streams of its own, and `kill -9` is what it
is. But all of one server share a seed of hashes, and see modules that another command imported. Where a start itself
is tested, or what a library reads from the environment as it is imported, tests start the command as users do; storms
do so every other time.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

_ROOT = Path(__file__).parents[1]
_MOST = 1 << 20  # bytes of a request: arguments and environment
_LOOK_S = 0.005
_FAIL_POINT = "FAIL_POINT"
_LONG_LIVED = {"worker", "alerts", "storefront"}  # these have no use for torch


class Forked:
    """`offbeat ARGUMENTS` as a process of its own, with what tests use of `subprocess.Popen`.

    Parameters
    ----------
    streams
        File descriptors of its standard input, output and error.
    """

    def __init__(
        self, arguments: Sequence[str], streams: tuple[int, int, int], folder: Path, environ: Mapping[str, str]
    ) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        wanted = {"arguments": self.args, "folder": str(folder), "environ": dict(environ)}
        self._server = _server(with_torch=self.args[0] not in _LONG_LIVED)
        self.pid: int = self._server.ask(wanted, streams)

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; `subprocess.TimeoutExpired` where it does not come in that many seconds."""
        end = time.monotonic() + (math.inf if timeout is None else timeout)
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(_LOOK_S)
        return code

    def send_signal(self, number: int) -> None:
        """Signal it, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run_command(arguments: Sequence[str], folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder to its end, without input, and keep what it prints."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as errors, Path(os.devnull).open() as nothing:
        streams = (nothing.fileno(), out.fileno(), errors.fileno())
        process = Forked(arguments, streams, folder, os.environ)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()  # nothing where it has ended
        out.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(process.args, code, out.read(), errors.read())


class _Server:
    """The process that forks, as seen from the tests: one question at a time, each with an answer."""

    def __init__(self, *modules: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno()), *modules], pass_fds=[theirs.fileno()],
                env={name: value for name, value in os.environ.items() if name != _FAIL_POINT},
            )  # fmt: skip

    def ask(self, question: dict[str, Any], streams: Sequence[int] = ()) -> Any:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(question).encode()], streams)
            answer = self._socket.recv(_MOST)
        assert answer, "the fork server has ended"
        return json.loads(answer)

    def close(self) -> None:
        """Let it end; what it forked, tests have ended."""
        self._socket.close()
        self._process.wait(10)


def _server(*, with_torch: bool) -> _Server:
    with _starting:
        if with_torch not in _servers:
            modules = ["pipeline.worker", "pipeline.alerts.process", "pipeline.commands"]
            _servers[with_torch] = _Server(*modules, *(["pipeline.trainer", "models.family"] if with_torch else []))
            atexit.register(_servers[with_torch].close)
    return _servers[with_torch]


_starting = threading.Lock()
_servers: dict[bool, _Server] = {}


def _serve(questions: socket.socket) -> list[str] | None:
    """Fork what is asked for; returns its arguments in the child, and None where nobody asks any more."""
    while True:
        message, streams, _, _ = socket.recv_fds(questions, _MOST, 3)
        if not message:
            return None
        question = json.loads(message)
        if "ended" in question:
            pid, status = os.waitpid(question["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                questions.close()
                _become(question, streams)
                return list(question["arguments"])
            for stream in streams:
                os.close(stream)
        questions.send(json.dumps(answer).encode())


def _become(wanted: dict[str, Any], streams: list[int]) -> None:
    """Take the folder, environment and streams that the process is to have."""
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
        os.close(stream)
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environ"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if _FAIL_POINT in os.environ:  # read when it is imported
        importlib.reload(sys.modules["pipeline.failpoints"])


def _main(questions: str, *modules: str) -> None:
    sys.path.insert(0, str(_ROOT))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, which end what was forked, and then us
    for name in ("pipeline.cli", *modules):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else each child's first collection would copy every page
    arguments = _serve(socket.socket(fileno=int(questions)))
    if arguments is not None:
        sys.argv = ["offbeat", *arguments]
        sys.modules["pipeline.cli"].main()


if __name__ == "__main__":
    _main(*sys.argv[1:])
