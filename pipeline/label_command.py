"""`offbeat label` and `offbeat labels`: what people say of anomalies, what that silences, and what to look at next."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from pipeline.anomaly_ids import AnomalyId
from pipeline.clients import Clients
from pipeline.controls import encode_control
from pipeline.errors import TopicError, UsageError
from pipeline.lineage import who
from pipeline.outputs import Headers, event_headers
from pipeline.screen import progress_bar, screen
from pipeline.sending import send_one
from pipeline.sentences import sentence_of
from pipeline.serving import serving_rate
from pipeline.settings import Settings
from pipeline.topic_reading import as_json as value_of
from pipeline.topic_reading import read_all
from pipeline.topics import controls_topic, output_topic, partition_counts
from pipeline.wire import Label, LabelPattern, Labels

Json = dict[str, Any]
_WEEK_MS = 7 * 86_400_000
_SHOWN = 5  # anomalies of a preview
_QUEUE = 20


def encode_label(label: Label) -> tuple[bytes, bytes, Headers]:
    """Key, value and CloudEvents headers: the id is the key, so compaction keeps the latest of each anomaly."""
    headers = event_headers(label.stream, f"{label.id}/label/{label.at_ms}", "label", label.at_ms)
    return label.id.encode(), orjson.dumps(label.model_dump()), headers


@dataclass(frozen=True)
class Told:
    """What was told of anomalies, and what people have said of them: by id, the latest of each."""

    anomalies: dict[str, Json]
    labels: dict[str, Label]

    @property
    def by_pattern(self) -> dict[str, Label]:
        """The latest label of each pattern."""
        in_time = sorted(self.labels.values(), key=lambda label: label.at_ms)
        return {label.pattern: label for label in in_time}

    def counts(self, stream: str) -> Labels:
        """How many of a stream's anomalies have which label."""
        found = Counter(label.label for label in self.labels.values() if label.stream == stream)
        return Labels(normal=found["normal"], anomaly=found["anomaly"])


