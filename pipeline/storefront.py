"""A storefront that never was: seeded shopping sessions through a handful of services, healthy or with a fault.

The demo's telemetry. It knows nothing of how sessions are judged: what is wrong with a faulty one, and from which event
on, is written here by the code that made it so, and handed over as ground truth beside the events, never in them.

A healthy visit opens at the home page or, from an advertisement, at an item; it searches, views, reads reviews, adds
and removes, looks into the cart, and may check out: log in or go on as a guest, set an address, get a quote, have the
payment authorised (a decline may be retried twice), captured, the parcel shipped and the order confirmed. Few cancel
after the authorisation, which voids it: rare, and legitimate. Visits end with `session_closed` or are just abandoned.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import orjson

from pipeline.storefront_records import FaultySessions

SERVICE_OF = {
    "open_home": "web", "session_closed": "web",
    "search": "search",
    "view_item": "catalog", "read_reviews": "catalog",
    "add_item": "cart", "remove_item": "cart", "view_cart": "cart",
    "login": "account", "reset_password": "account", "logout": "account",
    "start_checkout": "checkout", "as_guest": "checkout", "set_address": "checkout", "confirm": "checkout",
    "quote": "shipping", "ship": "shipping",
    "authorise": "payment", "void": "payment", "capture": "billing",
}  # fmt: skip
# Steps our own services take, one right after the other; all else waits for a person.
MACHINE_STEPS = frozenset({"quote", "capture", "ship", "confirm"})
ITEM_STEPS = frozenset({"view_item", "read_reviews", "add_item", "remove_item"})
MONEY_STEPS = frozenset({"authorise", "capture", "void"})

END_ACTION = "session_closed"

# People here think fast, so that visits begin and end within a demo of less than a minute. A visitor who is silent for
# longer than the longest thought has left.
SHORTEST_THOUGHT_MS, LONGEST_THOUGHT_MS = 150, 8_000
_TYPICAL_THOUGHT_LOG_MS, _THOUGHT_SPREAD = 6.2, 0.9  # lognormal: half a second, one in ten above 1.6 s

PAYMENT_TRIES, LOGIN_TRIES = 3, 2
_REGIONS, _DEVICES = ("eu-west", "eu-north", "us-east", "ap-south"), ("phone", "desktop", "tablet")

REPEATED_CAPTURE = "payment captured repeatedly"
SKIPPED_AUTHORISATION = "checkout skips authorisation"
BOT = "bot fills carts"
WRONG_ORDER = "steps in the wrong order"
FAULTS = (REPEATED_CAPTURE, SKIPPED_AUTHORISATION, BOT, WRONG_ORDER)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that one service did for one visit.

    Attributes
    ----------
    ts_ms
        When, milliseconds since 1970.
    fields
        More that such an event would carry; the demo's detectors are not told of it.
    """

    ts_ms: int
    session_id: str
    service: str
    action: str
    status: str
    fields: dict[str, Any]

    @property
    def key(self) -> bytes:
        """The Kafka key: the session."""
        return self.session_id.encode()

    @property
    def ends_session(self) -> bool:
        """Whether it is its visit's last, by what it says."""
        return self.action == END_ACTION

    @property
    def value(self) -> bytes:
        """The Kafka value, JSON."""
        body = {
            "ts": self.ts_ms, "session_id": self.session_id, "service": self.service, "action": self.action,
            "status": self.status, **self.fields,
        }  # fmt: skip
        return orjson.dumps(body)


@dataclass(slots=True)
class _Step:
    """What a visit does next, `wait_ms` after what it did before."""

    action: str
    status: str
    wait_ms: int


_Make = Callable[[Random], tuple[list[_Step], int]]  # a visit, and a place in it


