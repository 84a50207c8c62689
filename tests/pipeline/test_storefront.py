from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from pipeline import storefront, storefront_logs, storefront_metrics
from pipeline.storefront import FAULTS, Event, Storefront
from pipeline.storefront_records import FaultySessions

START_MS = 1_760_000_000_000

# The grammar once more, written from what a shop is and not from the generator: what may stand right before an action.
ENTRY = {"open_home", "view_item"}
BEFORE = {
    "open_home": set(),
    "search": {
        "open_home", "login", "reset_password", "view_item", "read_reviews", "add_item", "view_cart", "remove_item",
    },
    "view_item": {"search", "view_item", "read_reviews", "add_item"},
    "read_reviews": {"view_item"},
    "add_item": {"view_item", "read_reviews"},
    "view_cart": {"view_item", "read_reviews", "add_item"},
    "remove_item": {"view_cart", "remove_item"},
    "login": {"open_home", "login", "start_checkout"},
    "reset_password": {"login"},
    "start_checkout": {"view_cart", "remove_item"},
    "as_guest": {"start_checkout"},
    "set_address": {"start_checkout", "as_guest", "login", "reset_password"},
    "quote": {"set_address"},
    "authorise": {"quote", "authorise"},
    "void": {"authorise"},
    "capture": {"authorise"},
    "ship": {"capture"},
    "confirm": {"ship"},
}  # fmt: skip
# Who pays does not walk off between the authorisation and the confirmed order.
IN_FLIGHT = {"start_checkout", "as_guest", "set_address", "quote", "capture", "ship"}


def broken_rules(session: list[Event]) -> Iterator[tuple[int, str]]:
    """Yield each event that no healthy visit has there: its place, and the rule it breaks."""
    if session[0].action not in ENTRY:
        yield 0, "a visit begins at home or at an item"
    cart, tries = 0, 1
    for place, (before, event) in enumerate(pairwise(session), 1):
        action = event.action
        if before.action == "session_closed":
            yield place, "nothing comes after the end"
        if before.action not in BEFORE.get(action, {before.action}):
            yield place, f"{action} does not follow {before.action}"
        if action in {"logout", "session_closed"} and before.action in IN_FLIGHT:
            yield place, "nobody leaves in the middle of a checkout"
        if action in {"void", "capture"} and before.status != "ok":
            yield place, "only an authorised payment is captured or voided"
        if action in {"login", "authorise"} and before.action == action and before.status == "ok":
            yield place, f"{action} is not repeated once it went well"
        cart += (before.action == "add_item" and before.status == "ok") - (action == "remove_item")
        if cart < 0 or (action == "start_checkout" and cart == 0):
            yield place, "the cart holds what was added"
        tries = tries + 1 if action == before.action else 1
        if tries > {"login": 2, "authorise": 3}.get(action, sys.maxsize):
            yield place, f"{action} is tried that often by nobody"
        by_hand = action not in {"quote", "capture", "ship", "confirm"}
        if not (150 if by_hand else 20) <= event.ts_ms - before.ts_ms <= 8_000:
            yield place, "nobody is that fast, and who stays silent has left"


def by_session(events: Iterable[Event]) -> dict[str, list[Event]]:
    sessions: dict[str, list[Event]] = {}
    for event in events:
        sessions.setdefault(event.session_id, []).append(event)
    return sessions


def faulty(kind: str, seed: int, sessions: int = 30) -> FaultySessions[Event]:
    return Storefront(Random(seed)).faulty(kind, START_MS + 20_000, 3_000, sessions, opens_ms=START_MS)


@pytest.fixture(scope="module")
def healthy() -> list[Event]:
    return list(Storefront(Random(7)).healthy(START_MS, 120_000, 30.0))


def test_same_seed_same_stream(healthy: list[Event]) -> None:
    """Two storefronts with equal generators make the same events, byte for byte; another seed makes others."""
    assert [e.value for e in Storefront(Random(7)).healthy(START_MS, 120_000, 30.0)] == [e.value for e in healthy]
    assert list(Storefront(Random(8)).healthy(START_MS, 120_000, 30.0)) != healthy
    assert [faulty(kind, 7) for kind in FAULTS] == [faulty(kind, 7) for kind in FAULTS]


def test_stream_is_in_order_of_time_and_begins_when_told(healthy: list[Event]) -> None:
    """Visits are merged by time; they open within the span, at the rate asked for, and the last ones end later."""
    assert all(a.ts_ms <= b.ts_ms for a, b in pairwise(healthy))
    opened = [session[0].ts_ms for session in by_session(healthy).values()]
    assert min(opened) >= START_MS
    assert max(opened) < START_MS + 120_000 < healthy[-1].ts_ms
    assert len(opened) == pytest.approx(120 * 30, rel=0.05)


def test_healthy_visits_keep_the_rules(healthy: list[Event]) -> None:
    """No healthy visit breaks a rule of the grammar, as a checker of its own knows it."""
    broken = {name: found for name, session in by_session(healthy).items() if (found := list(broken_rules(session)))}
    assert broken == {}


