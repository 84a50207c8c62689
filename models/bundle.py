"""Bundles: immutable folders with all a trained model needs, named by their digest. Nothing in them is pickled.

`models_dir/STREAM/DIGEST/` holds `manifest.json` and the files it lists with their SHA-256; the digest is the SHA-256
of the manifest's content, so one flipped bit anywhere is found when the bundle is loaded. What tells of a person or a
clock stands in the manifest beside that content. `models_dir/STREAM/serving` names the digest that serves; it is
replaced in one step, so no reader sees half a promotion. All that may lie in an object store (`models.folders`): a
bundle without a manifest is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from models.errors import BundleError, StoreUnavailableError
from models.folders import Folder, as_folder

FORMAT = 1
MANIFEST, SERVING = "manifest.json", "serving"
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself.

    Attributes
    ----------
    content
        What the digest covers.
    created, lineage
        When it was written, and by whom, of what, and why; None and empty in bundles of before these were kept.
    raw
        The file's bytes.
    """

    digest: str
    content: dict[str, Any]
    created: str | None
    lineage: dict[str, Any]
    raw: bytes = field(repr=False)


@dataclass(frozen=True)
class Bundle:
    """A bundle read and verified: its digest, what the manifest says, its files' bytes and the manifest's own."""

    digest: str
    content: dict[str, Any]
    files: dict[str, bytes]
    manifest: bytes = b""
    created: str | None = None


