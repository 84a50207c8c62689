"""Incidents: anomalies that belong together, opened, updated, merged and closed. Pure; the log's order decides.

A group is the anomalies of one stream and segment. Its evidence is a cumulative sum (Page 1954): each anomaly adds the
logarithm of how much rarer it is than the promise asks for, and false alarms that were due take away twice as much as
they would add. Where all is normal, p-values below the promise are uniform, so an anomaly adds 1 on average and its
due false alarms take 2; the sum then exceeds h in a share of exp(-h / 2) / 2 of anomalies (Lundberg's equation for
exponential gains and gaps: (1 - x)(1 + 2 x) = 1 at x = 1 / 2). The threshold follows from how many false incidents a
day are allowed: on a quiet stream one strong anomaly opens an incident, on a busy one only many do.

Works when p-values are valid. Fails, with more false incidents, where normal anomalies come in bursts over many
sessions; those of one session count with diminishing weight.

References
----------
Page 1954, Continuous inspection schemes, Biometrika 41. We reset at 0 and begin the incident there, as he estimates the
change. Asmussen 2003, Applied Probability and Queues, XIII.5, for the bound.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from msgspec.structs import replace as with_

from detectors.incident_report import Report, level_of, make_report
from detectors.incident_state import (
    EXAMPLES,
    LONGEST_NAME,
    MOST_FIELDS,
    MOST_GROUPS,
    MOST_MUTES,
    MOST_OPEN,
    MOST_SESSIONS,
    MOST_SOURCES,
    SUPPRESSED_SHOWN,
    Example,
    Group,
    Incident,
    IncidentState,
    Maintenance,
    Mute,
    Notice,
    Source,
    Suppressed,
)
from detectors.severity import SEVERITIES

DAY_MS = 86_400_000
MOST_GAIN = 6.0  # nats of one anomaly: beyond 400 times rarer than promised, tails of calibrations are guesses
_DRAIN = 2.0  # for each false alarm that was due; see above
_LEAST_SPAN_MS = 60_000.0  # a rate from less is none
_FADE_MS = 600_000.0  # how fast the pace of decisions is learned: ten minutes
_ROOM = 12.0  # evidence above twice the threshold is not kept: it must be able to fade again
_TELL_MS = 30_000  # between two updates, but where severity rises
_TELL_AGAIN_MS = 300_000  # an incident that goes on is told so that often
Change = Literal["opened", "updated", "merged", "closed"]


@dataclass(frozen=True)
class IncidentRules:
    """What makes an incident.

    Attributes
    ----------
    false_per_day
        False incidents that a scope may have each day where all is normal.
    together_ms
        Groups that go wrong within that of each other are one incident.
    quiet_ms
        An incident is over once nothing has belonged to it for so long.
    """

    false_per_day: float = 1.0
    together_ms: int = 120_000
    quiet_ms: int = 600_000
    maintenance: tuple[Maintenance, ...] = ()


@dataclass
class Advanced:
    """What notices led to: the state after them, reports of what changed, and what became of each notice."""

    state: IncidentState
    changes: list[Report] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


def advance(state: IncidentState, notice: Notice, rules: IncidentRules) -> tuple[IncidentState, list[Report]]:
    """The state after one more notice, and what it changed."""
    advanced = advance_many(state, [notice], rules)
    return advanced.state, advanced.changes


def advance_many(state: IncidentState, notices: Iterable[Notice], rules: IncidentRules) -> Advanced:
    """As `advance` for each in turn, at less cost: however they are cut, state and changes are the same.

    Parameters
    ----------
    state
        Left untouched.
    notices
        In the log's order; those seen before are passed over.
    """
    step = _Step(state.copy(), rules)
    for notice in notices:
        step.take(notice)
    return Advanced(step.state, step.changes, step.outcomes)


def close_quiet(state: IncidentState, logged_ms: int, rules: IncidentRules) -> Advanced:
    """Close what nothing has belonged to for `quiet` by the log's clock; for when the log was read to its end."""
    step = _Step(state.copy(), rules)
    for incident in list(step.state.incidents.values()):
        if logged_ms >= incident.logged_ms + rules.quiet_ms:
            step.close(incident)
    return Advanced(step.state, step.changes, step.outcomes)


def add_mute(state: IncidentState, mute: Mute) -> IncidentState:
    """With a mute in force, or changed. Those that are over by then make room; beyond the bound it is refused."""
    mutes = {name: m for name, m in state.mutes.items() if m.until_ms > mute.issued_ms or name == mute.id}
    if len(mutes) >= MOST_MUTES and mute.id not in mutes:
        counts = with_(state.counts, refused_mutes=state.counts.refused_mutes + 1)
        return replace(state, mutes=mutes, counts=counts)
    return replace(state, mutes=mutes | {mute.id: mute})


