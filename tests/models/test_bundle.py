"""Bundles are immutable, verified, and promoted in one step, on a disk and in an object store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from models.bundle import bundles_in, copy_bundle, promote, read_bundle, read_manifest, serving_digest, write_bundle
from models.errors import BundleError, StoreUnavailableError
from models.folders import Folder, LocalFolder, RemoteFolder, parse_folder
from tests.kafka import PATIENCE_S
from tests.stores import FrailStore, frail_store

FILES = {"weights.safetensors": b"\0" * 100, "vocabulary.json": b"{}"}
LINEAGE = {"parent": "a" * 64, "by": "ann@host", "reason": "a test"}


@pytest.fixture
def store() -> Iterator[type[FrailStore]]:
    with frail_store() as made:
        yield made


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, store: type[FrailStore]) -> Folder:
    """A stream's folder, empty, on a disk and in an object store."""
    return LocalFolder(tmp_path) if request.param == "disk" else RemoteFolder("frail://bucket/models/orders")


def remove(folder: Folder, name: str) -> None:
    if isinstance(folder, LocalFolder):
        (folder.path / name).unlink()
    else:
        FrailStore().rm_file(f"{folder}/{name}")


def test_what_is_written_is_read(folder: Folder) -> None:
    """A bundle comes back as it was, under its digest; what depends on a clock or a person is no part of that."""
    digest = write_bundle(folder, {"a": 1}, FILES, "monday", LINEAGE)
    assert write_bundle(folder, {"a": 1}, FILES, "tuesday", {"by": "bob"}) == digest
    assert write_bundle(folder, {"a": 2}, FILES, "monday") != digest

    bundle, manifest = read_bundle(folder / digest), read_manifest(folder / digest)

    assert (bundle.digest, bundle.files, bundle.content["a"]) == (digest, FILES, 1)
    assert (manifest.created, manifest.lineage) == ("monday", LINEAGE), "the first training's stays"
    assert len(bundles_in(folder)) == 2
    assert digest in bundles_in(folder)


def test_bundles_of_before_lineage_are_read(tmp_path: Path) -> None:
    """A manifest without lineage, sizes and checksum, as earlier versions wrote it, is whole."""
    content = b'{"files":{"vocabulary.json":"%s"},"format":1}' % sha256(b"{}").hexdigest().encode()
    digest = sha256(content).hexdigest()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "vocabulary.json").write_bytes(b"{}")
    manifest = {"digest": digest, "created": "monday", "content": json.loads(content)}
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest, indent=1))
    assert read_bundle(tmp_path / "b").files == {"vocabulary.json": b"{}"}


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.json", "manifest.json"])
def test_a_flipped_byte_is_found(name: str, folder: Folder) -> None:
    """One bit changed anywhere in any file, in the manifest's lineage too, makes the bundle unusable."""
    bundle = folder / write_bundle(folder, {"a": 1}, FILES, "now", LINEAGE)
    whole = bundle.read(name)
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        bundle.write(name, bytes(data))
        with pytest.raises(BundleError, match=r"damaged|upgrade"):
            read_bundle(bundle)
    bundle.write(name, whole)
    assert read_bundle(bundle).files == FILES


