"""Who is told of which change."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.alerts.change import Change
from pipeline.alerts.routing import ANOMALY_WAIT_MS, Way, quiet_until_ms, ways_of
from pipeline.alerts.settings import AlertSettings, RouteSettings
from tests.pipeline.alerts.made import alerts, incident, rate_anomaly

NAMES = ("a", "b", "pager", "am")
RECEIVERS = {
    "a": {"type": "slack", "url": "env:A"},
    "b": {"type": "slack", "url": "env:B"},
    "pager": {"type": "pagerduty", "routing_key": "env:P"},
    "am": {"type": "alertmanager", "url": "http://am:9093"},
}
LEVELS = ["low", "medium", "high", "critical"]

routes = st.fixed_dictionaries(
    {"receivers": st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)},
    optional={
        "streams": st.lists(st.sampled_from(["orders", "logs", "cpu"]), max_size=2),
        "severity": st.sampled_from(LEVELS),
        "labels": st.dictionaries(
            st.sampled_from(["segment", "kind"]), st.sampled_from(["eu", "us", "opened"]), max_size=2
        ),
        "continue": st.booleans(),
    },
)
some_changes = st.builds(
    incident,
    st.sampled_from(["opened", "closed"]),
    severity=st.sampled_from(LEVELS),
    streams=st.lists(st.sampled_from(["orders", "logs", "cpu"]), min_size=1, max_size=2, unique=True).map(tuple),
    segments=st.sampled_from([[], ["eu"], ["us", "eu"]]),
)


def naive_receivers(change: Change, rules: list[dict[str, Any]]) -> list[str]:
    """The rules read aloud: from the top, who is named by what matches, until one that matches does not go on."""
    told = []
    for rule in rules:
        of_its_streams = not rule.get("streams") or any(s in change.streams for s in rule["streams"])
        bad_enough = LEVELS.index(change.severity) >= LEVELS.index(rule.get("severity", "low"))
        labelled = {**change.labels, **rule.get("labels", {})} == dict(change.labels)
        if of_its_streams and bad_enough and labelled:
            told += [name for name in rule["receivers"] if name not in told]
            if not rule.get("continue"):
                break
    return list(dict.fromkeys(told))


@given(some_changes, st.lists(routes, min_size=1, max_size=4))
def test_routes_say_what_a_naive_reading_says(change: Change, rules: list[dict[str, Any]]) -> None:
    """The receivers of a change, in order and each once, are those of the rules read one by one."""
    reached = {name for rule in rules for name in rule["receivers"]}
    config = AlertSettings.model_validate({"receivers": {n: RECEIVERS[n] for n in reached}, "routes": rules})
    assert [way.receiver for way in ways_of(change, config, 0)] == naive_receivers(change, rules)


def the_way(change: Change, receiver: str = "a", **route: Any) -> Way:
    config = alerts([{"receivers": [receiver], **route}], **{receiver: RECEIVERS[receiver]})
    (way,) = ways_of(change, config, 0)
    return way


def test_changes_of_a_group_share_a_message() -> None:
    """Without grouping a change is alone; with it, equal labels make a group, and an empty list makes one of all."""
    one, other = incident(), incident(streams=("logs",))
    assert the_way(one).group is None
    assert the_way(one, group_by=["segment"]).group == the_way(other, group_by=["segment"]).group
    assert the_way(one, group_by=["stream"]).group != the_way(other, group_by=["stream"]).group
    assert the_way(one, group_by=[]).group == the_way(other, group_by=[]).group
    assert the_way(one, "pager", group_by=[]).group != the_way(other, "pager", group_by=[]).group


def test_anomalies_are_told_by_stream_after_a_minute() -> None:
    """Anomalies never are a message each, whatever the route says, and are not repeated."""
    for route in ({}, {"group_by": [], "group_wait": "1s"}):
        first, second = the_way(rate_anomaly(), **route), the_way(rate_anomaly(1), **route)
        assert first == second
        assert first.group is not None
        assert (first.wait_ms, first.repeat_ms) == (ANOMALY_WAIT_MS, None)
    assert the_way(rate_anomaly(), group_by=[], group_wait="5m").wait_ms == 300_000


def test_alertmanager_is_told_again_before_its_alerts_expire() -> None:
    """Every minute at the latest; others as the route says."""
    assert the_way(incident(), "am").repeat_ms == 60_000
    assert the_way(incident(), "am", repeat="20s").repeat_ms == 20_000
    assert the_way(incident(), "am", repeat=None).repeat_ms is None
    assert the_way(incident()).repeat_ms == 4 * 3_600_000


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("hours", "now", "until"),
    [
        ("22:00-06:00", (1, 15, 21, 59), None),
        ("22:00-06:00", (1, 15, 22, 0), (1, 16, 6, 0)),
        ("22:00-06:00", (1, 16, 5, 59), (1, 16, 6, 0)),
        ("22:00-06:00", (1, 16, 6, 0), None),
        ("12:00-13:30", (1, 15, 12, 30), (1, 15, 13, 30)),
        ("12:00-13:30", (1, 15, 13, 30), None),
        ("22:00-06:00", (3, 28, 23, 0), (3, 29, 6, 0)),  # a night of 23 hours: clocks go forward at two
        ("22:00-06:00", (10, 24, 23, 0), (10, 25, 6, 0)),  # and one of 25
    ],
)
def test_quiet_hours_end_by_the_wall_clock(hours: str, now: tuple[int, ...], until: tuple[int, ...] | None) -> None:
    """Within quiet hours a message waits for their end at its place, also where the clocks change."""
    route = RouteSettings.model_validate({"receivers": ["a"], "quiet_hours": hours, "time_zone": "Europe/Berlin"})
    at = [None if t is None else datetime(2026, *t, tzinfo=BERLIN).astimezone(UTC) for t in (now, until)]
    now_ms, until_ms = (None if t is None else round(t.timestamp() * 1000) for t in at)
    assert now_ms is not None
    assert quiet_until_ms(route, now_ms) == (now_ms if until_ms is None else until_ms)


@given(st.integers(0, 4 * 10**12), st.integers(0, 1439), st.integers(0, 1439))
def test_quiet_hours_last_less_than_a_day(now_ms: int, begin: int, end: int) -> None:
    """What waits leaves within a day and an hour, and is not held again by the same hours."""
    if begin == end:
        return
    hours = "-".join(f"{m // 60:02}:{m % 60:02}" for m in (begin, end))
    route = RouteSettings.model_validate({"receivers": ["a"], "quiet_hours": hours, "time_zone": "Europe/Berlin"})
    until_ms = quiet_until_ms(route, now_ms)
    assert now_ms <= until_ms <= now_ms + 25 * 3_600_000
    assert quiet_until_ms(route, until_ms) == until_ms