class Storefront:
    """Makes visits; two with equal generators make the same ones.

    Examples
    --------
    >>> events = list(Storefront(Random(1)).healthy(1_700_000_000_000, 5_000, sessions_per_s=2.0))
    >>> events == list(Storefront(Random(1)).healthy(1_700_000_000_000, 5_000, sessions_per_s=2.0))
    True
    >>> sorted({event.service for event in events} & {"web", "catalog", "search"})
    ['catalog', 'search', 'web']
    """

    def __init__(self, random: Random) -> None:
        self._random = random

    def healthy(self, start_ms: int, duration_ms: int, sessions_per_s: float) -> Iterator[Event]:
        """Yield healthy visits merged by time.

        They begin at random moments from `start_ms` on for `duration_ms`; the last ones end later than that.
        """
        waiting: list[tuple[int, int, Event]] = []  # the number settles ties in order of creation
        number = 0
        opens_ms = start_ms + self._random.expovariate(sessions_per_s) * 1000
        while opens_ms < start_ms + duration_ms:
            while waiting and waiting[0][0] <= opens_ms:
                yield heapq.heappop(waiting)[2]
            for event in self._events(_Visit(self._random).steps, int(opens_ms)):
                heapq.heappush(waiting, (event.ts_ms, number, event))
                number += 1
            opens_ms += self._random.expovariate(sessions_per_s) * 1000
        while waiting:
            yield heapq.heappop(waiting)[2]

    def faulty(self, kind: str, at_ms: int, spread_ms: int, sessions: int, opens_ms: int) -> FaultySessions[Event]:
        """Visits hit by one fault; in each, the first wrong event falls into `spread_ms` from `at_ms` on.

        They are healthy until the fault. None begins before `opens_ms`, which must leave a few seconds to get there.
        """
        return FaultySessions(kind, *self._timed(_BREAK[kind], at_ms, spread_ms, sessions, opens_ms))

    def purchases(self, at_ms: int, spread_ms: int, sessions: int, opens_ms: int) -> tuple[list[Event], dict[str, int]]:
        """Healthy visits whose payment is authorised within `spread_ms` from `at_ms` on, and when each of them is."""
        return self._timed(_purchase, at_ms, spread_ms, sessions, opens_ms)

    def _timed(
        self, make: _Make, at_ms: int, spread_ms: int, sessions: int, opens_ms: int
    ) -> tuple[list[Event], dict[str, int]]:
        """Visits in order of time, and when each reaches the place that `make` gives with it."""
        events: list[Event] = []
        reached_ms: dict[str, int] = {}
        while len(reached_ms) < sessions:
            steps, place = make(self._random)
            at_place_ms = at_ms + self._random.randrange(spread_ms)
            first_ms = at_place_ms - sum(step.wait_ms for step in steps[1 : place + 1])
            if first_ms >= opens_ms:
                made = self._events(steps, first_ms)
                events += made
                reached_ms[made[0].session_id] = at_place_ms
        return sorted(events, key=lambda event: event.ts_ms), reached_ms

    def _events(self, steps: list[_Step], start_ms: int) -> list[Event]:
        """Steps with a session, times and what else such events carry."""
        session_id = f"s-{self._random.getrandbits(40):010x}"
        region, device = self._random.choice(_REGIONS), self._random.choice(_DEVICES)
        item, amount = self._random.randrange(1, 2_000), self._random.randrange(500, 25_000) / 100
        now_ms, events = start_ms, []
        for number, step in enumerate(steps):
            now_ms += step.wait_ms if number else 0
            fields: dict[str, Any] = {"region": region, "device": device, "took_ms": 3 + item * (number + 7) % 41}
            if step.action in ITEM_STEPS:
                fields["item"] = f"sku-{item + number:04d}"
            elif step.action in MONEY_STEPS:
                fields["amount"] = amount
            events.append(Event(now_ms, session_id, SERVICE_OF[step.action], step.action, step.status, fields))
        return events