def remove_mute(state: IncidentState, name: str) -> IncidentState:
    """Without a mute; nothing where there is none."""
    return replace(state, mutes={n: mute for n, mute in state.mutes.items() if n != name})


class _Step:
    """Writes to a state of its own."""

    def __init__(self, state: IncidentState, rules: IncidentRules) -> None:
        self.state, self.rules = state, rules
        self.changes: list[Report] = []
        self.outcomes: Counter[str] = Counter()
        self._scopes = Counter(key[0] for key in state.groups)

    def take(self, notice: Notice) -> None:
        """One notice, to its end."""
        if not self.state.seen.add(notice.id):
            self.outcomes["doubled"] += 1
            return
        self._close_passed(notice)
        before = self._group_of(notice)
        group, decisions = _count(before, notice)
        group = _drain(before, group, notice, decisions, self.rules)
        suppressor = self._suppressor(notice)
        if suppressor is not None:
            self.outcomes["suppressed"] += 1
            self.state.groups[group.key] = group
            self._suppress(suppressor, notice, group)
        else:
            self.outcomes["counted"] += 1
            group = _gain(group, notice, self._threshold(group))
            self.state.groups[group.key] = group
            self._follow(group, notice)

    # --- groups --------------------------------------------------------------------------------------------------

    def _group_of(self, notice: Notice) -> Group:
        key = (notice.scope, notice.stream, notice.segment)
        if (group := self.state.groups.get(key)) is not None:
            return group
        if len(self.state.groups) >= MOST_GROUPS:
            self._forget_groups()
        self._scopes[notice.scope] += 1
        since_ms = min(notice.since_ms, notice.time_ms)
        # Nobody knows yet how often false alarms come there: as if one had, until a day or so has passed.
        return Group(*key, clock_ms=notice.time_ms, counted_since_ms=since_ms, due=1.0)

    def _forget_groups(self) -> None:
        """An eighth of them, those silent for longest and in no incident."""
        idle = [(group.clock_ms, str(key)) for key, group in self.state.groups.items() if not group.incident]
        idle = sorted(idle)[: MOST_GROUPS // 8]
        doomed = {name for _, name in idle}
        for key in [key for key in self.state.groups if str(key) in doomed]:
            del self.state.groups[key]
            self._scopes[key[0]] -= 1
        if len(self.state.groups) >= MOST_GROUPS:  # all in incidents: the one that is quiet for longest makes room
            self.push_out(min(self.state.incidents.values(), key=lambda i: (i.last_ms, i.id)))
            return self._forget_groups()
        counts = self.state.counts
        counts = with_(counts, forgotten_groups=counts.forgotten_groups + len(doomed))
        self.state = replace(self.state, counts=counts)
        return None

    def _threshold(self, group: Group) -> float:
        """Evidence that opens an incident: so that false ones come as often as allowed, all groups together."""
        span_ms = max(_LEAST_SPAN_MS, _kept_span_ms(group.clock_ms - group.counted_since_ms))
        due_a_day = group.due / span_ms * DAY_MS
        allowed_a_day = self.rules.false_per_day / self._scopes[group.scope]
        return threshold(due_a_day, allowed_a_day, self.rules.quiet_ms)

    # --- incidents -----------------------------------------------------------------------------------------------

    def _follow(self, group: Group, notice: Notice) -> None:
        """What a group's evidence means for incidents."""
        incident = self.state.incidents.get(group.incident)
        shared = self._shares_session(group, notice)
        if incident is None:
            incident = self._join_or_open(group, notice, shared)
        elif group.evidence >= group.threshold / 2:
            incident = self._went_on(incident, notice)
        else:  # what comes still, the promise explains
            if self._is_over_by_log(incident, notice):
                self.close(incident)
            return
        if incident is None:
            return
        if shared is not None and shared.id != incident.id:
            incident = self._merge(incident, shared)
        for other in [o for o in self._open(group.scope) if o.id != incident.id]:
            if self._is_active(other, notice) and self._is_active(incident, notice):
                incident = self._merge(incident, other)
        self._tell_if_due(incident)

    def _open(self, scope: str) -> list[Incident]:
        return [incident for incident in self.state.incidents.values() if incident.scope == scope]

    def _is_active(self, incident: Incident, notice: Notice) -> bool:
        return notice.time_ms - incident.last_ms <= self.rules.together_ms

    def _shares_session(self, group: Group, notice: Notice) -> Incident | None:
        """Another open incident that has the notice's session."""
        name = _short(notice.session)
        for incident in self._open(group.scope):
            if incident.id != group.incident and any(name in self.state.groups[k].sessions for k in incident.groups):
                return incident
        return None

    def _join_or_open(self, group: Group, notice: Notice, shared: Incident | None) -> Incident | None:
        active = [incident for incident in self._open(group.scope) if self._is_active(incident, notice)]
        latest = max(active, key=lambda i: (i.last_ms, i.id), default=None)
        incident = shared or latest
        if incident is not None and group.evidence >= self._needed(group, incident):
            joined = with_(self._went_on(incident, notice), groups=(*incident.groups, group.key))
            joined = with_(joined, start_ms=min(joined.start_ms, group.onset_ms))
            self.state.incidents[joined.id] = joined
            self.state.groups[group.key] = with_(group, incident=joined.id)
            return joined
        if group.evidence < group.threshold:
            return None
        if len(self.state.incidents) >= MOST_OPEN:
            self.push_out(min(self.state.incidents.values(), key=lambda i: (i.last_ms, i.id)))
        incident = Incident(
            f"{group.onset_id}/incident", group.scope, group.onset_ms, notice.time_ms, notice.logged_ms, (group.key,),
            revision=0,
        )  # fmt: skip
        self.state.groups[group.key] = with_(group, incident=incident.id)
        return self._tell(incident, "opened")

    def _needed(self, group: Group, incident: Incident) -> float:
        """Half of the evidence is enough for what began together with it: two coincidences at once are rarer."""
        is_together = abs(group.onset_ms - incident.start_ms) <= self.rules.together_ms
        return group.threshold / 2 if is_together else group.threshold

    def _went_on(self, incident: Incident, notice: Notice) -> Incident:
        incident = with_(
            incident, last_ms=max(incident.last_ms, notice.time_ms), logged_ms=max(incident.logged_ms, notice.logged_ms)
        )
        self.state.incidents[incident.id] = incident
        return incident

    def _merge(self, one: Incident, other: Incident) -> Incident:
        """The older goes on; the younger is told to have become part of it."""
        older, younger = sorted([one, other], key=lambda i: (i.start_ms, i.id))
        self._end(younger, "merged", merged_into=older.id)
        older = with_(
            older, groups=older.groups + younger.groups, last_ms=max(older.last_ms, younger.last_ms),
            logged_ms=max(older.logged_ms, younger.logged_ms), suppressed=older.suppressed + younger.suppressed,
            withheld=older.withheld + younger.withheld,
        )  # fmt: skip
        for key in younger.groups:
            self.state.groups[key] = with_(self.state.groups[key], incident=older.id)
        return self._tell(older, "updated")

    def close(self, incident: Incident) -> None:
        """It is over; its groups begin anew."""
        self._end(incident, "closed")
        for key in incident.groups:
            self.state.groups[key] = _at_rest(self.state.groups[key])

    def push_out(self, incident: Incident) -> None:
        """Close it because there is no room for more."""
        self.close(incident)
        counts = self.state.counts
        self.state = replace(self.state, counts=with_(counts, pushed_out=counts.pushed_out + 1))

    def _close_passed(self, notice: Notice) -> None:
        """Close incidents that were over when this came: by event time, or by the log's, as clocks are set back.

        Whoever was stopped in the middle of an incident tells of what belongs to it later, by the log's time alone.
        """
        key = (notice.scope, notice.stream, notice.segment)
        for incident in self._open(notice.scope):
            is_over = notice.time_ms >= incident.last_ms + self.rules.quiet_ms
            if is_over or (key not in incident.groups and self._is_over_by_log(incident, notice)):
                self.close(incident)

    def _is_over_by_log(self, incident: Incident, notice: Notice) -> bool:
        return notice.logged_ms >= incident.logged_ms + self.rules.quiet_ms

    # --- telling -------------------------------------------------------------------------------------------------

    def _tell_if_due(self, incident: Incident) -> None:
        """Tell what matters: it is worse, wider or twice as many; else from time to time, and never too often."""
        groups = [self.state.groups[key] for key in incident.groups]
        severity, anomalies = level_of(incident, groups, self.rules.quiet_ms), sum(g.notices for g in groups)
        is_worse = severity > SEVERITIES.index(incident.severity)
        matters = len(groups) > incident.extent or anomalies >= 2 * incident.anomalies
        since_ms = incident.logged_ms - incident.told_ms
        if is_worse or (matters and since_ms >= _TELL_MS) or since_ms >= _TELL_AGAIN_MS:
            self._tell(incident, "updated")
        elif matters:
            self.state.incidents[incident.id] = with_(incident, withheld=incident.withheld + 1)

    def _tell(self, incident: Incident, change: Change) -> Incident:
        """Report an open incident, and remember what was told."""
        groups = [self.state.groups[key] for key in incident.groups]
        report = make_report(incident, groups, change, self.rules.quiet_ms, self.rules.together_ms)
        self.changes.append(report)
        incident = with_(
            incident, revision=report.revision, severity=report.severity, anomalies=report.anomalies,
            extent=len(groups), told_ms=incident.logged_ms,
        )  # fmt: skip
        self.state.incidents[incident.id] = incident
        return incident

    def _end(self, incident: Incident, change: Change, merged_into: str | None = None) -> None:
        groups = [self.state.groups[key] for key in incident.groups]
        report = make_report(incident, groups, change, self.rules.quiet_ms, self.rules.together_ms, merged_into)
        self.changes.append(report)
        del self.state.incidents[incident.id]

    # --- suppression ---------------------------------------------------------------------------------------------

    def _suppressor(self, notice: Notice) -> str | None:
        """What keeps it from counting: the first window or mute that matches."""
        rules: Iterable[Maintenance | Mute] = (*self.rules.maintenance, *self.state.mutes.values())
        return next((rule.id for rule in rules if rule.matches(notice)), None)

    def _suppress(self, by: str, notice: Notice, group: Group) -> None:
        shown = _example(notice, _gain_of(notice))
        before = self.state.suppressed.get(by, Suppressed(0, notice.time_ms, notice.time_ms))
        self.state.suppressed[by] = Suppressed(
            before.count + 1, min(before.first_ms, notice.time_ms), max(before.last_ms, notice.time_ms),
            (*before.last, shown)[-SUPPRESSED_SHOWN:],
        )  # fmt: skip
        while len(self.state.suppressed) > 2 * MOST_MUTES:
            del self.state.suppressed[min(self.state.suppressed, key=lambda n: (self.state.suppressed[n].last_ms, n))]
        if (incident := self.state.incidents.get(group.incident)) is not None:
            self.state.incidents[incident.id] = with_(incident, suppressed=incident.suppressed + 1)


def threshold(due_a_day: float, allowed_a_day: float, quiet_ms: int) -> float:
    """Evidence that a normal group exceeds at most `allowed_a_day` times, of so many false alarms.

    The smaller of two bounds. By the drain, the module's: 2 log(f / 2 B). By the quiet after which evidence is
    forgotten: false alarms that follow each other sooner are a geometric number, so their exponential gains add up to
    an exponential of mean exp(f quiet): h = exp(f quiet) log(f / B). The first is less where alarms come often.

    Examples
    --------
    >>> [round(threshold(due, 1.0, 600_000), 1) for due in (1, 10, 100, 10_000)]
    [0.0, 2.5, 7.8, 17.0]
    """
    if due_a_day <= allowed_a_day:
        return 0.0
    ratio, expected = math.log(due_a_day / allowed_a_day), due_a_day / DAY_MS * quiet_ms
    return max(0.0, min(2 * (ratio - math.log(2)), math.exp(min(expected, 50.0)) * ratio))


# --- evidence ------------------------------------------------------------------------------------------------------


def _count(group: Group, notice: Notice) -> tuple[Group, int]:
    """The group with its sources brought up to the notice, and how many decisions it stands for."""
    name = f"{notice.topic}/{notice.partition}/{notice.type}"
    source = group.sources.get(name)
    if source is None:
        source = Source(0, min(notice.since_ms, notice.time_ms), notice.rate, 0.0, 0.0)
    decisions = max(0, notice.decisions - source.decisions)
    passed_ms = max(0, notice.time_ms - source.time_ms)
    fade = math.exp(-passed_ms / _FADE_MS)
    count, span_ms = source.count * fade + decisions, source.span_ms * fade + passed_ms
    taken = max(notice.decisions, source.decisions)
    sources = group.sources | {name: Source(taken, notice.time_ms, notice.rate, count, span_ms)}
    if len(sources) > MOST_SOURCES:
        del sources[min((n for n in sources if n != name), key=lambda n: (sources[n].time_ms, n))]
    clock_ms = max(group.clock_ms, notice.time_ms)
    due = group.due * math.exp((group.clock_ms - clock_ms) / DAY_MS) + notice.rate * decisions
    since_ms = min(group.counted_since_ms, notice.since_ms)
    return with_(group, sources=sources, clock_ms=clock_ms, due=due, counted_since_ms=since_ms), decisions


def _kept_span_ms(span_ms: int) -> float:
    """Of a span, what is not forgotten: its last day or so."""
    return DAY_MS * -math.expm1(-max(0, span_ms) / DAY_MS)


def _drain(before: Group, group: Group, notice: Notice, decisions: int, rules: IncidentRules) -> Group:
    """Take away for the false alarms that were due since the notice before.

    How many those were in the whole group is known by its pace only, for other partitions tell when they have an
    anomaly; how many in the notice's own partition is known by count. The larger of the two is taken. A notice from
    long before the group's clock, of a partition that lags or whose clock was set back, counts by itself.
    """
    last = before.sources.get(f"{notice.topic}/{notice.partition}/{notice.type}")
    last_ms = notice.since_ms if last is None else last.time_ms
    own = notice.rate * decisions
    if notice.time_ms >= before.clock_ms - rules.together_ms and notice.time_ms > last_ms:
        # Of the partition's own, what passed since the group's evidence began.
        own *= max(0.0, min(1.0, (notice.time_ms - max(last_ms, before.onset_ms)) / (notice.time_ms - last_ms)))
    pace = sum(s.rate * s.count / max(s.span_ms, 1.0) for s in before.sources.values())
    due = max(own, pace * max(0, notice.time_ms - before.clock_ms))
    evidence = before.evidence - _DRAIN * due
    # What lies further apart than an incident's end takes to be believed would be two incidents.
    is_old = notice.time_ms - before.clock_ms >= rules.quiet_ms
    if (evidence <= 0.0 or is_old) and not group.incident:
        return _at_rest(group)
    return with_(
        group, evidence=max(0.0, evidence), excess=group.excess - _DRAIN * due, expected=group.expected + due
    )  # fmt: skip


def _at_rest(group: Group) -> Group:
    """The group without evidence, and without what is remembered since that began."""
    return with_(
        group, evidence=0.0, onset_id="", onset_ms=0, onset_session="", notices=0, excess=0.0, expected=0.0, peak=0.0,
        sessions={}, sessions_seen=0, fields={}, examples=(), incident="",
    )  # fmt: skip


def _gain_of(notice: Notice) -> float:
    """Nats that it adds: on average 1 where all is normal."""
    return min(MOST_GAIN, max(0.0, math.log(notice.rate / max(notice.p_value, 1e-300))))


def _gain(group: Group, notice: Notice, threshold: float) -> Group:
    """With a notice's evidence: the n-th of a session counts an n-th, for a session that went wrong stays so."""
    name, gain = _short(notice.session), _gain_of(notice)
    times = group.sessions.get(name, 0) + 1
    sessions = group.sessions | {name: times}
    if len(sessions) > MOST_SESSIONS:
        del sessions[next(iter(sessions))]
    evidence = min(group.evidence + gain / times, 2 * threshold + _ROOM)
    if not group.onset_id:
        group = with_(group, onset_id=notice.id, onset_ms=notice.time_ms, onset_session=notice.session[:LONGEST_NAME])
    return with_(
        group, evidence=evidence, threshold=threshold, notices=group.notices + 1, excess=group.excess + gain / times,
        peak=max(group.peak, evidence / max(threshold, 1.0)), sessions=sessions,
        sessions_seen=group.sessions_seen + (times == 1), fields=_with_fields(group.fields, notice.top),
        examples=_with_example(group.examples, _example(notice, gain)),
    )  # fmt: skip


def _with_fields(fields: Mapping[str, float], top: Iterable[tuple[str, float]]) -> dict[str, float]:
    summed = dict(fields)
    for name, share in top:
        summed[name[:LONGEST_NAME]] = summed.get(name[:LONGEST_NAME], 0.0) + share
    while len(summed) > MOST_FIELDS:
        del summed[min(summed, key=lambda n: (summed[n], n))]
    return summed


def _example(notice: Notice, gain: float) -> Example:
    return Example(notice.id, notice.stream, notice.session[:LONGEST_NAME], notice.time_ms, gain)


def _with_example(examples: tuple[Example, ...], new: Example) -> tuple[Example, ...]:
    """The most surprising, one of a session; of equals the earliest."""
    if len(examples) == EXAMPLES and new.gain <= examples[-1].gain:
        return examples
    best: dict[str, Example] = {}
    for example in sorted([*examples, new], key=lambda e: -e.gain):
        best.setdefault(example.session, example)
    return tuple(best.values())[:EXAMPLES]


def _short(name: str) -> str:
    """A name that is not too long to remember; two that differ in their ends only are taken for one."""
    return name[:LONGEST_NAME]
