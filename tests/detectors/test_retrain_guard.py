"""When a training is asked for, on which span, and which guard says no."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.retrain_guard import (
    ARRIVING_MS,
    DAY_MS,
    WEEK_MS,
    Change,
    GuardRules,
    Known,
    NotYet,
    Past,
    Wanted,
    decide,
    is_quiet,
)

HOUR_MS = 3_600_000
NOW_MS = 1_000 * DAY_MS + 12 * HOUR_MS
RULES = GuardRules(
    frozenset({"drift", "schedule", "labels"}), every_ms=WEEK_MS, span_ms=2 * DAY_MS, labels=3, cool_down_ms=DAY_MS,
    per_week=3, quiet=None, incident_ms=DAY_MS, settle_ms=HOUR_MS, least_records=1_000,
)  # fmt: skip
CHANGE = Change("orders/t/0/9/input_drift", NOW_MS - 3 * HOUR_MS, NOW_MS - 2 * HOUR_MS, "action changed")
DRIFT = Known([CHANGE], served_ms=NOW_MS - DAY_MS)


def an_hour(count: int):
    """A topic that gets so many records an hour, and has since day 900."""
    return lambda moment_ms: max(0, NOW_MS - max(moment_ms, 900 * DAY_MS)) * count // HOUR_MS


def test_a_drift_asks_for_the_new_world() -> None:
    """From where it began, up to what has surely arrived."""
    assert decide(RULES, DRIFT, NOW_MS, an_hour(1_000)) == Wanted(
        "drift", CHANGE.id, "action changed", CHANGE.since_ms or 0, NOW_MS - ARRIVING_MS, CHANGE.since_ms
    )


def test_a_small_new_world_is_waited_for_and_then_filled_up() -> None:
    """While the drift settles nothing is asked; later older records join, so many that there are enough."""
    young = Known([replace(CHANGE, at_ms=NOW_MS - HOUR_MS // 2)], served_ms=NOW_MS)
    waiting = decide(RULES, young, NOW_MS, an_hour(100))
    assert isinstance(waiting, NotYet)
    assert "settle has not passed" in waiting.why
    asked = decide(RULES, DRIFT, NOW_MS, an_hour(100))
    assert isinstance(asked, Wanted)
    assert asked.world_ms is None
    assert 1_000 <= an_hour(100)(asked.since_ms) < 3_000


def test_a_topic_with_too_little_is_said() -> None:
    """Going back helps nothing where nothing is."""
    found = decide(RULES, DRIFT, NOW_MS, lambda _moment: 12)
    assert found == NotYet("the topic holds 12 records, and least_records is 1,000")


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (Known([CHANGE], [Past("orders/manual/1", "manual", NOW_MS - 3 * DAY_MS, True)]), "job orders/manual/1 is not"),
        (Known([CHANGE], [Past("a", "manual", NOW_MS - 5 * HOUR_MS, False)]), "asked for 5 h ago, and cool_down"),
        (Known([CHANGE], incidents=[(NOW_MS - DAY_MS + 1, "x/incident")]), "incident x/incident is open"),
        (Known([CHANGE], [Past(f"{d}", "drift", NOW_MS - d * DAY_MS, False) for d in (2, 3, 4)]), "all of per_week"),
    ],
)
def test_each_guard_says_no_in_a_sentence(known: Known, why: str) -> None:
    """An open job, the cool-down, an open incident, and the budget of the week."""
    found = decide(RULES, known, NOW_MS, an_hour(1_000))
    assert isinstance(found, NotYet)
    assert why in found.why


def test_an_incident_that_does_not_end_is_waited_for_so_long() -> None:
    """A change that alarms all the time is an incident for good; after a day it may be learned."""
    known = replace(DRIFT, incidents=[(NOW_MS - 9 * DAY_MS, "old/incident"), (NOW_MS - DAY_MS, "x/incident")])
    assert isinstance(decide(RULES, known, NOW_MS - 1, an_hour(1_000)), NotYet)
    assert isinstance(decide(RULES, known, NOW_MS, an_hour(1_000)), Wanted)


def test_people_spend_no_budget() -> None:
    """What was asked for by hand counts for the cool-down and for no week."""
    past = [Past(f"{d}", "manual", NOW_MS - d * DAY_MS, False) for d in (2, 3, 4)]
    assert isinstance(decide(RULES, Known([CHANGE], past), NOW_MS, an_hour(1_000)), Wanted)


def test_quiet_hours() -> None:
    """Noon lies in 11:00-13:00, and not in 22:00-06:00."""
    at_noon = replace(RULES, quiet=(11 * 60, 13 * 60))
    assert decide(at_noon, DRIFT, NOW_MS, an_hour(1_000)) == NotYet("these are quiet hours")
    assert isinstance(decide(replace(RULES, quiet=(22 * 60, 6 * 60)), DRIFT, NOW_MS, an_hour(1_000)), Wanted)


def test_a_drift_that_a_job_has_answered_asks_no_more() -> None:
    """What was told before the last job was asked for is its matter, whatever came of it."""
    past = [Past("a", "drift", CHANGE.at_ms + 1, False)]
    assert decide(replace(RULES, cool_down_ms=0), replace(DRIFT, past=past), NOW_MS, an_hour(1_000)) is None


def test_labels_ask_by_the_one_that_was_enough() -> None:
    """Three new ones ask; those before the last job do not count; one more is no other job."""
    labels = [(NOW_MS - n * HOUR_MS, f"l{n}") for n in (9, 4, 3, 2)]
    past = [Past("a", "labels", NOW_MS - 5 * HOUR_MS, False)]
    rules = replace(RULES, cool_down_ms=0)
    for more in ([], [(NOW_MS, "l0")]):
        found = decide(rules, Known(past=past, labels=[*labels, *more], served_ms=NOW_MS), NOW_MS, an_hour(1_000))
        assert isinstance(found, Wanted)
        assert (found.cause, found.trigger) == ("labels", "l2")
        assert found.since_ms == NOW_MS - ARRIVING_MS - RULES.span_ms
    assert decide(rules, Known(past=past, labels=labels[:3], served_ms=NOW_MS), NOW_MS, an_hour(1_000)) is None


def test_age_asks_once() -> None:
    """A week after what serves was promoted, or the last job; the same moment names the job, whenever one looks."""
    served_ms = NOW_MS - WEEK_MS
    for later_ms in (0, HOUR_MS):
        found = decide(RULES, Known(served_ms=served_ms), NOW_MS + later_ms, an_hour(1_000))
        assert isinstance(found, Wanted)
        assert (found.cause, found.trigger) == ("schedule", str(NOW_MS))
    assert decide(RULES, Known(served_ms=served_ms + 1), NOW_MS, an_hour(1_000)) is None
    past = [Past("a", "schedule", NOW_MS - DAY_MS, False)]
    assert decide(RULES, Known(past=past, served_ms=served_ms), NOW_MS, an_hour(1_000)) is None


def test_nothing_asks_unless_it_may() -> None:
    """With no cause in `triggers`, and with nothing to see."""
    assert decide(replace(RULES, triggers=frozenset()), DRIFT, NOW_MS, an_hour(1_000)) is None
    assert decide(RULES, Known(served_ms=NOW_MS), NOW_MS, an_hour(1_000)) is None


@settings(max_examples=60, deadline=None)
@given(
    drifts=st.lists(st.integers(0, 40 * 24), max_size=40), cool_down_h=st.integers(0, 72), per_week=st.integers(1, 4),
    quiet=st.none() | st.tuples(st.integers(0, 1_439), st.integers(0, 1_439)), hours=st.integers(1, 200),
    lasts=st.integers(0, 30),
)  # fmt: skip
def test_whatever_comes_the_guards_hold(
    drifts: list[int], cool_down_h: int, per_week: int, quiet: tuple[int, int] | None, hours: int, lasts: int
) -> None:
    """Forty days, hour by hour: jobs keep their distance, their number a week and the quiet; none has an id twice."""
    rules = replace(RULES, cool_down_ms=cool_down_h * HOUR_MS, per_week=per_week, quiet=quiet, settle_ms=0)
    past: list[Past] = []
    begin_ms = NOW_MS
    for hour in range(40 * 24):
        now_ms = begin_ms + hour * HOUR_MS
        changes = [Change(f"d{n}", begin_ms + d * HOUR_MS, begin_ms + d * HOUR_MS, "") for n, d in enumerate(drifts)]
        known = Known(
            [c for c in changes if c.at_ms <= now_ms],
            [replace(job, is_open=job.asked_ms + lasts * HOUR_MS > now_ms) for job in past], served_ms=begin_ms,
        )  # fmt: skip
        found = decide(rules, known, now_ms, lambda moment_ms, now_ms=now_ms: max(0, now_ms - moment_ms) // hours)
        if isinstance(found, Wanted):
            assert not any(job.is_open for job in known.past)
            assert quiet is None or not is_quiet(quiet, now_ms)
            assert all(now_ms - job.asked_ms >= rules.cool_down_ms for job in past)
            assert 0 <= found.since_ms <= found.until_ms < now_ms
            past.append(Past(f"{found.cause}/{found.trigger}", found.cause, now_ms, True))
    assert len({job.id for job in past}) == len(past)
    for job in past:
        assert sum(job.asked_ms <= other.asked_ms < job.asked_ms + WEEK_MS for other in past) <= per_week
