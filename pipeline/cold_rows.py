"""Cold rows: every saved row of one partition, in RocksDB, beside the changelog position it is in step with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from rocksdict import BlockBasedOptions, Options, Rdict, WriteBatch

SESSION = b"s"  # first byte of a session row's key; the session's name follows
PARTITION = b"p"  # first byte of a partition row's key
_POSITION = b"local/changelog-position"  # keys of our own, never in the changelog
_IN_STEP = b"local/in-step-ms"
_ALL = (b"", b"\xff\xff")


def session_key(name: str) -> bytes:
    """Key of a session's row, in RocksDB and in the changelog."""
    return SESSION + name.encode()


class ColdRows:
    """One RocksDB, opened by one process at a time.

    Parameters
    ----------
    path
        Its folder; made when missing.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        table = BlockBasedOptions()
        table.set_bloom_filter(10, block_based=False)  # a new session is a miss, and misses must not read blocks
        options.set_block_based_table_factory(table)
        options.set_write_buffer_size(16 << 20)
        options.set_max_write_buffer_number(2)
        self._db = Rdict(str(path), options)

    @property
    def position(self) -> int:
        """The changelog offset up to which this database holds everything; 0 for a new one."""
        return int(self._db.get(_POSITION) or 0)

    @property
    def in_step_ms(self) -> int:
        """When, by the clock of that time, the database was last in step with the changelog."""
        return int(self._db.get(_IN_STEP) or 0)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Values in the keys' order, None where there is none."""
        return self._db.get(keys) if keys else []

    def get(self, key: bytes) -> bytes | None:
        """One value."""
        return self._db.get(key)  # type: ignore[no-any-return]

    def write(self, changes: Mapping[bytes, bytes | None], position: int, now_ms: int) -> None:
        """Put values, delete where the value is None, and move the position, all at once (checkpoint step 4)."""
        batch = WriteBatch(raw_mode=True)
        for key, value in changes.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(_POSITION, b"%d" % position)
        batch.put(_IN_STEP, b"%d" % now_ms)
        self._db.write(batch)

    def clear(self) -> None:
        """Forget everything."""
        self._db.delete_range(*_ALL)

    def sessions(self) -> Iterator[tuple[str, bytes]]:
        """Every session row, by name."""
        for key, value in self._db.items(from_key=SESSION):
            if not key.startswith(SESSION):
                return
            yield key[1:].decode(), value

    def close(self) -> None:
        """Flush and unlock."""
        self._db.close()
