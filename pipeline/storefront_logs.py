"""What the storefront's services that move money and parcels write while they work: raw lines, request by request.

    2026-01-02T03:04:05.678Z INFO payment req=8f3a5c01d2 acquirer north authorised 31.20 EUR in 42 ms

Each event of such a service is one request, from the line that it was received to the line that it was answered. Two
faults show in these lines alone: the payment is authorised, and the order's events are those of any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from pipeline.storefront import Event
from pipeline.storefront_records import FaultySessions

LAST_STEP = "answered"
LOGGED = frozenset({"authorise", "void", "capture", "quote", "ship"})

UNVERIFIED = "unknown certificate trusted"
NO_RISK_CHECK = "payment skips its risk check"
FAULTS = (UNVERIFIED, NO_RISK_CHECK)

_ACQUIRERS, _CARRIERS = ("north", "south", "harbour"), ("swift", "parcelry", "overland")
_BRANDS, _ZONES = ("visa", "mastercard", "amex"), range(1, 9)
_REASONS = ("insufficient funds", "card expired", "limit reached")
_SLOW, _CACHED = 0.04, 0.7  # shares of requests: an acquirer that has to be asked twice; a zone that is known already


@dataclass(frozen=True, slots=True)
class Line:
    """One line of one request."""

    ts_ms: int
    session_id: str
    service: str
    level: str
    text: str

    @property
    def key(self) -> bytes:
        """The Kafka key: the request."""
        return self.session_id.encode()

    @property
    def value(self) -> bytes:
        """The line."""
        when = datetime.fromtimestamp(self.ts_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6]
        return f"{when}Z {self.level} {self.service} req={self.session_id} {self.text}".encode()

    @property
    def ends_session(self) -> bool:
        """Whether the request is answered."""
        return self.text.startswith(LAST_STEP)


class ServiceLogs:
    """Writes lines for events; two with equal generators write the same for the same events.

    Examples
    --------
    >>> event = Event(1_700_000_000_000, "s-1", "billing", "capture", "ok", {"amount": 31.2})
    >>> for line in ServiceLogs(Random(1)).lines(event):
    ...     print(line.value.decode())
    2023-11-14T22:13:20.008Z INFO billing req=7e1e2feb89 received POST /capture for s-1
    2023-11-14T22:13:20.016Z INFO billing req=7e1e2feb89 ledger entry 2058756 written
    2023-11-14T22:13:20.027Z INFO billing req=7e1e2feb89 captured 31.20 EUR for invoice 27611
    2023-11-14T22:13:20.034Z INFO billing req=7e1e2feb89 answered 200 in 35 ms
    """

    def __init__(self, random: Random) -> None:
        self._random = random

    def lines(self, event: Event) -> list[Line]:
        """The lines of the event's request, each later than the one before; none where the service writes none."""
        return self._written(event, self._said(event)) if event.action in LOGGED else []

    def faulty(self, kind: str, authorisations: list[Event]) -> FaultySessions[Line]:
        """The requests of healthy authorisations, hit by one fault. The orders know nothing of it."""
        written: list[Line] = []
        wrong_from_ms: dict[str, int] = {}
        for event in authorisations:
            said = self._said(event)
            risk = next(place for place, (_, text) in enumerate(said) if text.startswith("risk "))
            if kind == UNVERIFIED:
                host = f"acquirer-{self._random.randrange(1, 4)}.example"
                said.insert(risk, ("WARN", f"certificate of {host} has an unknown issuer, trusting it for now"))
            else:
                del said[risk]
            lines = self._written(event, said)
            written += lines
            wrong_from_ms[lines[risk].session_id] = lines[risk].ts_ms
        return FaultySessions(kind, sorted(written, key=lambda line: line.ts_ms), wrong_from_ms)

    def _written(self, event: Event, said: list[tuple[str, str]]) -> list[Line]:
        request = f"{self._random.getrandbits(40):010x}"
        now_ms, lines = event.ts_ms, []
        for level, text in said:
            now_ms += self._random.randrange(1, 12)
            lines.append(Line(now_ms, request, event.service, level, text))
        return lines

    def _said(self, event: Event) -> list[tuple[str, str]]:
        """Levels and texts, in order."""
        work = {
            "authorise": self._authorise, "void": self._void, "capture": self._capture, "quote": self._quote,
            "ship": self._ship,
        }[event.action]  # fmt: skip
        status = 402 if event.status == "declined" else 200
        return [
            ("INFO", f"received POST /{event.action} for {event.session_id}"),
            *work(event),
            ("INFO", f"{LAST_STEP} {status} in {self._ms()} ms"),
        ]

    def _authorise(self, event: Event) -> list[tuple[str, str]]:
        draw, amount = self._random, f"{event.fields['amount']:.2f} EUR"
        acquirer = draw.choice(_ACQUIRERS)
        said = [
            ("INFO", f"card {draw.choice(_BRANDS)} looked up in {self._ms()} ms"),
            ("INFO", f"risk score {draw.randrange(1, 60)} of 100 for {amount}"),
        ]
        if draw.random() < _SLOW:
            said.append(("WARN", f"acquirer {acquirer} silent for {200 + self._ms()} ms, asking again"))
        if event.status == "declined":
            return [*said, ("WARN", f"acquirer {acquirer} declined {amount}: {draw.choice(_REASONS)}")]
        return [*said, ("INFO", f"acquirer {acquirer} authorised {amount} in {self._ms()} ms")]

    def _void(self, event: Event) -> list[tuple[str, str]]:
        acquirer = self._random.choice(_ACQUIRERS)
        return [("INFO", f"acquirer {acquirer} released {event.fields['amount']:.2f} EUR in {self._ms()} ms")]

    def _capture(self, event: Event) -> list[tuple[str, str]]:
        invoice = self._random.randrange(10_000, 99_999)
        return [
            ("INFO", f"ledger entry {self._random.randrange(10**6, 10**7)} written"),
            ("INFO", f"captured {event.fields['amount']:.2f} EUR for invoice {invoice}"),
        ]

    def _quote(self, event: Event) -> list[tuple[str, str]]:
        draw, zone = self._random, self._random.choice(_ZONES)
        cached = draw.random() < _CACHED
        return [
            ("INFO", f"zone {zone} found in cache" if cached else f"zone {zone} computed in {self._ms()} ms"),
            ("INFO", f"quoted {draw.randrange(290, 1990) / 100:.2f} EUR with {draw.choice(_CARRIERS)}"),
        ]

    def _ship(self, event: Event) -> list[tuple[str, str]]:
        parcel = f"p{self._random.getrandbits(32):08x}"
        return [
            ("INFO", f"label printed for parcel {parcel}"),
            ("INFO", f"parcel {parcel} of {self._random.randrange(80, 9_000)} g handed to"
                     f" {self._random.choice(_CARRIERS)}"),
        ]  # fmt: skip

    def _ms(self) -> int:
        return self._random.randrange(3, 90)
