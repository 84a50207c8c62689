"""The one factory of Kafka clients: every aiokafka and confluent client is made here, from the config."""

from __future__ import annotations

import time
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from pipeline.errors import BrokerUnavailableError
from pipeline.security import aiokafka_options, confluent_options, refusal
from pipeline.settings import Settings

CONNECT_TIMEOUT_S = 10.0
_LOOK_S = 1.0  # whether a broker has refused us meanwhile
# The broker keeps a dead worker's transaction open that long at most, and with it the end of the changelog.
TRANSACTION_TIMEOUT_MS = 15_000
REQUEST_TIMEOUT_MS = 10_000
MAX_MESSAGE_BYTES = 96 << 20  # of an internal topic, so that what a source took fits; brokers take requests of 100 MiB


class Clients:
    """Makes clients for one config."""

    def __init__(self, settings: Settings) -> None:
        self.broker, self.servers = settings.broker, settings.broker.servers

    # --- librdkafka: commands and tests --------------------------------------------------------------------------

    def _confluent(self, extra: dict[str, Any]) -> dict[str, Any]:
        # librdkafka logs to stderr by itself; what matters reaches us as errors, and users as one sentence.
        return {**confluent_options(self.broker), "log_level": 0, "error_cb": _ignore, **extra}

    def unchecked_admin(self) -> AdminClient:
        """The same, for workers that live through outages: nobody has asked whether a broker answers."""
        return AdminClient(self._confluent({}))

    def admin(self) -> AdminClient:
        """A client for topics, connected.

        Raises
        ------
        BrokerUnavailableError, BrokerRefusedError
            Nobody answers, or who answers does not take us: said as soon as it is known.
        """
        heard: list[str] = []
        admin = AdminClient(self._confluent({"error_cb": lambda error: heard.append(error.str())}))
        end = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            try:
                admin.list_topics(timeout=_LOOK_S)
            except KafkaException as error:
                admin.poll(0)  # hands over what was heard
                why = refusal(self.broker, "; ".join([error.args[0].str(), *heard]))
                if isinstance(why, BrokerUnavailableError) and time.monotonic() < end:
                    continue
                raise why from None
            return admin

    def confluent_producer(self) -> Producer:
        """An idempotent producer that places keys as Java clients do."""
        return Producer(self._confluent({"enable.idempotence": True, "partitioner": "murmur2_random", "linger.ms": 20}))

    def confluent_consumer(self, group: str, *, from_start: bool) -> Consumer:
        """A read_committed consumer that commits nothing."""
        return Consumer(
            self._confluent(
                {
                    "group.id": group,
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest" if from_start else "latest",
                    "isolation.level": "read_committed",
                    "enable.partition.eof": False,
                    "fetch.queue.backoff.ms": 10,
                }
            )
        )

    def feed_consumer(self) -> Consumer:
        """For topics followed whole: assigned by hand, from what is there, tells the end of each partition."""
        return Consumer(
            self._confluent(
                {
                    "group.id": "offbeat-feed",  # librdkafka wants one; nothing joins or commits
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "isolation.level": "read_committed",
                    "enable.partition.eof": True,
                    "fetch.queue.backoff.ms": 10,
                    "fetch.wait.max.ms": 100,
                }
            )
        )

    def trainer_consumer(self, group: str, name: str, session_timeout_ms: int) -> Consumer:
        """A member of the trainers' group: what it is assigned says which streams are its own; it reads nothing."""
        return Consumer(
            self._confluent(
                {
                    "group.id": group,
                    "client.id": name,
                    "session.timeout.ms": session_timeout_ms,
                    "heartbeat.interval.ms": session_timeout_ms // 8,
                    "enable.auto.commit": False,
                    "auto.offset.reset": "latest",
                    "partition.assignment.strategy": "roundrobin",
                }
            )
        )

    def changelog_consumer(self) -> Consumer:
        """For recovery: assigned by hand, read_committed, large fetches, tells the end of each partition."""
        return Consumer(
            self._confluent(
                {
                    "group.id": "offbeat-recovery",  # librdkafka wants one; nothing joins or commits
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "error",
                    "isolation.level": "read_committed",
                    "enable.partition.eof": True,
                    "fetch.queue.backoff.ms": 10,
                    "fetch.wait.max.ms": 50,
                    "max.partition.fetch.bytes": 8 << 20,
                    "queued.max.messages.kbytes": 16_384,  # memory a replay takes, beside the batch it writes
                }
            )
        )

    def repartition_consumer(self, group: str, instance: str, session_timeout_ms: int) -> Consumer:
        """A static member of a repartitioner's group: it resets nothing and commits nothing by itself."""
        return Consumer(
            self._confluent(
                {
                    "group.id": group,
                    "group.instance.id": instance,
                    "session.timeout.ms": session_timeout_ms,
                    "heartbeat.interval.ms": session_timeout_ms // 8,
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "error",
                    "isolation.level": "read_committed",
                    "partition.assignment.strategy": "roundrobin",
                    "fetch.wait.max.ms": 50,
                    "queued.max.messages.kbytes": 16_384,
                }
            )
        )

    def repartition_producer(self, transactional_id: str) -> Producer:
        """Transactional; it places keys as Java clients do."""
        return Producer(
            self._confluent(
                {
                    "transactional.id": transactional_id,
                    "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                    "partitioner": "murmur2_random",
                    "message.max.bytes": MAX_MESSAGE_BYTES,
                    "linger.ms": 5,
                }
            )
        )

    # --- aiokafka: the worker ------------------------------------------------------------------------------------

    def output_producer(self) -> AIOKafkaProducer:
        """For outputs: idempotent, all replicas, shared by a worker's partitions."""
        return AIOKafkaProducer(
            **aiokafka_options(self.broker), enable_idempotence=True, acks="all", linger_ms=2,
            max_batch_size=1 << 18, request_timeout_ms=REQUEST_TIMEOUT_MS,
        )  # fmt: skip

    def transactional_producer(self, transactional_id: str) -> AIOKafkaProducer:
        """For one partition's checkpoints; starting it fences the predecessor of the same id."""
        return AIOKafkaProducer(
            **aiokafka_options(self.broker), transactional_id=transactional_id, acks="all", linger_ms=0,
            max_batch_size=1 << 18, transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS, retry_backoff_ms=20,
        )  # fmt: skip

    def group_consumer(
        self, *, group: str, instance: str, assignors: list[Any], session_timeout_ms: int, max_poll_records: int,
        resets_to: str = "none",
    ) -> AIOKafkaConsumer:  # fmt: skip
        """The consumer of a Faust app: static member, read_committed, commits nothing by itself.

        A worker's resets nothing; `resets_to` says otherwise.
        """
        return AIOKafkaConsumer(
            **aiokafka_options(self.broker), client_id=instance, group_id=group, group_instance_id=instance,
            partition_assignment_strategy=assignors, enable_auto_commit=False, auto_offset_reset=resets_to,
            max_poll_records=max_poll_records, isolation_level="read_committed", max_partition_fetch_bytes=1 << 20,
            session_timeout_ms=session_timeout_ms, heartbeat_interval_ms=session_timeout_ms // 8,
            rebalance_timeout_ms=30_000, request_timeout_ms=40_000,
        )  # fmt: skip

    def control_consumer(self) -> AIOKafkaConsumer:
        """For controls: no group, all of the topic by hand."""
        return AIOKafkaConsumer(
            **aiokafka_options(self.broker), isolation_level="read_committed", enable_auto_commit=False,
            auto_offset_reset="earliest", fetch_max_wait_ms=500,
        )  # fmt: skip

    def end_offset_consumer(self) -> AIOKafkaConsumer:
        """For high watermarks: read_uncommitted, because a read_committed client is told the last stable offset."""
        return AIOKafkaConsumer(**aiokafka_options(self.broker), enable_auto_commit=False)


def _ignore(_error: object) -> None:
    """Leave reporting to the caller, who gets the same error as an exception or a timeout."""