def test_what_is_not_as_written_is_named(folder: Folder) -> None:
    """A missing, a truncated, an added file, a folder without bundle, a wrong name: each has its sentence."""
    bundle = folder / write_bundle(folder, {}, FILES, "now")
    bundle.write("notes.txt", b"mine")
    with pytest.raises(BundleError, match=r"holds notes\.txt, which is no part of it; remove that file"):
        read_bundle(bundle)
    remove(bundle, "notes.txt")
    bundle.write("weights.safetensors", b"\0" * 12)
    with pytest.raises(BundleError, match=r"weights\.safetensors .* is cut short \(12 of 100 bytes\)"):
        read_bundle(bundle)
    remove(bundle, "vocabulary.json")
    bundle.write("weights.safetensors", FILES["weights.safetensors"])
    with pytest.raises(BundleError, match=r"lacks vocabulary\.json"):
        read_bundle(bundle)
    with pytest.raises(BundleError, match="no manifest"):
        read_bundle(folder)
    other = folder / ("f" * 64)
    other.write("manifest.json", bundle.read("manifest.json"))
    with pytest.raises(BundleError, match="which is another"):
        read_bundle(other)
    manifest = json.loads(bundle.read("manifest.json"))
    manifest["content"]["format"] = 99
    bundle.write("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(BundleError, match="has format 99; this version reads 1: upgrade"):
        read_bundle(bundle)
    bundle.write("manifest.json", b"[]")
    with pytest.raises(BundleError, match=r"manifest of bundle .* is damaged"):
        read_bundle(bundle)


def test_training_again_mends_a_bundle(folder: Folder) -> None:
    """What a sentence advises works: a damaged bundle is whole after it was written again, without what was added."""
    bundle = folder / write_bundle(folder, {}, FILES, "now")
    for damage in ("weights.safetensors", "notes.txt", "manifest.json"):
        bundle.write(damage, b"{}")
        with pytest.raises(BundleError):
            read_bundle(bundle)
        write_bundle(folder, {}, FILES, "later")
        assert read_bundle(bundle).files == FILES
    assert folder.names() == [bundle.name], "no scratch file stays"


def test_a_copy_is_the_same(folder: Folder, tmp_path: Path) -> None:
    """A bundle copied elsewhere has the same bytes, lineage included."""
    digest = write_bundle(folder, {}, FILES, "now", LINEAGE)
    copy_bundle(read_bundle(folder / digest), tmp_path / "copies")
    assert read_bundle(tmp_path / "copies" / digest) == read_bundle(folder / digest)


def test_promotion(folder: Folder) -> None:
    """None serves at first; then the promoted one does, and no scratch file stays."""
    assert serving_digest(folder) is None
    assert bundles_in(folder) == []
    promote(folder, "a" * 64)
    promote(folder, "d" * 64)
    assert serving_digest(folder) == "d" * 64
    assert folder.names() == ["serving"]


def test_promotions_at_once(folder: Folder) -> None:
    """While several promote, readers see one of them whole each time, and in the end one serves."""
    digests = [mark * 64 for mark in "abcdef"]
    promote(folder, digests[0])
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(promote, folder, digests[i % 6]) for i in range(120)]
        seen = {serving_digest(folder) for _ in range(200)}
        for promotion in done:
            promotion.result()
    assert seen <= set(digests)
    assert serving_digest(folder) in digests
    assert folder.names() == ["serving"]


def test_writers_of_the_same_bundle_at_once(folder: Folder) -> None:
    """Several that write the same bundle at once end with one whole bundle."""
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(write_bundle, folder, {"a": 1}, FILES, "now", LINEAGE) for _ in range(20)]
        (digest,) = {writer.result() for writer in done}
    assert read_bundle(folder / digest).files == FILES
    assert folder.names() == [digest]


def test_a_pointer_that_is_none_is_refused(tmp_path: Path) -> None:
    """A `serving` file without a digest, and a models_dir that is a file, each have their sentence."""
    (tmp_path / "serving").write_bytes(b"\xff\n")
    with pytest.raises(BundleError, match="holds no digest"):
        serving_digest(tmp_path)
    with pytest.raises(StoreUnavailableError, match="correct models_dir"):
        serving_digest(tmp_path / "serving")
    with pytest.raises(StoreUnavailableError, match="cannot be listed"):
        bundles_in(tmp_path / "serving")


# --- object stores ---------------------------------------------------------------------------------------------------


