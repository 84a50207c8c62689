"""Reading a stream's bundles where they may lie in a remote store: what serves is kept here too, for when it is away.

A copy is verified as its original is, each time it is read, and a damaged one is fetched again. Copies may be deleted
at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from models.bundle import Bundle, copy_bundle, promote, read_bundle, serving_digest
from models.errors import BundleError, StoreUnavailableError
from pipeline.settings import Settings

log = logging.getLogger("offbeat")  # the standard library's: commands have no structured logs, and say it on stderr


def read_serving(settings: Settings, name: str) -> str | None:
    """The digest that serves a stream, or None while none does.

    Where a remote store does not answer, it is what served when it last did.

    Raises
    ------
    BundleError
        What stands there is no digest, or nothing can be read, and no store has ever answered here.
    """
    copies = _copies(settings, name)
    try:
        digest = serving_digest(settings.bundles_dir / name)
    except StoreUnavailableError as error:
        kept = None if copies is None else _kept_serving(copies)
        if kept is None:
            raise
        log.warning(f"going on with bundle {kept[:12]}, which served when the store last answered: {error}")
        return kept
    if copies is not None and digest not in {None, _kept_serving(copies)}:
        _keep(lambda: promote(copies, str(digest)))
    return digest


def read_by_digest(settings: Settings, name: str, digest: str) -> Bundle:
    """A stream's bundle, checked byte by byte; of a remote store the copy here, where there is one.

    Raises
    ------
    BundleError
        It is damaged, or not there.
    """
    copies = _copies(settings, name)
    if copies is None:
        return read_bundle(settings.bundles_dir / name / digest)
    try:
        return read_bundle(copies / digest)
    except BundleError:  # not fetched yet, or damaged since
        bundle = read_bundle(settings.bundles_dir / name / digest)
        _keep(lambda: copy_bundle(bundle, copies))
        return bundle


def _copies(settings: Settings, name: str) -> Path | None:
    return None if settings.copies_dir is None else settings.copies_dir / name


def _kept_serving(copies: Path) -> str | None:
    try:
        return serving_digest(copies)
    except BundleError:
        return None


def _keep(write: Callable[[], None]) -> None:
    """A copy is a convenience: a full disk must not keep a bundle from serving."""
    try:
        write()
    except BundleError as error:
        log.warning(f"no copy of what serves is kept, so a worker cannot start while the store is away: {error}")
