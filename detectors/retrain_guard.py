"""Whether a stream should be trained again now, on which span, or why not yet. Pure: the clock is an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
# A record's Kafka timestamp is as old as it took to be sent. What is younger than this may still come, and a training
# that is done again must find the same records.
ARRIVING_MS = 1_000
_SHORTEST_MS = 60_000  # with which going back begins

Records = Callable[[int], int]
Quiet = tuple[int, int]


@dataclass(frozen=True)
class GuardRules:
    """When a stream is trained again.

    Attributes
    ----------
    triggers
        Of "drift", "schedule" and "labels", what may ask.
    every_ms, span_ms
        Age at which what serves is trained anew, and how far back that goes.
    labels
        So many new labels ask for a training.
    cool_down_ms, per_week
        Time between two jobs, and the most that are asked for in seven days; what people ask for counts in the first.
    quiet
        Minutes of the day (UTC) from which and until which nothing is asked for; None: never quiet.
    incident_ms
        How long an open incident says no, from when it was told. One that never closes is how things are by now.
    settle_ms
        How long a drift waits until the new world has enough records.
    least_records
        Fewer teach nothing.
    """

    triggers: frozenset[str]
    every_ms: int
    span_ms: int
    labels: int
    cool_down_ms: int
    per_week: int
    quiet: Quiet | None
    incident_ms: int
    settle_ms: int
    least_records: int


@dataclass(frozen=True)
class Change:
    """A drift that has begun and not ended.

    Attributes
    ----------
    id
        Of the message that told it first.
    since_ms
        Event time from which the world was another; None: not known.
    at_ms
        When it was told.
    """

    id: str
    since_ms: int | None
    at_ms: int
    detail: str


@dataclass(frozen=True)
class Past:
    """A job that was asked for."""

    id: str
    cause: str
    asked_ms: int
    is_open: bool


@dataclass(frozen=True)
class Known:
    """What is known of a stream.

    Attributes
    ----------
    changes, past
        Its drifts, and the jobs so far, in any order.
    incidents
        When incidents that are open were told first, and their names, in that order.
    labels
        When labels came, and their ids, in that order.
    served_ms
        Since when its bundle serves; None: none does.
    """

    changes: Sequence[Change] = ()
    past: Sequence[Past] = ()
    incidents: Sequence[tuple[int, str]] = ()
    labels: Sequence[tuple[int, str]] = ()
    served_ms: int | None = None


@dataclass(frozen=True)
class Wanted:
    """A training to ask for.

    Attributes
    ----------
    trigger
        What asks, so that two who see the same ask for one job.
    since_ms, until_ms
        Kafka timestamps of the records to use.
    world_ms
        Event time before which records are of another world; None: all count.
    """

    cause: str
    trigger: str
    detail: str
    since_ms: int
    until_ms: int
    world_ms: int | None = None


@dataclass(frozen=True)
class NotYet:
    """A training is wanted, and a guard says no."""

    why: str


def decide(rules: GuardRules, known: Known, now_ms: int, records: Records) -> Wanted | NotYet | None:
    """What to ask for now; None where nothing asks.

    Parameters
    ----------
    records
        How many records the stream's topic holds since a Kafka timestamp; only asked where that matters.
    """
    asking = _asking(rules, known, now_ms)
    if asking is None:
        return None
    refused = _guard(rules, known, now_ms)
    return NotYet(refused) if refused is not None else _with_span(asking, rules, now_ms, records)


@dataclass(frozen=True)
class _Asking:
    cause: str
    trigger: str
    detail: str
    change: Change | None = None


def _asking(rules: GuardRules, known: Known, now_ms: int) -> _Asking | None:
    """What asks, drift before labels before the clock: the first says most about the data to use."""
    last_ms = max((job.asked_ms for job in known.past), default=0)
    news = sorted((c for c in known.changes if c.at_ms > last_ms), key=lambda change: (change.at_ms, change.id))
    if "drift" in rules.triggers and news:
        return _Asking("drift", news[0].id, news[0].detail, news[0])
    fresh = [label for label in known.labels if label[0] > last_ms]
    if "labels" in rules.triggers and len(fresh) >= rules.labels:
        return _Asking("labels", fresh[rules.labels - 1][1], f"{len(fresh):,} labels since the last training")
    since_ms = max(last_ms, 0 if known.served_ms is None else known.served_ms)
    if "schedule" in rules.triggers and now_ms >= since_ms + rules.every_ms:
        told = "nothing serves" if known.served_ms is None else "the last training is that long ago"
        return _Asking("schedule", str(since_ms + rules.every_ms), told)
    return None


def _guard(rules: GuardRules, known: Known, now_ms: int) -> str | None:
    """The first guard that says no."""
    open_jobs = [job.id for job in known.past if job.is_open]
    if open_jobs:
        return f"job {open_jobs[0]} is not done yet"
    last_ms = max((job.asked_ms for job in known.past), default=None)
    if last_ms is not None and now_ms < last_ms + rules.cool_down_ms:
        return f"the last job was asked for {_in_words(now_ms - last_ms)} ago, and cool_down has not passed"
    asked = sum(job.cause != "manual" and job.asked_ms > now_ms - WEEK_MS for job in known.past)
    if asked >= rules.per_week:
        return f"{asked} jobs were asked for in the last seven days, which is all of per_week"
    if rules.quiet is not None and is_quiet(rules.quiet, now_ms):
        return "these are quiet hours"
    young = [name for told_ms, name in known.incidents if now_ms < told_ms + rules.incident_ms]
    if young:
        return (
            f"incident {young[0]} is open, and what is wrong must not be learned before wait_for_incidents has passed"
        )
    return None


def is_quiet(quiet: Quiet, now_ms: int) -> bool:
    """Whether that moment lies in the hours, which may go over midnight.

    >>> [is_quiet((22 * 60, 6 * 60), hour * 3_600_000) for hour in (21, 22, 5, 6)]
    [False, True, True, False]
    """
    begin, end = quiet
    minute = now_ms // 60_000 % 1_440
    return begin <= minute < end if begin <= end else minute >= begin or minute < end


def _with_span(asking: _Asking, rules: GuardRules, now_ms: int, records: Records) -> Wanted | NotYet:
    """The data to use: the new world where it is large enough, else as far back as it takes."""
    until_ms = now_ms - ARRIVING_MS
    change = asking.change
    world_ms = None if change is None else change.since_ms
    if world_ms is not None and records(world_ms) >= rules.least_records:
        since_ms = min(world_ms, until_ms)
        return Wanted(asking.cause, asking.trigger, asking.detail, since_ms, until_ms, world_ms)
    if change is not None and now_ms < change.at_ms + rules.settle_ms:
        return NotYet(
            f"the new world has fewer than the {rules.least_records:,} records of least_records, and settle has not "
            "passed"
        )
    held = records(0)
    if held < rules.least_records:
        return NotYet(f"the topic holds {held:,} records, and least_records is {rules.least_records:,}")
    begin_ms = until_ms - rules.span_ms if world_ms is None else world_ms
    return Wanted(
        asking.cause, asking.trigger, asking.detail, _far_enough(begin_ms, until_ms, rules.least_records, records),
        until_ms,
    )  # fmt: skip


def _far_enough(since_ms: int, until_ms: int, least: int, records: Records) -> int:
    """That moment, or an earlier one since when there are enough; each step goes back twice as far."""
    back_ms = max(until_ms - since_ms, _SHORTEST_MS)
    while until_ms > back_ms and records(until_ms - back_ms) < least:
        back_ms *= 2
    return max(0, until_ms - back_ms)


def _in_words(ms: int) -> str:
    for unit, size in (("d", DAY_MS), ("h", 3_600_000), ("min", 60_000)):
        if ms >= size:
            return f"{ms / size:.3g} {unit}"
    return f"{ms / 1_000:.3g} s"
