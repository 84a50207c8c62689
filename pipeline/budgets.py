"""How a worker's budgets fall to its partitions: rows in memory, time between checkpoints, rows of one checkpoint.

A worker may be assigned every partition, so each gets the share that it has then, and keeps it while it is alone.
`offbeat plan` goes by the same rules.
"""

from __future__ import annotations

LEAST_HOT = 64  # rows a partition may always keep, however many partitions share the budget
COMMITS_PER_S = 50  # of a worker at most: each is a transaction, and brokers feel them
MOST_CHANGED = 8_000  # copying more would hold up the event loop for over 100 ms


def hot_rows(hot_sessions: int, partitions: int) -> int:
    """Rows that each of so many partitions keeps in memory.

    >>> hot_rows(100_000, 4), hot_rows(100_000, 5_000)
    (25000, 64)
    """
    return max(LEAST_HOT, hot_sessions // max(1, partitions))


def checkpoint_interval_s(wanted_ms: int, partitions: int) -> float:
    """Seconds between two checkpoints of each of so many partitions.

    >>> checkpoint_interval_s(250, 4), checkpoint_interval_s(250, 100)
    (0.25, 2.0)
    """
    return max(wanted_ms / 1000, partitions / COMMITS_PER_S)


def most_changed(capacity: int) -> int:
    """Changed rows with which a checkpoint of a partition is due at once, given the rows that it keeps in memory."""
    return max(1, min(MOST_CHANGED, capacity // 2))
