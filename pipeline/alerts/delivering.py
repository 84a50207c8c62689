"""Delivery: a loop for each receiver takes what is due, sends it, and writes to the outbox what became of it.

A receiver's loop waits for nothing but its own receiver. What a message was sent for is over only once the outbox says
so; until then nobody else is given it, and its place among the requests at once stays taken. So a kill doubles no more
than what was under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.alerts.change import Message, Outcome
from pipeline.alerts.clock import SteadyClock
from pipeline.alerts.dead_letters import given_up
from pipeline.alerts.index import FOREVER_MS, Index, Taken
from pipeline.alerts.outbox import Book, Outbox, StaleBookError
from pipeline.alerts.pace import Pace
from pipeline.alerts.rows import Disabled, Open, Rows, Sealed, encode, encode_key
from pipeline.alerts.schedule import delay_ms
from pipeline.alerts.sending import Sender
from pipeline.alerts.settings import AlertSettings, Receiver
from pipeline.logs import get_logger
from pipeline.metrics import Metrics

if TYPE_CHECKING:
    from pipeline.traces import DeliveryTraces, Traces

_LONGEST_WAIT_S = 5.0  # between two looks; what changes meanwhile says so
_LONGEST_THROTTLED_MS = 3 * 86_400_000  # a message that is told to come later for so long is given up
_MOST_GIVEN_UP = 100  # at once
_FINISH_S = 5.0  # for requests under way when partitions go
_SHOW_S = 2.0
_IS_OPEN = {"opened", "updated"}

Send = Callable[[Message], Awaitable[Outcome]]

log = get_logger()


class Delivery:
    """One receiver's loop.

    Parameters
    ----------
    name
        The receiver's; `settings` None is one that the config does not have any more.
    """

    def __init__(
        self, name: str, settings: Receiver | None, outbox: Outbox, send: Send, clock: SteadyClock, metrics: Metrics,
        traces: DeliveryTraces | None = None,
    ) -> None:  # fmt: skip
        self.name, self._settings, self._outbox, self._send = name, settings, outbox, send
        self._clock, self._metrics, self._traces = clock, metrics, traces
        self._pace = Pace(name, (1, 1) if settings is None else settings.rate, clock.now_ms())
        self._parallel = 1 if settings is None else settings.parallel
        self._changed = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self.is_paused = False

    @property
    def _index(self) -> Index:
        return self._outbox.index

    def look(self) -> None:
        """Something may be due that was not before."""
        self._changed.set()

    async def run(self) -> None:
        """Deliver until cancelled; a fault of ours is raised."""
        try:
            while True:
                self._changed.clear()
                wait_s = await self._begin_what_is_due()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait_s)
                self._raise_faults()
        finally:
            for task in self._under_way:
                task.cancel()

    async def finish(self, within_s: float) -> None:
        """Begin nothing more, and wait for what is under way."""
        self.is_paused = True
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=within_s)

    def _raise_faults(self) -> None:
        for task in [task for task in self._under_way if task.done()]:
            self._under_way.discard(task)
            task.result()

    async def _begin_what_is_due(self) -> float:
        """Begin all that may leave now; returns for how long there is nothing to do, in seconds."""
        while not self.is_paused:
            if (why := self._why_in_vain()) is not None:
                if not await self._give_up_all(*why):
                    break
                continue
            busy = len([task for task in self._under_way if not task.done()])
            if busy >= (1 if self._pace.is_down else self._parallel):
                break  # each that ends says so
            now_ms = self._clock.now_ms()
            if (wait_ms := self._pace.wait_ms(now_ms)) > 0:
                return min(_LONGEST_WAIT_S, wait_ms / 1000)
            work = self._next(now_ms)
            if work is None:
                return min(_LONGEST_WAIT_S, max(0, self._index.next_ms(self.name) - now_ms) / 1000)
            task = asyncio.ensure_future(work)
            task.add_done_callback(lambda _: self._changed.set())
            self._under_way.add(task)
        return _LONGEST_WAIT_S

    def _why_in_vain(self) -> tuple[str, str] | None:
        """Reason and detail, where nothing can be delivered to this receiver."""
        if self._settings is None:
            return "no_receiver", f"the config has no receiver {self.name} any more"
        detail = self._index.disabled(self.name)
        return None if detail is None else ("disabled", detail)

    def _next(self, now_ms: int) -> Awaitable[None] | None:
        if (taken := self._index.take(self.name, now_ms)) is not None:
            book = self._outbox.book_now(taken.partition)
            if book is None:
                return None
            if taken.must_keep:
                return self._keep(book, taken)
            self._pace.spend(now_ms)
            return self._deliver(book, taken)
        while (repeat := self._index.take_repeat(self.name, now_ms)) is not None:
            partition, row = repeat
            book = self._outbox.book_now(partition)
            # While a change of it waits, that is told; the row is written anew with it.
            if book is not None and not self._index.waits(partition, self.name, row.change.subject):
                self._pace.spend(now_ms)
                return self._repeat(book, row)
        return None

    # --- one message ---------------------------------------------------------------------------------------------

    async def _keep(self, book: Book, taken: Taken) -> None:
        """Write down what a message tells before it leaves; from then on it can be taken under its id."""
        with suppress(StaleBookError):
            await book.write([taken.sealed(0, self._clock.now_ms())])

    async def _deliver(self, book: Book, taken: Taken) -> None:
        with suppress(StaleBookError):  # opened anew, or another's: there it is found as the outbox has it
            changes = tuple(row.change for row in taken.rows)
            outcome = await self._attempt(Message(taken.id, self.name, changes), [row.trace for row in taken.rows])
            await self._settle(book, taken, outcome)

    async def _attempt(self, message: Message, traces: Sequence[str] = ()) -> Outcome:
        began_ms = self._clock.now_ms()
        try:
            outcome = await self._send(message)
        except Exception as error:  # a fault of ours in one message must not keep others back
            log.exception("alert could not be made", receiver=self.name, message=message.id)
            outcome = Outcome("retry", f"it could not be made: {error!r}")
        self._metrics.alert_deliveries.labels(self.name, outcome.kind).inc()
        now_ms = self._clock.now_ms()
        if self._traces is not None:
            self._traces.attempted(message, outcome, traces, now_ms - began_ms)
        match outcome.kind:
            case "delivered" | "rejected":  # it is well
                self._pace.succeeded()
            case "retry":
                self._pace.failed(now_ms)
            case "throttled":
                self._pace.throttled(now_ms, outcome.retry_after_ms)
            case "gone":
                await self._disable(outcome.detail)
        return outcome

    async def _settle(self, book: Book, taken: Taken, outcome: Outcome) -> None:
        """Write what became of a message."""
        now_ms, attempts = self._clock.now_ms(), taken.attempts + 1
        match outcome.kind:
            case "delivered":
                await book.write(self._delivered(book, taken, now_ms))
                self._metrics.alert_seconds.labels(self.name).observe(
                    max(0, now_ms - min(row.ready_ms for row in taken.rows)) / 1000
                )
            case "rejected" | "gone":
                await self._give_up(book, taken, outcome.kind, outcome.detail, attempts)
                self._said([taken], outcome.kind, outcome.detail)
            case "throttled" if now_ms - taken.rows[0].taken_ms < _LONGEST_THROTTLED_MS:
                await book.write([taken.sealed(taken.attempts, now_ms + self._pace.wait_ms(now_ms))])
            case _:
                retries = [] if self._settings is None else self._settings.retries
                delay = delay_ms(attempts, taken.id, outcome.retry_after_ms, retries)
                if delay is None or outcome.kind == "throttled":
                    await self._give_up(book, taken, "exhausted", outcome.detail, attempts)
                    self._said([taken], "exhausted", outcome.detail)
                else:
                    log.warning(
                        "alert is tried again", receiver=self.name, message=taken.id, why=outcome.detail,
                        after_s=delay // 1000,
                    )  # fmt: skip
                    await book.write([taken.sealed(attempts, now_ms + delay)])

    def _delivered(self, book: Book, taken: Taken, now_ms: int) -> Rows:
        rows = _over(taken)
        for row in taken.rows:  # of a subject the last one counts
            key = encode_key((Open.KIND, self.name, row.change.subject))
            if row.change.kind in _IS_OPEN and row.repeat_ms is not None:
                rows |= [encode(Open(self.name, row.change, row.repeat_ms, now_ms + row.repeat_ms))]
            elif key in rows or self._index.open_row(book.partition, self.name, row.change.subject) is not None:
                rows[key] = None
        return rows

    # --- telling again -------------------------------------------------------------------------------------------

    async def _repeat(self, book: Book, row: Open) -> None:
        with suppress(StaleBookError):
            message = Message(f"{row.change.id}/repeat/{row.told + 1}", self.name, (row.change,), is_repeat=True)
            await self._attempt(message)
            known = self._index.open_row(book.partition, self.name, row.change.subject)
            if known == row:  # else a change was told meanwhile
                next_ms = self._clock.now_ms() + row.every_ms
                await book.write([Open(self.name, row.change, row.every_ms, next_ms, row.told + 1)])

    # --- giving up -----------------------------------------------------------------------------------------------

    async def _give_up(self, book: Book, taken: Taken, reason: str, detail: str, attempts: int) -> None:
        rows = _over(taken)
        for row in taken.rows:
            if self._index.open_row(book.partition, self.name, row.change.subject) is not None:
                rows[encode_key((Open.KIND, self.name, row.change.subject))] = None
        await book.write(rows, given_up(taken, reason, detail, self._clock.wall_ms(), attempts))
        self._metrics.alerts_given_up.labels(self.name, reason).inc(len(taken.rows))

    def _said(self, messages: Sequence[Taken], reason: str, detail: str) -> None:
        log.error(
            "alerts given up; `offbeat alerts redeliver` sends them again", receiver=self.name, messages=len(messages),
            first=messages[0].id, reason=reason, why=detail,
        )  # fmt: skip

    async def _give_up_all(self, reason: str, detail: str) -> bool:
        """Some of what waits for this receiver, and all that would be told again; says whether there was any."""
        taken = list[Taken]()
        while len(taken) < _MOST_GIVEN_UP and (found := self._index.take(self.name, FOREVER_MS)) is not None:
            taken.append(found)
        over = dict[int, Rows]()
        for partition, row in self._index.open_rows(self.name):
            over.setdefault(partition, {})[encode_key(row.key)] = None
        books = {book.partition: book for book in self._outbox.books}
        works = [
            self._give_up(books[t.partition], t, reason, detail, t.attempts) for t in taken if t.partition in books
        ]
        writes = [books[p].write(rows) for p, rows in over.items() if p in books]
        for done in await asyncio.gather(*works, *writes, return_exceptions=True):
            if isinstance(done, BaseException) and not isinstance(done, StaleBookError):
                raise done
        if works:
            self._said(taken, reason, detail)
        return bool(works or writes)

    async def _disable(self, detail: str) -> None:
        """Give it no messages from now on; said once."""
        if self._index.disabled(self.name) is not None:
            return
        row = Disabled(self.name, self._clock.wall_ms(), detail)
        log.error(
            "receiver is disabled; correct it, then `offbeat alerts enable` and `offbeat alerts redeliver`",
            receiver=self.name,
            why=detail,
        )
        with suppress(StaleBookError):
            await asyncio.gather(*(book.write([row]) for book in self._outbox.books))

    # --- what is shown -------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Bring the gauges up to date."""
        count, oldest_ms = self._index.waiting(self.name)
        now_ms = self._clock.now_ms()
        age_s = 0.0 if oldest_ms is None else max(0, now_ms - oldest_ms) / 1000
        self._metrics.alerts_pending.labels(self.name).set(count)
        self._metrics.alerts_oldest.labels(self.name).set(age_s)
        self._metrics.alerts_disabled.labels(self.name).set(self._index.disabled(self.name) is not None)
        self._metrics.alerts_throttled.labels(self.name).set(self._pace.rests(now_ms))


