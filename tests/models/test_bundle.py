"""Bundles are immutable, verified, and promoted in one step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.bundle import promote, read_bundle, serving_digest, write_bundle
from models.errors import BundleError

FILES = {"weights.safetensors": b"\0" * 100, "vocabulary.json": b"{}"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A bundle comes back as it was, under its digest; the time of creation is no part of that."""
    digest = write_bundle(tmp_path, {"a": 1}, FILES, "monday")
    assert write_bundle(tmp_path, {"a": 1}, FILES, "tuesday") == digest
    assert write_bundle(tmp_path, {"a": 2}, FILES, "monday") != digest

    bundle = read_bundle(tmp_path / digest)

    assert (bundle.digest, bundle.files, bundle.content["a"]) == (digest, FILES, 1)


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.json", "manifest.json"])
def test_a_flipped_byte_is_found(name: str, tmp_path: Path) -> None:
    """One bit changed in any file makes the bundle unusable, with a sentence that names it."""
    folder = tmp_path / write_bundle(tmp_path, {"a": 1}, FILES, "now")
    data = bytearray((folder / name).read_bytes())
    at = data.index(b'"a": 1') + 5 if name == "manifest.json" else len(data) // 2
    data[at] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        read_bundle(folder)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    """A missing file, an empty folder and a newer format each have their sentence."""
    folder = tmp_path / write_bundle(tmp_path, {}, FILES, "now")
    (folder / "vocabulary.json").unlink()
    with pytest.raises(BundleError, match=r"lacks vocabulary\.json"):
        read_bundle(folder)
    with pytest.raises(BundleError, match="no manifest"):
        read_bundle(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["content"]["format"] = 99
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="upgrade"):
        read_bundle(folder)


def test_promotion(tmp_path: Path) -> None:
    """None serves at first; then the promoted one does, and no scratch file stays."""
    assert serving_digest(tmp_path) is None
    promote(tmp_path, "a" * 64)
    promote(tmp_path, "d" * 64)
    assert serving_digest(tmp_path) == "d" * 64
    assert [p.name for p in tmp_path.iterdir()] == ["serving"]


def test_a_pointer_that_is_none_is_refused(tmp_path: Path) -> None:
    """A `serving` file without a digest, and a models_dir that is a file, each have their sentence."""
    (tmp_path / "serving").write_bytes(b"\xff\n")
    with pytest.raises(BundleError, match="holds no digest"):
        serving_digest(tmp_path)
    with pytest.raises(BundleError, match="correct models_dir"):
        serving_digest(tmp_path / "serving")
