"""The section `alerts` of the config: who is told, by which way, and of what.

No value of a receiver stands in an error: what was typed into the wrong place may be a secret.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import ConfigDict, Field, field_validator, model_validator

from pipeline.alerts.schedule import DELAYS_MS
from pipeline.secrets import Secret, unseen
from pipeline.stream_settings import DurationMs, Section
from pipeline.wire import Severity

_PERIODS_MS = {"s": 1_000, "min": 60_000, "h": 3_600_000}
_DAY_MS = 86_400_000
_RATE = re.compile(r"^\s*([1-9][0-9]{0,5})\s*/\s*(s|min|h)\s*$")
_HOURS = re.compile(r"^([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])$")
_NAME = re.compile(r"^[A-Za-z0-9._-]{1,100}$")
_HEADER = re.compile(r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")
_LABEL = re.compile(r"^[a-zA-Z_][a-zA-Z0-9_]{0,29}$")  # as Alertmanager takes them
_OWN_LABELS = {"stream", "segment", "kind", "severity", "incident", "alertname"}
_OWN_HEADERS = re.compile(r"^(content-.*|host|transfer-encoding|connection|user-agent|webhook-.*)$", re.IGNORECASE)


class AnyReceiverSettings(Section):
    """What all receivers have beside their `url`."""

    headers: dict[str, Secret] = Field(
        default_factory=dict,
        description="Further headers, each from env:NAME or file:PATH, such as `{Authorization: file:PATH}`.",
    )
    allow_networks: list[str] = Field(
        default_factory=list,
        description="Networks that are not public and may be reached all the same, such as 10.0.0.0/8 or ::1/128.",
    )
    ca_file: Path | None = Field(
        None, description="Certificates of authorities (PEM) that count beside the machine's own."
    )
    rate_limit: str = Field("60/min", description="At most so many requests, a s, min or h.")
    parallel: int = Field(4, ge=1, le=64, description="Requests at once; changes of one incident wait for each other.")
    timeout: DurationMs = Field(
        20_000, ge=100, le=60_000, description="For one attempt, from connecting to the answer."
    )
    retries: list[DurationMs] = Field(
        default=list(DELAYS_MS), max_length=100,
        description="Waits between attempts; after the last one has failed a message goes to the dead letters.",
    )  # fmt: skip

    @field_validator("url", mode="before", check_fields=False)
    @classmethod
    def _url_or_where_it_lies(cls, url: object) -> object:
        if isinstance(url, str) and re.match(r"(env|file):", url):
            return Secret(url)
        if isinstance(url, str):
            check_url(url)
        return url

    @field_validator("retries")
    @classmethod
    def _within_a_day(cls, retries: list[int]) -> list[int]:
        if any(wait > _DAY_MS for wait in retries):
            message = "waits of at most 1d each were expected"
            raise ValueError(message)
        return retries

    @field_validator("headers")
    @classmethod
    def _headers_that_are_free(cls, headers: dict[str, Secret]) -> dict[str, Secret]:
        for name in headers:
            if not _HEADER.match(name) or _OWN_HEADERS.match(name):
                message = (
                    f"{name!r} is no header that can be set here, for it is ours or has no such name; leave it out"
                )
                raise ValueError(message)
        return headers

    @field_validator("allow_networks")
    @classmethod
    def _networks(cls, networks: list[str]) -> list[str]:
        for network in networks:
            try:
                ip_network(network)
            except ValueError:
                message = f"{network!r} is no network such as 10.0.0.0/8, or has bits beyond its prefix"
                raise ValueError(message) from None
        return networks

    @field_validator("rate_limit")
    @classmethod
    def _a_rate(cls, rate: str) -> str:
        if not _RATE.match(rate):
            message = "a rate such as 60/min, 5/s or 100/h was expected"
            raise ValueError(message)
        return rate

    @property
    def rate(self) -> tuple[int, int]:
        """Requests, and the milliseconds in which at most so many may leave."""
        match = _RATE.match(self.rate_limit)
        assert match is not None, "validated"
        return int(match[1]), _PERIODS_MS[match[2]]


class WebhookSettings(AnyReceiverSettings):
    """A webhook of our own JSON (docs/schemas/webhook.json), signed as Standard Webhooks says."""

    type: Literal["webhook"] = Field(description="Says that it is one.")
    url: str | Secret = Field(description="Where to POST; a URL, or env:NAME or file:PATH where it is secret.")
    secrets: list[Secret] = Field(
        min_length=1, max_length=10,
        description="What signs, each from env:NAME or file:PATH; several during a rotation, and all of them sign.",
    )  # fmt: skip


class AlertmanagerSettings(AnyReceiverSettings):
    """Alertmanager: one alert for each incident, resolved when it closes."""

    type: Literal["alertmanager"] = Field(description="Says that it is one.")
    url: str | Secret = Field(description="Where it listens, without /api/v2/alerts.")


class SlackSettings(AnyReceiverSettings):
    """Slack, by an incoming webhook."""

    type: Literal["slack"] = Field(description="Says that it is one.")
    url: Secret = Field(description="The incoming webhook's URL, from env:NAME or file:PATH, for who has it may post.")


class PagerdutySettings(AnyReceiverSettings):
    """PagerDuty, by its Events API v2; an incident is one alert, resolved when it closes."""

    type: Literal["pagerduty"] = Field(description="Says that it is one.")
    url: str | Secret = Field("https://events.pagerduty.com/v2/enqueue", description="Where its API listens.")
    routing_key: Secret = Field(description="The integration's key, from env:NAME or file:PATH.")


class TemplateSettings(AnyReceiverSettings):
    """Anything else that takes a POST: its body is made by a Jinja template."""

    type: Literal["template"] = Field(description="Says that it is one.")
    url: str | Secret = Field(description="Where to POST.")
    body: str = Field(min_length=1, description="The template, or file:PATH of it.")
    content_type: str = Field(
        "application/json", pattern=r"^[a-z]+/[a-zA-Z0-9.+-]+(; *charset=[a-zA-Z0-9-]+)?$", description="What it makes."
    )
    secrets: list[Secret] = Field(
        default_factory=list, max_length=10, description="What signs, as a webhook's; empty: nothing is signed."
    )


Receiver = WebhookSettings | AlertmanagerSettings | SlackSettings | PagerdutySettings | TemplateSettings
Receivers = dict[str, Annotated[Receiver, Field(discriminator="type")]]


RECEIVER_TYPES = ("webhook", "alertmanager", "slack", "pagerduty", "template")


class RouteSettings(Section):
    """Which changes go where. The first route that matches a change decides, unless it says `continue`."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    receivers: list[str] = Field(min_length=1, description="Names of receivers.")
    streams: list[str] = Field(default_factory=list, description="Changes of one of these streams; empty: of all.")
    severity: Severity = Field("low", description="Changes of at least this severity.")
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Changes that have all of these: `segment`, `stream`, `kind` (opened, updated, merged, closed or "
        "anomaly), and what `alerts.labels` gives their stream.",
    )
    group_by: list[str] | None = Field(
        None,
        description="Changes with the same values of these labels are told in one message; an empty list: all are. "
        "Absent: each change of an incident is a message, and anomalies are told by stream.",
    )
    group_wait: DurationMs = Field(
        0, le=3_600_000, description="How long a message waits for others of its group; for anomalies at least 1m."
    )
    repeat: DurationMs | None = Field(
        4 * 3_600_000, ge=10_000, le=2 * 86_400_000,
        description="An open incident without changes is told again after so long; null: never. Of alertmanager "
        "receivers it is 1m at most, for its alerts expire.",
    )  # fmt: skip
    quiet_hours: str | None = Field(
        None, description="Hours in which nothing leaves, such as 22:00-06:00; what waits leaves after them."
    )
    time_zone: str = Field("UTC", description="Of quiet_hours, such as Europe/Berlin.")
    goes_on: bool = Field(False, alias="continue", description="Whether the routes below are looked at too.")

    @field_validator("quiet_hours")
    @classmethod
    def _hours(cls, hours: str | None) -> str | None:
        if hours is not None and (not _HOURS.match(hours) or hours[:5] == hours[6:]):
            message = "hours from and until, such as 22:00-06:00, were expected"
            raise ValueError(message)
        return hours

    @field_validator("time_zone")
    @classmethod
    def _a_zone_that_exists(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            message = "it is no time zone of this machine's; write one such as UTC or Europe/Berlin"
            raise ValueError(message) from None
        return zone

    @model_validator(mode="after")
    def _waits_for_something(self) -> RouteSettings:
        if self.group_wait and self.group_by is None:
            message = "group_wait waits for changes of one group; name their labels in group_by, such as [stream]"
            raise ValueError(message)
        return self

    @property
    def quiet_minutes(self) -> tuple[int, int] | None:
        """Where quiet hours begin and end, in minutes since midnight."""
        match = None if self.quiet_hours is None else _HOURS.match(self.quiet_hours)
        if match is None:
            return None
        begin_h, begin_min, end_h, end_min = map(int, match.groups())
        return 60 * begin_h + begin_min, 60 * end_h + end_min


class AlertSettings(Section):
    """Who is told of incidents; `offbeat alerts` delivers."""

    start: Literal["latest", "earliest"] = Field(
        "latest", description="Where the first start begins: with what happens from then on, or with what topics hold."
    )
    receivers: Receivers = Field(default_factory=dict, description="Receivers by names, each with a `type`.")
    routes: list[RouteSettings] = Field(
        default_factory=list, max_length=1_000, description="Which changes go to which receivers."
    )
    labels: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="Labels of streams, for routes and messages, such as `{orders: {team: shop}}`.",
    )

    @field_validator("receivers")
    @classmethod
    def _names(cls, receivers: dict[str, Receiver]) -> dict[str, Receiver]:
        for name in receivers:
            if not _NAME.match(name):
                message = "a receiver's name may have letters, digits, dot, dash and underscore only, at most 100"
                raise ValueError(message)
        return receivers

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        for name in (name for of_stream in labels.values() for name in of_stream):
            if not _LABEL.match(name) or name in _OWN_LABELS:
                message = f"a label's name is of letters, digits and underscores and none of ours; {name!r} is not"
                raise ValueError(message)
        return labels

    @model_validator(mode="after")
    def _routes_and_receivers_meet(self) -> AlertSettings:
        reached = {name for route in self.routes for name in route.receivers}
        if unknown := sorted(reached - set(self.receivers)):
            there = ", ".join(self.receivers) or "none"
            message = f"a route names receiver {unknown[0]}, which there is not; alerts.receivers has: {there}"
            raise ValueError(message)
        if unreached := [name for name in self.receivers if name not in reached]:
            message = f"no route reaches receiver {unreached[0]}; add it to a route's `receivers`, or remove it"
            raise ValueError(message)
        return self

    def only(self, name: str) -> AlertSettings:
        """The same with one receiver and no routes, to send by hand."""
        return self.model_copy(update={"receivers": {name: self.receivers[name]}, "routes": []})


def check_url(url: str) -> None:
    """Raise a sentence, without the URL, where it cannot be posted to or shows a password."""
    sentence = None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        if "@" in parts.netloc:
            sentence = "a URL with a password in it would be shown; put the URL where env:NAME or file:PATH says"
    except ValueError:
        usable = False
    if not usable or re.search(r"[\s\x00-\x1f\x7f]", url):
        sentence = "a URL such as https://HOST/PATH was expected, or env:NAME or file:PATH of one"
    if sentence is not None:
        raise unseen(sentence)