class Delivering:
    """The loops of all receivers, those that the config does not have any more included."""

    def __init__(
        self, settings: AlertSettings, outbox: Outbox, clock: SteadyClock, metrics: Metrics,
        fault: Callable[[BaseException], None], traces: Traces | None = None,
    ) -> None:  # fmt: skip
        self._traces = None if traces is None else traces.of_deliveries()
        self._settings, self._outbox, self._clock, self._metrics = settings, outbox, clock, metrics
        self._fault = fault
        self._sender: Sender | None = None
        self._loops: dict[str, Delivery] = {}
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        """Run the loops; again is nothing."""
        if self._sender is None:
            self._sender = Sender(self._settings)
            for name in self._settings.receivers:
                self._add(name)
            self._run(self._show())

    def look(self) -> None:
        """Something may be due: rows were changed, or a partition was opened."""
        for name in self._outbox.index.receivers() - self._loops.keys():
            self._add(name)
        for loop in self._loops.values():
            loop.look()

    async def resume(self) -> None:
        """Begin, and go on after a pause."""
        await self.start()
        for loop in self._loops.values():
            loop.is_paused = False

    async def pause(self) -> None:
        """Begin nothing more for now, and let what is under way end, bounded in time."""
        await asyncio.gather(*(loop.finish(_FINISH_S) for loop in self._loops.values()))

    async def stop(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._sender is not None:
            await self._sender.close()

    def _add(self, name: str) -> None:
        assert self._sender is not None, "start comes first"
        settings = self._settings.receivers.get(name)
        loop = Delivery(name, settings, self._outbox, self._sender.send, self._clock, self._metrics, self._traces)
        self._loops[name] = loop
        self._run(loop.run())

    def _run(self, work: Any) -> None:
        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fault(error)

        task = asyncio.create_task(work)
        task.add_done_callback(ended)
        self._tasks.append(task)

    async def _show(self) -> None:
        while True:
            for loop in self._loops.values():
                loop.show()
            await asyncio.sleep(_SHOW_S)


def _over(taken: Taken) -> Rows:
    """Tombstones of a message and of what it told."""
    rows: Rows = {encode_key(row.key): None for row in taken.rows}
    if taken.kept:
        rows[encode_key((Sealed.KIND, taken.receiver, taken.id))] = None
    return rows
