"""Named points at which a worker can be made to die, for tests of recovery.

The environment variable FAIL_POINT, `NAME` or `NAME:N`, ends the process by SIGKILL when it comes to that point for the
Nth time (the first if N is absent). A signal, and not an exception, because a crash runs no handler.
"""

from __future__ import annotations

import os
import signal

# In the order in which a partition comes by. The numbers are the checkpoint's steps.
POINTS = (
    "open/fenced", "open/restored", "open/compared", "checkpoint/0", "checkpoint/1", "checkpoint/2",
    "checkpoint/3-offsets-sent", "checkpoint/3", "checkpoint/4", "close/begun", "close/saved",
)  # fmt: skip

_name, _, _times = os.environ.get("FAIL_POINT", "").partition(":")
_left = int(_times or 1)
if _name and _name not in POINTS:
    message = f"FAIL_POINT names no point: {_name}; there are {', '.join(POINTS)}"
    raise ValueError(message)


def passed(point: str) -> None:
    """Die here if the environment says so; otherwise nothing."""
    global _left  # noqa: PLW0603 (a count of this process)
    if point != _name:
        return
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
