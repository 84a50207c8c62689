"""What people ask of running `offbeat alerts` processes: a message once more, or a receiver that is disabled no more.

Requests lie in a topic with as many partitions as the outbox, so that each reaches the process that holds the rows it
is about, and they are taken in as changes are: once, whatever is killed.
"""

from __future__ import annotations

import msgspec

from pipeline.alerts.change import Change


class Redeliver(msgspec.Struct, frozen=True, tag="redeliver"):
    """Send a message once more, with its id and what it told."""

    receiver: str
    message: str
    changes: tuple[Change, ...]


class Enable(msgspec.Struct, frozen=True, tag="enable"):
    """Give a receiver messages again."""

    receiver: str


Request = Redeliver | Enable
_REQUESTS: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def encode_request(request: Request) -> tuple[bytes, bytes]:
    """Key and value."""
    return request.receiver.encode(), msgspec.json.encode(request)


def parse_request(value: bytes | None) -> Request | None:
    """A request from the topic; None: it is none that is known here."""
    try:
        return _REQUESTS.decode(value or b"")
    except msgspec.DecodeError:
        return None
