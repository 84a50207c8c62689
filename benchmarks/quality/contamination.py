"""What bad sessions in a history do to the model trained on it, and how much `--contamination` takes back.

The storefront's visits (`pipeline/storefront.py`), with faults of all kinds mixed into the history evenly. Judged on
other visits: which of the faulty sessions are found at the promise, and how many of the healthy ones are alarmed.
"""

from __future__ import annotations

import time
from random import Random
from typing import Any

import numpy as np
from rich.console import Console

from detectors.fit import fit
from detectors.packing import unpack
from detectors.replay import replay
from features.events import Events
from models.bundle import Bundle
from models.training import TrainingOptions
from pipeline.outputs import Place
from pipeline.score import Line
from pipeline.serving import make_decoder, make_parts
from pipeline.settings import Settings, parse_settings
from pipeline.storefront import FAULTS, Event, Storefront

PLACE = Place("shop.orders", 0)
START_MS, RATE = 1_700_000_000_000, 16.0  # sessions a second
PROMISE = 0.005
SHARES = (0.0, 0.01, 0.05)
SECTION = {
    "topic": "shop.orders", "time": "ts", "tokens": ["service", "action", "status"], "model": {"hidden": 32},
    "session": {"by": "session_id", "gap": "10s", "end_when": {"action": "session_closed"}},
    "promise": {"false_alarm_rate": PROMISE},
}  # fmt: skip


def run(
    sessions: int, screen: Console, seeds: tuple[int, ...] = (1, 2), shares: tuple[float, ...] = SHARES
) -> dict[str, Any]:
    """Train with each share of bad sessions, with that share given as `--contamination`, and with 2 % given wrongly."""
    settings = parse_settings({"broker": "none:9092", "streams": {"orders": SECTION}}, {})
    rows = []
    for share in shares:
        for given in sorted({0.0, share, 0.02}):
            found = [_judge(settings, sessions, share, given, seed) for seed in seeds]
            recall, false_alarms = (float(np.mean(of)) for of in zip(*found, strict=True))
            rows.append({"bad": share, "contamination": given, "recall": recall, "false_alarm_rate": false_alarms})
            screen.print(
                f"  {share:.0%} bad, {given:.0%} left out: recall {recall:.3f}, false alarms {false_alarms:.4f}"
            )
    return {"benchmark": "contamination", "sessions": sessions, "promise": PROMISE, "rows": rows}


def _judge(settings: Settings, sessions: int, share: float, given: float, seed: int) -> tuple[float, float]:
    """Shares of faulty and of healthy sessions that are alarmed."""
    history, _ = _visits(settings, Random(f"{seed} history"), sessions, share)
    later, is_faulty = _visits(settings, Random(f"{seed} later"), sessions, 0.1)
    options = TrainingOptions(contamination=given)
    parts = make_parts(settings, "orders", None)
    fitted = fit([history], parts, seed, lambda _: None, time.monotonic, options=options)
    learned = unpack(Bundle("ab" * 32, fitted.content, fitted.files), parts)
    alarmed: dict[int, bool] = {}
    for replayed in replay(later, make_parts(settings, "orders", learned)):
        verdicts = replayed.verdicts
        names = replayed.names[verdicts.walk.row[verdicts.ends.operation]]
        for name, anomaly in zip(names.tolist(), verdicts.ends.anomaly.tolist(), strict=True):
            alarmed[name] = alarmed.get(name, False) or anomaly
    judged = [(is_faulty[later.sessions[name]], anomaly) for name, anomaly in alarmed.items()]
    return tuple(float(np.mean([a for faulty, a in judged if faulty is wanted])) for wanted in (True, False))  # type: ignore[return-value]


def _visits(settings: Settings, random: Random, sessions: int, share: float) -> tuple[Events, dict[str, bool]]:
    """Events of so many healthy visits with faulty ones among them, and which visits are faulty."""
    shop, duration_ms = Storefront(random), int(1_000 * sessions / RATE)
    events: list[Event] = list(shop.healthy(START_MS, duration_ms, RATE))
    is_faulty = {event.session_id: False for event in events}
    for kind in FAULTS:
        each = round(share * sessions / len(FAULTS))
        bad = shop.faulty(kind, START_MS, duration_ms, each, opens_ms=START_MS).events if each else []
        events += bad
        is_faulty |= {event.session_id: True for event in bad}
    events.sort(key=lambda event: event.ts_ms)
    lines = [Line(i, PLACE, i, event.ts_ms, event.key, event.value) for i, event in enumerate(events)]
    return make_decoder(settings, "orders").decode(lines, check_key=True), is_faulty


if __name__ == "__main__":
    print(run(6_000, Console(stderr=True)))
