"""Folders that hold bundles: on a local disk, or in an object store that fsspec reaches.

Both have the same operations, and whatever is written through them is seen whole or not at all: a local folder by
renaming what was written beside its place, a store by putting each object at once and the decisive one last.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self
from uuid import uuid4

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL | re.IGNORECASE)


class Folder(Protocol):
    """A folder of small files. What a store or a disk refuses comes out as an `OSError` with its reason."""

    @property
    def name(self) -> str:
        """The last part of its path."""

    def __truediv__(self, name: str) -> Self:
        """A folder inside it; nothing is made."""

    def names(self) -> list[str]:
        """What lies in it, sorted, hidden files too; nothing where there is no such folder."""

    def read(self, name: str) -> bytes:
        """A file's bytes; `FileNotFoundError` where there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file; readers see the old one or the new one."""

    def fill(self, files: Mapping[str, bytes], last: str) -> None:
        """Make this folder, with these files and no others; for readers there is nothing until `last` is there."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk of this machine. Files reach the disk before they get their names."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Self:
        return type(self)(self.path / name)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    def names(self) -> list[str]:
        """What lies in it."""
        try:
            return sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Replace a file by one rename."""
        self.path.mkdir(parents=True, exist_ok=True)
        scratch = self.path / f".{name}-{uuid4().hex}"
        try:
            _write_durably(scratch, data)
            scratch.replace(self.path / name)
        finally:
            scratch.unlink(missing_ok=True)

    def fill(self, files: Mapping[str, bytes], last: str) -> None:
        """Write beside its place, then rename; a folder that stood there goes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.path.parent))
        try:
            made = scratch / "made"
            made.mkdir()  # with the rights of any folder; those of `scratch` are its owner's alone
            for name, data in files.items():
                _write_durably(made / name, data)
            with suppress(FileNotFoundError):
                self.path.rename(scratch / "old")
            self._take_place(made)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _take_place(self, made: Path) -> None:
        try:
            made.rename(self.path)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:  # else another writer was quicker, with the same
                raise


@dataclass(frozen=True)
class RemoteFolder:
    """A folder in a store with an fsspec URL, such as `s3://bucket/models`.

    Object stores put an object whole or not at all, and that is all that is asked of them; nothing is renamed. Stores
    whose puts can be seen half done (sftp, say) only hold what is written while nobody reads it.
    """

    url: str

    def __str__(self) -> str:
        return re.sub(r"://[^/@]*@", "://", self.url)  # no password in any sentence

    def __truediv__(self, name: str) -> Self:
        return type(self)(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.url.rstrip("/").rpartition("/")[2]

    def names(self) -> list[str]:
        """What lies in it, asked anew each time."""
        with self._opened() as (store, root):
            store.invalidate_cache()
            try:
                found = store.ls(root, detail=False)
            except FileNotFoundError:
                return []
        paths = (path.strip("/") for path in found)
        return sorted({path.rpartition("/")[2] for path in paths if path != root.strip("/")})

    def read(self, name: str) -> bytes:
        """An object's bytes."""
        with self._opened() as (store, root):
            data: bytes = store.cat_file(f"{root}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """One put."""
        with self._opened() as (store, root):
            store.pipe_file(f"{root}/{name}", data)

    def fill(self, files: Mapping[str, bytes], last: str) -> None:
        """Put one by one, `last` at the end. What a failure leaves behind lacks `last`; filling it again mends it."""
        before = set(self.names())
        with self._opened() as (store, root):
            for name in [last] * (last in before) + sorted(before - set(files)):
                store.rm_file(f"{root}/{name}")
        for name in [*(name for name in files if name != last), last]:
            self.write(name, files[name])

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        """The store and the path in it. Stores have errors of their own, botocore's or aiohttp's, say: one for all."""
        import fsspec

        try:
            store, root = fsspec.url_to_fs(self.url)
            yield store, root.rstrip("/")
        except FileNotFoundError:
            raise
        except Exception as error:
            said = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
            raise OSError(errno.EIO, said) from error


def as_folder(path: Path | Folder) -> Folder:
    """A path as a folder; a folder as it is."""
    return LocalFolder(path) if isinstance(path, Path) else path


def parse_folder(text: str) -> Path | RemoteFolder:
    """A folder from the config: a path, a `file://` URL (a path too), or another URL that fsspec knows.

    Raises
    ------
    ValueError
        The protocol is unknown, or its package is not installed; the text says what to do.

    >>> parse_folder("file:///srv/models")
    PosixPath('/srv/models')
    >>> str(parse_folder("memory://models"))
    'memory://models'
    """
    match = _URL.fullmatch(text)
    if match is None:
        return Path(text)
    protocol, rest = match[1].lower(), match[2]
    if protocol in {"file", "local"}:
        return Path(rest)
    _check_protocol(protocol)
    return RemoteFolder(f"{protocol}://{rest}")


def _check_protocol(protocol: str) -> None:
    from fsspec.registry import get_filesystem_class, known_implementations

    try:
        get_filesystem_class(protocol)
    except ValueError:
        message = f"{protocol}:// is no store that is known; expected a path, or a URL such as s3://BUCKET/models"
        raise ValueError(message) from None
    except ImportError as error:
        module = known_implementations[protocol]["class"].partition(".")[0]
        what = f"install {module}" if module != "fsspec" else str(error)
        message = f"the package for {protocol}:// is missing: {what}"
        raise ValueError(message) from None


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
