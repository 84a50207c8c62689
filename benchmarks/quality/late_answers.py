"""What `model.gaps` finds of answers that come too late, and what it costs.

The storefront's visits (`pipeline/storefront.py`), its own faults among them, and purchases whose payment is captured
as it should be, but seconds after it was authorised. Judged on other visits than those learned from: which faulty
sessions are found at the promise, and how many of the healthy ones and of their records are alarmed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
from rich.console import Console

from detectors.fit import fit
from detectors.packing import unpack
from detectors.parts import Parts
from detectors.replay import Replayed, replay
from features.events import Events
from models.bundle import Bundle
from pipeline.outputs import Place
from pipeline.score import Line
from pipeline.serving import make_decoder, make_parts
from pipeline.settings import Settings, parse_settings
from pipeline.storefront import FAULTS, Event, Storefront

PLACE = Place("shop.orders", 0)
START_MS, RATE = 1_700_000_000_000, 16.0  # sessions a second
LATE_S = (1, 4, 15, 40)
BAD = 0.05  # of the sessions that are judged, each kind as often as any other
GAPS: tuple[bool | str, ...] = (False, True, "action")
SHOWN = ("f1_faults", "f1_late", "sessions_alarmed", "records_alarmed", "train_s", "score_us")
SECTION: dict[str, Any] = {
    "topic": "shop.orders", "time": "ts", "tokens": ["service", "action", "status"],
    "session": {"by": "session_id", "gap": "2m", "end_when": {"action": "session_closed"}},
    "promise": {"false_alarm_rate": 0.001},
}  # fmt: skip


def run(sessions: int, screen: Console, seeds: tuple[int, ...] = (1, 2, 3), repeats: int = 5) -> dict[str, Any]:
    """Train without gaps, with those of all events, with those of each action; judge on three times as many visits."""
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        trials = {gaps: _trained(_settings(gaps), sessions, seed) for gaps in GAPS}
        later, kinds = _visits(_settings(False), Random(f"{seed} later"), 3 * sessions, BAD)
        scored_us: dict[bool | str, list[float]] = {gaps: [] for gaps in GAPS}
        for _ in range(repeats):  # taking turns: a machine's speed drifts
            for gaps, trial in trials.items():
                began = time.process_time()
                trial.judged = list(replay(later, trial.parts))
                scored_us[gaps].append((time.process_time() - began) / len(later) * 1e6)
        for gaps, trial in trials.items():
            cost = {"train_s": trial.train_s, "score_us": float(np.median(scored_us[gaps]))}
            rows.append({"seed": seed, "gaps": gaps, **_judge(trial.judged, later, kinds), **cost})
            shown = ", ".join(f"{name} {rows[-1][name]:.4g}" for name in SHOWN)
            screen.print(f"  gaps {gaps}, seed {seed}: {shown}")
    return {"benchmark": "late-answers", "sessions": sessions, "rows": rows}


@dataclass
class _Trial:
    parts: Parts
    train_s: float
    judged: list[Replayed]


def _settings(gaps: bool | str) -> Settings:
    section = SECTION | {"model": {"hidden": 32, "gaps": gaps}}
    return parse_settings({"broker": "none:9092", "streams": {"orders": section}}, {})


def _trained(settings: Settings, sessions: int, seed: int) -> _Trial:
    history, _ = _visits(settings, Random(f"{seed} history"), sessions, 0.0)
    parts, began = make_parts(settings, "orders", None), time.process_time()
    fitted = fit([history], parts, seed, lambda _: None, time.monotonic)
    train_s = time.process_time() - began
    learned = unpack(Bundle("ab" * 32, fitted.content, fitted.files), parts)
    return _Trial(make_parts(settings, "orders", learned), train_s, [])


def _judge(judged: list[Replayed], later: Events, kinds: dict[str, str]) -> dict[str, float]:
    """Shares found of each kind; F1 of the shop's faults, of late answers and of both; false alarms."""
    alarmed: dict[str, bool] = {}
    healthy_records: list[bool] = []
    for slice_ in judged:
        verdicts = slice_.verdicts
        names = slice_.names[verdicts.walk.row[verdicts.ends.operation]].tolist()
        for number, anomaly in zip(names, verdicts.ends.anomaly.tolist(), strict=True):
            alarmed[later.sessions[number]] = alarmed.get(later.sessions[number], False) or anomaly
        of = [kinds[verdicts.events.sessions[s]] for s in verdicts.events.session.tolist()]
        healthy_records += [a for a, kind in zip(verdicts.anomaly.tolist(), of, strict=True) if not kind]
    found = {kind: [a for name, a in alarmed.items() if kinds[name] == kind] for kind in set(kinds.values())}

    def f1(which: list[str]) -> float:
        hits, all_ = (sum(of(found[kind]) for kind in which) for of in (sum, len))
        return 2 * hits / (hits + all_ + sum(found[""]))

    late = [_late(seconds) for seconds in LATE_S]
    return {
        "f1_faults": f1(list(FAULTS)), "f1_late": f1(late), "f1": f1([*FAULTS, *late]),
        "sessions_alarmed": float(np.mean(found[""])), "records_alarmed": float(np.mean(healthy_records)),
        **{kind: float(np.mean(found[kind])) for kind in [*late, *FAULTS]},
    }  # fmt: skip


def _visits(settings: Settings, random: Random, sessions: int, share: float) -> tuple[Events, dict[str, str]]:
    """Events of so many healthy visits with faulty ones among them, and what is wrong with each: "" for nothing."""
    shop, duration_ms = Storefront(random), int(1_000 * sessions / RATE)
    events: list[Event] = list(shop.healthy(START_MS, duration_ms, RATE))
    kinds = {event.session_id: "" for event in events}
    each = round(share * sessions / (len(FAULTS) + len(LATE_S)))
    for kind in FAULTS if each else ():
        bad = shop.faulty(kind, START_MS, duration_ms, each, opens_ms=START_MS).events
        events += bad
        kinds |= {event.session_id: kind for event in bad}
    for seconds in LATE_S if each else ():
        visits, authorised_ms = shop.purchases(START_MS, duration_ms, each, opens_ms=START_MS)
        wait_ms = {name: int(seconds * random.uniform(900, 1_100)) for name in authorised_ms}
        for event in visits:
            is_late = event.ts_ms > authorised_ms[event.session_id]
            events.append(replace(event, ts_ms=event.ts_ms + wait_ms[event.session_id] * is_late))
        kinds |= dict.fromkeys(authorised_ms, _late(seconds))
    events.sort(key=lambda event: event.ts_ms)
    lines = [Line(i, PLACE, i, event.ts_ms, event.key, event.value) for i, event in enumerate(events)]
    return make_decoder(settings, "orders").decode(lines, check_key=True), kinds


def _late(seconds: int) -> str:
    return f"{seconds} s late"


if __name__ == "__main__":
    print(run(9_700, Console(stderr=True)))
