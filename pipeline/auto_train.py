"""`offbeat worker --auto-train N`: the first bundle of each stream, trained beside the worker once enough was seen.

Sessions that ended without an anomaly are counted since the worker started. The owner of partition 0 trains, so that of
a group one worker does, in a process of its own: whatever becomes of that, the worker scores on.
"""

from __future__ import annotations

import contextvars
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.logs import get_logger
from pipeline.metrics import Metrics

_STOP_S = 5.0

log = get_logger()


class AutoTrain:
    """Starts trainings, one at a time, and says how they ended. `ended` belongs to the event loop.

    Parameters
    ----------
    after
        Healthy sessions; and as many more after a training that failed.
    config
        The config file, which the training reads anew.
    command
        Gives the process to run for a stream; else `pipeline.first_bundle`.
    """

    def __init__(
        self, after: int, config: Path, metrics: Metrics, command: Callable[[str], Sequence[str]] | None = None
    ) -> None:
        self._after, self._config, self._metrics = after, config.absolute(), metrics
        self._command = self._first_bundle if command is None else command
        self._seen: dict[str, int] = {}
        self._due: dict[str, int] = {}
        self._owned: set[str] = set()
        self._done: set[str] = set()  # trained; the bundle comes by the models topic
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def owns(self, stream: str, *, yes: bool) -> None:
        """Whether the stream's partition 0 is ours now."""
        (self._owned.add if yes else self._owned.discard)(stream)

    def ended(self, stream: str, healthy: int) -> None:
        """Count sessions that ended while the stream has no bundle, and train if that is enough."""
        seen = self._seen[stream] = self._seen.get(stream, 0) + healthy
        if seen < self._due.get(stream, self._after) or stream not in self._owned or stream in self._done:
            return
        if self._stopped or (self._thread is not None and self._thread.is_alive()):
            return
        self._due[stream] = seen + self._after
        log.info("first training begins", stream=stream, healthy_sessions=seen)
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._train, stream), name="auto-train", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End a training under way. Never raises."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _first_bundle(self, stream: str) -> Sequence[str]:
        return sys.executable, "-P", "-m", "pipeline.first_bundle", str(self._config), stream

    def _train(self, stream: str) -> None:
        result, why = "failed", ""
        try:
            self._process = process = subprocess.Popen(
                self._command(stream), text=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            said, complained = process.communicate()
            lines = complained.strip().splitlines()
            why = lines[-1] if lines else f"it ended with {process.returncode}"
            if process.returncode == 0:
                found = json.loads(said.strip().splitlines()[-1])
                result = "promoted" if found["promoted"] else "superseded"
                self._done.add(stream)
                log.info("first training ended", stream=stream, **found)
        except (OSError, ValueError, KeyError, IndexError) as error:
            result, why = "failed", repr(error)
        if self._stopped:
            return
        if result == "failed":
            log.error("no first bundle yet", stream=stream, why=why[:500], again_after=self._due[stream])
        self._metrics.auto_trainings.labels(stream, result).inc()
