"""The scoring agent: hands slices to their partitions, which score them and take checkpoints at their own pace."""

from __future__ import annotations

from typing import Any

import faust
from faust.events import Event

from pipeline.transport import SliceApp


def add_scoring_agent(app: SliceApp, topic_name: str, stream: str) -> None:
    """Read a source topic's slices."""
    topic = app.topic(topic_name, key_serializer="raw", value_serializer="raw")
    topic.decode = _untouched(app)

    async def score(slices: faust.Stream) -> None:
        async for event in slices.events():
            for partition, slice_ in event.value:
                partition.take(slice_)

    app.agent(topic, name=f"score-{stream}")(score)


def _untouched(app: SliceApp) -> Any:
    async def decode(message: Any, *, propagate: bool = False) -> Event:
        return Event(app, None, message.value, {}, message)

    return decode
