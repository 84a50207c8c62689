"""How many workers, brokers, bytes and seconds a load takes: sums of measured unit costs, and nothing else. Pure.

A record costs its path, its fields, its cores, and its part of what is saved and read back. How many rows a checkpoint
saves depends on how records fall to keys (`pipeline/key_shares.py`), when it is due on the worker's own rules
(`pipeline/budgets.py`). The fewest workers that these leave the headroom are planned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property

from detectors.rows import RowShape, SessionRows
from models.spec import BY_NUMBERS, KERNELS
from pipeline.budgets import checkpoint_interval_s, hot_rows, most_changed
from pipeline.key_shares import ZIPF, KeyShares
from pipeline.row_format import RowFormat
from pipeline.unit_costs import UnitCosts

NAME_BYTES = 16  # of a session's name, with the byte before it in a key
_LOG_BYTES = 14  # a record in a batch of Kafka's, beside key and value
_TIMER_BYTES = 8
_SEGMENT_BYTES = 1 << 30  # of a log, by Kafka's default; one that is being written is not compacted
_SEGMENT_S = 3_600.0  # as pipeline/topics.py creates changelogs
_PROFILE_ENTRY_BYTES = 10
_STEPS = 60
_MOST_WORKERS = 1 << 40
GROUP = 500  # members of one consumer group that nobody should go beyond untried


@dataclass(frozen=True)
class Load:
    """What is to be served.

    Attributes
    ----------
    events_per_s, sessions
        Records that come in a second; sessions that are live at once.
    zipf
        A few sessions have most of the records, by Zipf's law with s = 1.1; else all have alike.
    session_events
        Records of a session, from its beginning to its end.
    cores, hidden, fields, numbers
        Cores asked, their width, token fields, numbers.
    shape
        Of a session's row.
    checkpoint_ms, hot_sessions
        As in the config; the latter for each worker.
    record_bytes, retention_s
        Of a record in the source topic as it is stored; how long it is kept there.
    decisions, alarms
        Shares of records that have a decision written, and that are alarmed.
    output_retention_s
        How long decisions and anomalies are kept.
    standbys, repartitioned
        Workers that follow each changelog; whether records are brought to an internal topic first.
    exactly_once
        Outputs leave with their checkpoint. That cost nothing that could be measured, so no figure goes by it.
    """

    events_per_s: float
    sessions: int
    shape: RowShape
    zipf: bool = False
    session_events: float = 50.0
    cores: tuple[str, ...] = ("gru",)
    hidden: int = 64
    fields: int = 1
    numbers: int = 0
    checkpoint_ms: int = 250
    hot_sessions: int = 100_000
    record_bytes: float = 150.0
    retention_s: float = 86_400.0
    decisions: float = 0.01
    alarms: float = 0.001
    output_retention_s: float = 7 * 86_400.0
    standbys: int = 0
    repartitioned: bool = False
    exactly_once: bool = False


@dataclass(frozen=True)
class Limits:
    """How far machines are to be used.

    Attributes
    ----------
    use
        Share of a worker's core.
    partitions_per_worker
        Partitions of the source for each worker.
    broker_bytes_per_s, broker_bytes, broker_partitions
        What one broker takes in, copies of others included; hands out it may twice as much. What it stores; how many
        partitions it holds, copies included.
    replication
        Copies of each partition.
    """

    use: float = 0.6
    partitions_per_worker: int = 1
    broker_bytes_per_s: float = 100e6
    broker_bytes: float = 10e12
    broker_partitions: int = 4_000
    replication: int = 3


@dataclass(frozen=True)
class Processor:
    """Microseconds of one core for a record, by what they are spent on; each already shared out over records."""

    path: float
    fields: float
    core: float
    sessions: float
    reading: float
    saving: float
    commits: float
    standbys: float
    repartition: float

    @property
    def total(self) -> float:
        """All together: as many seconds for a million records."""
        return float(sum(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Saving:
    """Checkpoints of all workers together.

    Attributes
    ----------
    interval_s
        Between two of a partition: as the config says, or less where so many rows change.
    rows_per_s, checkpoints_per_s
        Rows saved, and transactions.
    misses
        Share of records whose session is not in memory.
    """

    interval_s: float
    rows_per_s: float
    checkpoints_per_s: float
    misses: float


@dataclass(frozen=True)
class Brokers:
    """Kafka's part, copies included.

    Attributes
    ----------
    count
        Brokers, by what asks for most: `by`.
    source_bytes, changelog_bytes, output_bytes
        Stored.
    memory_bytes
        Of each: a heap of 6 GB and half a minute of what it writes, so that readers who keep up read from memory. A
        rule of thumb, not measured.
    """

    count: int
    by: str
    written_per_s: float
    read_per_s: float
    source_bytes: float
    changelog_bytes: float
    output_bytes: float
    memory_bytes: float

    @property
    def bytes(self) -> float:
        """Stored on all brokers together."""
        return self.source_bytes + self.changelog_bytes + self.output_bytes


@dataclass(frozen=True)
class Plan:
    """What a load takes.

    Attributes
    ----------
    workers, partitions
        Processes, each with a core of its own; partitions of the source topic.
    busy
        Share of each worker's core that is used, on average.
    hottest
        Share of all records that one session has.
    hottest_fits, hottest_cores
        Whether one worker can serve that session beside others, which no number of workers changes; cores that it
        keeps busy.
    hot_sessions
        What `state.hot_sessions` has to be, which each worker divides by all partitions.
    row_bytes, hot_row_bytes
        Of a session: saved with its key, and in memory.
    worker_bytes
        Memory of a worker.
    disk_bytes, disk_written_per_s
        Of each worker.
    changelog_per_s, changelog_live_bytes
        Written to changelogs by all workers, one copy; what is left of them after compaction.
    recovery_s, recovery_longest_s
        Until a worker with an empty disk has read its rows back: from a log just compacted, and from one just before.
    """

    load: Load
    limits: Limits
    workers: int
    partitions: int
    processor: Processor
    busy: float
    saving: Saving
    hottest: float
    hottest_fits: bool
    hottest_cores: float
    hot_sessions: int
    hot_rows: int
    row_bytes: float
    hot_row_bytes: float
    worker_bytes: float
    disk_bytes: float
    disk_written_per_s: float
    changelog_per_s: float
    changelog_live_bytes: float
    recovery_s: float
    recovery_longest_s: float
    brokers: Brokers = field(repr=False)

    def price(self, core_hour: float) -> tuple[float, float]:
        """What a million records cost, by the processor time they take and by the cores that are kept for them."""
        per_s = core_hour / 3_600
        return self.processor.total * per_s, self.workers * per_s / self.load.events_per_s * 1e6


def make_plan(load: Load, costs: UnitCosts, limits: Limits | None = None) -> Plan:
    """The fewest workers that have room for the load, and what follows from these.

    Raises
    ------
    UsageError
        The costs have no such core.
    """
    return Sums(load, costs, Limits() if limits is None else limits).plan()


def row_bytes(shape: RowShape) -> int:
    """Bytes of a saved row with its key; profiles at their largest."""
    profile = 5 + _PROFILE_ENTRY_BYTES * shape.profile if shape.profile else 0
    return NAME_BYTES + len(RowFormat(shape).encode(SessionRows.empty(1, shape))[0]) + profile


@dataclass(frozen=True)
class Sums:
    """A load and what its parts cost; methods take the number of workers."""

    load: Load
    costs: UnitCosts
    limits: Limits

    @cached_property
    def keys(self) -> KeyShares:
        """How records fall to sessions."""
        return KeyShares(self.load.sessions, ZIPF if self.load.zipf else 0.0)

    @cached_property
    def row_bytes(self) -> int:
        """Of a saved row with its key."""
        return row_bytes(self.load.shape)

    @cached_property
    def core_us(self) -> float:
        """Of all cores that are asked; numbers are all that some go by."""
        load, total = self.load, 0.0
        for name in load.cores:
            core = self.costs.of_core(name, load.hidden)
            further = 0 if name in BY_NUMBERS else max(0, load.fields - 1)
            total += core.record_us + further * core.field_us + load.numbers * core.number_us
        return total

    def plan(self) -> Plan:
        """The fewest workers, and all that follows."""
        load, limits = self.load, self.limits
        workers = fewest(self.suffices)
        saving, processor = self.saving(workers), self.processor(workers)
        partitions = self.partitions(workers)
        kept = self.hot_rows(workers)
        hot_row = self.hot_row_bytes
        live = load.sessions * (self.row_bytes + _LOG_BYTES)
        changelog_per_s = saving.rows_per_s * (self.row_bytes + _LOG_BYTES)
        held = 1 + load.standbys
        on_disk = load.sessions * (self.row_bytes + _TIMER_BYTES + NAME_BYTES) * self.costs.space_amplification
        largest_log = self.largest_log(live, changelog_per_s, partitions)
        return Plan(
            load=load, limits=limits, workers=workers, partitions=partitions, processor=processor,
            busy=load.events_per_s * processor.total / 1e6 / workers, saving=saving,
            hottest=self.keys.largest, hottest_fits=self.hottest_fits, hottest_cores=self.hottest_cores,
            hot_sessions=load.hot_sessions * workers, hot_rows=kept, row_bytes=self.row_bytes, hot_row_bytes=hot_row,
            worker_bytes=self.costs.base_bytes + self.torch_bytes + kept * hot_row,
            disk_bytes=held * on_disk / workers,
            disk_written_per_s=held * saving.rows_per_s * self.row_bytes * self.costs.write_amplification / workers,
            changelog_per_s=changelog_per_s, changelog_live_bytes=live,
            recovery_s=self.replay_s(live / workers), recovery_longest_s=self.replay_s(largest_log / workers),
            brokers=self.brokers(partitions, changelog_per_s, largest_log),
        )  # fmt: skip

    # --- processor time ------------------------------------------------------------------------------------------

    def suffices(self, workers: int) -> bool:
        """Whether so many leave the headroom: on average, and the one that has the hottest session."""
        total = self.load.events_per_s * self.processor(workers).total / 1e6
        # One session's records cannot be shared. If they are too many for one worker, only the average is planned for.
        alone = self.hottest_cores if self.hottest_fits else 0.0
        return alone + (total - alone) / workers <= self.limits.use

    @cached_property
    def hottest_cores(self) -> float:
        """Cores that the hottest session keeps busy; its row is in memory, and one of many that are saved."""
        alone = self.costs.record_us + self.fields_us + self.core_us
        return self.keys.largest * self.load.events_per_s * alone / 1e6

    @property
    def hottest_fits(self) -> bool:
        """Whether that leaves its worker half of what it may use: nearer to the limit nothing is left for others."""
        return 2 * self.hottest_cores <= self.limits.use

    @property
    def fields_us(self) -> float:
        """Of further token fields and of numbers, the cores apart."""
        return max(0, self.load.fields - 1) * self.costs.field_us + self.load.numbers * self.costs.number_us

    def processor(self, workers: int) -> Processor:
        """Of a record, with so many workers."""
        load, costs, saving = self.load, self.costs, self.saving(workers)
        kb, rows = self.row_bytes / 1_000, saving.rows_per_s / load.events_per_s
        return Processor(
            path=costs.record_us, fields=self.fields_us, core=self.core_us,
            sessions=costs.session_us / load.session_events,
            reading=saving.misses * costs.row_read_us,
            saving=rows * (costs.row_saved_us + kb * costs.row_saved_kb_us),
            commits=saving.checkpoints_per_s * costs.checkpoint_us / load.events_per_s,
            standbys=load.standbys * rows * self.replayed_us,
            repartition=costs.repartition_us if load.repartitioned else 0.0,
        )  # fmt: skip

    def saving(self, workers: int) -> Saving:
        """Rows and checkpoints in a second. A partition saves when its interval is over or enough rows have changed."""
        load, partitions = self.load, self.partitions(workers)
        # A worker may hold all partitions, and divides its budgets by all; so the plan asks for as much as makes
        # `hot_sessions` for each.
        kept = hot_rows(load.hot_sessions * workers, partitions)
        longest = checkpoint_interval_s(load.checkpoint_ms, partitions)
        most = most_changed(kept) * partitions
        due = self.keys.draws_for(most) / load.events_per_s
        interval = min(longest, due)
        rows = self.keys.distinct(load.events_per_s * interval) / interval
        # A checkpoint without a record is none.
        per_s = min(partitions / interval, load.events_per_s)
        return Saving(interval, rows, per_s, self.keys.misses(kept * partitions))

    def partitions(self, workers: int) -> int:
        """Of the source topic."""
        return workers * self.limits.partitions_per_worker

    # --- memory, disk, recovery ----------------------------------------------------------------------------------

    def hot_rows(self, workers: int) -> int:
        """Rows for which a worker has room; no more than it has sessions."""
        return min(self.load.hot_sessions, math.ceil(self.load.sessions / workers))

    @property
    def hot_row_bytes(self) -> int:
        """Of a row in memory."""
        row = SessionRows.empty(1, self.load.shape)
        return int(sum(getattr(row, f.name).nbytes for f in fields(row))) + self.costs.row_object_bytes

    @property
    def torch_bytes(self) -> int:
        """Of torch, where a core has no kernel."""
        needs = [core for core in self.load.cores if core not in {*KERNELS, *BY_NUMBERS}]
        return self.costs.torch_bytes if needs else 0

    @property
    def replayed_us(self) -> float:
        """Of a row that is read back."""
        return self.costs.row_replayed_us + self.row_bytes / 1_000 * self.costs.row_replayed_kb_us

    def replay_s(self, log_bytes: float) -> float:
        """Until a worker has read so much of its changelogs back."""
        return log_bytes / (self.row_bytes + _LOG_BYTES) * self.replayed_us / 1e6

    def largest_log(self, live: float, per_s: float, partitions: int) -> float:
        """Bytes of all changelogs just before they are compacted: as much again, and what is being written."""
        return 2 * live + min(_SEGMENT_S * per_s, float(_SEGMENT_BYTES) * partitions)

    # --- brokers -------------------------------------------------------------------------------------------------

    def brokers(self, partitions: int, changelog_per_s: float, changelog_bytes: float) -> Brokers:
        """Kafka's part of it."""
        load, limits, copies = self.load, self.limits, self.limits.replication
        records = load.events_per_s * load.record_bytes * (2 if load.repartitioned else 1)
        ended = 1 + 1 / load.session_events  # decisions are on sessions too
        outputs = load.events_per_s * ended * (
            load.decisions * self.costs.decision_bytes + load.alarms * self.costs.anomaly_bytes
        )  # fmt: skip
        once = records + changelog_per_s + outputs
        written = copies * once
        # Followers read what leaders take in; workers read records, standbys changelogs, somebody the outputs.
        read = (copies - 1) * once + records + load.standbys * changelog_per_s + outputs
        kept = [
            load.events_per_s * load.record_bytes * load.retention_s, changelog_bytes, outputs * load.output_retention_s
        ]  # fmt: skip
        wanted = {
            "what is written": written / limits.broker_bytes_per_s,
            "what is read": read / (2 * limits.broker_bytes_per_s),
            "what is stored": copies * sum(kept) / limits.broker_bytes,
            "partitions": copies * partitions * (3 if load.repartitioned else 2) / limits.broker_partitions,
            "copies": float(copies),
        }
        by = max(wanted, key=lambda what: wanted[what])
        count = math.ceil(wanted[by])
        source, changelog, output = (copies * part for part in kept)
        return Brokers(count, by, written, read, source, changelog, output, 6e9 + 30 * written / count)


def fewest(suffices: Callable[[int], bool]) -> int:
    """The least number from 1 that suffices, given that all larger ones do too."""
    high = 1
    while not suffices(high) and high < _MOST_WORKERS:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
