"""A webhook's body: `type`, `timestamp` and `data`, as Standard Webhooks advises. docs/schemas/webhook.json has it."""

from __future__ import annotations

from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline.alerts.change import ANOMALY, Change, Kind, Message
from pipeline.alerts.told import MOST_CHANGES, told
from pipeline.wire import Severity


class _Told(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ToldChange(_Told):
    """A change of an incident, or an anomaly."""

    id: str = Field(description="Of an incident's change INCIDENT/REVISION; drop those you have seen.")
    subject: str = Field(description="The incident's id; of anomalies STREAM/anomalies. Its changes come in order.")
    kind: Kind
    severity: Severity
    streams: list[str]
    labels: dict[str, str]
    time: str = Field(description="Event time, ISO 8601.")
    summary: str = Field(description="One sentence for people.")
    incident: dict[str, Any] | None = Field(
        description="As on the topic (incidents.json); null for anomalies, and where it had no room."
    )
    anomaly: dict[str, Any] | None = Field(
        description="As on the topic (anomalies.json); null for incidents, and where it had no room."
    )
    shortened: bool = Field(
        description="Whether texts and lists were cut or left out, so that the body stays under 20 kB."
    )


class WebhookData(_Told):
    """What a message tells."""

    changes: list[ToldChange] = Field(min_length=1, max_length=MOST_CHANGES, description="The oldest first.")
    repeat: bool = Field(description="Whether it was told before, and is told again because the incident is open.")
    test: bool = Field(description="Whether `offbeat alerts test` sent it, and nothing is wrong.")


class WebhookBody(_Told):
    """The body of a webhook."""

    type: Literal[
        "incident.opened", "incident.updated", "incident.merged", "incident.closed", "incidents", "anomalies", "test"
    ] = Field(description="incidents: several changes that differ in kind.")
    timestamp: str = Field(description="Event time of the last change, ISO 8601.")
    data: WebhookData


def body_of(message: Message) -> bytes:
    """The body, under 20 kB."""
    changes = told(message.changes)
    return orjson.dumps(
        {
            "type": "test" if message.is_test else _type(message.changes),
            "timestamp": changes[-1]["time"],
            "data": {"changes": changes, "repeat": message.is_repeat, "test": message.is_test},
        }
    )


def _type(changes: tuple[Change, ...]) -> str:
    kinds = {change.kind for change in changes}
    if kinds == {ANOMALY}:
        return "anomalies"
    return f"incident.{changes[0].kind}" if len(kinds) == 1 else "incidents"
