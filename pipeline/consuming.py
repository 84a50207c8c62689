"""A thread that consumes, transforms and produces in transactions, and starts over when a broker fails it.

What it makes of records, and the offset after them, are committed together or not at all. The group's generation is
checked with each commit (KIP-447), so a worker that has lost a partition without knowing commits nothing of it.
"""

from __future__ import annotations

import contextvars
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as At
from confluent_kafka.admin import AdminClient, OffsetSpec

from pipeline.clients import Clients
from pipeline.errors import BrokerUnavailableError, OffbeatError, StalledError
from pipeline.logs import get_logger
from pipeline.pulse import SESSION_TIMEOUT_S
from pipeline.watchdog import STUCK_S

CALL_S = 30.0  # for one answer of the broker
_CONNECT_AGAIN_S = 1.0
AGAIN_S = 0.1
_PATIENCE_S = 60.0  # with what fails again and again although a broker answers
_APART_S = 30.0  # failures further apart have nothing to do with each other
_JOIN_S = 10.0
NO_ANSWER = {
    KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE,  # noqa: SLF001
    KafkaError._TIMED_OUT_QUEUE, KafkaError.REQUEST_TIMED_OUT, KafkaError.COORDINATOR_NOT_AVAILABLE,  # noqa: SLF001
}  # fmt: skip

log = get_logger()


class StartOverError(Exception):
    """What was read is not what it was taken for; its words say why."""


