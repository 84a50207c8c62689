"""`offbeat replay`: an anomaly judged and explained once more, from the records that made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from detectors.parts import Learned
from features.events import Record
from models.errors import BundleError
from pipeline.anomaly_ids import AnomalyId
from pipeline.clients import Clients
from pipeline.errors import TopicError, UsageError
from pipeline.outputs import NO_MODEL, Json
from pipeline.registry import Registry
from pipeline.replaying import Replayed, needs_more, replay_records
from pipeline.samples import events_of
from pipeline.score import read_lines
from pipeline.screen import progress_bar
from pipeline.sentences import sentence_of
from pipeline.serving import load_bundle
from pipeline.settings import Settings
from pipeline.topic_reading import as_json as value_of
from pipeline.topic_reading import bounds, read_all, read_range
from pipeline.topics import output_topic

BACK = 100_000  # records of the partition read before the one in question
_SAME = 5e-4  # of a score: torch's sums depend on how records are batched


def replay_anomaly(
    settings: Settings, text: str, *, back: int, source: Path | None, bundle: str | None, as_json: bool
) -> None:
    """Judge it once more and print what is found.

    Raises
    ------
    UsageError
        The id is none, or names no stream of the config.
    TopicError
        Its record is gone, or is not there.
    BundleError
        The bundle that judged it is gone.
    """
    wanted = AnomalyId.parse(text)
    settings.stream(wanted.stream)  # or a sentence
    told = None if source is not None else _told(settings, text)
    learned = _bundle(settings, wanted, told, bundle)
    if source is not None:
        first, found = 0, _from_file(settings, wanted, learned, source)
    else:
        first, found = _from_topic(settings, wanted, learned, back)
    answer = _answer(text, told, found, learned, first)
    print(json.dumps(answer) if as_json else "", end="\n" if as_json else "")
    if not as_json:
        _print(answer, settings.stream(wanted.stream).promise.rate(learned.volume))


def _told(settings: Settings, text: str) -> Json | None:
    """The anomaly's message, if the topic still has it; that of the last delivery."""
    clients = Clients(settings)
    clients.admin()
    found, topic = None, output_topic(settings, "anomalies")
    with _reading(topic) as progress:
        for record in read_all(clients, topic, progress):
            if record.value is not None and text.encode() in record.value:  # most are not even parsed
                value = value_of(record)
                found = value if value is not None and value.get("id") == text else found
    return found


def _bundle(settings: Settings, wanted: AnomalyId, told: Json | None, reference: str | None) -> Learned:
    registry = Registry(settings, wanted.stream)
    if reference is not None:
        return load_bundle(settings, wanted.stream, registry.resolve(reference))
    if told is None:
        return load_bundle(settings, wanted.stream, registry.resolve("serving"))
    digest = told["model"]["digest"]
    if digest == NO_MODEL:
        message = (
            f"{wanted} was found while warming up: what was learned online until then is gone, so it cannot be judged "
            "again as it was; `--bundle serving` judges it by what serves now"
        )
        raise UsageError(message)
    if digest not in registry.folders():
        message = (
            f"bundle {digest[:12]}, which judged {wanted}, is no longer in {registry.folder}; restore it, or judge by "
            "what serves now with `--bundle serving`"
        )
        raise BundleError(message)
    return load_bundle(settings, wanted.stream, digest)


def _from_file(settings: Settings, wanted: AnomalyId, learned: Learned, source: Path) -> Replayed:
    stream, place = settings.stream(wanted.stream), wanted.place
    lines = events_of(stream, read_lines(source, settings.topic_of(wanted.stream)))
    mine = (line for line in lines if line.place == place)
    found = replay_records(settings, learned, wanted, mine, check_key=False)
    if found is None:
        message = f"{source} gives no verdict {wanted}: the offset is the line's number less one, unless the line says"
        raise UsageError(message)
    return found


def _from_topic(settings: Settings, wanted: AnomalyId, learned: Learned, back: int) -> tuple[int, Replayed]:
    """Where reading began, and what was found."""
    clients, topic, partition = Clients(settings), wanted.place.topic, wanted.place.partition
    here = f"{topic}/{partition}"
    known = bounds(clients, topic, partition)
    if known is None or wanted.offset >= known[1]:
        holds = "there is no such partition" if known is None else f"it ends at {known[1]}"
        message = f"there is no record {wanted.offset} in {here}: {holds}; was the topic made anew?"
        raise TopicError(message)
    low, high = known
    if wanted.offset < low:
        message = (
            f"record {wanted.offset} of {here} is gone: the topic's retention has removed all before {low}; a file of "
            "the records can be replayed with --input"
        )
        raise TopicError(message)
    first = max(low, wanted.offset - back)
    until = min(high, wanted.offset + 1 + needs_more(settings, wanted.stream))
    with _reading(topic) as progress:
        records: Iterable[Record] = read_range(clients, topic, partition, first, until, progress)
        found = replay_records(settings, learned, wanted, records, check_key=True)
    if found is None:
        message = (
            f"{wanted} has no verdict now: the record is a dead letter, late or a duplicate, or no session ends there"
        )
        raise TopicError(message)
    return first, found


