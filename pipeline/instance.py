"""The worker's name: unique in its group, held by a file lock, the same again after a restart."""

from __future__ import annotations

import fcntl
import re
import socket
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pipeline.errors import StateError

_MOST = 1_000


class Instance:
    """A name and its folder under `data_dir`, locked while this object is open.

    Parameters
    ----------
    data_dir
        Where the folder lies.
    name
        From the config; None takes HOSTNAME-N with the first N whose folder no living worker holds.
    """

    def __init__(self, data_dir: Path, name: str | None) -> None:
        host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "host"
        for candidate in [name] if name is not None else [f"{host}-{n}" for n in range(_MOST)]:
            lock = _try_lock(data_dir / candidate)
            if lock is not None:
                self.name, self.folder, self._lock = candidate, data_dir / candidate, lock
                return
        message = (
            f"instance {name} is held by another running worker of this data_dir; give this one another `instance`"
            if name is not None
            else f"{_MOST} workers hold all instance names in {data_dir}; set `instance` in the config"
        )
        raise StateError(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()


def _try_lock(folder: Path) -> IO[bytes] | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    except OSError as error:
        message = f"{folder} cannot be used: {error.strerror}; correct data_dir"
        raise StateError(message) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock
