"""`offbeat models`: what there is, what is in it, what serves, and letting another one serve."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from detectors.alert_budget import Volume
from detectors.packing import learned_of
from models.bundle import read_bundle, read_manifest
from models.errors import BundleError, ModelError
from pipeline.errors import BrokerUnavailableError, TopicError, UsageError
from pipeline.model_report import compare, comparison_tables, describe, tables
from pipeline.promotions import tell_workers
from pipeline.registry import Registry
from pipeline.screen import screen
from pipeline.serving import load_serving
from pipeline.sessions import iso
from pipeline.settings import Settings
from pipeline.wire import Promotion

_console = Console(highlight=False)


def list_bundles(settings: Settings, name: str | None, *, as_json: bool) -> None:
    """Print each bundle with where it stands."""
    names = list(settings.streams) if name is None else [name]
    rows = [row for stream in names for row in _listed(Registry(settings, stream))]
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print(f"There is no bundle in {settings.bundles_dir} yet; run `offbeat train`.")
        return
    whole = [Column(name, no_wrap=True) for name in ("bundle", "state", "records")]
    table = Table("stream", *whole, *(Column(name, min_width=10) for name in ("trained", "promoted")), "why")
    for row in rows:
        table.add_row(*map(escape, _cells(row)))
    _console.print(table)
    for row in rows:
        if row["fault"] is not None:
            screen.print(f"note: {row['fault']}", style="yellow", markup=False)


def _listed(registry: Registry) -> list[dict[str, Any]]:
    """Each bundle of a stream, the newest first; one that cannot be read says why."""
    states = {registry.previous(): "previous", registry.serving_if_known(): "serves"}
    promotions = registry.promotions()
    rows = []
    for digest in registry.digests():
        row: dict[str, Any] = {
            "stream": registry.stream, "digest": digest, "state": states.get(digest, ""), "fault": None,
            "created": None, "lineage": {}, "data": {}, "training": {},
            "promotions": [p.model_dump(exclude={"stream", "digest"}) for p in promotions if p.digest == digest],
        }  # fmt: skip
        try:
            manifest = read_manifest(registry.folder / digest)
            parts = {what: manifest.content.get(what, {}) for what in ("data", "training")}
            row |= {"created": manifest.created, "lineage": manifest.lineage} | parts
        except BundleError as error:
            row |= {"state": f"{row['state']} damaged".strip(), "fault": str(error)}
        rows.append(row)
    return sorted(rows, key=lambda row: row["created"] or "", reverse=True)


def _cells(row: dict[str, Any]) -> Iterator[str]:
    """A bundle in one line: where it stands, where it comes from, and its last promotion."""
    promotion = row["promotions"][-1] if row["promotions"] else None
    records = f"{row['data']['records']:,}" if row["data"] else ""
    yield from (row["stream"], row["digest"][:12], row["state"], records, _minute(row["created"] or ""))
    yield from ((_minute(iso(promotion["issued_ms"])), promotion["reason"] or "") if promotion else ("", ""))


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def show_bundle(settings: Settings, name: str, reference: str, *, as_json: bool) -> None:
    """Print all that a bundle's manifest says, and what its calibration can tell."""
    registry = Registry(settings, name)
    digest = registry.resolve(reference)
    bundle = read_bundle(registry.folder / digest)
    manifest = read_manifest(registry.folder / digest)
    rate = settings.stream(name).promise.rate(Volume.of(manifest.content.get("data")))
    described = describe(manifest, bundle, learned_of(bundle), rate, registry.promotions())
    serves = digest == registry.serving()
    if as_json:
        print(json.dumps({"stream": name, "serving": serves} | described))
        return
    print(f"Bundle {digest[:12]} of stream {name}{', which serves' if serves else ''}.")
    for table in tables(described):
        _console.print(table)


def compare_bundles(settings: Settings, name: str, first: str, second: str, *, as_json: bool) -> None:
    """Print what differs between two bundles."""
    registry = Registry(settings, name)
    a, b = (read_bundle(registry.folder / registry.resolve(reference)) for reference in (first, second))
    compared = compare(a, b, (learned_of(a), learned_of(b)))
    if as_json:
        print(json.dumps({"stream": name} | compared))
        return
    if a.digest == b.digest:
        print(f"Both are bundle {a.digest[:12]}.")
        return
    for table in comparison_tables(compared):
        if table.row_count:
            _console.print(table)
    print(f"Files that differ: {', '.join(compared['files']) or 'none'}.")


def promote_bundle(settings: Settings, name: str, reference: str, reason: str | None, *, as_json: bool) -> None:
    """Let a bundle serve, and tell running workers."""
    registry = Registry(settings, name)
    _promote(settings, registry, registry.resolve(reference), reason, "promote", as_json=as_json)


def roll_back(settings: Settings, name: str, reason: str | None, *, as_json: bool) -> None:
    """Let the bundle serve that served before the one that does."""
    registry = Registry(settings, name)
    _promote(settings, registry, registry.resolve("previous"), reason, "rollback", as_json=as_json)


def _promote(
    settings: Settings, registry: Registry, digest: str, reason: str | None, kind: Literal["promote", "rollback"], *,
    as_json: bool,
) -> None:  # fmt: skip
    before = registry.serving_if_known()
    promotion = registry.promote(digest, reason, kind)
    told = try_to_tell(settings, registry)
    if as_json:
        print(json.dumps(promotion.model_dump() | {"told": told}))
        return
    print(_promoted(promotion, already=before == digest))


def _promoted(promotion: Promotion, *, already: bool) -> str:
    if already:
        return f"Bundle {promotion.digest[:12]} serves {promotion.stream} already."
    before = "" if promotion.previous is None else f"; before, {promotion.previous[:12]} did"
    return f"Bundle {promotion.digest[:12]} serves {promotion.stream} now{before}."


def try_to_tell(settings: Settings, registry: Registry) -> bool:
    """Tell running workers what serves; where that fails, say so, for what serves has changed all the same."""
    try:
        tell_workers(settings, registry)
    except (BrokerUnavailableError, TopicError) as error:
        screen.print(
            f"note: running workers have not been told ({error}); `offbeat models promote --stream {registry.stream} "
            "serving` tells them",
            style="yellow", markup=False,
        )  # fmt: skip
        return False
    return True


def verify_bundles(settings: Settings, name: str, references: list[str], *, as_json: bool) -> int:
    """Check bundles where they lie, whatever copies there are; returns the exit code.

    Raises
    ------
    UsageError
        The stream has no bundle, or not the one asked for.
    """
    registry = Registry(settings, name)
    digests = [registry.resolve(reference) for reference in references] if references else registry.folders()
    if not digests:
        message = f"stream {name} has no bundle to verify; run `offbeat train`"
        raise UsageError(message)
    results = [_verified(settings, registry, digest) for digest in digests]
    if as_json:
        print(json.dumps(results))
    for result in results:
        if result["fault"] is not None:
            print(f"offbeat: {result['fault']}", file=sys.stderr)
        elif not as_json:
            print(f"Bundle {result['digest'][:12]} is whole: {result['files']} files, {result['bytes']:,} bytes.")
        if result["unfit"] is not None:
            screen.print(f"note: it cannot serve with this config: {result['unfit']}", style="yellow", markup=False)
    return int(any(result["fault"] is not None for result in results))


def _verified(settings: Settings, registry: Registry, digest: str) -> dict[str, Any]:
    """Whether a bundle is whole, and if so, whether the config lets it serve."""
    folder = registry.folder / digest
    result: dict[str, Any] = {
        "stream": registry.stream, "digest": digest, "fault": None, "unfit": None, "files": None, "bytes": None,
    }  # fmt: skip
    try:
        bundle = read_bundle(folder)
        learned_of(bundle)
    except ModelError as error:
        return result | {"fault": str(error)}
    try:
        load_serving(settings, registry.stream, folder)
    except ModelError as error:
        result["unfit"] = str(error)
    size = len(bundle.manifest) + sum(map(len, bundle.files.values()))
    return result | {"files": len(bundle.files) + 1, "bytes": size}
