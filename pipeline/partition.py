"""One source partition of this worker: scored slice by slice, checkpointed, closed.

A new object is made for every opening, so a slice that was fetched for an older one is never scored. What it holds
(`pipeline/holding.py`, where the checkpoint's steps 1 to 4 stand too) may be passed on to the next.

Scoring goes on during steps 1 to 4, at most one checkpoint ahead. A step that fails throws the partition out of memory,
and it is opened again from what is durable. What changes verdicts without being a record (a deletion, the idle clock)
takes effect between two slices, and the next slice waits until a checkpoint has committed it: so a replay finds it in
force from the same record on.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from aiokafka.errors import ProducerFenced

from detectors.absolution import with_label
from detectors.absorbing import only_labels
from detectors.absorbing import with_label as with_label_of_profiles
from detectors.drift_watch import Drifted
from detectors.promise_keeper import KeeperState
from detectors.rows import PartitionState
from detectors.schema_watch import Watched
from features.events import Events
from pipeline.budgets import most_changed
from pipeline.context import StreamContext
from pipeline.controls import Control
from pipeline.drift import drift_output
from pipeline.errors import DamagedStateError, StaleStateError
from pipeline.failpoints import passed
from pipeline.holding import Copies, Finding, Holding, end_task
from pipeline.loading import Served
from pipeline.logs import get_logger
from pipeline.outputs import NORMAL, Emitter, Output, Place
from pipeline.partition_row import PartitionRow
from pipeline.pulse import Pulse
from pipeline.recovery import Replay
from pipeline.schema_drift import detail_of, schema_drift_output
from pipeline.slices import Processed, process_slice
from pipeline.stages import StageClock
from pipeline.stream_drift import detail_of as detail_of_drift
from pipeline.stream_drift import stream_drift_output
from pipeline.wire import DeleteSession, LabelPattern

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

CLOSE_TIMEOUT_S = 5.0  # a revoke waits that long for a last checkpoint
_QUEUED_SLICES = 2
_LOOK_S = 0.5  # for a partition without records: controls, the idle clock, the pulse
_LEAST_WAIT_S = 1.0  # of silence before events that wait are released: a producer may batch
_PULSE_S = 0.05
_PIECE = 2_000  # sessions ended in one go: some 20 ms
_MOST_UNSENT = 4 << 20  # bytes of outputs that wait for their transaction

log = get_logger()


@dataclass(frozen=True)
class Slice:
    """Records one fetch brought for one partition, and when."""

    records: Sequence[Any]
    fetched_at: float
    highwater: int | None


@dataclass(frozen=True)
class Worker:
    """What a partition asks of the worker around it.

    Attributes
    ----------
    committed
        The group's offset of the partition.
    read_to_end
        Whether everything the topic holds has been fetched.
    """

    pulse: Pulse
    committed: Callable[[], Awaitable[int | None]]
    read_to_end: Callable[[], Awaitable[bool]]
    on_failure: Callable[[Partition, BaseException], None]


class Partition:
    """Queue, scoring and checkpoints of one opening of a source partition."""

    def __init__(self, context: StreamContext, place: Place, generation: int, worker: Worker) -> None:
        self.context, self.place, self.generation = context, place, generation
        self.slices: asyncio.Queue[Slice] = asyncio.Queue(maxsize=_QUEUED_SLICES)
        self.closed = False
        self.opened_at = 0
        self.fenced = False  # somebody else took the partition over, as closing it has shown
        self.state = PartitionState(0)
        self._worker = worker
        self._holding = Holding(context, place)
        self._emitter: Emitter
        self._row: PartitionRow  # but for what scoring changes
        self._promoted: Served | None = None  # to be taken at a checkpoint
        self._promoted_from = 0  # not before this offset
        self._traces = None if context.traces is None else context.traces.of_partition(context, place)
        self._sent: list[asyncio.Future[Any]] = []
        self._unsent: list[Output] = []
        self._unsent_bytes = 0
        self._controls: list[tuple[int, Control]] = []
        self._nothing: Events
        self._piece = max(1, min(_PIECE, context.capacity // 4))  # sessions at a time
        self._most_changed = most_changed(context.capacity)  # rows, then a checkpoint is due
        self.in_transit = 0  # slices fetched and not yet in the queue
        self._whole = asyncio.Lock()  # held while state, rows and outputs are not in step with each other
        self._due = 0.0
        self._committed_at = -math.inf  # when the last checkpoint that succeeded began
        self._quiet_since = context.monotonic()
        self._moved_ms = 0  # how far the idle clock has moved the watermark since the last record
        self._uncovered_since: float | None = None  # since when records wait for a checkpoint to begin
        self._covering_since: float | None = None  # likewise those of the checkpoint under way
        self._stages = StageClock(context.metrics.stages, context.name, context.monotonic)
        self._inflight: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # --- opening -------------------------------------------------------------------------------------------------

    async def open(self, kept: Holding | None, *, rebuild: bool = False) -> None:
        """Take the partition over, or up again; afterwards `opened_at` is where to read on.

        Parameters
        ----------
        kept
            What the worker held of it when it was last revoked, if it kept that.
        rebuild
            Rows on disk were found damaged: read all of the changelog.
        """
        context, began = self.context, self.context.monotonic()
        if kept is None:
            await self._holding.open(self._worker.committed, self._watch, rebuild=rebuild)
        else:
            self._holding = kept
            await kept.resume(self._worker.committed)
        holding = self._holding
        self._row, self.state = replace(holding.row, complete=False), holding.state
        place = replace(self.place, epoch=self._row.epoch)
        self._emitter = Emitter(holding.parts, place, context.sample, context.is_repartitioned, context.incidents_by)
        self.opened_at = holding.findings[-1].offset if holding.findings else self.state.next_offset
        self._nothing = holding.served.decoder.decode([], check_key=True)
        # Whoever crashed may have judged, and told, records up to here: they are judged again by the same bundle.
        self._promoted_from = holding.judged_to
        self._due = context.monotonic() + context.checkpoint_interval_s
        replayed = 0 if kept else holding.replayed
        context.metrics.restored.labels(context.name).inc(replayed)
        context.metrics.recovery_left.labels(context.name, str(self.place.partition)).set(0.0)
        context.metrics.recovery_rows.labels(context.name, str(self.place.partition)).set(0.0)
        context.metrics.recovery_progress.labels(context.name, str(self.place.partition)).set(1.0)
        log.info(
            "partition opened", stream=context.name, partition=self.place.partition, next_offset=self.opened_at,
            open_sessions=holding.store.open_sessions, changelog_rows=replayed, kept=kept is not None,
            seconds=round(context.monotonic() - began, 3),
        )  # fmt: skip

    def _watch(self, replay: Replay) -> None:
        """Compaction and markers leave holes in the log, so how many rows are to come is a guess from those so far."""
        total = replay.rows * replay.total // max(1, replay.done)
        context, labels = self.context, (self.context.name, str(self.place.partition))
        context.health.recovering(context.name, self.place.partition, replay.rows, total)
        context.metrics.recovery_rows.labels(*labels).set(replay.rows_per_s)
        context.metrics.recovery_left.labels(*labels).set(replay.seconds_left or 0.0)
        context.metrics.recovery_progress.labels(*labels).set(replay.done / max(1, replay.total))

    @property
    def saved_offset(self) -> int:
        """X + 1 of the last checkpoint."""
        return self._holding.row.next_offset

    @property
    def topic_id(self) -> str:
        """Of the topic that is being read."""
        return self._row.topic_id

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing waits to be scored or saved."""
        return self.slices.empty() and not self._whole.locked() and self.uncovered_s() == 0.0

    def start(self) -> None:
        """Begin to score what arrives in `slices`."""
        labels = (self.context.name, str(self.place.partition))
        if self.closed:  # it failed before it began
            return
        self.context.metrics.checkpoint_age.labels(*labels).set_function(self.uncovered_s)
        for drift in self.state.schema.drifts if self.state.schema else ():
            kind, field = drift.split("/", 1)
            self.context.metrics.field_drift.labels(*labels, field, kind).set(1)
        self.context.metrics.tell_labels(self.context.name, *self._holding.row.labelled)
        self.context.health.opened(self.context.name, self.place.partition)
        if self.context.auto_train is not None and self.place.partition == 0:
            self.context.auto_train.owns(self.context.name, yes=True)
        self.context.controls.follow(self.context.name, self._holding.row.controls, self)
        self.context.promotions.follow(self.context.name, self._holding.served.digest, self)
        self._task = asyncio.create_task(self._run())

    # --- scoring -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._whenever_whole(self._begin)
            while not self.closed:
                slice_ = await self._next_slice()
                await self._heartbeat()
                if self._promoted is not None and await self._may_take_it(slice_):
                    await self._whenever_whole(self._apply_promotion)
                if slice_ is not None:
                    await self._whenever_whole(partial(self._score, slice_))
                if self._controls:
                    await self._whenever_whole(self._apply_controls)
                elif self._idle_ms() > self._moved_ms:
                    await self._whenever_whole(self._move_idle_clock)
                if self._is_due():
                    await self._whenever_whole(self.checkpoint)
                self._observe()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever it was, rows in memory can no longer be trusted
            self._fail(error)

    async def _whenever_whole(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what changes state, rows or outputs; not any more once `close` has begun."""
        async with self._whole:
            if not self.closed:
                await work()

    async def _next_slice(self) -> Slice | None:
        """The next slice, or None when it is time to look for something else."""
        if not self.slices.empty():  # no timer is needed, only a turn for the others
            await asyncio.sleep(0)
            return self.slices.get_nowait()
        wait = _LOOK_S
        if self._uncovered_since is not None:
            wait = max(0.0, min(wait, self._due - self.context.monotonic()))
        try:
            return await asyncio.wait_for(self.slices.get(), wait)
        except TimeoutError:
            return None

    @property
    def _is_ours(self) -> bool:
        """False where the group may have given the partition to another: we were stopped for too long, and woken."""
        return self._worker.pulse.is_alive(self._committed_at)

    async def _heartbeat(self) -> None:
        """Wait until the group is known to count on us."""
        if not self._is_ours:
            log.warning("waiting for a heartbeat", stream=self.context.name, partition=self.place.partition)
        while not self._is_ours and not self.closed:
            await asyncio.sleep(_PULSE_S)

    def _is_due(self) -> bool:
        store, context = self._holding.store, self.context
        return self._uncovered_since is not None and (
            context.monotonic() >= self._due
            or store.changed >= self._most_changed
            or self._unsent_bytes >= _MOST_UNSENT
        )

    async def _score(self, slice_: Slice) -> None:
        context, records = self.context, slice_.records
        self._stages.begin(slice_.fetched_at)
        self._stages.lap("wait")
        if self._traces is not None:
            self._traces.begin(context.monotonic() - slice_.fetched_at)
        events = self._holding.served.decoder.decode(records, check_key=True)
        assert events.next_offset is not None, "a slice has records"
        if records[0].offset < self.state.next_offset:
            message = f"slice at {records[0].offset} lies before {self.state.next_offset}"
            raise RuntimeError(message)
        self._stages.lap("decode")
        context.metrics.records.labels(context.name).inc(len(records))
        context.metrics.tombstones.labels(context.name).inc(events.tombstones)
        for piece in events.pieces(self._piece):
            more_due = await self._score_piece(piece, records)
        if more_due:  # sessions beyond the first few
            await self._end_due()
        if self._traces is not None:
            self._traces.end(records)
        self._quiet_since, self._moved_ms = context.monotonic(), 0
        context.metrics.latency.labels(context.name).observe(context.monotonic() - slice_.fetched_at)
        self._stages.end()
        if records[0].timestamp > 0:  # else it has none
            age_s = max(0.0, (context.now_ms() - records[0].timestamp) / 1000)
            context.metrics.record_age.labels(context.name).observe(age_s)
        if slice_.highwater is not None:
            lag = max(0, slice_.highwater - self.state.next_offset)
            context.metrics.lag.labels(context.name, str(self.place.partition)).set(lag)

    async def _end_due(self) -> None:
        """End the sessions that event time has passed, piece by piece."""
        while await self._score_piece(self._nothing):
            if self._is_due():
                await self.checkpoint()
            await asyncio.sleep(0)  # others have a turn

    async def _score_piece(
        self, events: Events, records: Sequence[Any] = (), closing: Sequence[str] | None = None
    ) -> bool:
        """Score events and end some due sessions, or those of `closing` only; True while more may be due."""
        left: Events | None = events
        while left is not None:
            left, more_due = await self._score_part(left, records, closing)
            if left is not None:
                if self._is_due():
                    await self.checkpoint()
                await asyncio.sleep(0)  # others have a turn
        return more_due

    async def _score_part(
        self, events: Events, records: Sequence[Any], closing: Sequence[str] | None
    ) -> tuple[Events | None, bool]:
        """The same of as many events as may be scored at once; what is left of them comes back.

        From `state` on no checkpoint begins until all outputs of the piece were handed over: it would cover records
        without their outputs, or outputs without their records.
        """
        holding, limit = self._holding, self._piece if closing is None else 0
        while True:
            done = process_slice(holding.store, events, self.state, holding.parts, limit=limit, closing=closing)
            if done is not None:
                break
            await self._commit()  # only settled rows can make room
            self._stages.lap("wait")
        self._stages.lap("score")
        self.state = done.state
        events = done.came
        if self._uncovered_since is None and (
            events.next_offset is not None or len(done.verdicts.walk.kind) or done.rated.judged
        ):
            self._uncovered_since = self.context.monotonic()
        self._count(events, done)
        metrics, name = self.context.metrics, self.context.name
        await self._say_fields(done.watched)
        await self._say_drift(done.drifted)
        for reject in events.rejects:
            await self._send(self._emitter.dead_letter(reject, records[reject.index], self.context.now_ms()))
            metrics.dead_letters.labels(name, reject.error.reason).inc()
        outputs = self._emitter.outputs(done, self.context.now_ms(), records)
        if self._traces is not None:
            outputs = self._traces.traced(outputs, records)
        for output in outputs:
            await self._send(output)
        self._stages.lap("emit")
        if self._traces is not None:
            self._traces.emitted()
        return done.left, done.more_due

    def _count(self, events: Events, done: Processed) -> None:
        verdicts = done.verdicts
        metrics, name, parts = self.context.metrics, self.context.name, self._holding.parts
        for counter, found in ((metrics.unknown_tokens, verdicts.unknown), (metrics.rare_tokens, verdicts.rare)):
            for field, count in zip(parts.fields[: parts.shape.fields], found.tolist(), strict=True):
                if count:
                    counter.labels(name, field).inc(count)
        for kind, anomaly in (("record", verdicts.anomaly), ("session", verdicts.ends.anomaly)):
            alarms = int(anomaly.sum())
            metrics.verdicts.labels(name, kind, "true").inc(alarms)
            metrics.verdicts.labels(name, kind, "false").inc(len(anomaly) - alarms)
        if (judged := done.rated.judged) > 0:
            alarms = len(done.rated.alarms)
            metrics.verdicts.labels(name, "rate", "true").inc(alarms)
            metrics.verdicts.labels(name, "rate", "false").inc(judged - alarms)
        if parts.learned is None:
            metrics.warming_up.labels(name).inc(len(verdicts.events))
        self._measure_promise(done.state.keeper)
        outcomes = Counter("confirmed" if r.confirmed else "doubted" for r in done.rescored)
        for outcome, count in (outcomes + Counter(skipped=done.rescored.skipped)).items():
            metrics.rescored.labels(name, outcome).inc(count)
        silenced = len(done.absolved.normal_records) + len(done.absolved.normal_sessions)
        metrics.absolved.labels(name).inc(silenced)
        for outcome, count in done.occluded.outcomes.items():
            metrics.explained.labels(name, outcome).inc(count)
        if parts.learned is None and self.context.auto_train is not None and len(verdicts.ends.anomaly):
            self.context.auto_train.ended(name, int((~verdicts.ends.anomaly).sum()))
        if len(verdicts.events):
            metrics.confidence.labels(name, str(self.place.partition)).set(verdicts.latest_confidence)
        for reason, count in (("missing", events.without_time), ("ahead", events.ahead)):
            if count:
                metrics.time_fallbacks.labels(name, reason).inc(count)
        metrics.infinite_numbers.labels(name).inc(events.infinite)
        metrics.late_records.labels(name).inc(int(verdicts.late.sum()) + verdicts.intake.too_late)
        metrics.dropped_samples.labels(name).inc(verdicts.intake.dropped)
        metrics.early_records.labels(name).inc(verdicts.intake.ordered.early)
        metrics.duplicates.labels(name).inc(len(done.duplicates))

    def _measure_promise(self, keeper: KeeperState | None) -> None:
        metrics, name, partition = self.context.metrics, self.context.name, str(self.place.partition)
        for kind in ("record", "session"):
            metrics.promised.labels(name, kind).set(self._holding.parts.rate)
        if keeper is None:
            return
        for kind, threshold in (("record", keeper.records), ("session", keeper.sessions)):
            metrics.threshold.labels(name, partition, kind).set(math.exp(-threshold.nats))
            if threshold.kept is not None:
                metrics.kept.labels(name, partition, kind).set(threshold.kept)

    async def _say_fields(self, watched: Watched) -> None:
        """What the fields of a piece looked like."""
        metrics, name, place = self.context.metrics, self.context.name, self._emitter.place
        for counter, counts in (
            (metrics.field_missing, watched.missing), (metrics.field_wrong_type, watched.wrong_type),
        ):  # fmt: skip
            for field, count in counts.items():
                counter.labels(name, field).inc(count)
        for drift in watched.drifts:
            about = {"stream": name, "partition": place.partition, "field": drift.field, "kind": drift.kind}
            if drift.has_begun:
                log.error("field drift", **about, detail=detail_of(drift))
            else:
                log.info("field drift ended", **about, detail=detail_of(drift))
            metrics.field_drift.labels(name, str(place.partition), drift.field, drift.kind).set(drift.has_begun)
            now_ms = self.context.now_ms()
            await self._send(schema_drift_output(drift, stream=name, place=place, now_ms=now_ms))

    async def _say_drift(self, drifted: Drifted) -> None:
        """What changed for good, or no longer differs."""
        metrics, name, place = self.context.metrics, self.context.name, self._emitter.place
        for field, kind, level in drifted.levels:
            metrics.drift_score.labels(name, str(place.partition), field, kind).set(level)
        for event in drifted.events:
            about = {"stream": name, "partition": place.partition, "type": event.type, "field": event.field}
            if event.has_begun:
                log.warning("drift", **about, detail=detail_of_drift(event))
                metrics.drifts.labels(name, event.type).inc()
            else:
                log.info("drift ended", **about, detail=detail_of_drift(event))
            now_ms = self.context.now_ms()
            await self._send(stream_drift_output(event, stream=name, place=place, now_ms=now_ms))

    async def _send(self, output: Output) -> None:
        """Let an output leave, at once or with its transaction; nothing leaves a worker the group has given up."""
        if not self._is_ours:
            message = "no heartbeat was answered within the session timeout"
            raise StaleStateError(message)
        if self.context.exactly_once:
            self._unsent.append(output)
            self._unsent_bytes += len(output.value)
        else:
            self._sent.append(await self.context.send(output))

    def uncovered_s(self) -> float:
        """For how long the oldest record taken in has waited for its checkpoint; 0 when none does."""
        waiting = [since for since in (self._covering_since, self._uncovered_since) if since is not None]
        return self.context.monotonic() - min(waiting) if waiting else 0.0

    def _observe(self) -> None:
        store, labels = self._holding.store, (self.context.name, str(self.place.partition))
        self.context.metrics.sessions.labels(*labels).set(store.open_sessions)
        self.context.metrics.hot.labels(*labels).set(len(store))
        lookups, store.lookups = store.lookups, Counter()
        for place, count in lookups.items():
            self.context.metrics.row_lookups.labels(self.context.name, place).inc(count)

    # --- what is no record ---------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """What has happened to topic or rows comes first, then sessions that were due when the last owner left."""
        for finding in self._holding.findings:
            self._report(finding)
            place = replace(self.place, epoch=self._row.epoch + finding.anew)
            await self._send(
                drift_output(
                    finding.kind, stream=self.context.name, place=place, offset=finding.offset, amount=finding.amount,
                    detail=finding.detail, now_ms=self.context.now_ms(), sessions=finding.names,
                )
            )  # fmt: skip
            if finding.anew:
                await self._close_all(finding)
            self.state = replace(self.state, next_offset=finding.offset)
        if self._holding.findings:
            await self._commit()
            self._holding.findings.clear()
        if self._holding.row.complete:  # no longer, once anything is judged
            await self._commit()
        await self._end_due()

    def _report(self, finding: Finding) -> None:
        metrics, name = self.context.metrics, self.context.name
        log.error("stream changed", stream=name, what=finding.kind, detail=finding.detail, sessions=list(finding.names))
        metrics.changes.labels(name, finding.kind).inc()
        if finding.kind == "records_lost":
            metrics.lost_records.labels(name).inc(finding.amount)
        elif finding.kind == "sessions_lost":
            metrics.lost_sessions.labels(name).inc(finding.amount)

    async def _close_all(self, finding: Finding) -> None:
        """End every session, piece by piece; then the partition is as new.

        Until the last is ended, the partition row stays as it was: a crash meanwhile leads here again.
        """
        await self._end_due()
        store, after = self._holding.store, None
        while names := store.saved_names(after, self._piece):
            after = names[-1]
            await self._score_piece(self._nothing, closing=names)
            await self._settled()
            self._take_copies(self._row, finding.offset)
            await self._settled()
        store.open_sessions = 0  # a crash in between may have left a count of more
        self._row = replace(self._row, topic_id=finding.topic_id, epoch=self._row.epoch + 1)
        self._emitter = replace(self._emitter, place=replace(self.place, epoch=self._row.epoch))
        kept = only_labels(self.state.kept)
        self.state = PartitionState(finding.offset, absolved=self.state.absolved, kept=kept)
        self.context.metrics.forget_fields(self.context.name, self.place.partition)

    @property
    def _has_nothing(self) -> bool:
        """Whether no slice waits and none is on its way here."""
        return self.slices.empty() and self.in_transit == 0

    @property
    def has_room(self) -> bool:
        """Whether another slice may be fetched: so one that is behind does not hold up the others."""
        return self.slices.qsize() + self.in_transit < _QUEUED_SLICES

    def take(self, slice_: Slice) -> None:
        """A slice that was fetched when there was room; one for an opening that has closed since is left."""
        self.in_transit -= 1
        if not self.closed:
            self.slices.put_nowait(slice_)

    def take_control(self, offset: int, control: Control) -> None:
        """A control that was not applied yet; it will be, between two slices."""
        self._controls.append((offset, control))

    async def _apply_controls(self) -> None:
        """Apply what users ask; only once that has committed is a record scored: a replay finds it in force there."""
        controls, self._controls = self._controls, []
        await self._settled()
        self._apply_labels([control for _, control in controls if isinstance(control, LabelPattern)])
        deletions = [control for _, control in controls if isinstance(control, DeleteSession)]
        if deletions:
            await self._delete(deletions)
        self._row = replace(self._row, controls=controls[-1][0] + 1)
        await self._commit()

    def _apply_labels(self, labels: Sequence[LabelPattern]) -> None:
        """What is absolved changes with the checkpoint that also says that these controls were applied."""
        metrics, name = self.context.metrics, self.context.name
        for label in labels:
            is_normal = label.label == NORMAL
            absolved, forgotten = with_label(self.state.absolved, int(label.pattern, 16), is_normal=is_normal)
            kept = with_label_of_profiles(
                self.state.kept, int(label.pattern, 16), is_anomaly=label.label != NORMAL, parts=self._holding.parts
            )  # fmt: skip
            self.state = replace(self.state, absolved=absolved, kept=kept)
            self._row = replace(self._row, labelled=(label.labels.normal, label.labels.anomaly))
            metrics.forgotten_labels.labels(name).inc(forgotten)
            log.info(
                "pattern labelled",
                stream=name,
                partition=self.place.partition,
                pattern=label.pattern,
                label=label.label,
            )
        self.context.metrics.tell_labels(name, *self._row.labelled)

    async def _delete(self, deletions: Sequence[DeleteSession]) -> None:
        """Delete sessions: once this has committed, neither memory nor RocksDB nor the changelog gives them back.

        Only then does the partition row say so: a crash meanwhile leads here again.
        """
        names = list(dict.fromkeys(control.session for control in deletions))
        self._holding.store.forget(names)
        if self.state.schema is not None:  # it may hold values that the sessions had
            self.state = replace(self.state, schema=self.state.schema.without_values())
        await self._commit()
        await self._holding.erase(names)
        log.info("sessions deleted", stream=self.context.name, partition=self.place.partition, count=len(names))

    def take_promotion(self, served: Served) -> None:
        """Another bundle serves; it will here, between two slices."""
        self._promoted = served

    async def _may_take_it(self, in_hand: Slice | None) -> bool:
        """Whether all that a predecessor may have judged has been judged again; markers are offsets without records."""
        if self.state.next_offset >= self._promoted_from:
            return True
        return in_hand is None and self._has_nothing and await self._worker.read_to_end() and self._has_nothing

    async def _apply_promotion(self) -> None:
        """Judge by another bundle, once a checkpoint has saved all that the one before judged, and says so.

        Sessions' states follow when they are next touched (`detectors.process.rebuild_stale`).
        """
        served, self._promoted = self._promoted, None
        assert served is not None, "asked for only then"
        began = self.context.monotonic()
        await self._settled()
        before = self._holding.served
        self._holding.serve(served)
        self._emitter = replace(self._emitter, parts=self._holding.parts)
        self._nothing = served.decoder.decode([], check_key=True)
        self._row = replace(self._row, bundle=served.digest, runtime=served.runtime)
        if not self._holding.parts.learns_online:
            self.state = replace(self.state, online=None)
        await self._commit()
        log.info(
            "bundle in force", stream=self.context.name, partition=self.place.partition, bundle=str(served.digest)[:12],
            before=str(before.digest)[:12], next_offset=self.state.next_offset,
            paused_ms=round((self.context.monotonic() - began) * 1000),
        )  # fmt: skip

    def _idle_ms(self) -> int:
        """How far beyond the newest event the watermark may be, because nothing came for so long by the wall clock."""
        quiet_s = self.context.monotonic() - self._quiet_since
        watch = self._holding.parts.rates
        for_rates = 0 if watch is None or quiet_s < self.context.idle_s else watch.idle_ms(int(quiet_s * 1000))
        return max(self._idle_sessions_ms(quiet_s), for_rates)

    def _idle_sessions_ms(self, quiet_s: float) -> int:
        rules = self._holding.parts.rules
        if self._holding.store.open_sessions == 0:
            return 0
        windows = self._holding.parts.windows
        if quiet_s >= self.context.idle_s:
            return rules.reorder_ms + rules.gap_ms + 1 + (0 if windows is None else windows.size_ms)
        return rules.reorder_ms if quiet_s >= max(_LEAST_WAIT_S, rules.reorder_ms / 1000) else 0

    async def _move_idle_clock(self) -> None:
        """Move the watermark: first what waits to be put in order is released, in the end every session is over.

        It moves no further than that takes, so records newer than all before still open sessions.
        """
        if not await self._worker.read_to_end() or not self._has_nothing:
            self._quiet_since = self.context.monotonic()
            return
        moved_ms = max(self._idle_ms(), self._moved_ms)
        self.state = replace(self.state, watermark_ms=self.state.watermark_ms + moved_ms - self._moved_ms)
        self._moved_ms = moved_ms
        await self._commit()
        await self._end_due()

    # --- the checkpoint ------------------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Step 0 here; steps 1 to 4 in a task of their own, after the one before has ended."""
        await self._settled()
        state, store = self.state, self._holding.store
        row = replace(
            self._row, next_offset=state.next_offset, watermark_ms=state.watermark_ms, records=state.records,
            recent_ids=state.recent_ids, sessions=store.open_sessions, schema=state.schema, rescoring=state.rescoring,
            explaining=state.explaining, absolved=state.absolved, decided=state.decided,
            keeper=state.keeper,
        )  # fmt: skip
        self._take_copies(row, state.next_offset)

    def _take_copies(self, row: PartitionRow, committed: int) -> None:
        copies = Copies(
            self._holding.store.snapshot(), row, committed, self.state.online, tuple(self._sent), tuple(self._unsent),
            self.state.kept,
        )  # fmt: skip
        passed("checkpoint/0")
        self._sent, self._unsent, self._unsent_bytes = [], [], 0
        self._covering_since, self._uncovered_since = self._uncovered_since, None
        self._due = self.context.monotonic() + self.context.checkpoint_interval_s
        covered = () if self._traces is None else self._traces.covered()
        self._inflight = asyncio.create_task(self._finish_checkpoint(copies, covered))
        self._inflight.add_done_callback(self._report_failure)

    async def _finish_checkpoint(self, copies: Copies, covered: Sequence[SpanContext]) -> None:
        context, began = self.context, self.context.monotonic()
        await self._holding.save(copies)
        self._committed_at = began
        self._holding.store.settle()
        self._covering_since = None
        context.metrics.checkpoints.labels(context.name).observe(context.monotonic() - began)
        if self._traces is not None:
            self._traces.checkpointed(covered, context.monotonic() - began)
        for output in copies.outputs:
            context.metrics.outputs.labels(context.output_topic(output.topic)).inc()

    async def _commit(self) -> None:
        """A whole checkpoint, to its end."""
        await self.checkpoint()
        await self._settled()

    async def _settled(self) -> None:
        """Wait for the checkpoint under way, if there is one; its failure is raised here too."""
        if (inflight := self._inflight) is not None:
            await asyncio.wait([inflight])  # unlike awaiting the task itself, being cancelled here leaves it running
            inflight.result()
            self._inflight = None

    def _report_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._holding.damaged |= isinstance(error, DamagedStateError)
        self._worker.on_failure(self, error)

    # --- closing -------------------------------------------------------------------------------------------------

    async def close(self, *, save: bool, keep: bool = False) -> Holding | None:
        """Take a last checkpoint if `save`, then let go of everything.

        Returns
        -------
        holding
            With `keep`, and if the checkpoint succeeded, what may be taken up again; it was not let go of.
        """
        if self.closed:
            return None
        self.closed = True
        passed("close/begun")
        ready = self._task is not None and not self._holding.findings
        saved = save and ready and await self._save_last()
        await end_task(self._task)
        await end_task(self._inflight)
        context, p = self.context, self.place.partition
        context.controls.leave(self)
        context.promotions.leave(self)
        context.metrics.forget(context.name, p)
        context.health.closed(context.name, p)
        if context.auto_train is not None and p == 0:
            context.auto_train.owns(context.name, yes=False)
        kept = saved and keep
        log.info(
            "partition closed", stream=context.name, partition=p, saved=saved, kept=kept,
            next_offset=self.state.next_offset,
        )  # fmt: skip
        if kept:
            return self._holding
        await self._holding.release()
        return None

    async def _save_last(self) -> bool:
        """A checkpoint of what was scored; what it does not cover is done again by whoever opens next."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S), self._whole:  # a slice cut short would lack outputs
                self._row = replace(self._row, complete=self.state.next_offset >= self._promoted_from)
                await self._commit()
        except Exception as error:
            self.fenced = isinstance(error, ProducerFenced)
            name, p = self.context.name, self.place.partition
            log.warning("last checkpoint failed", stream=name, partition=p, why=repr(error)[:300])
            return False
        passed("close/saved")
        return True