def label_anomaly(
    settings: Settings, text: str, label: Literal["normal", "anomaly"], reason: str | None, *, yes: bool, as_json: bool
) -> None:
    """Write a label, and ask the workers to go by it; first say what else it will silence.

    Raises
    ------
    UsageError
        The id is none, or names no anomaly that the topic still has; or nobody can be asked.
    TopicError
        A topic is missing.
    """
    wanted = AnomalyId.parse(text)
    settings.stream(wanted.stream)  # or a sentence
    clients = Clients(settings)
    _refuse_missing_topics(settings, clients)
    told = read_told(settings, clients)
    anomaly, before = told.anomalies.get(text), told.labels.get(text)
    if anomaly is None and before is None:
        message = (
            f"there is no anomaly {text} on {output_topic(settings, 'anomalies')}: it may be older than the topic's "
            "retention, or a normal decision, which has no pattern to label; `offbeat tail --json` has ids"
        )
        raise UsageError(message)
    pattern = before.pattern if anomaly is None and before is not None else (anomaly or {}).get("pattern")
    if pattern is None:
        message = f"anomaly {text} is of a version before patterns, so it cannot be labelled; label a newer one"
        raise UsageError(message)
    alike = same_pattern(told, pattern, text)
    _remark(told, text, pattern, label)
    if label == "normal" and not _agreed(alike, yes=yes, as_json=as_json):
        screen.print("Nothing was labelled.")
        return
    latest = max((known.at_ms for known in told.labels.values()), default=-1)
    made = Label(
        id=text, stream=wanted.stream, label=label, pattern=pattern, by=who(settings),
        at_ms=max(time.time_ns() // 1_000_000, latest + 1), reason=reason,  # their order is that of these times
        **(_where(anomaly, before) if settings.stream(wanted.stream).is_repartitioned else {}),
    )  # fmt: skip
    send_one(clients, output_topic(settings, "labels"), encode_label(made), "label")
    counts = Told(told.anomalies, told.labels | {text: made}).counts(wanted.stream)
    control = LabelPattern(
        type="label_pattern", stream=wanted.stream, pattern=pattern, label=label, labels=counts, issued_ms=made.at_ms
    )  # fmt: skip
    send_one(clients, controls_topic(settings), encode_control(control), "label")
    if as_json:
        print(json.dumps({**made.model_dump(), "would_have_silenced": len(alike)}))
        return
    does = "is no anomaly from now on" if label == "normal" else "is an anomaly"
    print(f"Labelled {text} as {label}: what shows pattern {pattern} {does}, once workers reach their next checkpoint.")


def _where(anomaly: Json | None, before: Label | None) -> Json:
    """Session and time of what is labelled, as far as the anomaly or an earlier label says; kept only where needed."""
    if anomaly is not None:
        return {key: anomaly.get(key) for key in ("session", "time_ms")}
    return {} if before is None else before.model_dump(include={"session", "time_ms"})


def read_told(settings: Settings, clients: Clients) -> Told:
    """All anomalies and labels that the topics hold."""
    anomalies: dict[str, Json] = {}
    for value in _values(settings, clients, "anomalies"):
        if isinstance(value.get("id"), str):
            anomalies[value["id"]] = value
    labels: dict[str, Label] = {}
    for value in _values(settings, clients, "labels"):
        try:
            label = Label.model_validate(value)
        except ValidationError:  # of others, or of a later version
            continue
        known = labels.get(label.id)
        if known is None or known.at_ms <= label.at_ms:
            labels[label.id] = label
    return Told(anomalies, labels)


def same_pattern(told: Told, pattern: str, but: str) -> list[Json]:
    """Other anomalies of a pattern that were found in the last week, the latest first."""
    since = time.time_ns() // 1_000_000 - _WEEK_MS
    alike = [
        one for i, one in told.anomalies.items()
        if i != but and one.get("pattern") == pattern and one["detected_ms"] >= since
    ]  # fmt: skip
    return sorted(alike, key=lambda one: -one["detected_ms"])


def _remark(told: Told, text: str, pattern: str, label: str) -> None:
    """What was said before and is no longer, for the later label wins."""
    before = told.labels.get(text)
    if before is not None and before.label != label:
        screen.print(f"{before.by} labelled it as {before.label} before; the later label wins", style="yellow")
        return
    of_pattern = told.by_pattern.get(pattern)
    if of_pattern is not None and of_pattern.label != label:
        screen.print(
            f"{of_pattern.by} labelled {of_pattern.id}, of the same pattern, as {of_pattern.label} before; the later "
            "label wins for the pattern", style="yellow",
        )  # fmt: skip


def _agreed(alike: list[Json], *, yes: bool, as_json: bool) -> bool:
    """Show what would have been silenced with it in the last week, and ask."""
    if not as_json:
        screen.print(f"In the last week {len(alike):,} other anomalies would have been silenced with it.")
        for one in alike[:_SHOWN]:
            screen.print(f"  {sentence_of('anomalies', one)}", markup=False, soft_wrap=True)
    if not yes and not sys.stdin.isatty():
        message = "`offbeat label --normal` asks before it silences, and there is no terminal to ask at; add --yes"
        raise UsageError(message)
    return yes or typer.confirm("Silence them from now on?", err=True)


def list_labels(settings: Settings, stream: str | None, *, as_json: bool) -> None:
    """Print the latest label of each anomaly, and each stream's precision by them."""
    told = _told_of(settings, stream)
    labels = sorted(told.labels.values(), key=lambda label: -label.at_ms)
    streams = {name: told.counts(name) for name in sorted({label.stream for label in labels})}
    precision = {name: counts.anomaly / (counts.normal + counts.anomaly) for name, counts in streams.items()}
    if as_json:
        print(json.dumps({"labels": [label.model_dump() for label in labels], "precision": precision}))
        return
    table = Table("anomaly", "label", "pattern", "by", "reason")
    for label in labels:
        table.add_row(label.id, label.label, label.pattern, label.by, label.reason or "")
    console = Console(highlight=False)
    console.print(table)
    for name, counts in streams.items():
        console.print(f"{name}: {counts.anomaly} of {counts.normal + counts.anomaly} labelled anomalies are some.")


def show_queue(settings: Settings, stream: str | None, *, as_json: bool) -> None:
    """Print what is most worth a label."""
    told = _told_of(settings, stream)
    rates = {name: serving_rate(settings, name) for name in settings.streams}
    queue = queue_of(told, rates)[:_QUEUE]
    if as_json:
        print(json.dumps([{"alike": alike, **one} for one, alike in queue]))
        return
    table = Table("anomaly", "alike", "p-value", "why")
    for one, alike in queue:
        table.add_row(one["id"], str(alike), f"{one['p_value']:.2g}", sentence_of("anomalies", one))
    Console(highlight=False).print(table)


def queue_of(told: Told, rates: dict[str, float]) -> list[tuple[Json, int]]:
    """One anomaly of each pattern without a label, and how many there are of it; what is least sure comes first.

    Least sure is what lies nearest to the threshold: uncertainty sampling (Lewis and Gale 1994, A sequential algorithm
    for training text classifiers, arXiv:cmp-lg/9407020). Of equals the pattern of more anomalies is worth more.
    """
    known, alike = told.by_pattern, Counter[str]()
    least_sure: dict[str, tuple[float, Json]] = {}
    for i, one in told.anomalies.items():
        pattern, rate = one.get("pattern"), rates.get(one.get("stream", ""))
        if pattern is None or rate is None or pattern in known or i in told.labels:
            continue
        alike[pattern] += 1
        sure = abs(math.log(max(one["p_value"], 1e-300) / rate))
        if pattern not in least_sure or sure < least_sure[pattern][0]:
            least_sure[pattern] = sure, one
    ordered = sorted(least_sure.items(), key=lambda item: (item[1][0], -alike[item[0]], item[1][1]["id"]))
    return [(one, alike[pattern]) for pattern, (_, one) in ordered]


def _told_of(settings: Settings, stream: str | None) -> Told:
    if stream is not None:
        settings.stream(stream)  # or a sentence
    clients = Clients(settings)
    clients.admin()
    told = read_told(settings, clients)
    return Told(
        {i: one for i, one in told.anomalies.items() if stream in {None, one.get("stream")}},
        {i: label for i, label in told.labels.items() if stream in {None, label.stream}},
    )


def _refuse_missing_topics(settings: Settings, clients: Clients) -> None:
    existing = partition_counts(clients.admin())
    for topic in (output_topic(settings, "labels"), controls_topic(settings)):
        if topic not in existing:
            message = f"topic {topic} does not exist; run `offbeat topics --create`, then label again"
            raise TopicError(message)


def _values(settings: Settings, clients: Clients, what: str) -> Iterable[Json]:
    topic = output_topic(settings, what)
    with _reading(topic) as progress:
        for record in read_all(clients, topic, progress):
            value = value_of(record)
            if value is not None:
                yield value


@contextmanager
def _reading(topic: str) -> Iterator[Callable[[int, int], None]]:
    with progress_bar(f"reading {topic}", 1.0) as update:
        yield lambda done, total: update(done / max(1, total), f"{done:,} of {total:,} records")
