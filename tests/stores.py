"""An object store in this process that can be told to fail: fsspec's own in memory, under another protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

PROTOCOL = "frail"


class FrailStore(MemoryFileSystem):
    """Puts objects whole, and has no rename. `refuses` says which operations fail, `on_put` sees each put before it."""

    protocol = PROTOCOL
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    refuses: ClassVar[Callable[[str, str], bool]] = staticmethod(lambda _operation, _path: False)
    on_put: ClassVar[Callable[[str], None]] = staticmethod(lambda _path: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace(f"{PROTOCOL}://", "memory://", 1))

    def _ask(self, operation: str, path: str) -> None:
        if self.refuses(operation, path):
            message = "Could not connect\nto the endpoint"  # of two lines, as botocore's can be
            raise RuntimeError(message)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        """Give an object."""
        self._ask("read", path)
        return super().cat_file(path, *args, **kwargs)

    def ls(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """List a folder."""
        self._ask("list", path)
        return super().ls(path, *args, **kwargs)

    def pipe_file(self, path: str, value: bytes, *args: Any, **kwargs: Any) -> None:
        """Put an object."""
        self._ask("write", path)
        self.on_put(path)
        super().pipe_file(path, value, *args, **kwargs)

    def mv(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing may lean on this."""
        message = "object stores do not rename"
        raise AssertionError(message)


@contextmanager
def frail_store() -> Iterator[type[FrailStore]]:
    """An empty one, under frail://."""
    fsspec.register_implementation(PROTOCOL, FrailStore, clobber=True)
    before = FrailStore.refuses, FrailStore.on_put
    FrailStore.store.clear()
    FrailStore.pseudo_dirs[:] = [""]
    try:
        yield FrailStore
    finally:
        FrailStore.refuses, FrailStore.on_put = map(staticmethod, before)