def test_readers_of_a_store_never_see_half_a_bundle(store: type[FrailStore]) -> None:
    """Before the manifest, which is put last, there is no bundle, also where a damaged one is being mended."""
    folder = RemoteFolder("frail://bucket/orders")
    put = []

    def look(path: str) -> None:
        put.append(path.rpartition("/")[2])
        assert bundles_in(folder) == []
        with pytest.raises(BundleError, match="no manifest"):
            read_bundle(folder / path.split("/")[-2])

    store.on_put = staticmethod(look)
    bundle = folder / write_bundle(folder, {}, FILES, "now")
    assert put == [*FILES, "manifest.json"]
    store.on_put = staticmethod(lambda _path: None)
    bundle.write("weights.safetensors", b"")
    store.on_put = staticmethod(look)
    write_bundle(folder, {}, FILES, "now")
    assert read_bundle(bundle).files == FILES


def test_a_store_that_fails_in_between(store: type[FrailStore]) -> None:
    """Whichever put fails, there is one sentence and no bundle; the next attempt makes it whole."""
    for failing in [*FILES, "manifest.json"]:
        folder = RemoteFolder(f"frail://bucket/{failing}")
        store.refuses = staticmethod(lambda op, path, failing=failing: op == "write" and path.endswith("/" + failing))
        with pytest.raises(BundleError, match=r"\(Could not connect to the endpoint\), and none of it"):
            write_bundle(folder, {}, FILES, "now")
        assert bundles_in(folder) == []
        store.refuses = staticmethod(lambda _op, _path: False)
        assert read_bundle(folder / write_bundle(folder, {}, FILES, "now")).files == FILES


def test_a_store_that_does_not_answer(store: type[FrailStore]) -> None:
    """Each question has its sentence, of an error that says a later attempt may succeed."""
    folder = RemoteFolder("frail://user:password@bucket/orders")
    digest = write_bundle(folder, {}, FILES, "now")
    promote(folder, digest)
    store.refuses = staticmethod(lambda _op, _path: True)
    for ask in (lambda: serving_digest(folder), lambda: bundles_in(folder), lambda: read_bundle(folder / digest)):
        with pytest.raises(StoreUnavailableError, match=r"to the endpoint.*correct models_dir") as said:
            ask()
        assert "password" not in str(said.value)
        assert said.value.retriable
    with pytest.raises(BundleError, match=r"cannot be written .*, so what served before still does"):
        promote(folder, "b" * 64)
    store.refuses = staticmethod(lambda _op, _path: False)
    assert serving_digest(folder) == digest


def test_where_bundles_may_lie(tmp_path: Path) -> None:
    """A path and file:// are this machine's disk, with the same layout; other URLs are stores."""
    assert parse_folder(str(tmp_path)) == parse_folder(f"file://{tmp_path}") == tmp_path
    assert parse_folder("memory://models") == RemoteFolder("memory://models")
    assert parse_folder("./a:b//c") == Path("./a:b//c")


# --- a disk that fills up --------------------------------------------------------------------------------------------

_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from models.bundle import promote, write_bundle
from models.errors import BundleError

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    if sys.argv[3] == "save":
        write_bundle(Path(sys.argv[1]), {}, {"vocabulary.json": b"{}", "weights.safetensors": bytes(100_000)}, "now")
    else:
        promote(Path(sys.argv[1]), "b" * 64)
except BundleError as error:
    print(error)
"""


@pytest.mark.parametrize(("what", "limit"), [("save", 50_000), ("save", 1), ("promote", 10)])
def test_a_disk_that_fills_up(what: str, limit: int, tmp_path: Path) -> None:
    """One sentence, nothing half-written, and what served before still does."""
    promote(tmp_path, "a" * 64)
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, str(tmp_path), str(limit), what],
        capture_output=True, text=True, timeout=PATIENCE_S, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    expected = "and none of it is kept; make room" if what == "save" else "so what served before still does"
    assert "(File too large)" in done.stdout
    assert expected in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["serving"]
    assert serving_digest(tmp_path) == "a" * 64
