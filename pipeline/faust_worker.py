"""Running a Faust app to its end."""

from __future__ import annotations

from typing import NoReturn

import faust


class PromptWorker(faust.Worker):
    """Faust's worker, which ends when all has ended."""

    async def _sentinel_task(self) -> None:
        """The last that its loop runs, after every other task is over; Faust's sleeps for a second."""


def execute(app: faust.App) -> NoReturn:
    """Run until SIGTERM or Ctrl-C, or until the app crashes; raises `SystemExit`."""
    worker = PromptWorker(app, loglevel="WARN", quiet=True, override_logging=False, redirect_stdouts=False)
    worker.spinner = None
    worker.execute_from_commandline()
    raise SystemExit(0)
