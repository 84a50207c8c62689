"""Where a repartitioned record comes from, as headers of its copy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

TOPIC, PARTITION, OFFSET = "offbeat.topic", "offbeat.partition", "offbeat.offset"
Headers = list[tuple[str, bytes]]


def with_origin(headers: Iterable[tuple[str, bytes]] | None, topic: str, partition: int, offset: int) -> Headers:
    """A record's own headers, and then where it lay: text, and numbers in decimal digits."""
    own = [(PARTITION, str(partition).encode()), (OFFSET, str(offset).encode())]
    return [*(headers or ()), (TOPIC, topic.encode()), *own]


def origin_of(record: Any) -> dict[str, Any] | None:
    """Topic, partition and offset of a copy's original; None where it is no copy of ours.

    The last header of a name counts: a source may itself hold copies.
    """
    found = {name: value for name, value in record.headers or () if name in {TOPIC, PARTITION, OFFSET}}
    try:
        partition, offset = int(found[PARTITION]), int(found[OFFSET])
        return {"topic": found[TOPIC].decode(), "partition": partition, "offset": offset}
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