class _Visit:
    """One healthy visit as steps, told from the front; `buys` makes one that gets as far as a confirmed order."""

    def __init__(self, random: Random, *, buys: bool = False) -> None:
        self.steps: list[_Step] = []
        self._random = random
        self._buys = buys
        self._in_cart = 0
        self._logged_in = False
        self._shop()

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _do(self, action: str, status: str = "ok") -> None:
        if action in MACHINE_STEPS:
            wait_ms = self._random.randrange(20, 180)
        else:
            thought = self._random.lognormvariate(_TYPICAL_THOUGHT_LOG_MS, _THOUGHT_SPREAD)
            wait_ms = min(max(SHORTEST_THOUGHT_MS, int(thought)), LONGEST_THOUGHT_MS)
        self.steps.append(_Step(action, status, wait_ms))

    def _shop(self) -> None:
        if self._chance(0.75):
            self._do("open_home")
            if self._chance(0.35):
                self._login()
        else:
            self._view()
        while self._browses():
            self._look_around()
            if self._in_cart and self._chance(0.5) and self._checks_out():
                break
        else:
            if not self._buys and self._chance(0.4):
                return  # abandoned: no end event
        self._leave()

    def _browses(self) -> bool:
        return len(self.steps) < 2 or (self._buys and not self._in_cart) or self._chance(0.4)

    def _look_around(self) -> None:
        self._do("search")
        for _ in range(self._random.choice((1, 1, 2))):
            self._view()

    def _view(self) -> None:
        self._do("view_item")
        if self._chance(0.2):
            self._do("read_reviews")
        if self._chance(0.35):
            sold_out = self._chance(0.05)
            self._do("add_item", "sold_out" if sold_out else "ok")
            self._in_cart += not sold_out

    def _login(self) -> None:
        """Up to `LOGIN_TRIES`; who fails them all resets the password, which logs in."""
        for _ in range(LOGIN_TRIES):
            self._do("login")
            if not self._chance(0.12):
                break
            self.steps[-1].status = "declined"
        else:
            self._do("reset_password")
        self._logged_in = True

    def _checks_out(self) -> bool:
        """From the cart to a confirmed order; False where the visitor goes back to browsing."""
        self._do("view_cart")
        while self._in_cart and self._chance(0.12):
            self._do("remove_item")
            self._in_cart -= 1
        if not self._in_cart or (not self._buys and self._chance(0.2)):
            return False
        self._do("start_checkout")
        if not self._logged_in and self._chance(0.5):
            self._login()
        elif not self._logged_in:
            self._do("as_guest")
        self._do("set_address")
        self._do("quote")
        if not self._pays():
            return True
        for action in ("capture", "ship", "confirm"):
            self._do(action)
        return True

    def _pays(self) -> bool:
        """Authorise, with retries; False where all are declined or, rarely, where the visitor then cancels."""
        for _ in range(PAYMENT_TRIES):
            self._do("authorise")
            if self._buys or not self._chance(0.12):
                break
            self.steps[-1].status = "declined"
        else:
            return False
        if not self._buys and self._chance(0.04):
            self._do("void")
            return False
        return True

    def _leave(self) -> None:
        if self._logged_in:
            self._do("logout")
        self._do(END_ACTION)


def _purchase(random: Random) -> tuple[list[_Step], int]:
    """A visit that buys, and where in it the payment is authorised."""
    while True:
        steps = _Visit(random, buys=True).steps
        actions = [step.action for step in steps]
        if "capture" in actions:
            return steps, actions.index("authorise")


def _repeat_capture(random: Random) -> tuple[list[_Step], int]:
    """A payment service that has lost its answer and captures the same payment again."""
    steps, authorise = _purchase(random)
    again = [_Step("capture", "ok", random.randrange(60, 400)) for _ in range(random.randrange(2, 6))]
    return steps[: authorise + 2] + again + steps[authorise + 2 :], authorise + 2


def _skip_authorisation(random: Random) -> tuple[list[_Step], int]:
    """A checkout that captures money nobody has authorised."""
    steps, authorise = _purchase(random)
    return steps[:authorise] + steps[authorise + 1 :], authorise


def _be_a_bot(random: Random) -> tuple[list[_Step], int]:
    """A script that puts item after item into the cart, looking at none, faster than any person."""
    steps = [_Step("open_home", "ok", 0), _Step("search", "ok", random.randrange(200, 800))]
    steps += [_Step("add_item", "ok", random.randrange(20, 60)) for _ in range(random.randrange(40, 80))]
    return steps, 2


def _disorder(random: Random) -> tuple[list[_Step], int]:
    """Services that no longer wait for one another."""
    steps, authorise = _purchase(random)
    right = steps[authorise : authorise + 4]  # authorise, capture, ship, confirm
    order = random.choice(((0, 2, 1, 3), (0, 3, 1, 2), (0, 1, 3, 2), (2, 0, 1, 3)))
    first_wrong = next(place for place, step in enumerate(order) if place != step)
    return steps[:authorise] + [right[step] for step in order] + steps[authorise + 4 :], authorise + first_wrong


# Per kind: a visit, and the place of its first wrong step.
_BREAK: dict[str, _Make] = {
    REPEATED_CAPTURE: _repeat_capture,
    SKIPPED_AUTHORISATION: _skip_authorisation,
    BOT: _be_a_bot,
    WRONG_ORDER: _disorder,
}
