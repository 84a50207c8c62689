"""Records of a storm: a seeded stream of sessions that end in every way, and its producer."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator

from confluent_kafka import KafkaError, Message, Producer

START_MS = 1_700_000_000_000
RECORDS_PER_S = 1_200
# Event time runs ahead of the wall clock: a gap passes in 15 s of a storm, while by the wall clock it is far longer
# than a storm's longest silence.
SPEED = 40
GAP_MS = 600_000
MAX_EVENTS = 12
_SESSIONS = 2_500  # live at once; about as many again fell silent and stay open until their gap has passed
Record = tuple[bytes | None, bytes | None]


def records(seed: int) -> Iterator[Record]:
    """(key, value) without end; the same for the same seed."""
    rng = random.Random(seed)
    # A live session is (name, events left, whether its last is an end event).
    live = [_open_session(rng, number) for number in range(_SESSIONS)]
    opened = _SESSIONS
    number = 0
    while True:
        number += 1
        now = START_MS + number * 1_000 * SPEED // RECORDS_PER_S
        if rng.random() < 0.002:
            yield _unusable(rng, f"s-{rng.randrange(opened)}", now)
            continue
        at = rng.randrange(_SESSIONS)
        name, left, closes = live[at]
        is_last = left == 1
        late = rng.random()
        event = {
            "session": name,
            "action": "close" if is_last and closes else rng.choices(_ACTIONS, _SHARES)[0],
            "status": rng.choice(["ok", "ok", "failed", None]),
            "ts": now - (rng.randrange(90_000) if late < 0.1 else rng.randrange(3 * GAP_MS) if late < 0.101 else 0),
        }
        yield name.encode(), json.dumps(event).encode()
        live[at] = (name, left - 1, closes)
        if is_last:
            # One in ten comes again under its name, before or after the session of that name is over.
            live[at] = _open_session(rng, opened if rng.random() < 0.9 else rng.randrange(opened))
            opened += live[at][0] == f"s-{opened}"


_ACTIONS = ["view", "add", "pay", "ship", "teleport"]
_SHARES = [40, 30, 20, 9, 1]


def _open_session(rng: random.Random, number: int) -> tuple[str, int, bool]:
    return f"s-{number}", rng.choice([1, 2, 4, 6, 8, 15, 30]), rng.random() < 0.5


def _unusable(rng: random.Random, name: str, now: int) -> Record:
    """A tombstone, or a record that belongs into the dead letters."""
    event = {"session": name, "action": "view", "status": "ok", "ts": now}
    key = name.encode()
    return rng.choice([
        (key, None), (key, b"{not json"), (key, b"[1, 2]"), (key, json.dumps(event | {"action": 7.5}).encode()),
        (key, json.dumps(event | {"session": None}).encode()), (b"other", json.dumps(event).encode()),
        (None, json.dumps(event).encode()), (key, json.dumps(event | {"ts": "yesterday"}).encode()),
    ])  # fmt: skip


class Feed(threading.Thread):
    """Sends records at their rate until told to stop, through broker restarts, each once and in order."""

    def __init__(self, address: str, topic: str, seed: int, rate: int = RECORDS_PER_S) -> None:
        super().__init__(name="feed", daemon=True)
        self.sent = 0
        self.failures: list[str] = []
        self._topic, self._records, self._rate, self._over = topic, records(seed), rate, threading.Event()
        self._producer = Producer({
            "bootstrap.servers": address, "enable.idempotence": True, "partitioner": "murmur2_random", "linger.ms": 20,
            "reconnect.backoff.max.ms": 500, "log_level": 0, "error_cb": lambda _: None,
        })  # fmt: skip

    def run(self) -> None:
        """Send what is due, forty times a second."""
        began = time.monotonic()
        while not self._over.wait(0.025):
            for _ in range(int((time.monotonic() - began) * self._rate) - self.sent):
                key, value = next(self._records)
                self._producer.produce(self._topic, value, key=key, on_delivery=self._heard)
                self.sent += 1
            self._producer.poll(0)

    def stop(self) -> None:
        """End, with every record acknowledged."""
        self._over.set()
        self.join()
        waiting = self._producer.flush(60)
        if waiting:
            self.failures.append(f"{waiting} records were not acknowledged in 60 s")

    def _heard(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.failures.append(f"a record was not taken: {error}")
