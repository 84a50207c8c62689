"""The incident stage in a worker: reads anomalies as notices, keeps incidents, tells what changes of them.

What notices changed of the state, what there is to tell, and where reading goes on are one transaction
(`pipeline/consuming.py`): each change is told once to readers at read_committed, whatever is killed. The state lies in
a compacted topic with as many partitions as the feed; on assignment a partition of it is read to its end before the
first notice. Notices that came twice are passed over by their ids, so workers may deliver at least once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import orjson
from confluent_kafka import Consumer, IsolationLevel, Message, Producer
from confluent_kafka import TopicPartition as At
from confluent_kafka.admin import AdminClient, OffsetSpec
from msgspec.structs import replace as with_

from detectors.incident_report import Report
from detectors.incident_state import IncidentState, Mute, Notice, UnknownVersionError, changed_rows, read_rows
from detectors.incidents import Advanced, IncidentRules, add_mute, advance_many, close_quiet, remove_mute
from pipeline.clients import Clients
from pipeline.consuming import CALL_S, ConsumingThread, committed_ends, kept_offsets, offsets_of
from pipeline.errors import IncidentError, StalledError, StateError
from pipeline.log_bounds import log_bounds
from pipeline.logs import get_logger
from pipeline.metrics import Metrics
from pipeline.notices import Unmute, decode
from pipeline.outputs import Output, event_headers
from pipeline.recovery import read_changelog
from pipeline.settings import Settings
from pipeline.topics import output_topic

if TYPE_CHECKING:
    from pipeline.traces import Traces

_BATCH = 5_000  # notices of a transaction
_WAIT_S = 0.1  # for that many
_LOOK_S = 5.0  # between two looks whether all is quiet
_POSITION = b'["position",""]'  # key of the row that says where reading goes on

log = get_logger()


@dataclass(frozen=True)
class StageRoute:
    """What the stage reads and writes, in which group, and by which rules."""

    feed: str
    state: str
    output: str
    group: str
    rules: IncidentRules


def stage_route(settings: Settings) -> StageRoute:
    """As the config says."""
    return StageRoute(
        settings.incident_feed, settings.incident_state, output_topic(settings, "incidents"),
        f"{settings.app}.incidents", settings.incidents.rules,
    )  # fmt: skip


@dataclass
class Step:
    """What a batch of one partition led to; it counts once its transaction has committed."""

    state: IncidentState
    changes: list[Report] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


def take(state: IncidentState, messages: Iterable[tuple[bytes | None, int]], rules: IncidentRules) -> Step:
    """The state after messages of the feed, given as values and timestamps. Pure, and however they are cut the same."""
    step, notices = Step(state), list[Notice]()
    for value, logged_ms in messages:
        try:
            message = decode(value or b"")
        except msgspec.DecodeError:  # none of ours
            step.outcomes["unreadable"] += 1
            continue
        if isinstance(message, Notice):
            notices.append(with_(message, logged_ms=logged_ms))
            continue
        _advance(step, notices, rules)
        notices = []
        step.state = add_mute(step.state, message) if isinstance(message, Mute) else _unmute(step.state, message)
    _advance(step, notices, rules)
    return step


def _unmute(state: IncidentState, message: Unmute) -> IncidentState:
    return remove_mute(state, message.id)


def _advance(step: Step, notices: list[Notice], rules: IncidentRules) -> None:
    if notices:
        _add(step, advance_many(step.state, notices, rules))


def _add(step: Step, advanced: Advanced) -> None:
    step.state = advanced.state
    step.changes += advanced.changes
    step.outcomes += advanced.outcomes


def incident_output(report: Report, now_ms: int) -> Output:
    """An incident as it is told; id and revision together name the message."""
    body = msgspec.to_builtins(report)
    kind = body.pop("change")
    body["examples"] = [{k: v for k, v in example.items() if k != "gain"} for example in body["examples"]]
    value = orjson.dumps({"type": kind, **body, "detected_ms": now_ms})
    headers = event_headers("incidents", f"{report.id}/{report.revision}", "incident", now_ms)
    return Output("incidents", report.id.encode(), value, headers)


class IncidentStage(ConsumingThread):
    """The incident stage over what this worker is assigned of the feed.

    Parameters
    ----------
    instance
        The worker's name: static member of the group, and part of the transactional id.
    """

    def __init__(
        self, route: StageRoute, clients: Clients, instance: str, metrics: Metrics, *, traces: Traces | None = None,
        clock: Callable[[], float] = time.monotonic, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:  # fmt: skip
        super().__init__("incidents", route.feed, route.group, instance, clients, clock)
        self.route, self._metrics, self._now_ms = route, metrics, now_ms
        self._states: dict[int, IncidentState] = {}  # by partition, as they are saved
        self._looked_at = clock()
        self._traces = None if traces is None else traces.of_incidents(route.feed, route.output)

    # --- what is said of it --------------------------------------------------------------------------------------

    def _begins(self) -> None:
        log.info("incidents begin", feed=self.route.feed)

    def _stands(self) -> None:
        """Its clients are closed, and nothing is assigned any more."""

    def _starts_over(self, why: str) -> None:
        log.warning("incidents start over", feed=self.route.feed, why=why)

    def _stuck(self, still_s: float) -> StalledError:
        message = (
            f"the making of incidents has stood still for {still_s:.0f} s; the worker ends so that its supervisor "
            "starts it anew"
        )
        return StalledError(message)

    def _in_vain(self, why: str) -> IncidentError:
        message = (
            f"incidents cannot be made of {self.route.feed}: {why}; is the broker well, and may the worker read, write "
            "and commit there?"
        )
        return IncidentError(message)

    def _at_fault(self, error: Exception) -> IncidentError:
        log.exception("making incidents failed")
        return IncidentError(f"incidents cannot be made: {error!r}")

    # --- the thread ----------------------------------------------------------------------------------------------

    def _turn(self, consumer: Consumer, producer: Producer) -> None:
        messages = self._read(consumer, _BATCH, _WAIT_S)
        if messages is None:
            return
        if messages:
            self._take(consumer, producer, messages)
        elif self._clock() - self._looked_at >= _LOOK_S:
            self._looked_at = self._clock()
            self._close_quiet(consumer, producer)

    def _take(self, consumer: Consumer, producer: Producer, messages: Sequence[Message]) -> None:
        by_partition: dict[int, list[Message]] = {}
        for message in messages:
            by_partition.setdefault(message.partition(), []).append(message)
        if self._traces is not None:
            self._traces.note(messages)
        steps = {
            p: take(self._states[p], ((m.value(), max(0, m.timestamp()[1])) for m in of), self.route.rules)
            for p, of in by_partition.items()
        }
        self._commit(consumer, producer, steps, {p: of[-1].offset() + 1 for p, of in by_partition.items()})

    def _close_quiet(self, consumer: Consumer, producer: Producer) -> None:
        """Close incidents by the wall clock, where the feed was read to its end and nothing comes any more.

        It is saved in a transaction of its own, so the log, and what is saved beside it, still decide all else.
        """
        asked = [At(self.route.feed, p) for p, state in self._states.items() if state.incidents]
        if not asked:
            return
        ends = committed_ends(self._admin, asked)
        steps: dict[int, Step] = {}
        for at in consumer.position(asked):
            if max(at.offset, self._positions[at.partition]) >= ends[at.partition]:
                step = Step(self._states[at.partition])
                _add(step, close_quiet(step.state, self._now_ms(), self.route.rules))
                if step.changes:
                    steps[at.partition] = step
        if steps:
            self._commit(consumer, producer, steps, {p: self._positions[p] for p in steps})

    def _commit(self, consumer: Consumer, producer: Producer, steps: dict[int, Step], after: dict[int, int]) -> None:
        """One transaction: changed rows, what there is to tell, and `after`, where reading goes on."""

        def fill() -> None:
            for p, step in steps.items():
                rows = changed_rows(self._states[p], step.state) | {_POSITION: str(after[p]).encode()}
                for key, value in rows.items():
                    self._send(producer, self.route.state, value, key, partition=p)
                for report in step.changes:
                    output = incident_output(report, self._now_ms())
                    headers = output.headers + ([] if self._traces is None else self._traces.headers(report))
                    self._send(producer, self.route.output, output.value, output.key, headers)

        offsets, began = [At(self.route.feed, p, at) for p, at in after.items()], self._clock()
        if self._transact(consumer, producer, after, offsets, fill):
            self._failing_since = None
            self._states |= {p: step.state for p, step in steps.items()}
            if self._traces is not None:
                self._traces.told([report for step in steps.values() for report in step.changes], self._clock() - began)
            self._count(steps.values())

    def _count(self, steps: Iterable[Step]) -> None:
        for step in steps:
            for outcome, count in step.outcomes.items():
                self._metrics.notices.labels(outcome).inc(count)
            for report in step.changes:
                self._metrics.incident_changes.labels(report.change).inc()
                self._metrics.outputs.labels(self.route.output).inc()
        self._metrics.incidents_open.set(sum(len(state.incidents) for state in self._states.values()))

    # --- assignment ----------------------------------------------------------------------------------------------

    def _take_over(self, consumer: Consumer, partitions: list[At]) -> None:
        for tp in kept_offsets(consumer, partitions):
            state, position = restore_state(self._clients, self._admin, self.route.state, tp.partition, self._stopped)
            self._states[tp.partition] = state
            self._positions[tp.partition] = self._start_of(consumer, tp, tp.offset if position is None else position)
        self._metrics.incidents_open.set(sum(len(state.incidents) for state in self._states.values()))
        log.info("incidents assigned", positions=dict(self._positions))

    def _start_of(self, consumer: Consumer, tp: At, at: int) -> int:
        """Where to read a partition of the feed on."""
        low, high = log_bounds(consumer, tp.topic, tp.partition, CALL_S)
        if 0 <= at < low or at > high:
            log.error("the incident feed has changed", feed=tp.topic, partition=tp.partition, at=at, low=low, high=high)
        return int(at if low <= at <= high else low)

    def _forget(self) -> None:
        self._positions, self._states = {}, {}
        self._metrics.incidents_open.set(0)


def restore_state(
    clients: Clients, admin: AdminClient, topic: str, partition: int, stopped: threading.Event
) -> tuple[IncidentState, int | None]:
    """What a partition of the state's topic holds, and where in the feed that is; None where it holds nothing.

    It is read up to its end, transactions under way included: once these are over, what they wrote counts or does not.
    """
    at = [At(topic, partition)]
    low = offsets_of(admin, at, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED)[partition]
    high = offsets_of(admin, at, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)[partition]
    rows: dict[bytes, bytes] = {}
    for _, messages in read_changelog(clients, At(topic, partition, low), high, stopped):
        for message in messages:
            if message.value() is None:
                rows.pop(message.key(), None)
            else:
                rows[message.key()] = message.value()
    position = rows.pop(_POSITION, None)
    try:
        return read_rows(rows), None if position is None else int(position)
    except UnknownVersionError as error:
        raise StateError(str(error)) from None
