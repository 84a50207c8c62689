"""What receivers are sent: of bounded size, as their APIs have it."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.alerts.change import Change, Message
from pipeline.alerts.receivers import alertmanager, pagerduty, slack, template, webhook
from pipeline.alerts.told import LIMIT, MOST_CHANGES, cut, named
from pipeline.errors import TemplateBodyError
from tests.pipeline.alerts.made import changes, incident, rate_anomaly

NOW_MS = 1_700_000_100_000
several = st.lists(changes(), min_size=1, max_size=MOST_CHANGES).map(tuple)
EVERYTHING = template.compile_template("{{ {'changes': changes, 'id': id, 'test': test, 'repeat': repeat}|tojson }}")


def message(*of: Change, **more: Any) -> Message:
    return Message("m", "ops", of, **more)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(several, st.booleans(), st.booleans())
def test_no_body_reaches_twenty_kilobytes(of: tuple[Change, ...], is_test: bool, is_repeat: bool) -> None:
    """Whatever changes hold, each receiver's body is JSON below the limit; a webhook's is what its model says."""
    sent = message(*of, is_test=is_test, is_repeat=is_repeat)
    one_subject = message(of[-1], is_test=is_test)
    bodies = [
        webhook.body_of(sent), alertmanager.body_of(sent, NOW_MS), slack.body_of(sent),
        pagerduty.body_of(one_subject, "k" * 32), template.body_of(sent, EVERYTHING, is_json=True),
    ]  # fmt: skip
    for body in bodies:
        assert len(body) < LIMIT
        assert orjson.loads(body)
    told = webhook.WebhookBody.model_validate_json(bodies[0], strict=True)
    assert len(told.data.changes) == len(of)


@pytest.mark.parametrize("letter", ["x", "\0", "😀", '"'])
def test_the_largest_message_fits_whole(letter: str) -> None:
    """As many changes as a message may have, each with as much as it can hold, leave none out."""
    long = letter * 30_000
    changes_ = tuple(
        Change(
            f"{long}{n}", f"{long}{n}", "updated", (long,) * 20, "critical", {f"{long}{k}": long for k in range(20)},
            2**62, {"summary": long, "start_ms": 2**62, "session_names": [long] * 20, long: long},
        )
        for n in range(MOST_CHANGES)
    )  # fmt: skip
    sent = message(*changes_)
    assert len(webhook.body_of(sent)) < LIMIT
    assert len({c["id"] for c in orjson.loads(webhook.body_of(sent))["data"]["changes"]}) == MOST_CHANGES
    assert len(alertmanager.body_of(sent, 2**62)) < LIMIT
    assert len({a["labels"]["incident"] for a in orjson.loads(alertmanager.body_of(sent, 2**62))}) == MOST_CHANGES
    assert len(slack.body_of(sent)) < LIMIT
    assert len(template.body_of(sent, EVERYTHING, is_json=True)) < LIMIT
    assert len(pagerduty.body_of(message(changes_[0]), "k" * 32)) < LIMIT


@given(st.text(), st.integers(20, 300))
def test_what_is_cut_fits_and_is_the_beginning(text: str, most: int) -> None:
    """A cut text is short enough as JSON and begins as the whole; names that differ stay different."""
    for short in (cut(text, most), named(text, most)):
        assert len(orjson.dumps(short)) - 2 <= most
    assert text.startswith(cut(text, most, ""))
    assert named(text + "x" * most, most) != named(text + "x" * most + "y", most)


def test_a_change_with_room_is_told_whole() -> None:
    """What fits is told as it stood on the topic."""
    change = incident()
    (told,) = orjson.loads(webhook.body_of(message(change)))["data"]["changes"]
    assert told["incident"] == change.body
    assert (told["id"], told["time"], told["shortened"]) == (change.id, "2023-11-14T22:14:20.000Z", False)


def test_a_large_incident_loses_lists_before_all_else() -> None:
    """Shortened, an incident still has its fields; what names it is whole."""
    (told,) = orjson.loads(webhook.body_of(message(incident(session_names=["x" * 1_000] * 20))))["data"]["changes"]
    assert told["shortened"]
    assert told["incident"]["anomalies"] == 3
    assert len(told["incident"]["session_names"]) == 3
    assert told["id"] == incident().id


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ((incident("closed"),), "incident.closed"),
        ((incident(), incident("updated")), "incidents"),
        ((rate_anomaly(), rate_anomaly(1)), "anomalies"),
    ],
)
def test_the_type_of_a_webhook_says_what_is_in_it(of: tuple[Change, ...], expected: str) -> None:
    """One kind has its name; a test is nothing but a test."""
    assert orjson.loads(webhook.body_of(message(*of)))["type"] == expected
    assert orjson.loads(webhook.body_of(message(*of, is_test=True)))["type"] == "test"


def test_an_alert_ends_when_its_incident_closes() -> None:
    """Opened, it has no end; closed, the same labels have one, and it is not in the future."""
    (opened,) = orjson.loads(alertmanager.body_of(message(incident()), NOW_MS))
    (closed,) = orjson.loads(alertmanager.body_of(message(incident("closed")), NOW_MS))
    assert "endsAt" not in opened
    assert opened["labels"] == closed["labels"]
    assert opened["labels"] | {"incident": ""} == {
        "alertname": "OffbeatIncident", "incident": "", "severity": "high", "stream": "orders", "segment": "eu",
    }  # fmt: skip
    assert closed["endsAt"] == "2023-11-14T22:14:20.000Z"
    (early,) = orjson.loads(alertmanager.body_of(message(incident("closed")), 1_600_000_000_000))
    assert early["startsAt"] == early["endsAt"] == "2020-09-13T12:26:40.000Z"


def test_an_alert_whose_severity_rose_replaces_the_former() -> None:
    """Severity is a label, so the alerts with lower ones are resolved along; a repeat says only what is."""
    low, medium, high = orjson.loads(alertmanager.body_of(message(incident("updated")), NOW_MS))
    assert [a["labels"]["severity"] for a in (low, medium, high)] == ["low", "medium", "high"]
    assert ["endsAt" in a for a in (low, medium, high)] == [True, True, False]
    assert len(orjson.loads(alertmanager.body_of(message(incident("updated"), is_repeat=True), NOW_MS))) == 1


def test_of_one_incident_alertmanager_gets_the_last_word() -> None:
    """Two alerts with the same labels in one request would contradict each other."""
    (alert,) = orjson.loads(alertmanager.body_of(message(incident(), incident("closed", revision=2)), NOW_MS))
    assert "endsAt" in alert


def test_pagerduty_joins_by_the_incident() -> None:
    """The key is the incident's id; closing and merging resolve it."""
    events = [
        orjson.loads(pagerduty.body_of(message(incident(kind)), "KEY")) for kind in ("opened", "merged", "closed")
    ]
    assert [e["event_action"] for e in events] == ["trigger", "resolve", "resolve"]
    assert {e["dedup_key"] for e in events} == {incident().subject}
    assert {e["routing_key"] for e in events} == {"KEY"}
    assert events[0]["payload"]["severity"] == "error"
    long = dataclasses.replace(incident(), subject="s" * 400)
    assert len(orjson.loads(pagerduty.body_of(message(long), "KEY"))["dedup_key"]) <= 255


