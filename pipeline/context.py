"""What all partitions of a stream share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer

from detectors.parts import Learned, Parts
from pipeline.auto_train import AutoTrain
from pipeline.cold_rows import Memory
from pipeline.control_reader import ControlReader
from pipeline.health import Health
from pipeline.metrics import Metrics
from pipeline.notices import By
from pipeline.outputs import Output
from pipeline.promotion_reader import PromotionReader
from pipeline.recovery import Recovery
from pipeline.topic_ids import TopicIds

if TYPE_CHECKING:
    from pipeline.traces import Traces


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class StreamContext:
    """Settings of a stream as plain values, and the clients its partitions use together.

    Attributes
    ----------
    capacity
        Hot rows of a partition.
    idle_s
        After so much silence by the wall clock a partition's open sessions end.
    send
        Hands an output over; the future is done when the broker has it. Unused with `exactly_once`.
    output_topic
        The name of an output's topic.
    source_is_copied
        Where the stream is repartitioned: whether all that its source holds now has been brought to its internal topic.
    auto_train
        Counts sessions towards a first training, where the worker was asked to.
    incidents_by
        As in `pipeline.outputs.Emitter`.
    traces
        Makes spans, where the config asks for traces.
    """

    name: str
    group: str
    fingerprint: str
    changelog: str
    starts_latest: bool
    exactly_once: bool
    accepts_reset: bool
    capacity: int
    checkpoint_interval_s: float
    idle_s: float
    folder: Path
    memory: Memory
    make_parts: Callable[[Learned | None], Parts]
    promotions: PromotionReader
    sample: float
    make_producer: Callable[[str], AIOKafkaProducer]
    recovery: Recovery
    controls: ControlReader
    topic_ids: TopicIds
    send: Callable[[Output], Awaitable[asyncio.Future[Any]]]
    output_topic: Callable[[str], str]
    metrics: Metrics
    health: Health
    source_is_copied: Callable[[], Awaitable[bool]] | None = None
    auto_train: AutoTrain | None = None
    incidents_by: By | None = None
    traces: Traces | None = None
    monotonic: Callable[[], float] = time.monotonic
    now_ms: Callable[[], int] = wall_clock_ms

    @property
    def is_repartitioned(self) -> bool:
        """Whether the records are copies that carry where they come from."""
        return self.source_is_copied is not None

    def rows_of(self, partition: int) -> Path:
        """The folder of a partition's RocksDB."""
        return self.folder / f"{self.name}-{partition}"
