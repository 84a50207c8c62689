from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from random import Random

import pytest

from pipeline.storefront import FAULTS as ORDER_FAULTS
from pipeline.storefront import Event, Storefront
from pipeline.storefront_logs import FAULTS, LOGGED, NO_RISK_CHECK, UNVERIFIED, Line, ServiceLogs
from pipeline.storefront_records import FaultySessions

START_MS = 1_760_000_000_000

# What a request may say, in order, once more: as patterns, written from what the services do.
RECEIVED, ANSWERED = r"received POST /(\w+) for s-[0-9a-f]{10}", r"answered (200|402) in \d+ ms"
CARD, RISK = r"card \w+ looked up in \d+ ms", r"risk score \d+ of 100 for \d+\.\d\d EUR"
SILENT, AUTHORISED = r"acquirer \w+ silent for \d+ ms, asking again", r"acquirer \w+ authorised \d+\.\d\d EUR in \d+ ms"
DECLINED = r"acquirer \w+ declined \d+\.\d\d EUR: (insufficient funds|card expired|limit reached)"
WORK = {
    "authorise": rf"{CARD}\n{RISK}\n({SILENT}\n)?({AUTHORISED}|{DECLINED})",
    "void": r"acquirer \w+ released \d+\.\d\d EUR in \d+ ms",
    "capture": r"ledger entry \d{7} written\ncaptured \d+\.\d\d EUR for invoice \d{5}",
    "quote": r"zone \d (found in cache|computed in \d+ ms)\nquoted \d+\.\d\d EUR with \w+",
    "ship": r"label printed for parcel (p\w{8})\nparcel \1 of \d+ g handed to \w+",
}


def is_healthy(request: list[Line]) -> bool:
    """Whether a request says what its kind of request says, in that order."""
    said = "\n".join(line.text for line in request)
    action = re.match(RECEIVED, said)
    if action is None or action[1] not in WORK:
        return False
    work = WORK[action[1]].replace(r"\1", r"\2")  # a group comes before it here
    whole = re.fullmatch(rf"{RECEIVED}\n{work}\n{ANSWERED}", said)
    return whole is not None and (("declined" in said) == ("answered 402" in said))


def by_request(lines: Iterable[Line]) -> dict[str, list[Line]]:
    requests: dict[str, list[Line]] = {}
    for line in lines:
        requests.setdefault(line.session_id, []).append(line)
    return requests


def written(events: Iterable[Event], seed: int = 1) -> Iterator[Line]:
    logs = ServiceLogs(Random(seed))
    for event in events:
        yield from logs.lines(event)


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return list(Storefront(Random(7)).healthy(START_MS, 120_000, 30.0))


def faulty(kind: str, seed: int) -> tuple[list[Event], FaultySessions[Line]]:
    bought, _ = Storefront(Random(seed)).purchases(START_MS + 20_000, 3_000, 30, opens_ms=START_MS)
    paid = [event for event in bought if event.action == "authorise"]
    return paid, ServiceLogs(Random(seed)).faulty(kind, paid)


def test_same_seed_same_lines(events: list[Event]) -> None:
    """Two loggers with equal generators write the same lines for the same events; another seed writes others."""
    lines = [line.value for line in written(events)]
    assert [line.value for line in written(events)] == lines
    assert [line.value for line in written(events, 2)] != lines
    assert [faulty(kind, 7) for kind in FAULTS] == [faulty(kind, 7) for kind in FAULTS]


def test_each_logged_event_is_one_request(events: list[Event]) -> None:
    """Requests and events that are logged are as many; a request's lines are each later than the one before."""
    logged = [event for event in events if event.action in LOGGED]
    requests = by_request(written(events))
    assert [lines[0].text.split()[2] for lines in requests.values()] == [f"/{event.action}" for event in logged]
    for event, lines in zip(logged, requests.values(), strict=True):
        assert {line.service for line in lines} == {event.service}
        assert event.ts_ms < lines[0].ts_ms
        assert all(a.ts_ms < b.ts_ms for a, b in pairwise(lines))
        assert lines[-1].ts_ms < event.ts_ms + 100
        assert [line.ends_session for line in lines] == [False] * (len(lines) - 1) + [True]


def test_healthy_requests_keep_the_rules(events: list[Event]) -> None:
    """Every request says what a checker of its own knows; the rare lines come too, and WARN marks them."""
    requests = by_request(written(events))
    assert [lines for lines in requests.values() if not is_healthy(lines)] == []
    words = Counter(line.text.split()[2] for lines in requests.values() for line in lines if line.level == "WARN")
    assert words.keys() == {"silent", "declined"}
    assert {line.level for lines in requests.values() for line in lines} == {"INFO", "WARN"}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("seed", range(5))
def test_each_fault_breaks_a_request_where_it_says(kind: str, seed: int) -> None:
    """A faulty request is one that no healthy one is like, and is so from the line that is named as the first wrong."""
    paid, made = faulty(kind, seed)
    requests = by_request(made.events)
    assert made.kind == kind
    assert requests.keys() == made.wrong_from_ms.keys()
    assert len(requests) == len(paid) == 30
    for name, lines in requests.items():
        assert not is_healthy(lines)
        before = [line.text for line in lines if line.ts_ms < made.wrong_from_ms[name]]
        wrong = next(line.text for line in lines if line.ts_ms == made.wrong_from_ms[name])
        assert re.fullmatch(rf"{RECEIVED}\n{CARD}", "\n".join(before))
        assert not re.fullmatch(RISK, wrong)


def test_each_fault_is_what_its_name_says() -> None:
    """One says a line that healthy requests never say, with the rest as ever; the other leaves one line out."""
    for lines in by_request(faulty(UNVERIFIED, 1)[1].events).values():
        odd = [line for line in lines if "unknown issuer" in line.text]
        assert len(odd) == 1
        assert is_healthy([line for line in lines if line not in odd])
    for lines in by_request(faulty(NO_RISK_CHECK, 1)[1].events).values():
        texts = [line.text for line in lines]
        assert not any(text.startswith("risk") for text in texts)
        assert any(re.fullmatch(AUTHORISED, text) for text in texts)


@pytest.mark.parametrize("kind", ORDER_FAULTS)
def test_faults_of_orders_leave_no_trace_in_the_lines(kind: str) -> None:
    """The requests of a visit that goes wrong are healthy, each for itself."""
    visits = Storefront(Random(1)).faulty(kind, START_MS + 20_000, 3_000, 30, opens_ms=START_MS)
    assert all(map(is_healthy, by_request(written(visits.events)).values()))


def test_line_is_text_keyed_by_request(events: list[Event]) -> None:
    """A line begins with its moment, level, service and request, and its key is the request."""
    for line in list(written(events))[:200]:
        assert line.key.decode() == line.session_id
        assert re.fullmatch(
            rf"2025-10-09T0\d:\d\d:\d\d\.\d{{3}}Z (INFO|WARN) (payment|billing|shipping) req={line.session_id} .+",
            line.value.decode(),
        )
