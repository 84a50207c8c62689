"""The registry of a stream's bundles: what there is, what serves, what served before, and letting another one serve.

Each promotion leaves a record of its own in `models_dir/STREAM/promotions/`, in the words of the message that workers
get. It is written before `serving`, so that what serves always has one; one whose promotion failed names a bundle that
does not serve, and is passed over.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import uuid4

from pydantic import ValidationError

from models.bundle import bundles_in, names_in, promote, serving_digest, write_bundle
from models.errors import BundleError, StoreUnavailableError
from models.folders import as_folder
from pipeline.errors import UsageError
from pipeline.lineage import who
from pipeline.serving import load_serving
from pipeline.settings import Settings
from pipeline.wire import Promotion

_PROMOTIONS = "promotions"


class Registry:
    """Bundles of one stream, where they lie: copies of a remote store's are not asked."""

    def __init__(self, settings: Settings, stream: str) -> None:
        settings.stream(stream)  # or a sentence
        self.settings, self.stream = settings, stream
        self.folder = as_folder(settings.bundles_dir / stream)

    def digests(self) -> list[str]:
        """All bundles, complete ones only."""
        return bundles_in(self.folder)

    def folders(self) -> list[str]:
        """All that are named like a bundle, those that lack a manifest too."""
        return [name for name in names_in(self.folder) if re.fullmatch("[0-9a-f]{64}", name)]

    def serving(self) -> str | None:
        """The digest that serves."""
        return serving_digest(self.folder)

    def serving_if_known(self) -> str | None:
        """The same, and None where `serving` holds no digest: the next promotion mends that."""
        try:
            return self.serving()
        except StoreUnavailableError:
            raise
        except BundleError:
            return None

    def previous(self) -> str | None:
        """The digest that served before the one that serves; what was rolled back does not count."""
        serving = self.serving_if_known()
        served = [] if serving is None else _served(self.promotions(), serving)
        return served[-2] if len(served) > 1 else None

    def promotions(self) -> list[Promotion]:
        """Who promoted what, the earliest first; damaged records are left out."""
        folder = self.folder / _PROMOTIONS
        found = []
        try:
            for name in folder.names():  # in order of time, with which they begin
                if re.fullmatch(r"\d{13}-[0-9a-f]+\.json", name):
                    found.append(_parsed(folder.read(name)))
        except OSError as error:
            message = f"{folder} cannot be read ({error.strerror}); correct models_dir"
            raise StoreUnavailableError(message) from None
        return [promotion for promotion in found if promotion is not None]

    def current(self) -> Promotion | None:
        """The promotion by which a bundle serves; None where none does."""
        serving = self.serving()
        if serving is None:
            return None
        known = [promotion for promotion in self.promotions() if promotion.digest == serving]
        return known[-1] if known else self._promotion("promote", serving, None, None)

    def promoted_ms(self) -> int:
        """When what serves was promoted, by the clock of whoever did; 0 where no record says so."""
        serving = self.serving()
        return max((p.issued_ms for p in self.promotions() if p.digest == serving), default=0)

    def resolve(self, reference: str) -> str:
        """The digest that `serving`, `previous` or the beginning of a digest names.

        Raises
        ------
        UsageError
            It names none, or several.
        """
        if reference in {"serving", "previous"}:
            named = self.serving() if reference == "serving" else self.previous()
            if named is None:
                message = (
                    f"no bundle serves stream {self.stream}; run `offbeat train`"
                    if reference == "serving"
                    else f"no other bundle served stream {self.stream} before; see `offbeat models list`"
                )
                raise UsageError(message)
            return named
        found = [digest for digest in self.folders() if digest.startswith(reference)]
        if len(found) > 1:
            message = f"{len(found)} bundles of stream {self.stream} begin with {reference!r}; write more of its digest"
            raise UsageError(message)
        if not found or not re.fullmatch("[0-9a-f]+", reference):
            message = f"stream {self.stream} has no bundle {reference!r}; `offbeat models list` shows what there is"
            raise UsageError(message)
        return found[0]

    def save(self, content: dict[str, Any], files: Mapping[str, bytes], lineage: Mapping[str, Any]) -> str:
        """Write a bundle, and when it was written; returns its digest."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return write_bundle(self.folder, content, files, created, lineage)

    def promote(self, digest: str, reason: str | None, kind: Literal["promote", "rollback"] = "promote") -> Promotion:
        """Let a bundle serve, once it is sure that it can; where it does already, nothing changes.

        Raises
        ------
        BundleError
            It is damaged or of another config, or cannot be promoted; what served before still does.
        """
        # Whoever promotes needs none of the devices that workers have.
        checked = self.settings.model_copy(update={"runtime": "auto", "device": "cpu"})
        load_serving(checked, self.stream, self.folder / digest)
        previous = self.serving_if_known()
        if previous == digest and (current := self.current()) is not None:
            return current
        promotion = self._promotion(kind, digest, previous, reason)
        self._record(promotion)
        promote(self.folder, digest)
        return promotion

    def _record(self, promotion: Promotion) -> None:
        folder = self.folder / _PROMOTIONS
        try:
            folder.write(f"{promotion.issued_ms:013d}-{uuid4().hex[:8]}.json", promotion.model_dump_json().encode())
        except OSError as error:
            message = f"{folder} cannot be written ({error.strerror}), so what served before still does"
            raise BundleError(message) from None

    def _promotion(
        self, kind: Literal["promote", "rollback"], digest: str, previous: str | None, reason: str | None
    ) -> Promotion:
        latest = max((known.issued_ms for known in self.promotions()), default=-1)
        return Promotion(
            type=kind, stream=self.stream, digest=digest, previous=previous,
            issued_ms=max(time.time_ns() // 1_000_000, latest + 1),  # their order is that of these times
            by=who(self.settings), reason=reason,
        )  # fmt: skip


def _parsed(data: bytes) -> Promotion | None:
    try:
        return Promotion.model_validate_json(data, strict=True)
    except ValidationError:
        return None


def _served(promotions: list[Promotion], serving: str) -> list[str]:
    """What served, one after the other, as if what was rolled back had never been; the last serves.

    >>> def said(kind, digest, previous):
    ...     return Promotion(type=kind, stream="s", digest=digest * 64, previous=previous and previous * 64,
    ...                      issued_ms=0, by="a", reason=None)
    >>> story = [said("promote", "a", None), said("promote", "b", "a"), said("promote", "c", "b")]
    >>> [digest[0] for digest in _served([*story, said("rollback", "b", "c")], "b" * 64)]
    ['a', 'b']
    """
    # What was written after the record of what serves never came to serve.
    of_serving = [number for number, promotion in enumerate(promotions) if promotion.digest == serving]
    served: list[str] = []
    for promotion in promotions[: of_serving[-1] + 1] if of_serving else promotions:
        before = promotion.previous
        if promotion.type == "rollback" and promotion.digest in served:
            served = _up_to(served, promotion.digest)
            continue
        if before is not None:  # not always the last: of two at once, only one came to serve
            served = _up_to(served, before) if before in served else [*served, before]
        served.append(promotion.digest)
    return served if of_serving else [*served, serving]


def _up_to(served: list[str], digest: str) -> list[str]:
    """All up to where it stands last."""
    return served[: len(served) - served[::-1].index(digest)]
