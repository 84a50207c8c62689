"""A command of ours as a process that cannot outlive the demo."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import OffbeatError
from pipeline.jvm import BoundProcess


class Child(BoundProcess):
    """A command of ours as a process of its own; leaving it ends it, and the kernel does so if we die first.

    Parameters
    ----------
    folder
        Where it runs; what it says goes to `NAME.log` there.
    shows
        Its standard error is ours instead, for progress in a terminal.
    """

    def __init__(self, name: str, *arguments: str, folder: Path, shows: bool = False) -> None:
        self._name = f"offbeat {name}"
        self._log = folder / f"{name}.log"
        # -P: a folder called `pipeline` where the demo is started is not ours. OFFBEAT_* would go before the config.
        command = [sys.executable, "-P", "-m", "pipeline.cli", name, *arguments]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("OFFBEAT_")}
        environ["TMPDIR"] = str(folder)  # importing torch makes a folder there, which goes with ours
        super().__init__(command, folder, environ, output=self._log.name, shows_errors=shows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(signal.SIGTERM)

    def finish(self) -> str:
        """Start it and wait until it has done its work; return what it printed.

        Raises
        ------
        OffbeatError
            It failed; with its last lines.
        """
        self.launch()
        self.ended.wait()
        if self.exit_code != 0:
            raise self._failed()
        return self._log.read_text("utf-8", "replace")

    def check(self) -> None:
        """Raise if it has ended, which one that serves must not."""
        if self.ended.is_set():
            raise self._failed()

    def _failed(self) -> OffbeatError:
        said = self._log.read_text("utf-8", "replace").splitlines()[-8:]
        lines = "".join(f"\n  {line[:300]}" for line in said)
        return OffbeatError(f"`{self._name}` ended with exit code {self.exit_code}, so the demo cannot go on.{lines}")
