"""What the storefront's telemetry has in common: a record, and the truth about those that a fault made wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Record(Protocol):
    """What one record tells, whatever its stream."""

    @property
    def ts_ms(self) -> int:
        """When, milliseconds since 1970."""

    @property
    def session_id(self) -> str:
        """The session it belongs to."""

    @property
    def service(self) -> str:
        """Who tells it."""

    @property
    def key(self) -> bytes:
        """The Kafka key: the session."""

    @property
    def value(self) -> bytes:
        """The Kafka value."""

    @property
    def ends_session(self) -> bool:
        """Whether it is its session's last."""


R_co = TypeVar("R_co", bound=Record, covariant=True)


@dataclass(frozen=True)
class FaultySessions(Generic[R_co]):
    """The sessions one fault hit, and the truth about them.

    Attributes
    ----------
    kind
        What broke, in words.
    events
        All their records in order of time, those before the fault included.
    wrong_from_ms
        Per session, the time of its first record that should not have come.
    """

    kind: str
    events: Sequence[R_co]
    wrong_from_ms: dict[str, int]
