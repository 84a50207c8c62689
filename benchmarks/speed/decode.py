"""JSON events to columns: how many a core decodes, with a session, a time, three token fields and three numbers."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console

from features.decode import Decoder

_SLICE = 1_000  # records, as a fetch brings them
_GOAL = 400_000


@dataclass(frozen=True)
class _Record:
    offset: int
    timestamp: int
    key: bytes
    value: bytes


def run(records: int, repeats: int, screen: Console) -> dict[str, Any]:
    """Median of `repeats` passes, by processor time."""
    made = _records(records)
    decoder = Decoder(
        "session", "ts", ["action", "status", "user.country"], {}, numbers=["amount", "user.age", "took_ms"]
    )
    took = []
    for _ in range(repeats):
        began = time.process_time()
        for start in range(0, records, _SLICE):
            decoder.decode(made[start : start + _SLICE], check_key=True)
        took.append(time.process_time() - began)
    rate = records / median(took)
    screen.print(f"  {rate:,.0f} events/s of {sum(len(r.value) for r in made) / records:.0f} bytes")
    return {"benchmark": "decode", "records": records, "events_per_s": rate, "goal": _GOAL}


def _records(count: int) -> list[_Record]:
    rng = random.Random(1)
    records = []
    for i in range(count):
        session = f"s-{rng.randrange(5_000)}"
        event = {
            "session": session, "ts": 1_767_323_045_000 + i, "action": rng.choice(["view", "add", "pay", "close"]),
            "status": rng.choice(["ok", "failed"]), "user": {"country": rng.choice(["DK", "SE", "NO"]), "age": 40},
            "amount": round(rng.random() * 100, 2), "took_ms": rng.randrange(5_000),
            "agent": "Mozilla/5.0 (X11; Linux x86_64)", "items": [1, 2, 3],
        }  # fmt: skip
        records.append(_Record(i, 0, session.encode(), json.dumps(event).encode()))
    return records
