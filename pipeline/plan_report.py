"""A plan in words: each figure with the terms it is made of, and what to look at first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from pipeline.capacity import GROUP, Plan, Processor
from pipeline.settings import CostSettings
from pipeline.unit_costs import UnitCosts
from pipeline.units import format_duration_ms

_SIZES = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3))
_PARTS = {
    "path": "fetching, decoding, judging, telling", "fields": "further fields", "core": "the core",
    "sessions": "begins and ends of sessions", "reading": "rows not in memory", "saving": "saving rows",
    "commits": "transactions", "standbys": "standbys", "repartition": "the internal topic",
}  # fmt: skip
_CURES = {
    "path": "it comes with every record, so only fewer records or more cores help",
    "fields": "leave out fields that tell little",
    "core": "a smaller model.hidden or another core helps",
    "sessions": "longer sessions have it less often",
    "reading": "more state.hot_sessions help",
    "saving": "a longer checkpoint_interval saves a row that changes often once, and a smaller row costs less",
    "commits": "a longer checkpoint_interval or fewer partitions help",
    "standbys": "fewer state.standby_replicas help",
    "repartition": "a producer that keys records by their session spares it",
}


class Line(NamedTuple):
    """A figure: of what, how much, and from which terms."""

    what: str
    figure: str
    terms: str


def lines(plan: Plan, costs: UnitCosts, money: CostSettings) -> Iterator[Line]:
    """All that a plan says."""
    load, limits, saving, processor = plan.load, plan.limits, plan.saving, plan.processor
    rate, per_worker = load.events_per_s, limits.partitions_per_worker
    yield Line(
        "workers", f"{plan.workers:,}",
        f"processes, a core each: {rate:,.0f} records/s x {processor.total:.1f} us = "
        f"{rate * processor.total / 1e6:,.1f} cores, {plan.busy:.0%} of each (at most {limits.use:.0%})",
    )  # fmt: skip
    yield Line(
        "partitions to create",
        f"{plan.partitions:,}",
        f"{per_worker} a worker; a topic keeps its number for good, so --partitions-per-worker leaves room to grow",
    )
    yield Line("CPU seconds per million inferences", f"{processor.total:.1f}", _terms(processor))
    yield Line(
        "hottest session", f"{_cores(plan.hottest_cores)} cores",
        f"has {plan.hottest:.2g} of all records, {plan.hottest * rate:,.0f} a second; a worker serves all of them"
        + ("" if plan.hottest_fits else ", which is impossible here"),
    )  # fmt: skip
    yield Line(
        "state.hot_sessions", f"{plan.hot_sessions:,}",
        f"{load.hot_sessions:,} a worker x {plan.workers:,}, for each worker divides it by all partitions; "
        f"{saving.misses:.1%} of records miss them",
    )  # fmt: skip
    yield Line(
        "checkpoints", f"every {_seconds(saving.interval_s)}",
        f"of a partition (configured {format_duration_ms(load.checkpoint_ms)}); all together {saving.rows_per_s:,.0f} "
        f"rows/s, {saving.rows_per_s / rate:.2f} a record, in {saving.checkpoints_per_s:,.0f} transactions/s",
    )  # fmt: skip
    yield from _of_worker(plan, costs)
    yield from _of_brokers(plan)
    if money.cpu_core_hour is not None:
        used, kept = plan.price(money.cpu_core_hour)
        yield Line(
            "cost of a million inferences", f"{kept:.3g} {money.currency}",
            f"{plan.workers:,} cores kept at {money.cpu_core_hour:g} an hour; {used:.3g} by the processor time used",
        )  # fmt: skip


def _of_worker(plan: Plan, costs: UnitCosts) -> Iterator[Line]:
    share, copies = plan.load.sessions / plan.workers, 1 + plan.load.standbys
    torch = plan.worker_bytes - costs.base_bytes - plan.hot_rows * plan.hot_row_bytes
    yield Line(
        "memory of a worker", size(plan.worker_bytes),
        f"{size(costs.base_bytes)} + {plan.hot_rows:,} rows x {plan.hot_row_bytes / 1e3:.2f} KB"
        + (f" + torch {size(torch)}" if torch else "") + f"; all workers {size(plan.worker_bytes * plan.workers)}",
    )  # fmt: skip
    yield Line(
        "disk of a worker", size(plan.disk_bytes),
        f"{share:,.0f} sessions x {plan.row_bytes / 1e3:.2f} KB x {costs.space_amplification:g} space amplification"
        f"{f' x {copies} with standbys' if copies > 1 else ''}; {size(plan.disk_written_per_s)}/s written, "
        f"{costs.write_amplification:g} bytes for one saved",
    )  # fmt: skip
    yield Line(
        "changelogs", f"{size(plan.changelog_per_s)}/s",
        f"{plan.saving.rows_per_s:,.0f} rows/s x {plan.row_bytes / 1e3:.2f} KB, one copy; "
        f"{size(plan.changelog_live_bytes)} after compaction",
    )  # fmt: skip
    yield Line(
        "recovery of a lost disk",
        _seconds(plan.recovery_s),
        f"{share:,.0f} rows read back; up to {_seconds(plan.recovery_longest_s)} from a log just before compaction",
    )


def _of_brokers(plan: Plan) -> Iterator[Line]:
    limits, brokers = plan.limits, plan.brokers
    yield Line(
        "brokers", f"{brokers.count:,}",
        f"by {brokers.by}; budget of each: {size(limits.broker_bytes_per_s)}/s in, "
        f"{size(2 * limits.broker_bytes_per_s)}/s out, {size(limits.broker_bytes)}, "
        f"{limits.broker_partitions:,} partitions",
    )  # fmt: skip
    yield Line(
        "their traffic", f"{size(brokers.written_per_s)}/s in",
        f"{limits.replication} copies of records, changelogs and outputs; {size(brokers.read_per_s)}/s out, to "
        "followers and readers",
    )  # fmt: skip
    yield Line(
        "their disks", size(brokers.bytes),
        f"{limits.replication} copies of: records {size(brokers.source_bytes / limits.replication)} "
        f"({format_duration_ms(round(plan.load.retention_s * 1e3))} of {plan.load.record_bytes:g} bytes each), "
        f"changelogs {size(brokers.changelog_bytes / limits.replication)}, outputs "
        f"{size(brokers.output_bytes / limits.replication)}",
    )  # fmt: skip
    yield Line(
        "memory of a broker", size(brokers.memory_bytes), "6 GB of heap, and 30 s of what it writes: a rule of thumb"
    )


def _terms(processor: Processor) -> str:
    """The parts that are not nothing."""
    parts = {name: getattr(processor, name) for name in _PARTS}
    return " + ".join(f"{us:.1f} {_PARTS[name]}" for name, us in parts.items() if us >= 0.05)


def remarks(plan: Plan) -> list[str]:
    """What dominates, and what no number of workers mends."""
    parts = {f.name: getattr(plan.processor, f.name) for f in fields(plan.processor)}
    largest = max(parts, key=lambda name: parts[name])
    share = parts[largest] / plan.processor.total
    found = [f"{share:.0%} of the processor time is {_PARTS[largest]}: {_CURES[largest]}."]
    logs = plan.changelog_per_s / (plan.load.events_per_s * plan.load.record_bytes)
    found.append(
        f"For each byte of records {logs:.1f} bytes go to changelogs"
        + (
            ": there the brokers' work is, and rows that are smaller or saved more seldom spare it."
            if logs > 1
            else "."
        )
    )
    if not plan.hottest_fits:
        found.append(
            f"One session has {plan.hottest:.0%} of all records, {plan.hottest * plan.load.events_per_s:,.0f} a "
            "second. That is more than a worker serves beside others, and no number of workers helps: name sessions "
            "by a further field (session.by takes a list). The figures are for shares that can be spread."
        )
    if plan.saving.interval_s > plan.load.checkpoint_ms / 1e3 * 1.001:
        found.append(
            f"Checkpoints come every {_seconds(plan.saving.interval_s)}, for a worker that may hold all "
            f"{plan.partitions:,} partitions makes 50 transactions a second at most."
        )
    if plan.load.exactly_once:
        found.append(
            f"With delivery: exactly_once outputs leave with their checkpoint, {_seconds(plan.saving.interval_s)} "
            "after the record at most where nothing lags."
        )
    if plan.workers > GROUP:
        found.append(
            f"A consumer group of {plan.workers:,} members is beyond what anybody here has tried: split the topic, and "
            f"give each part an `app` of its own, of {GROUP} workers at most."
        )
    return found


def as_json(plan: Plan, costs: UnitCosts, money: CostSettings) -> dict[str, Any]:
    """For scripts: plain units, bytes and seconds."""
    found = asdict(plan)
    found["cpu_s_per_million"] = plan.processor.total
    found["brokers"] = asdict(plan.brokers) | {"bytes": plan.brokers.bytes}
    found["load"]["cores"] = list(plan.load.cores)
    used, kept = (None, None) if money.cpu_core_hour is None else plan.price(money.cpu_core_hour)
    price = {"currency": money.currency, "per_million_used": used, "per_million_kept": kept}
    about = {"machine": costs.machine, "measured": costs.measured}
    return found | {"price": price, "costs": about, "remarks": remarks(plan)}


def as_table(plans: Sequence[tuple[Plan, UnitCosts]]) -> str:
    """Plans side by side as a table in Markdown, their figures without the terms."""
    columns = [[line for line in lines(plan, costs, CostSettings())] for plan, costs in plans]
    head = [f"{plan.load.events_per_s:,.0f} events/s, {plan.load.sessions:,} sessions" for plan, _ in plans]
    rows = [f"| | {' | '.join(head)} |", f"|---|{'---|' * len(plans)}"]
    rows += [f"| {of[0].what} | {' | '.join(line.figure for line in of)} |" for of in zip(*columns, strict=True)]
    return "\n".join(rows)


def size(count: float) -> str:
    """Bytes in the unit that leaves one to four digits.

    >>> size(1_234_000), size(999)
    ('1.23 MB', '999 B')
    """
    unit, per = next(((unit, per) for unit, per in _SIZES if count >= per), ("B", 1.0))
    return f"{_short(count / per)} {unit}"


def _seconds(seconds: float) -> str:
    if seconds >= 7_200:
        return f"{_short(seconds / 3_600)} h"
    if seconds >= 120:
        return f"{_short(seconds / 60)} min"
    return f"{_short(seconds)} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def _cores(count: float) -> str:
    return "under 0.01" if count < 0.01 else f"{count:,.2f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
