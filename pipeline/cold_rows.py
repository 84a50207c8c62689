"""Cold rows: every saved row of one partition in RocksDB, its timers, and the changelog position it is in step with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocksdict import (
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    CompactOptions,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from pipeline.errors import DamagedStateError

SESSION = b"s"  # first byte of a session row's key; the session's name follows
PARTITION = b"p"  # key of the partition row
_AFTER_SESSIONS = b"t"
_POSITION = b"local/changelog-position"  # keys of our own, never in the changelog
_IN_STEP = b"local/in-step-ms"
_CHANGELOG = b"local/changelog-id"
_ALL = (b"", b"\xff\xff")
_TIMERS = "timers"

Timer = tuple[int, str]  # when it is due (event time, ms), and whose it is
Changes = Mapping[bytes, bytes | None]


def session_key(name: str) -> bytes:
    """Key of a session's row, in RocksDB and in the changelog."""
    return SESSION + name.encode()


def timer_key(timer: Timer) -> bytes:
    """Key of a timer; keys sort by time, then by name.

    >>> timer_key((1, "a")) < timer_key((1, "b")) < timer_key((256, ""))
    True
    """
    return timer[0].to_bytes(8, "big") + timer[1].encode()


@dataclass(frozen=True)
class Memory:
    """RocksDB's memory, shared by all partitions of a worker: blocks, indexes, filters and unflushed writes.

    Attributes
    ----------
    total
        Bytes. 128 MB hold the indexes and filters of 4 M rows of 1 KB, and leave half for blocks and writes.
    """

    total: int = 128 << 20
    cache: Any = field(init=False)
    writes: Any = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", Cache(self.total))
        writes = WriteBufferManager.new_write_buffer_manager_with_cache(self.total // 2, False, self.cache)
        object.__setattr__(self, "writes", writes)


class ColdRows:
    """One RocksDB, opened by one process at a time.

    Changes are in no log of RocksDB's: the changelog is one. A process that is killed leaves what was flushed, rows and
    timers up to one and the same position, and what follows is replayed from there; a closed database lacks nothing.

    Parameters
    ----------
    path
        Its folder; made when missing.
    memory
        Absent: its own, for tools and tests.

    Raises
    ------
    DamagedStateError
        RocksDB finds that its files do not fit together; here and in every method.
    """

    def __init__(self, path: Path, memory: Memory | None = None) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        memory = Memory() if memory is None else memory
        rows, timers = _options(memory, 16 << 20), _options(memory, 4 << 20)
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True
        with _noticing_damage(path):
            self._db = Rdict(str(path), rows, column_families={"default": rows, _TIMERS: timers})
            self._timers = self._db.get_column_family(_TIMERS)
            self._timer_family = self._db.get_column_family_handle(_TIMERS)

    @property
    def position(self) -> int:
        """The changelog offset up to which this database holds everything; 0 for a new one."""
        return int(self.get(_POSITION) or 0)

    @property
    def in_step_ms(self) -> int:
        """When, by the clock of that time, the database was last in step with the changelog's end."""
        return int(self.get(_IN_STEP) or 0)

    @property
    def changelog_id(self) -> str:
        """The id of the changelog topic it follows; empty for a new one."""
        return (self.get(_CHANGELOG) or b"").decode()

    def begin(self, changelog_id: str) -> None:
        """Forget everything, and follow a changelog from its beginning."""
        with _noticing_damage(self.path):
            self._timers.delete_range(*_ALL)
            self._db.delete_range(*_ALL)
            self._db.put(_CHANGELOG, changelog_id.encode())

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Values in the keys' order, None where there is none."""
        with _noticing_damage(self.path):
            return self._db.get(keys) if keys else []

    def get(self, key: bytes) -> bytes | None:
        """One value."""
        with _noticing_damage(self.path):
            return self._db.get(key)  # type: ignore[no-any-return]

    def beginning_with(self, prefix: bytes) -> dict[bytes, bytes]:
        """Every row whose key begins so; for a few."""
        found: dict[bytes, bytes] = {}
        with _noticing_damage(self.path):
            at = self._db.iter()
            at.seek(prefix)
            while at.valid() and (key := at.key()).startswith(prefix):
                found[key] = at.value()
                at.next()
            at.status()
        return found

    def write(
        self, changes: Changes, position: int, in_step_ms: int | None, timers: Iterable[bytes] = (),
        void_timers: Iterable[bytes] = (),
    ) -> None:  # fmt: skip
        """Put values, delete where the value is None, and move the position, all at once (checkpoint step 4).

        Parameters
        ----------
        in_step_ms
            The time now if `position` is the changelog's end; None while that is still being caught up with.
        timers, void_timers
            Keys of timers that come and go.
        """
        batch, family = WriteBatch(raw_mode=True), self._timer_family
        for key, value in changes.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        for key in void_timers:
            batch.delete(key, family)
        for key in timers:
            batch.put(key, b"", family)
        batch.put(_POSITION, b"%d" % position)
        if in_step_ms is not None:
            batch.put(_IN_STEP, b"%d" % in_step_ms)
        with _noticing_damage(self.path):
            self._db.write(batch, self._unlogged)

    def replay(
        self, changes: Changes, position: int, in_step_ms: int | None, first_due_ms: Callable[[bytes], int]
    ) -> None:
        """Write what the changelog says, with a timer for each open session.

        A timer is set for the earliest time at which a session that began when this one did can be due: so every
        version of a row sets the same one, and its tombstone knows which to take away. Where the session went on, the
        timer is set anew when somebody looks. A row that only holds something back may set several; those that are not
        taken away are void, and gone once somebody looked.
        """
        ended = [key for key, value in changes.items() if value is None]
        void = [
            timer_key((first_due_ms(row), key[1:].decode()))
            for key, row in zip(ended, self.get_many(ended), strict=True)
            if row is not None and key[:1] == SESSION
        ]
        timers = [
            timer_key((first_due_ms(row), key[1:].decode()))
            for key, row in changes.items()
            if row is not None and key[:1] == SESSION
        ]
        self.write(changes, position, in_step_ms, timers, void)

    def timers(self, start: bytes, before_ms: int, limit: int | None) -> tuple[list[Timer], int | None]:
        """Timers from the key `start` on that are due before a time, oldest first, at most `limit`.

        Returns
        -------
        found, next_ms
            And when the first one not found is due; None if there is no further one.
        """
        found: list[Timer] = []
        with _noticing_damage(self.path):
            at = self._timers.iter()
            at.seek(start)
            while at.valid():
                key = at.key()
                due_ms = int.from_bytes(key[:8], "big")
                if due_ms >= before_ms or len(found) == limit:
                    return found, due_ms
                found.append((due_ms, key[8:].decode()))
                at.next()
            at.status()  # an iterator ends at damage as it does at the end
        return found, None

    def erase(self, names: Collection[str]) -> None:
        """Rewrite the files that may hold deleted sessions of these names, so that nothing of them stays on disk.

        But for RocksDB's list of its files, which may hold a name as the bound of a file until it is opened again.
        """
        wanted, whole = {name.encode() for name in names}, CompactOptions()
        whole.set_bottommost_level_compaction(BottommostLevelCompaction.force())  # else a lone file stays as it is
        with _noticing_damage(self.path):
            timers = [key for key in self._timers.keys() if key[8:] in wanted]  # noqa: SIM118 (Rdict is no dict)
            for key in timers:
                self._timers.delete(key)
            self._timers.flush()
            self._db.flush()
            for key in timers:
                self._timers.compact_range(key, key + b"\0", whole)
            for key in map(session_key, names):
                self._db.compact_range(key, key + b"\0", whole)

    def sessions(self, after: str | None = None) -> Iterator[tuple[str, bytes]]:
        """Session rows by name, all of them or those that follow a name."""
        with _noticing_damage(self.path):
            at = self._db.iter()
            at.seek(SESSION if after is None else session_key(after) + b"\0")
            while at.valid() and (key := at.key()) < _AFTER_SESSIONS:
                yield key[1:].decode(), at.value()
                at.next()
            at.status()

    def close(self) -> None:
        """Flush and unlock; again is nothing."""
        self._timer_family = None  # either of these would keep RocksDB's lock
        self._timers.close()
        self._db.close()


def _options(memory: Memory, write_buffer: int) -> Options:
    table = BlockBasedOptions()
    table.set_bloom_filter(10, block_based=False)  # a new session is a miss, and misses must not read blocks
    table.set_block_cache(memory.cache)
    table.set_cache_index_and_filter_blocks(True)  # else they grow outside of any bound
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(DBCompressionType.none())  # hidden states and hashes do not compress
    options.set_write_buffer_manager(memory.writes)
    options.set_write_buffer_size(write_buffer)
    options.set_max_write_buffer_number(2)
    options.set_max_background_jobs(2)
    options.set_atomic_flush(True)  # else a kill could leave rows and timers of two positions
    options.set_max_open_files(256)  # of each partition; else all its files stay open
    options.set_keep_log_file_num(2)
    return options


@contextmanager
def _noticing_damage(path: Path) -> Iterator[None]:
    """Tell damaged files from other trouble; RocksDB's kinds of errors reach us as the first word of a text."""
    try:
        yield
    except Exception as error:
        if type(error) is Exception and ("Corruption" in str(error) or "No such file" in str(error)):
            message = f"RocksDB in {path} is damaged: {str(error)[:200]}"
            raise DamagedStateError(message) from error
        raise
