"""A training as a process beside something else that matters more, and that it does not outlive."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

_LOOK_S = 1.0


def yield_to_others(parent: int | None = None) -> None:
    """Run when nobody else wants to, go first when memory is short, and end when whoever started us has.

    Parameters
    ----------
    parent
        Who that is, where it may have ended before this is called; else whoever is our parent now.
    """
    os.nice(19)
    with suppress(OSError):  # some sandboxes forbid it
        Path("/proc/self/oom_score_adj").write_text("1000")
    watched = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == watched:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