def write_bundle(
    stream_dir: Path | Folder, content: dict[str, Any], files: Mapping[str, bytes], created: str,
    lineage: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Write a bundle and return its digest; writing the same content again changes nothing, but mends damage.

    Parameters
    ----------
    content
        JSON for the manifest; together with the files it decides the digest.
    created, lineage
        When, as text, and what else depends on a clock or a person; kept beside the content, so that the same training
        gives the same digest.

    Raises
    ------
    BundleError
        The disk or the store takes no more; nothing of the bundle is there then.
    """
    content = content | {
        "format": FORMAT,
        "files": {name: sha256(data).hexdigest() for name, data in files.items()},
        "sizes": {name: len(data) for name, data in files.items()},
    }
    digest = sha256(_canonical(content)).hexdigest()
    folder = as_folder(stream_dir) / digest
    try:
        read_bundle(folder)
    except BundleError:
        manifest = {"digest": digest, "created": created, "lineage": dict(lineage or {}), "content": content}
        _fill(folder, {**files, MANIFEST: _rendered(manifest)})
    return digest


def copy_bundle(bundle: Bundle, stream_dir: Path | Folder) -> None:
    """Write a bundle that was read elsewhere, as it is.

    Raises
    ------
    BundleError
        The disk or the store takes no more.
    """
    _fill(as_folder(stream_dir) / bundle.digest, {**bundle.files, MANIFEST: bundle.manifest})


def _fill(folder: Folder, files: Mapping[str, bytes]) -> None:
    try:
        folder.fill(files, MANIFEST)
    except OSError as error:
        message = f"bundle {folder} cannot be saved ({error.strerror}), and none of it is kept; make room, then repeat"
        raise BundleError(message) from None


def read_manifest(path: Path | Folder) -> Manifest:
    """Read and check what a bundle says of itself; its other files are left alone.

    Raises
    ------
    BundleError
        There is no bundle, its manifest is damaged, or its format is newer than this version reads.
    StoreUnavailableError
        The disk or the store gives nothing; it may later.
    """
    folder = as_folder(path)
    damaged = f"the manifest of bundle {folder} is damaged; restore it or run `offbeat train`"
    try:
        raw = folder.read(MANIFEST)
        manifest = json.loads(raw)
        digest, content, created = manifest["digest"], manifest["content"], manifest.get("created")
        lineage, _ = dict(manifest.get("lineage", {})), dict(content["files"])
    except FileNotFoundError:
        message = f"{folder} is no bundle: it has no manifest.json; run `offbeat train`"
        raise BundleError(message) from None
    except OSError as error:
        message = f"bundle {folder} cannot be read ({error.strerror}); correct models_dir"
        raise StoreUnavailableError(message) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(damaged) from None
    if content.get("format") != FORMAT:
        message = f"bundle {folder} has format {content.get('format')}; this version reads {FORMAT}: upgrade offbeat"
        raise BundleError(message)
    if sha256(_canonical(content)).hexdigest() != digest or not _is_as_written(manifest):
        raise BundleError(damaged)
    if _DIGEST.fullmatch(folder.name) and folder.name != digest:
        message = f"{folder} holds bundle {digest[:12]}, which is another; restore it or run `offbeat train`"
        raise BundleError(message)
    return Manifest(digest, content, created, lineage, raw)


def read_bundle(path: Path | Folder) -> Bundle:
    """Read a bundle folder and check every byte of it.

    Raises
    ------
    BundleError
        A file is missing, is one too many, or changed, or the format is newer than this version reads.
    StoreUnavailableError
        The disk or the store gives nothing; it may later.
    """
    folder = as_folder(path)
    manifest = read_manifest(folder)
    expected, sizes = manifest.content["files"], manifest.content.get("sizes", {})
    files = {}
    for name, digest in expected.items():
        files[name] = data = _read_part(folder, name)
        if len(data) < sizes.get(name, 0):
            message = (
                f"{name} in bundle {folder} is cut short ({len(data):,} of {sizes[name]:,} bytes); restore it or run "
                "`offbeat train`"
            )
            raise BundleError(message)
        if sha256(data).hexdigest() != digest:
            message = f"{name} in bundle {folder} is damaged (its SHA-256 differs); restore it or run `offbeat train`"
            raise BundleError(message)
    if extra := sorted(set(names_in(folder)) - {*expected, MANIFEST}):
        message = f"bundle {folder} holds {extra[0]}, which is no part of it; remove that file"
        raise BundleError(message)
    return Bundle(manifest.digest, manifest.content, files, manifest.raw, manifest.created)


def _read_part(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except OSError as error:
        kind = BundleError if isinstance(error, FileNotFoundError) else StoreUnavailableError
        reason = error.strerror or "there is no such file"
        message = f"bundle {folder} lacks {name} ({reason}); restore it or run `offbeat train`"
        raise kind(message) from None


def bundles_in(stream_dir: Path | Folder) -> list[str]:
    """The digests of a stream's bundles, in their order as text.

    Raises
    ------
    StoreUnavailableError
        The disk or the store gives nothing; it may later.
    """
    folder = as_folder(stream_dir)
    return [name for name in names_in(folder) if _DIGEST.fullmatch(name) and MANIFEST in names_in(folder / name)]


def names_in(folder: Folder) -> list[str]:
    """What lies in a folder, or a `StoreUnavailableError` with a sentence."""
    try:
        return folder.names()
    except OSError as error:
        message = f"{folder} cannot be listed ({error.strerror}); correct models_dir"
        raise StoreUnavailableError(message) from None


def serving_digest(stream_dir: Path | Folder) -> str | None:
    """The digest that serves a stream, or None while none does.

    Raises
    ------
    BundleError
        The file is there but holds no digest.
    StoreUnavailableError
        The disk or the store does not give it; it may later.
    """
    folder = as_folder(stream_dir)
    try:
        text = folder.read(SERVING).strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{folder}/{SERVING} cannot be read ({error.strerror}); correct models_dir"
        raise StoreUnavailableError(message) from None
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        message = f"{folder}/{SERVING} holds no digest; run `offbeat train --promote`"
        raise BundleError(message)
    return text.decode("ascii")


def promote(stream_dir: Path | Folder, digest: str) -> None:
    """Let a bundle serve from now on; readers see the old one or the new one.

    Raises
    ------
    BundleError
        The disk or the store does not take it; what served before still does.
    """
    folder = as_folder(stream_dir)
    try:
        folder.write(SERVING, digest.encode("ascii") + b"\n")
    except OSError as error:
        message = f"{folder}/{SERVING} cannot be written ({error.strerror}), so what served before still does"
        raise BundleError(message) from None


def _rendered(manifest: dict[str, Any]) -> bytes:
    """The manifest's bytes, with a checksum over all of it: a bit flipped beside the content is found as well."""
    checked = manifest | {"checksum": sha256(_canonical(manifest)).hexdigest()}
    return json.dumps(checked, indent=1, sort_keys=True).encode()


def _is_as_written(manifest: dict[str, Any]) -> bool:
    """Whether the checksum holds; manifests without lineage are of before there was one."""
    others = {key: value for key, value in manifest.items() if key != "checksum"}
    expected = manifest.get("checksum", None if "lineage" in manifest else sha256(_canonical(others)).hexdigest())
    return expected == sha256(_canonical(others)).hexdigest()


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
