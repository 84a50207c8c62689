"""Ids of anomalies and decisions, read back: which record or session of which partition one names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.outputs import Place, message_id

_FORM = re.compile(
    r"([a-z0-9._-]+)/([A-Za-z0-9._-]+)(?:~([0-9]+))?/([0-9]+)/([0-9]+)/(record|session|(?:window|session)-[0-9]+)"
)

_RATE = re.compile(r"[a-z0-9._-]+/[A-Za-z0-9._~-]+/[0-9]+/[0-9]+/rate(?:/[^/]*)?")


@dataclass(frozen=True)
class AnomalyId:
    """An id in its parts; `what` is `record` or `session`, of windows `window-END` or `session-END`."""

    stream: str
    place: Place
    offset: int
    what: str

    def __str__(self) -> str:
        return message_id(self.stream, self.place, self.offset, self.what)

    @property
    def is_session(self) -> bool:
        """Whether it names a session."""
        return self.what.startswith("session")

    @classmethod
    def parse(cls, text: str) -> AnomalyId:
        """Read an id.

        Raises
        ------
        UsageError
            It is none.

        >>> AnomalyId.parse("orders/shop.orders~1/0/57/record").place
        Place(topic='shop.orders', partition=0, epoch=1)
        """
        if _RATE.fullmatch(text):
            message = (
                f"{text!r} names a count of many records: there is none to replay, and no pattern to label; read what "
                "was counted and expected with `offbeat tail`, and mute what shall not count with `offbeat mute`"
            )
            raise UsageError(message)
        found = _FORM.fullmatch(text)
        if found is None:
            message = (
                f"{text!r} is no id of an anomaly: these look like orders/shop.orders/0/57/record, and "
                "`offbeat tail --json` has them under `id`"
            )
            raise UsageError(message)
        stream, topic, epoch, partition, offset, what = found.groups()
        return cls(stream, Place(topic, int(partition), int(epoch or 0)), int(offset), what)