def _answer(text: str, told: Json | None, found: Replayed, learned: Learned, first: int) -> Json:
    score = None if told is None else told["score"]
    now = found.verdict["score"]
    same = None if score is None or now is None else abs(now - score) <= _SAME * max(1.0, abs(score))
    verdict = found.verdict
    if told is not None and "ended" in told:
        verdict = verdict | {"ended": told["ended"], "observed": told["observed"]}
    return {
        "id": text, "bundle": learned.digest, "verdict": verdict, "told_score": score, "same_score": same,
        "why_not": _why_not(told, found, learned, first) if same is False else [], "read_from": first,
    }  # fmt: skip


def _why_not(told: Json | None, found: Replayed, learned: Learned, first: int) -> list[str]:
    """Why a score may differ from the one that was told."""
    assert told is not None
    reasons = []
    if told["model"]["digest"] != learned.digest:
        reasons.append(f"bundle {told['model']['digest'][:12]} judged it then")
    if first > 0:
        reasons.append(
            f"the session may have begun before offset {first}, where reading began: --back reads more, as far as "
            f"retention has left it; {found.events} events of it were kept"
        )
    reasons.append(
        "another bundle may have served when the session began, so that its state was rebuilt from its context"
    )
    reasons.append("the stream's section may have changed, or the session's past was deleted")
    return reasons


def _print(answer: Json, rate: float) -> None:
    console, verdict = Console(highlight=False), answer["verdict"]
    console.print(sentence_of("anomalies", verdict), soft_wrap=True, markup=False)
    judged = "an anomaly" if verdict["anomaly"] else "normal"
    console.print(
        f"Judged by bundle {answer['bundle'][:12]}: {judged}, score {verdict['score']:.4f}, p-value "
        f"{verdict['p_value']:.2g}, promised {rate:g}."
    )
    if answer["same_score"] is None:
        console.print("What was told then is no longer on the anomalies topic, or is not looked for in a file.")
    elif answer["same_score"]:
        console.print("That is the score that was told.")
    else:
        console.print(f"The score that was told is {answer['told_score']:.4f}. That may be because")
        for reason in answer["why_not"]:
            console.print(f"  - {reason}", markup=False)
    console.print(_fields(verdict))
    if verdict["earlier"]:
        console.print(_earlier(verdict))
        if verdict["explained"] == "window":
            console.print("Older events than the state keeps count too; these shares are of a session that began here.")
    again = verdict.get("rescored")
    if again is not None:
        said = "confirms" if again["confirmed"] else "doubts"
        console.print(f"The second stage ({again['core']}) {said} it: p-value {again['p_value']:.2g}.")


def _fields(verdict: Json) -> Table:
    table = Table("", "came", "expected", f"share ({verdict['unit']})")
    shares = verdict["contributions"]
    for name in dict.fromkeys([*verdict["observed"], *shares, *verdict["expected"]]):
        expected = ", ".join(map(_likely, verdict["expected"].get(name, [])))
        share = shares.get(name)
        table.add_row(
            name, _shown(verdict["observed"].get(name)), expected, "" if share is None else f"{share:.3f}"
        )  # fmt: skip
    return table


def _earlier(verdict: Json) -> Table:
    """Earlier events, the latest first; those of a session's strangest record have no words but their time."""
    context, shares = verdict["context"], verdict["contributions"]
    of_end = verdict["type"] == "session" and None not in shares.values() and shares["end"] >= shares["worst_record"]
    is_next = verdict["type"] == "record" or of_end  # the context ends just before what is explained
    table = Table("back", "time_ms", "event", f"share ({verdict['unit']})")
    for one in reversed(verdict["earlier"]):
        event = context[-one["back"]] if is_next and one["back"] <= len(context) else {}
        told = " ".join(_shown(value) for name, value in event.items() if name != "time_ms" and value is not None)
        table.add_row(str(one["back"]), str(one["time_ms"]), told, f"{one['share']:+.3f}")
    return table


def _likely(one: dict[str, Any]) -> str:
    if "token" in one:
        return f"{one['token']} ({100 * one['probability']:.2g} %)"
    return f"{one['low']:.4g} to {one['high']:.4g}"


def _shown(value: str | float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _reading(topic: str) -> Iterator[Callable[[int, int], None]]:
    with progress_bar(f"reading {topic}", 1.0) as update:
        yield lambda done, total: update(done / max(1, total), f"{done:,} of {total:,} records")
