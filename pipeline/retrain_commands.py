"""`offbeat retrain`: ask for a training by hand, or see what was asked for."""

from __future__ import annotations

import json
import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from detectors.retrain_guard import Wanted
from pipeline.clients import Clients
from pipeline.errors import UsageError
from pipeline.history import parse_moment_ms
from pipeline.logs import configure_logs
from pipeline.retrain_feed import Feed
from pipeline.retrain_log import Job, RetrainLog, encode, ensure_topic, parse
from pipeline.retraining import job_of
from pipeline.sending import send_one
from pipeline.sessions import iso
from pipeline.settings import Settings


def request_training(
    settings: Settings, stream: str, *, since: str | None, until: str | None, reason: str | None, seed: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Put a job for whichever trainer is free; no guard is asked.

    Raises
    ------
    UsageError
        The span is empty.
    """
    settings.stream(stream)
    now_ms = time.time_ns() // 1_000_000
    since_ms = 0 if since is None else parse_moment_ms(since, now_ms)
    until_ms = now_ms if until is None else parse_moment_ms(until, now_ms)
    if since_ms >= until_ms:
        message = "--since is not before --until, so there is nothing to learn from; give an earlier --since"
        raise UsageError(message)
    clients = Clients(settings)
    topic = ensure_topic(settings, clients)
    wanted = Wanted("manual", str(now_ms), "asked for by hand" if reason is None else reason, since_ms, until_ms)
    job = job_of(settings, stream, wanted, now_ms, seed)
    send_one(clients, topic, encode(job), "job")
    if as_json:
        print(job.model_dump_json())
        return
    print(f"Job {job.id} is asked for; a running `offbeat trainer` does it, and `--list` says what became of it.")


def list_jobs(settings: Settings, stream: str, *, as_json: bool) -> None:
    """Print a stream's jobs, the earliest first."""
    settings.stream(stream)
    configure_logs()
    clients, log = Clients(settings), RetrainLog()
    topic = ensure_topic(settings, clients)

    def take(message: object) -> None:
        found = parse(message.key(), message.value())  # type: ignore[attr-defined] # confluent's message
        if found is not None:
            log.take(found)

    feed = Feed(clients, {topic: take})
    try:
        feed.read_to_the_end()
    finally:
        feed.close()
    jobs = log.of(stream)
    if as_json:
        print(json.dumps([_row(job) for job in jobs]))
        return
    if not jobs:
        print(f"No training of stream {stream} was asked for yet; `offbeat retrain --stream {stream}` asks for one.")
        return
    table = Table("asked", "job", "state", "bundle", "why")
    for job in jobs:
        row = _row(job)
        digest = row["digest"] or ""
        asked = iso(job.asked.asked_ms)[:16].replace("T", " ")
        table.add_row(asked, *(escape(text or "") for text in (job.asked.id, row["state"], digest[:12], row["why"])))
    Console(highlight=False).print(table)


def _row(job: Job) -> dict[str, str | None]:
    state = job.end.type if job.end is not None else "started" if job.taken else "waits"
    return {
        "job": job.asked.id, "state": state, "digest": None if job.end is None else job.end.digest,
        "why": job.asked.detail if job.end is None else job.end.detail,
    }  # fmt: skip
