"""Where compiled kernels are kept: a folder for each version of their sources.

numba takes a saved kernel for fresh by the time and size of the one file it stands in. What other files had compiled
into it does not count, and installers give files of all releases the same time: an upgrade could serve a kernel of old
parts.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pipeline.user_cache import user_cache

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("features", "models", "detectors")  # that have kernels
_VARIABLE = "NUMBA_CACHE_DIR"
_DIGITS = 16


def keep_by_sources() -> None:
    """Have numba keep kernels below NUMBA_CACHE_DIR, or the user's cache folder, by a digest of their sources.

    It holds for whoever imports numba later, children included. Where nobody may write, numba keeps them beside the
    code, as it would otherwise.
    """
    digest = digest_of(_ROOT)
    base = os.environ.get(_VARIABLE) or _user_folder()
    if base and Path(base).name != digest:  # else we are a child
        os.environ[_VARIABLE] = str(Path(base) / digest)


def digest_of(root: Path) -> str:
    """Of all sources below some folder that have kernels or may be compiled into one."""
    found = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:_DIGITS]


def _user_folder() -> str:
    """Kernels' place in the user's cache folder; empty for a user without a home."""
    try:
        return str(user_cache() / "kernels")
    except RuntimeError:
        return ""