class ConsumingThread(ABC):
    """What such threads have in common.

    Parameters
    ----------
    name
        Of the thread.
    topic, group
        What it reads, and as a member of which group.
    instance
        The worker's name: static member of the group, and part of the transactional id, so that a worker that is
        started again ends its predecessor's transaction.
    clock
        Monotonic, in seconds.
    """

    def __init__(
        self, name: str, topic: str, group: str, instance: str, clients: Clients, clock: Callable[[], float]
    ) -> None:
        self._topic, self._group, self._instance, self._clients = topic, group, instance, clients
        self._clock = clock
        self._admin = clients.unchecked_admin()
        self._positions: dict[int, int] = {}  # by partition, where reading goes on
        self._assignments = 0
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._failure: OffbeatError | None = None
        self._turned_at = clock()
        self._asked_at = self._awake_since = clock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name=name, daemon=True
        )

    # --- what each does in its own way ---------------------------------------------------------------------------

    @abstractmethod
    def _turn(self, consumer: Consumer, producer: Producer) -> None:
        """One batch, or a short wait in vain."""

    @abstractmethod
    def _take_over(self, consumer: Consumer, partitions: list[At]) -> None:
        """Set the position of each partition that it has now; it had none when this is called."""

    @abstractmethod
    def _forget(self) -> None:
        """Nothing is assigned: drop what was kept of partitions, positions too."""

    @abstractmethod
    def _begins(self) -> None:
        """It will run from now on."""

    @abstractmethod
    def _starts_over(self, why: str) -> None:
        """Something failed, and all begins anew."""

    @abstractmethod
    def _stands(self) -> None:
        """Nothing is done for now."""

    @abstractmethod
    def _stuck(self, still_s: float) -> StalledError:
        """What is raised where the thread has not turned for too long."""

    @abstractmethod
    def _in_vain(self, why: str) -> OffbeatError:
        """What is raised where the same fails again and again although a broker answers."""

    @abstractmethod
    def _at_fault(self, error: Exception) -> OffbeatError:
        """What is raised where a fault of ours ended the thread."""

    # --- for the worker around it --------------------------------------------------------------------------------

    def start(self) -> None:
        """Run from now on; again is nothing."""
        if self._thread.ident is not None:
            return
        self._turned_at = self._clock()
        self._begins()
        self._thread.start()

    def stop(self) -> None:
        """Finish the transaction under way, bounded in time."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def failure(self) -> OffbeatError | None:
        """Why the worker must end, if it must: what failed, or that the thread has not turned for too long.

        To be asked every few seconds: after a longer pause the process did not run, and the thread gets its time anew.
        """
        now = self._clock()
        if now - self._asked_at > STUCK_S / 4:
            self._awake_since = now
        self._asked_at = now
        still_s = min(now - self._turned_at, now - self._awake_since)
        if self._failure is None and self._thread.is_alive() and still_s >= STUCK_S:
            return self._stuck(still_s)
        return self._failure

    # --- for those who are one -----------------------------------------------------------------------------------

    def _read(self, consumer: Consumer, most: int, wait_s: float) -> list[Message] | None:
        """A batch, maybe empty; None where the assignment has changed meanwhile."""
        self._turned_at, assignments = self._clock(), self._assignments
        messages = consumer.consume(most, wait_s)
        if self._assignments != assignments:
            # What came together with an assignment may belong to the one before: librdkafka's batches do not tell.
            self._rewind(consumer)
            return None
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
        return list(messages)

    def _transact(
        self, consumer: Consumer, producer: Producer, after: dict[int, int], offsets: Sequence[At],
        fill: Callable[[], None],
    ) -> bool:  # fmt: skip
        """What `fill` sends and the offsets, in one transaction; whether it committed, and we are at `after`."""
        producer.begin_transaction()
        try:
            fill()
            producer.send_offsets_to_transaction(list(offsets), consumer.consumer_group_metadata(), CALL_S)
            producer.commit_transaction(CALL_S)
        except KafkaException as error:
            if not error.args[0].txn_requires_abort():
                raise
            self._failed(error.args[0].str(), is_outage=error.args[0].code() in NO_ANSWER)
            producer.abort_transaction(CALL_S)
            self._rewind(consumer)
            self._stopped.wait(AGAIN_S)
            return False
        self._positions |= after
        return True

    def _send(
        self, producer: Producer, topic: str, value: bytes | None, key: bytes | None,
        headers: list[tuple[str, bytes]] | None = None, partition: int = -1, timestamp: int = 0,
    ) -> None:  # fmt: skip
        """Hand a message over; whether it arrived, the commit tells."""
        while True:
            try:
                producer.produce(topic, value, key=key, headers=headers or [], partition=partition, timestamp=timestamp)
                return
            except BufferError:  # the broker is slower than we are
                self._turned_at = self._clock()
                producer.poll(0.1)

    # --- the thread ----------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[tuple[Consumer, Producer]]:
        """New clients, in the group; the producer has ended what a predecessor of this name left open."""
        self._admin = self._clients.unchecked_admin()  # an old one asks by leaders' epochs of before an outage
        producer = self._clients.repartition_producer(f"{self._group}/{self._instance}")
        producer.init_transactions(CALL_S)
        consumer = self._clients.repartition_consumer(self._group, self._instance, int(SESSION_TIMEOUT_S * 1000))
        try:
            consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked)
            yield consumer, producer
        finally:
            with suppress(KafkaException, RuntimeError):
                consumer.close()
            self._forget()

    def _assigned(self, consumer: Consumer, partitions: list[At]) -> None:
        self._forget()
        self._take_over(consumer, partitions)
        self._assignments += 1
        self._rewind(consumer)

    def _revoked(self, _consumer: Consumer, _partitions: list[At]) -> None:
        self._assignments += 1
        self._forget()

    def _rewind(self, consumer: Consumer) -> None:
        """Read on from where the last transaction ended, and drop what was fetched ahead."""
        consumer.assign([At(self._topic, p, at) for p, at in self._positions.items()])

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._open() as (consumer, producer):
                    while not self._stopped.is_set() and self._failure is None:
                        self._turn(consumer, producer)
            except KafkaException as error:
                self._failed(error.args[0].str(), is_outage=error.args[0].code() in NO_ANSWER)
            except (TimeoutError, BrokerUnavailableError):
                self._failed("the broker does not answer", is_outage=True)
            except StartOverError as error:
                self._failed(str(error), is_outage=False)
            except Exception as error:  # a fault of ours: nobody may believe that it goes on
                self._failure = self._at_fault(error)
            self._stands()
            if self._failure is not None:
                return
            self._stopped.wait(_CONNECT_AGAIN_S)

    def _failed(self, why: str, *, is_outage: bool) -> None:
        """Take note; what is no outage and does not pass ends the worker."""
        self._starts_over(why[:300])
        self._turned_at = now = self._clock()
        if is_outage:
            return
        if self._failing_since is None or now - self._failed_at >= _APART_S:
            self._failing_since = now
        self._failed_at = now
        if now - self._failing_since >= _PATIENCE_S:
            self._failure = self._in_vain(why)


def kept_offsets(consumer: Consumer, asked: Sequence[At]) -> list[At]:
    """The group's offsets; waits for transactions under way, also those of dead workers, which may yet commit some."""
    kept = consumer.committed(list(asked), timeout=CALL_S) if asked else []
    for at in kept:
        if at.error is not None:
            raise KafkaException(at.error)
    return list(kept)


def offsets_of(admin: AdminClient, asked: Sequence[At], spec: OffsetSpec, isolation: IsolationLevel) -> dict[int, int]:
    """An offset of each partition of one topic."""
    if not asked:
        return {}
    found = admin.list_offsets(dict.fromkeys(asked, spec), isolation_level=isolation, request_timeout=CALL_S)
    return {at.partition: future.result(CALL_S).offset for at, future in found.items()}


def committed_ends(admin: AdminClient, asked: Sequence[At]) -> dict[int, int]:
    """Where one topic's partitions end for a read_committed reader."""
    return offsets_of(admin, asked, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)
