"""`offbeat alerts test`: one marked message to one receiver, and what came back in a sentence."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict
from uuid import uuid4

from pipeline.alerts.change import Change, Message, Outcome, change_of
from pipeline.alerts.sending import Sender
from pipeline.alerts.settings import AlertSettings
from pipeline.errors import DeliveryError, UsageError
from pipeline.settings import Settings


def try_receiver(settings: Settings, name: str, *, as_json: bool) -> None:
    """Send a test message, once, and print what came back.

    Raises
    ------
    UsageError
        There is no such receiver.
    DeliveryError
        It did not take the message.
    """
    if name not in settings.alerts.receivers:
        there = ", ".join(settings.alerts.receivers) or "none"
        message = f"there is no receiver {name!r}; alerts.receivers has: {there}"
        raise UsageError(message)
    change = made_up_change(settings.alerts, next(iter(settings.streams)), time.time_ns() // 1_000_000)
    outcome = asyncio.run(_send(settings.alerts, Message(f"test/{uuid4()}", name, (change,), is_test=True)))
    if as_json:
        print(json.dumps(asdict(outcome)))
    if outcome.kind != "delivered":
        message = f"receiver {name} did not take the test message: {outcome.detail}"
        raise DeliveryError(message)
    if not as_json:
        print(f"Receiver {name} took the test message: {outcome.detail}.")


def made_up_change(alerts: AlertSettings, stream: str, now_ms: int) -> Change:
    """An incident that never was, with all that a true one has."""
    name = f"{stream}/test/0/0/record/incident"
    body = {
        "type": "opened", "id": name, "revision": 1, "severity": "low", "start_ms": now_ms, "last_ms": now_ms,
        "end_ms": None, "merged_into": None, "anomalies": 1, "suppressed": 0, "withheld": 0, "streams": [stream],
        "segments": [], "sessions": 1, "session_names": ["test"], "contributors": [], "causes": [], "examples": [],
        "summary": "This is a test of Offbeat's alerts, and nothing is wrong.", "scope": "", "detected_ms": now_ms,
    }  # fmt: skip
    return change_of(body, alerts.labels)


async def _send(alerts: AlertSettings, message: Message) -> Outcome:
    """Only this receiver's secrets need be there."""
    sender = Sender(alerts.only(message.receiver))
    try:
        return await sender.send(message)
    finally:
        await sender.close()
