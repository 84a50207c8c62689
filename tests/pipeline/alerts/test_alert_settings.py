"""The section `alerts`, and that nobody sees what may be a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.alerts.change import change_of
from pipeline.errors import ConfigError
from pipeline.secrets import Secret
from pipeline.settings import Settings, parse_settings
from tests.pipeline.alerts.made import incident, rate_anomaly

DEMAND = {"streams": {"orders": {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}}}
OPS = {"type": "webhook", "url": "https://h.example.com/x", "secrets": ["env:KEY"]}
TOKEN = "T0K3N-nobody-may-see"


def parse(receiver: Any = OPS, route: dict[str, Any] | None = None, **more: Any) -> Settings:
    routes = [{"receivers": ["ops"]} | (route or {})]
    return parse_settings(DEMAND | {"alerts": {"receivers": {"ops": receiver}, "routes": routes, **more}}, {})


def changed(receiver: dict[str, Any] = OPS, **keys: Any) -> dict[str, Any]:
    return receiver | keys


SLACK = {"type": "slack", "url": "env:SLACK"}


@pytest.mark.parametrize(
    ("receiver", "sentence"),
    [
        (changed(secrets=[TOKEN]), "alerts.receivers.ops.secrets.0: a secret is written as env:NAME or file:PATH"),
        (changed(secrets=[]), "alerts.receivers.ops.secrets is not right; expected at least 1"),
        (changed(SLACK, url=f"https://hooks.slack.com/{TOKEN}"), "alerts.receivers.ops.url: a secret is written as"),
        (changed(url=f"https://u:{TOKEN}@h.example.com/"), "ops.url: a URL with a password in it would be shown"),
        (changed(url=f"ftp://{TOKEN}"), "ops.url: a URL such as https://HOST/PATH was expected"),
        (changed(url=f"https:///{TOKEN}"), "a URL such as https://HOST/PATH was expected"),
        (changed(url=f"https://h/{TOKEN} x"), "a URL such as https://HOST/PATH was expected"),
        (changed(url=f"http://h:99999/{TOKEN}"), "a URL such as https://HOST/PATH was expected"),
        (changed(url=[TOKEN]), "alerts.receivers.ops.url is not right; expected text"),
        (
            changed(type=TOKEN),
            "type is not right; expected one of webhook, alertmanager, slack, pagerduty, template",
        ),
        ({"url": TOKEN}, "ops.type is not right; expected one of webhook"),
        (TOKEN, "alerts.receivers.ops is not right; expected keys and values"),
        (changed(secret="env:X"), "alerts.receivers.ops.secret is no setting; did you mean secrets?"),
        (changed(rate_limit=TOKEN), "ops.rate_limit: a rate such as 60/min, 5/s or 100/h was expected"),
        (changed(parallel=TOKEN), "alerts.receivers.ops.parallel is not right; expected a whole number"),
        (changed(allow_networks=["10.0.0.1/8"]), "'10.0.0.1/8' is no network such as 10.0.0.0/8"),
        (changed(headers={"Host": "env:X"}), "'Host' is no header that can be set here"),
        (changed(headers={"X-Y": TOKEN}), "alerts.receivers.ops.headers.X-Y: a secret is written as"),
    ],
)
def test_a_wrong_receiver_is_named_and_its_values_are_not(receiver: Any, sentence: str) -> None:
    """What was typed into the wrong place may be a secret, so the sentence does without it."""
    with pytest.raises(ConfigError) as error:
        parse(receiver)
    assert sentence in str(error.value)
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize(
    ("route", "more", "sentence"),
    [
        (
            {"receivers": ["ops", "nix"]},
            {},
            "a route names receiver nix, which there is not; alerts.receivers has: o",
        ),
        ({}, {"receivers": {"ops": OPS, "b": SLACK}}, "no route reaches receiver b; add it to a route's `receivers`"),
        ({}, {"routes": []}, "no route reaches receiver ops"),
        ({"streams": ["nix"]}, {}, "alerts names stream nix, which there is not; the config has: orders"),
        ({}, {"labels": {"nix": {"a": "b"}}}, "alerts names stream nix"),
        ({}, {"labels": {"orders": {"kind": "b"}}}, "a label's name is of letters, digits and underscores"),
        ({}, {"receivers": {"o/s": OPS}}, "a receiver's name may have letters, digits"),
        ({"repaet": "1h"}, {}, "alerts.routes.0.repaet is no setting; did you mean repeat?"),
        ({"quiet_hours": "25:00-06:00"}, {}, "quiet_hours is '25:00-06:00'; hours from and until, such as"),
        ({"quiet_hours": "06:00-06:00"}, {}, "hours from and until, such as 22:00-06:00, were expected"),
        ({"time_zone": "Mars/Crater"}, {}, "it is no time zone of this machine's"),
        ({"group_wait": "10s"}, {}, "group_wait waits for changes of one group"),
    ],
)
def test_a_wrong_route_is_named(route: dict[str, Any], more: dict[str, Any], sentence: str) -> None:
    """Routes that lead nowhere, receivers without one, and wrong values are each one sentence."""
    with pytest.raises(ConfigError) as error:
        parse(OPS, route, **more)
    assert sentence in str(error.value)


def test_dumps_show_where_secrets_lie_and_can_be_read_again() -> None:
    """What `offbeat config show` prints is a config, and holds no secret."""
    settings = parse(changed(url="file:/run/url", headers={"Authorization": "env:AUTH"}), {"continue": True})
    dumped = settings.model_dump(mode="json")
    assert dumped["alerts"]["receivers"]["ops"]["url"] == "file:/run/url"
    assert parse_settings(yaml.safe_load(yaml.safe_dump(dumped)), {}) == settings
    assert Settings.model_json_schema()


def test_alerts_come_from_the_environment_too() -> None:
    """Receivers and routes can be set as YAML in variables."""
    environment = {
        "OFFBEAT_ALERTS__RECEIVERS": "{ops: {type: slack, url: 'env:S'}}",
        "OFFBEAT_ALERTS__ROUTES": "[{receivers: [ops]}]",
    }
    assert parse_settings(DEMAND, environment).alerts.receivers["ops"].url == Secret("env:S")


def test_a_secret_is_read_where_it_lies(tmp_path: Path) -> None:
    """White space around it does not count; what is absent, empty or no text is a sentence."""
    held = tmp_path / "secret"
    held.write_text("s3cret\n")
    assert Secret(f"file:{held}").read({}) == Secret("env:S").read({"S": " s3cret "}) == "s3cret"
    for content, sentence in ((b" \n", "is empty; put the secret there"), (b"\xff\xfe", "is no text")):
        held.write_bytes(content)
        with pytest.raises(ConfigError, match=sentence):
            Secret(f"file:{held}").read({})
    with pytest.raises(ConfigError, match="the environment variable S is not set; put the secret there"):
        Secret("env:S").read({})


def test_a_message_of_a_topic_becomes_a_change() -> None:
    """An incident's labels are those of where it was first seen; an anomaly is of its stream."""
    change = incident("updated", revision=3, streams=("orders", "logs"), segments=["us", "eu"])
    assert (change.id, change.subject) == (f"{change.subject}/3", "orders/shop.orders/0/57/record/incident")
    assert change.labels == {"stream": "orders", "segment": "us", "kind": "updated"}
    labelled = change_of(change.body, {"orders": {"team": "shop"}, "logs": {"team": "ops"}})
    assert labelled.labels["team"] == "shop"
    assert (rate_anomaly().subject, rate_anomaly().labels) == (
        "orders/anomalies",
        {"stream": "orders", "kind": "anomaly"},
    )
    with pytest.raises(ValueError, match="'renamed', 'high' is no change of an incident"):
        incident("renamed")
    with pytest.raises(ValueError, match="is no change of an incident"):
        incident(severity="dire")
    with pytest.raises(ValueError, match="'dire' is no severity of an anomaly"):
        change_of(dict(rate_anomaly().body) | {"severity": "dire"}, {})
