"""Which bundle serves each stream: told on the models topic, loaded beside scoring, brought to partitions as a control.

What a partition's rows say is in force stays in force until the partition has taken the next bundle at a checkpoint, so
a replay after a crash judges as the first time. When a worker starts, the later of two counts: what the `serving` file
says, and what the topic does. From then on the topic alone does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakValueDictionary

from aiokafka import AIOKafkaConsumer, TopicPartition

from models.errors import BundleError, StoreUnavailableError
from pipeline.clients import Clients
from pipeline.loading import Served
from pipeline.logs import get_logger
from pipeline.metrics import Metrics
from pipeline.promotions import parse_promotion
from pipeline.wire import Promotion

_POLL_MS = 500
_PAUSE_S = 1.0
_RETRY_S = 10.0  # between two looks for a bundle that was promoted and is not there: a copy may be under way

log = get_logger()


class Follower(Protocol):
    """What promotions are brought to."""

    def take_promotion(self, served: Served) -> None:
        """Take it at a checkpoint, soon."""


class PromotionReader:
    """Shared by a worker's partitions; started before the first is opened.

    Parameters
    ----------
    current, promoted_ms
        By stream, what serves by the `serving` files, and since when.
    load
        Reads a stream's bundle by its digest (None: parts without one) and makes it ready to score. Runs in a thread.
    """

    def __init__(
        self, clients: Clients, topic: str, current: dict[str, Served], promoted_ms: dict[str, int],
        load: Callable[[str, str | None], Served], metrics: Metrics,
    ) -> None:  # fmt: skip
        self._clients, self._tp, self._load, self._metrics = clients, TopicPartition(topic, 0), load, metrics
        self._current, self._promoted_ms = dict(current), promoted_ms
        self._loaded: WeakValueDictionary[tuple[str, str | None], Served] = WeakValueDictionary()
        for stream, served in current.items():
            self._loaded[stream, served.digest] = served
            self._show(stream, served, promoted_ms[stream])
        self._wanted: dict[str, Promotion] = {}  # not loaded yet
        self._followers: dict[Follower, str] = {}
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the topic to its end, load what it names, and follow it; again is nothing."""
        if self._consumer is not None:
            return
        self._consumer = consumer = self._clients.control_consumer()
        await consumer.start()
        consumer.assign([self._tp])
        end = (await consumer.end_offsets([self._tp]))[self._tp]
        await consumer.seek_to_beginning(self._tp)
        while await consumer.position(self._tp) < end:
            await self._read(consumer)
        self._leave_older()
        await self._load_wanted()
        self._task = asyncio.create_task(self._follow(consumer))

    async def stop(self) -> None:
        """Disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._consumer is not None:
            await self._consumer.stop()
        self._consumer = self._task = None

    def current(self, stream: str) -> Served:
        """What serves now, for a partition that begins."""
        return self._current[stream]

    async def in_force(self, stream: str, digest: str | None) -> Served:
        """What a partition's row says was in force; what serves now, if that is gone."""
        try:
            return await self._loaded_or_load(stream, digest)
        except StoreUnavailableError:
            raise  # it may be there: the opening is tried again
        except BundleError as error:
            now = self._current[stream]
            log.error(
                "bundle in force is gone: its sessions go on under another", stream=stream, bundle=str(digest)[:12],
                instead=str(now.digest)[:12], why=str(error),
            )  # fmt: skip
            return now

    def follow(self, stream: str, digest: str | None, follower: Follower) -> None:
        """Bring a stream's promotions, beginning with what serves now where that is not `digest`."""
        self._followers[follower] = stream
        if self._current[stream].digest != digest:
            follower.take_promotion(self._current[stream])

    def leave(self, follower: Follower) -> None:
        """No more of them."""
        self._followers.pop(follower, None)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        look_again_at = 0.0
        while True:
            try:
                found = await self._read(consumer)
                if found or asyncio.get_running_loop().time() >= look_again_at:
                    look_again_at = asyncio.get_running_loop().time() + _RETRY_S
                    await self._load_wanted()
            except Exception as error:  # promotions wait until the broker is back; scoring does not
                log.warning("promotions cannot be read", why=repr(error)[:300])
                await asyncio.sleep(_PAUSE_S)

    async def _read(self, consumer: AIOKafkaConsumer) -> bool:
        """Take in what has come; whether that names a bundle for one of our streams."""
        found: dict[Any, list[Any]] = await consumer.getmany(self._tp, timeout_ms=_POLL_MS)
        named = False
        for record in found.get(self._tp, []):
            promotion = parse_promotion(record.key, record.value)
            if promotion is not None and promotion.stream in self._current:
                self._wanted[promotion.stream] = promotion
                named = True
        return named

    def _leave_older(self) -> None:
        """What was promoted while no broker answered was never told: the `serving` file is ahead of the topic then."""
        for stream, promotion in list(self._wanted.items()):
            if promotion.issued_ms < self._promoted_ms[stream]:
                del self._wanted[stream]
                if promotion.digest != self._current[stream].digest:
                    log.warning(
                        "other workers may not know what serves: run offbeat models promote with serving",
                        stream=stream, serving=str(self._current[stream].digest)[:12], told=promotion.digest[:12],
                    )  # fmt: skip

    async def _load_wanted(self) -> None:
        """Load what was promoted, and tell the partitions; what cannot be loaded is tried again later."""
        for stream, promotion in list(self._wanted.items()):
            before, digest = self._current[stream], promotion.digest
            if before.digest != digest:
                try:
                    served = await self._loaded_or_load(stream, digest)
                except Exception as error:  # whatever is wrong with one, the others' streams go on
                    log.error(
                        "promoted bundle cannot be loaded", stream=stream, bundle=digest[:12],
                        serving=str(before.digest)[:12], why=str(error) or repr(error),
                    )  # fmt: skip
                    continue
                self._current[stream] = served
                self._show(stream, served, promotion.issued_ms)
                log.info("bundle promoted", stream=stream, bundle=digest[:12], before=str(before.digest)[:12])
                for follower, followed in list(self._followers.items()):
                    if followed == stream:
                        follower.take_promotion(served)
            del self._wanted[stream]

    async def _loaded_or_load(self, stream: str, digest: str | None) -> Served:
        found = self._loaded.get((stream, digest))
        if found is None:
            found = self._loaded[stream, digest] = await asyncio.to_thread(self._load, stream, digest)
        return found

    def _show(self, stream: str, served: Served, promoted_ms: int) -> None:
        metrics = self._metrics
        for gauge in (metrics.bundle, metrics.bundle_trained, metrics.bundle_promoted):
            gauge.remove_by_labels({"stream": stream})
        metrics.bundle.labels(stream, served.digest or "none").set(1)
        if served.trained_s is not None:
            metrics.bundle_trained.labels(stream).set(served.trained_s)
        if served.digest is not None and promoted_ms:
            metrics.bundle_promoted.labels(stream).set(promoted_ms / 1000)
