"""Where a user keeps what can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """Offbeat's folder in the user's cache folder; RuntimeError for a user without a home."""
    # The XDG specification says to ignore a relative path.
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if named.startswith("/") else Path.home() / ".cache") / "offbeat"
