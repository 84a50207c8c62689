"""The rows of the outbox on disk, so that what is due next is found at once, however much waits.

The topic is what counts: the database is thrown away at every start, and each partition is read anew with every
assignment. So it is never flushed, and changes of incidents that wait for a receiver take no memory.

In what order: a receiver gets the changes of one subject one after the other. The oldest that it has not got is the
subject's *head*, and only heads may leave. Changes of a group leave as one message, which is sealed when its first
attempt begins: it takes only heads, and what directly follows them within the group. So a sealed message waits for
no other, and no two can wait for each other.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.alerts.rows import Disabled, Key, Open, Pending, Position, Row, Sealed, decode, decode_key
from pipeline.alerts.told import MOST_CHANGES

MOST_BYTES = 16_000  # of the changes of a message as they are kept; a first one that is larger goes alone
FOREVER_MS = 1 << 62
_CACHE_KB = 4_096

_TABLES = """
CREATE TABLE pending (
  partition INT, receiver TEXT, subject TEXT, change TEXT, seq INT, grp TEXT, ready_ms INT, taken_ms INT,
  is_head INT DEFAULT 0, message TEXT, size INT, value BLOB, PRIMARY KEY (partition, receiver, subject, change));
CREATE INDEX of_subject ON pending (partition, receiver, subject, seq);
CREATE INDEX free ON pending (receiver, ready_ms, seq, partition) WHERE is_head AND message IS NULL;
CREATE INDEX of_group ON pending (partition, receiver, grp, seq) WHERE is_head AND message IS NULL;
CREATE INDEX of_message ON pending (partition, receiver, message) WHERE message IS NOT NULL;
CREATE INDEX of_age ON pending (receiver, ready_ms);
CREATE TABLE message (
  partition INT, receiver TEXT, id TEXT, attempts INT, due_ms INT, first INT, kept INT, busy INT,
  PRIMARY KEY (partition, receiver, id));
CREATE INDEX due ON message (receiver, due_ms, first, partition) WHERE NOT busy;
CREATE TABLE open (
  partition INT, receiver TEXT, subject TEXT, next_ms INT, busy INT, value BLOB,
  PRIMARY KEY (partition, receiver, subject));