def test_healthy_visits_have_every_path(healthy: list[Event]) -> None:
    """Orders, declines, retries, a cancelled payment, logouts and abandoned visits all come, the rare ones rarely."""
    actions = Counter((event.action, event.status) for event in healthy)
    sessions = by_session(healthy)
    assert {event.action for event in healthy} == set(storefront.SERVICE_OF)
    assert {event.service for event in healthy} == set(storefront.SERVICE_OF.values())
    assert actions["authorise", "declined"] > 0
    assert 0 < actions["void", "ok"] < 0.01 * len(sessions)
    assert 0.1 < actions["confirm", "ok"] / len(sessions) < 0.4
    assert 0.5 < actions["session_closed", "ok"] / len(sessions) < 0.9
    thoughts = sorted(b.ts_ms - a.ts_ms for session in sessions.values() for a, b in pairwise(session))
    assert thoughts[len(thoughts) // 2] * 4 < thoughts[int(len(thoughts) * 0.98)]


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("seed", range(5))
def test_each_fault_breaks_a_rule_where_it_says(kind: str, seed: int) -> None:
    """Every faulty session is healthy up to the event that is said to be the first wrong one, and broken there."""
    made = faulty(kind, seed)
    sessions = by_session(made.events)
    assert made.kind == kind
    assert sessions.keys() == made.wrong_from_ms.keys()
    assert len(sessions) == 30
    for name, session in sessions.items():
        place, _ = next(broken_rules(session))
        assert session[place].ts_ms == made.wrong_from_ms[name], session


def test_faults_come_when_told() -> None:
    """The first wrong events fall into the span asked for, no session opens too early, and events are in order."""
    for kind in FAULTS:
        made = faulty(kind, 3)
        assert all(START_MS + 20_000 <= ms < START_MS + 23_000 for ms in made.wrong_from_ms.values())
        assert made.events[0].ts_ms >= START_MS
        assert all(a.ts_ms <= b.ts_ms for a, b in pairwise(made.events))


def test_purchases_are_healthy_and_pay_when_told() -> None:
    """A purchase breaks no rule, and has its one authorisation at the moment that is given with it."""
    events, paid_ms = Storefront(Random(3)).purchases(START_MS + 20_000, 3_000, 30, opens_ms=START_MS)
    sessions = by_session(events)
    assert all(a.ts_ms <= b.ts_ms for a, b in pairwise(events))
    assert sessions.keys() == paid_ms.keys()
    for name, session in sessions.items():
        assert list(broken_rules(session)) == []
        paid = [event for event in session if event.action == "authorise"]
        assert [event.ts_ms for event in paid] == [paid_ms[name]]
        assert paid[0].status == "ok"
        assert START_MS + 20_000 <= paid_ms[name] < START_MS + 23_000


def test_each_fault_is_what_its_name_says() -> None:
    """Captures repeat, authorisations are missing, bots are fast and repeat themselves, and orders are disordered."""
    for session in by_session(faulty(storefront.REPEATED_CAPTURE, 1).events).values():
        assert sum(event.action == "capture" for event in session) >= 3
    for session in by_session(faulty(storefront.SKIPPED_AUTHORISATION, 1).events).values():
        assert Counter(event.action for event in session)["capture"] == 1
        assert "authorise" not in {event.action for event in session}
    for session in by_session(faulty(storefront.BOT, 1).events).values():
        assert sum(event.action == "add_item" for event in session) >= 40
        assert all(b.ts_ms - a.ts_ms < 100 for a, b in pairwise(session[1:]))
    orders = {
        tuple(e.action for e in session if e.action in {"authorise", "capture", "ship", "confirm"})
        for session in by_session(faulty(storefront.WRONG_ORDER, 1).events).values()
    }
    assert len(orders) > 1
    assert ("authorise", "capture", "ship", "confirm") not in orders


def test_event_is_json_keyed_by_session(healthy: list[Event]) -> None:
    """The value is one JSON object with time, session, service, action and status; the key is the session; no truth."""
    for event in healthy[:200] + list(faulty(storefront.BOT, 1).events[:50]):
        body = json.loads(event.value)
        assert event.key.decode() == body["session_id"]
        assert (body["ts"], body["service"], body["action"], body["status"]) == (
            event.ts_ms, event.service, event.action, event.status,
        )  # fmt: skip
        assert body.keys() <= {
            "ts", "session_id", "service", "action", "status", "region", "device", "took_ms", "item", "amount",
        }  # fmt: skip


@pytest.mark.parametrize("module", [storefront, storefront_logs, storefront_metrics])
def test_storefront_shares_nothing_with_the_detectors(module: ModuleType) -> None:
    """The generators import nothing of ours but each other, so what is wrong is decided apart from how it is found."""
    source = Path(str(module.__file__)).read_text("utf-8")
    imports = [line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))]
    ours = {name for name in imports if name.split(".")[0] in {"pipeline", "detectors", "features", "models"}}
    assert ours <= {"pipeline.storefront", "pipeline.storefront_records"}
    assert {name.split(".")[0] for name in imports} <= {
        "__future__", "collections", "dataclasses", "datetime", "heapq", "orjson", "pipeline", "random",
        "typing",
    }  # fmt: skip
