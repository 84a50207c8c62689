"""Bundles: immutable folders with all a trained model needs, named by their digest. Nothing in them is pickled.

`models_dir/STREAM/DIGEST/` holds `manifest.json` and the files it lists with their SHA-256; the digest is the SHA-256
of the manifest's content, so one flipped bit anywhere is found when the bundle is loaded. `models_dir/STREAM/serving`
names the digest that serves; it is replaced in one step, so no reader sees half a promotion.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from models.errors import BundleError

FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A bundle read and verified: its digest, what the manifest says, and its files' bytes."""

    digest: str
    content: dict[str, Any]
    files: dict[str, bytes]


def write_bundle(stream_dir: Path, content: dict[str, Any], files: dict[str, bytes], created: str) -> str:
    """Write a bundle and return its digest; writing the same content again changes nothing.

    Parameters
    ----------
    content
        JSON for the manifest; together with the files it decides the digest.
    created
        When, as text; kept beside the content, so that the same training gives the same digest.
    """
    content = content | {"format": FORMAT, "files": {name: sha256(data).hexdigest() for name, data in files.items()}}
    digest = sha256(_canonical(content)).hexdigest()
    target = stream_dir / digest
    if target.exists():
        return digest
    stream_dir.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=stream_dir))
    try:
        for name, data in files.items():
            _write_durably(scratch / name, data)
        manifest = {"digest": digest, "created": created, "content": content}
        _write_durably(scratch / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return digest


def read_bundle(path: Path) -> Bundle:
    """Read a bundle folder and check every byte of it.

    Raises
    ------
    BundleError
        A file is missing or changed, or the format is newer than this version reads.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        digest, content = manifest["digest"], manifest["content"]
        names = dict(content["files"])
    except FileNotFoundError:
        message = f"{path} is no bundle: it has no manifest.json; run `offbeat train`"
        raise BundleError(message) from None
    except (ValueError, KeyError, TypeError):
        message = f"the manifest of bundle {path} is damaged; restore it or run `offbeat train`"
        raise BundleError(message) from None
    if content.get("format") != FORMAT:
        message = f"bundle {path} has format {content.get('format')}; this version reads {FORMAT}: upgrade offbeat"
        raise BundleError(message)
    if sha256(_canonical(content)).hexdigest() != digest:
        message = f"the manifest of bundle {path} is damaged; restore it or run `offbeat train`"
        raise BundleError(message)
    files = {}
    for name, expected in names.items():
        try:
            files[name] = (path / name).read_bytes()
        except OSError as error:
            message = f"bundle {path} lacks {name} ({error.strerror}); restore it or run `offbeat train`"
            raise BundleError(message) from None
        if sha256(files[name]).hexdigest() != expected:
            message = f"{name} in bundle {path} is damaged (its SHA-256 differs); restore it or run `offbeat train`"
            raise BundleError(message)
    return Bundle(digest, content, files)


def serving_digest(stream_dir: Path) -> str | None:
    """The digest that serves a stream, or None while none does.

    Raises
    ------
    BundleError
        The file is there but cannot be read, or holds no digest.
    """
    try:
        text = (stream_dir / "serving").read_bytes().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{stream_dir / 'serving'} cannot be read ({error.strerror}); correct models_dir"
        raise BundleError(message) from None
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        message = f"{stream_dir / 'serving'} holds no digest; run `offbeat train --promote`"
        raise BundleError(message)
    return text.decode("ascii")


def promote(stream_dir: Path, digest: str) -> None:
    """Let a bundle serve from now on; readers see the old one or the new one."""
    scratch = stream_dir / f".serving-{os.getpid()}"
    _write_durably(scratch, digest.encode("ascii") + b"\n")
    scratch.replace(stream_dir / "serving")


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