def test_slack_shows_data_as_text() -> None:
    """Data cannot mention a channel or hide a link."""
    text = orjson.loads(slack.body_of(message(incident(summary="<!channel> a & <http://x|y>"))))["text"]
    assert text == "*opened*, high: &lt;!channel&gt; a &amp; &lt;http://x|y&gt;"
    assert "Still open" in orjson.loads(slack.body_of(message(incident(), is_repeat=True)))["text"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{{ changes[0].nix.x }}", "the template fails: 'dict object' has no attribute 'nix'"),
        ("{{ 1 / 0 }}", "the template fails: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "the template fails: access to attribute '__class__'"),
        ("{% include '/etc/passwd' %}", "the template fails: "),
        ("{{ changes[0].summary }}", "the template makes no JSON"),
        ("{% for i in range(9999) %}line {{ i }}{% endfor %}", "the template makes 20 kB or more"),
        ("{% for i in range(10**9) %}x{% endfor %}", "the template fails: OverflowError: Range too big"),
    ],
)
def test_a_template_that_fails_on_a_message_says_how(text: str, sentence: str) -> None:
    """Errors of templates are sentences; Python's internals and files cannot be reached."""
    with pytest.raises(TemplateBodyError, match=r".*") as error:
        template.body_of(message(incident()), template.compile_template(text), is_json=True)
    assert sentence in str(error.value)


def test_a_template_that_is_none_names_its_line() -> None:
    """A syntax error is found before anything is sent."""
    with pytest.raises(TemplateBodyError, match="wrong at line 2"):
        template.compile_template("a\n{% nix %}")