CREATE INDEX next ON open (receiver, next_ms) WHERE NOT busy;
CREATE TABLE shown (partition INTEGER PRIMARY KEY);
CREATE TABLE disabled (partition INT, receiver TEXT, since_ms INT, detail TEXT, PRIMARY KEY (partition, receiver));
"""


@dataclass(frozen=True)
class Taken:
    """A message to be tried now; nobody else is given it until its outcome has been applied.

    Attributes
    ----------
    rows
        The changes that it tells, in their order.
    attempts
        Those that failed before.
    kept
        Whether the topic has a row of it.
    must_keep
        Whether it needs one before it may leave, for what it tells hangs on what waited together.
    """

    partition: int
    receiver: str
    id: str
    rows: tuple[Pending, ...]
    attempts: int
    kept: bool
    must_keep: bool

    def sealed(self, attempts: int, due_ms: int) -> Sealed:
        """Its row."""
        changes = tuple((row.change.subject, row.change.id) for row in self.rows)
        return Sealed(self.receiver, self.id, changes, attempts, due_ms)


class Index:
    """The rows of all partitions that this process holds. Not safe for threads.

    Parameters
    ----------
    path
        Of the database, which must not be there; None keeps it in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            for old in (path, Path(f"{path}-journal")):
                with suppress(FileNotFoundError):
                    old.unlink()
        self._db = sqlite3.connect(":memory:" if path is None else path, isolation_level=None, check_same_thread=False)
        for pragma in ("synchronous=OFF", "journal_mode=MEMORY", "locking_mode=EXCLUSIVE", f"cache_size=-{_CACHE_KB}"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(_TABLES)
        self._latest_ms, self._names = FOREVER_MS, set[str]()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    # --- rows as they come from the topic, or went there ---------------------------------------------------------

    def apply(
        self, partition: int, rows: Iterable[tuple[bytes | None, bytes | None]], latest_ms: int = FOREVER_MS
    ) -> dict[Key, Row]:
        """Take rows in, in the topic's order; returns those that are not about receivers, and could be read.

        Nothing is due later than at `latest_ms`, whatever the clock said that a row was written by.
        """
        others: dict[Key, Row] = {}
        self._latest_ms = latest_ms
        with self._transaction():
            for key, value in rows:
                if (parts := decode_key(key)) is None:
                    continue
                if value is None:
                    self._remove(partition, parts)
                    others.pop(parts, None)
                    continue
                row = decode(parts[0], value)
                if row is not None and row.key == parts and not self._put(partition, row, value):
                    others[parts] = row
        return others

    def show(self, partition: int) -> None:
        """All of a partition's rows are there: from now on what is due may be taken."""
        self._db.execute("INSERT OR IGNORE INTO shown VALUES (?)", (partition,))

    def forget(self, partition: int) -> None:
        """Drop a partition: it is another process's, or read anew."""
        with self._transaction():
            self._db.execute("DELETE FROM shown WHERE partition = ?", (partition,))
            self._db.execute("DELETE FROM pending WHERE partition = ?", (partition,))
            self._db.execute("DELETE FROM message WHERE partition = ?", (partition,))
            self._db.execute("DELETE FROM open WHERE partition = ?", (partition,))
            self._db.execute("DELETE FROM disabled WHERE partition = ?", (partition,))

    def _put(self, partition: int, row: Row, value: bytes) -> bool:
        if not isinstance(row, Position):
            self._names.add(row.receiver)
        match row:
            case Pending():
                self._put_pending(partition, row, value)
            case Sealed():
                self._seal(partition, row, kept=True, busy=False)
            case Open():
                self._db.execute(
                    "INSERT OR REPLACE INTO open VALUES (?, ?, ?, ?, 0, ?)",
                    (partition, row.receiver, row.change.subject, min(row.next_ms, self._latest_ms), value),
                )
            case Disabled():
                self._db.execute(
                    "INSERT OR REPLACE INTO disabled VALUES (?, ?, ?, ?)",
                    (partition, row.receiver, row.since_ms, row.detail),
                )
            case _:
                return False
        return True

    def _put_pending(self, partition: int, row: Pending, value: bytes) -> None:
        of = (partition, row.receiver, row.change.subject)
        self._db.execute(
            # One that is there already keeps its message, which may be under way.
            "INSERT INTO pending VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, NULL, ?, ?) ON CONFLICT DO UPDATE "
            "SET ready_ms = excluded.ready_ms, size = excluded.size, value = excluded.value",
            (
                *of,
                row.change.id,
                row.seq,
                row.group,
                min(row.ready_ms, self._latest_ms),
                row.taken_ms,
                len(value),
                value,
            ),
        )
        first = self._first_of(*of)
        assert first is not None, "it was put there just now"
        if not first[1]:
            self._db.execute(
                "UPDATE pending SET is_head = 0 WHERE partition = ? AND receiver = ? AND subject = ? AND is_head", of
            )
            self._make_head(*of, first[0])

    def _seal(self, partition: int, row: Sealed, *, kept: bool, busy: bool) -> None:
        of, firsts = (partition, row.receiver), list[int]()
        for subject, change in row.changes:
            found = self._db.execute(
                "UPDATE pending SET message = ? WHERE partition = ? AND receiver = ? AND subject = ? AND change = ? "
                "RETURNING seq",
                (row.id, *of, subject, change),
            ).fetchall()
            firsts += [seq for (seq,) in found]
        if firsts:  # else its changes are delivered, and its own tombstone follows
            self._db.execute(
                "INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*of, row.id, row.attempts, min(row.due_ms, self._latest_ms), min(firsts), kept, busy),
            )

    def _remove(self, partition: int, key: Key) -> None:
        match key:
            case ("pending", receiver, subject, change):
                self._remove_pending(partition, receiver, subject, change)
            case ("message", receiver, identity):
                self._unseal(partition, receiver, identity)
            case ("open", receiver, subject):
                self._db.execute(
                    "DELETE FROM open WHERE (partition, receiver, subject) = (?, ?, ?)", (partition, receiver, subject)
                )
            case ("disabled", receiver):
                self._db.execute("DELETE FROM disabled WHERE (partition, receiver) = (?, ?)", (partition, receiver))

    def _remove_pending(self, partition: int, receiver: str, subject: str, change: str) -> None:
        found = self._db.execute(
            "DELETE FROM pending WHERE (partition, receiver, subject, change) = (?, ?, ?, ?) RETURNING message",
            (partition, receiver, subject, change),
        ).fetchall()
        if (first := self._first_of(partition, receiver, subject)) is not None and not first[1]:
            self._make_head(partition, receiver, subject, first[0])
        for (message,) in found:
            if message is not None and not self._rows_of(partition, receiver, message):
                self._unseal(partition, receiver, message)

    def _unseal(self, partition: int, receiver: str, identity: str) -> None:
        of = (partition, receiver, identity)
        self._db.execute("DELETE FROM message WHERE (partition, receiver, id) = (?, ?, ?)", of)
        self._db.execute("UPDATE pending SET message = NULL WHERE (partition, receiver, message) = (?, ?, ?)", of)

    def _first_of(self, partition: int, receiver: str, subject: str) -> tuple[str, bool] | None:
        """The oldest change of a subject, and whether it is marked as its head."""
        found: tuple[str, bool] | None = self._db.execute(
            "SELECT change, is_head FROM pending WHERE partition = ? AND receiver = ? AND subject = ? ORDER BY seq "
            "LIMIT 1",
            (partition, receiver, subject),
        ).fetchone()
        return found

    def _make_head(self, partition: int, receiver: str, subject: str, change: str) -> None:
        self._db.execute(
            "UPDATE pending SET is_head = 1 WHERE (partition, receiver, subject, change) = (?, ?, ?, ?)",
            (partition, receiver, subject, change),
        )

    # --- what is due ---------------------------------------------------------------------------------------------

    def take(self, receiver: str, now_ms: int) -> Taken | None:
        """The message of a receiver that has been due for longest; None where none is due."""
        tried = self._db.execute(
            "SELECT due_ms, first, partition, id, attempts, kept FROM message WHERE receiver = ? AND NOT busy "
            "AND due_ms <= ? AND partition IN shown ORDER BY due_ms, first, partition LIMIT 1",
            (receiver, now_ms),
        ).fetchone()
        fresh = self._db.execute(
            "SELECT ready_ms, seq, partition, grp, value, size FROM pending WHERE receiver = ? AND is_head "
            "AND message IS NULL AND ready_ms <= ? AND partition IN shown ORDER BY ready_ms, seq, partition LIMIT 1",
            (receiver, now_ms),
        ).fetchone()
        if tried is None and fresh is None:
            return None
        if fresh is None or (tried is not None and tried[:3] <= fresh[:3]):
            _, _, partition, identity, attempts, kept = tried
            self._db.execute(
                "UPDATE message SET busy = 1 WHERE (partition, receiver, id) = (?, ?, ?)",
                (partition, receiver, identity),
            )
            rows = self._rows_of(partition, receiver, identity)
            return Taken(partition, receiver, identity, rows, attempts, bool(kept), must_keep=False)
        return self._take_fresh(receiver, *fresh[2:])

    def _take_fresh(self, receiver: str, partition: int, group: str | None, value: bytes, size: int) -> Taken:
        head = _pending(value)
        rows = (head,) if group is None else tuple(self._together(partition, receiver, group, head, size))
        identity = rows[0].change.id if len(rows) == 1 else f"{rows[0].change.id}+{len(rows) - 1}"
        taken = Taken(partition, receiver, identity, rows, 0, kept=False, must_keep=group is not None)
        with self._transaction():
            self._seal(partition, taken.sealed(0, head.ready_ms), kept=False, busy=True)
        return taken

    def _together(self, partition: int, receiver: str, group: str, first: Pending, size: int) -> list[Pending]:
        """What leaves with a head of a group: other heads, and what directly follows them, the oldest first."""
        heads = self._db.execute(
            "SELECT value, size FROM pending WHERE partition = ? AND receiver = ? AND grp = ? AND is_head "
            "AND message IS NULL ORDER BY seq LIMIT ?",
            (partition, receiver, group, MOST_CHANGES),
        ).fetchall()
        found, room = {first.change.id: first}, MOST_BYTES - size
        for row, its_size in self._with_followers(partition, receiver, group, heads):
            if row.change.id in found:
                continue
            if len(found) == MOST_CHANGES or its_size > room:
                break
            found[row.change.id], room = row, room - its_size
        return sorted(found.values(), key=lambda row: row.seq)

    def _with_followers(
        self, partition: int, receiver: str, group: str, heads: list[tuple[bytes, int]]
    ) -> Iterator[tuple[Pending, int]]:
        """Each head with what follows it without a gap within the group."""
        for value, size in heads:
            head = _pending(value)
            yield head, size
            after = self._db.execute(
                "SELECT grp, value, size FROM pending WHERE partition = ? AND receiver = ? AND subject = ? AND seq > ? "
                "ORDER BY seq LIMIT ?",
                (partition, receiver, head.change.subject, head.seq, MOST_CHANGES),
            ).fetchall()
            for grp, other, other_size in after:
                if grp != group:
                    break
                yield _pending(other), other_size

    def take_repeat(self, receiver: str, now_ms: int) -> tuple[int, Open] | None:
        """Partition and row of what is to be told again, due for longest."""
        found = self._db.execute(
            "UPDATE open SET busy = 1 WHERE (partition, receiver, subject) IN (SELECT partition, receiver, subject "
            "FROM open WHERE receiver = ? AND NOT busy AND next_ms <= ? AND partition IN shown "
            "ORDER BY next_ms LIMIT 1) "
            "RETURNING partition, value",
            (receiver, now_ms),
        ).fetchall()
        return None if not found else (found[0][0], _open(found[0][1]))

    def next_ms(self, receiver: str) -> int:
        """When something is due at the earliest, of what nobody has taken."""
        times = self._db.execute(
            "SELECT (SELECT due_ms FROM message WHERE receiver = ?1 AND NOT busy AND partition IN shown "
            "ORDER BY due_ms LIMIT 1), (SELECT ready_ms FROM pending WHERE receiver = ?1 AND is_head "
            "AND message IS NULL AND partition IN shown ORDER BY ready_ms LIMIT 1), (SELECT next_ms FROM open "
            "WHERE receiver = ?1 AND NOT busy AND partition IN shown ORDER BY next_ms LIMIT 1)",
            (receiver,),
        ).fetchone()
        return min((at for at in times if at is not None), default=FOREVER_MS)

    # --- what there is -------------------------------------------------------------------------------------------

    def open_row(self, partition: int, receiver: str, subject: str) -> Open | None:
        """What is told again of a subject."""
        found = self._db.execute(
            "SELECT value FROM open WHERE (partition, receiver, subject) = (?, ?, ?)", (partition, receiver, subject)
        ).fetchone()
        return None if found is None else _open(found[0])

    def open_rows(self, receiver: str) -> list[tuple[int, Open]]:
        """All that is told a receiver again."""
        found = self._db.execute("SELECT partition, value FROM open WHERE receiver = ?", (receiver,)).fetchall()
        return [(partition, _open(value)) for partition, value in found]

    def has(self, partition: int, receiver: str, subject: str, change: str) -> bool:
        """Whether a change waits for a receiver."""
        found = self._db.execute(
            "SELECT 1 FROM pending WHERE (partition, receiver, subject, change) = (?, ?, ?, ?)",
            (partition, receiver, subject, change),
        )
        return found.fetchone() is not None

    def later_than(self, partition: int, row: Pending) -> list[Pending]:
        """What waits of a row's receiver and subject, in no message yet, for longer than the row."""
        found = self._db.execute(
            "SELECT value FROM pending WHERE (partition, receiver, subject) = (?, ?, ?) AND message IS NULL "
            "AND ready_ms > ? ORDER BY seq",
            (partition, row.receiver, row.change.subject, row.ready_ms),
        )
        return [_pending(value) for (value,) in found]

    def waits(self, partition: int, receiver: str, subject: str) -> bool:
        """Whether any change of a subject waits for a receiver."""
        return self._first_of(partition, receiver, subject) is not None

    def disabled(self, receiver: str) -> str | None:
        """Why a receiver is given no messages; None: it is given some."""
        found = self._db.execute("SELECT detail FROM disabled WHERE receiver = ? LIMIT 1", (receiver,)).fetchone()
        return None if found is None else str(found[0])

    def is_disabled_in(self, partition: int, receiver: str) -> bool:
        """Whether a partition says so."""
        found = self._db.execute("SELECT 1 FROM disabled WHERE (partition, receiver) = (?, ?)", (partition, receiver))
        return found.fetchone() is not None

    def receivers(self) -> set[str]:
        """All that rows have named."""
        return self._names

    def waiting(self, receiver: str) -> tuple[int, int | None]:
        """How many changes a receiver has not got, and since when the first of them may leave."""
        count, oldest = self._db.execute(
            "SELECT count(*), min(ready_ms) FROM pending WHERE receiver = ?", (receiver,)
        ).fetchone()
        return count, oldest

    def trying(self, receiver: str) -> int:
        """How many messages of a receiver have failed at least once."""
        (count,) = self._db.execute(
            "SELECT count(*) FROM message WHERE receiver = ? AND attempts > 0", (receiver,)
        ).fetchone()
        return int(count)

    def _rows_of(self, partition: int, receiver: str, message: str) -> tuple[Pending, ...]:
        found = self._db.execute(
            "SELECT value FROM pending WHERE partition = ? AND receiver = ? AND message = ? ORDER BY seq",
            (partition, receiver, message),
        )
        return tuple(_pending(value) for (value,) in found)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _pending(value: bytes) -> Pending:
    row: Any = decode(Pending.KIND, value)
    assert isinstance(row, Pending), "it was read before"
    return row


def _open(value: bytes) -> Open:
    row: Any = decode(Open.KIND, value)
    assert isinstance(row, Open), "it was read before"
    return row
