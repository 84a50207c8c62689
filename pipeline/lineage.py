"""Where a bundle comes from: who trained it with which code, when, why, and what served then.

None of it is part of the digest: another person's training from the same data and seed gives the same bundle.
"""

from __future__ import annotations

import getpass
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.settings import Settings

_SOURCES = Path(__file__).parents[1]
_GIT_S = 5.0


def lineage(settings: Settings, *, parent: str | None, source: str, reason: str | None) -> dict[str, Any]:
    """What a manifest says beside its digested content.

    Parameters
    ----------
    parent
        The digest that served when training began.
    source
        What it was trained on, in words.
    """
    return {
        "parent": parent, "source": source, "by": who(settings), "reason": reason,
        "code": {"offbeat": version("offbeat"), "commit": commit(_SOURCES)},
    }  # fmt: skip


def who(settings: Settings) -> str:
    """The setting `user`, or USER@HOST."""
    if settings.user is not None:
        return settings.user
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def commit(sources: Path) -> str | None:
    """The git commit that code in `sources` runs from, with `-dirty` where files differ; None where there is none."""
    if not (sources / ".git").exists():  # installed; a repository around it would be somebody else's
        return None
    command = ["git", "-C", str(sources), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
