"""What the commands do, apart from the long-running ones."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import yaml
from confluent_kafka import KafkaError, KafkaException
from rich.console import Console
from rich.table import Table

from features.templates import Templates
from features.tokens import Vocabulary
from models.bundle import bundles_in
from models.folders import RemoteFolder
from pipeline.clients import Clients
from pipeline.errors import BrokerUnavailableError, TopicError, UsageError
from pipeline.screen import progress_bar, screen
from pipeline.secrets import HIDE
from pipeline.settings import Settings
from pipeline.unmatched_lines import covered_now

if TYPE_CHECKING:
    from detectors.drift_events import DriftEvent
    from pipeline.history import History
    from pipeline.outputs import Place

_FLUSH_S = 30.0
_EXAMPLES = 5  # of unknown lines shown after a training


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise UsageError(message) from None


def _make_folder(path: Path | RemoteFolder) -> None:
    """Make sure bundles can be written before minutes go into training one."""
    if isinstance(path, RemoteFolder):
        bundles_in(path)  # or a sentence
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{path} cannot be made ({error.strerror}); correct models_dir or data_dir"
        raise UsageError(message) from None


@contextmanager
def _reading(path: Path, what: str) -> Iterator[Callable[[int], None]]:
    """A bar over a file's bytes; for .gz the share is only known at the end."""
    done = 0
    with progress_bar(what, None if path.suffix == ".gz" else _size(path)) as update:

        def count(size: int) -> None:
            nonlocal done
            before, done = done, done + size
            if before // (1 << 20) != done // (1 << 20):  # a bar update costs more than a line
                update(done, "")

        yield count


def train_stream(
    settings: Settings, name: str, *, source: Path | None, since: str | None, until: str | None, promoted: bool,
    seed: int, as_json: bool, contamination: float | None = None, resumes: bool = False, why: str | None = None,
) -> None:  # fmt: skip
    """Read history, fit, write the bundle, and let it serve if asked or if none does."""
    from pipeline.history import from_file, from_topic, parse_moment_ms
    from pipeline.labelled_history import in_words, without_labelled
    from pipeline.model_commands import try_to_tell
    from pipeline.registry import Registry
    from pipeline.serving import make_decoder
    from pipeline.train import learn_bundle, options_of

    stream = settings.stream(name)
    directory = settings.bundles_dir / name
    _make_folder(directory)
    registry = Registry(settings, name)
    decoder = make_decoder(settings, name)
    history: History
    if source is not None:
        _size(source)
        with _reading(source, f"reading {source.name}") as count:
            history = from_file(source, stream, decoder, count)
    else:
        clients, now_ms = Clients(settings), time.time_ns() // 1_000_000
        clients.admin()
        since_ms, until_ms = (None if t is None else parse_moment_ms(t, now_ms) for t in (since, until))
        with progress_bar(f"reading {stream.topic}", None) as update:
            history = from_topic(
                clients, stream, decoder, since_ms, until_ms, lambda n, total: update(n, f"{n:,} of {total:,} records")
            )
        history, left_out = without_labelled(settings, clients, name, history)
        told = in_words(left_out)
        if told is not None:
            screen.print(told, style="yellow")
    for reason, number in history.rejected.items():
        screen.print(f"left out {number:,} records: {reason}", style="yellow")
    options = options_of(stream.model, seed=seed, contamination=contamination)
    origin = f"topic {stream.topic}" if source is None else f"file {source.name}"
    digest, learned = learn_bundle(settings, registry, history, options, source=origin, why=why, resumes=resumes)
    serves = promoted or registry.serving_if_known() is None
    if serves:
        registry.promote(digest, why)
        try_to_tell(settings, registry)
    if stream.message is not None:
        _tell_unmatched(settings, name, learned.templates)
    for warning in learned.warnings:
        screen.print(f"warning: {warning}", style="yellow")
    if as_json:
        print(json.dumps({"digest": digest, "serving": serves, "warnings": learned.warnings, **learned.content}))
        return
    data = learned.content["data"]
    print(f"Learned {data['sessions']:,} sessions ({data['records']:,} records) into bundle {digest[:12]}.")
    print(f"Vocabulary {learned.vocabulary.digest[:12]}: {_in_words(learned.vocabulary)}.")
    hint = "" if serves else f"; another one serves {name}, `--promote` lets this one"
    print(f"It lies in {directory / digest}{hint}." if hint else f"It serves {name} ({directory / digest}).")


def _in_words(vocabulary: Vocabulary) -> str:
    """How much of each field is known."""
    told = (
        (field, ", ".join(f"{number:,} {what}" for what, number in counts.items()))
        for field, counts in vocabulary.summary().items()
    )
    return "; ".join(f"{field} {counts}" for field, counts in told)


def _tell_unmatched(settings: Settings, name: str, templates: Templates) -> None:
    """Whether lines that workers met in vain are known now."""
    lines, matched, examples = covered_now(settings, name, templates)
    if lines:
        screen.print(f"{lines:,} lines matched no template before; {matched:,} of them do now")
        for example in examples[:_EXAMPLES]:
            screen.print(f"  still unknown: {example[:200]}", markup=False)


def score_stream(
    settings: Settings, name: str, source: Path, target: Path, bundle: Path | None, *, as_json: bool
) -> None:
    """Score a file into a file, and sum up."""
    from pipeline.score import score_file
    from pipeline.serving import load_serving

    stream = settings.stream(name)
    learned = load_serving(settings, name, bundle)
    if learned is None:
        screen.print(
            f"warning: no bundle serves {name}, so scores come from what is learned on the way, and the first are "
            "null; run `offbeat train`",
            style="yellow",
        )
    _size(source)
    _refuse_same(source, target)
    if stream.time is None:
        screen.print(
            "note: the stream has no `time` field; lines without _timestamp_ms are of 1970, so no gap ends a session",
            style="yellow",
        )
    with _reading(source, f"scoring {source.name}") as count:
        counts = score_file(settings, name, learned, source, target, count, _say_drift)
    if as_json:
        print(json.dumps(counts))
        return
    print(
        f"{counts['records']:,} records, {counts['record_anomalies']:,} anomalies; {counts['sessions']:,} sessions, "
        f"{counts['session_anomalies']:,} anomalies; {counts['dead_letters']:,} records could not be scored. "
        f"Verdicts are in {target}."
    )


def _say_drift(place: Place, event: DriftEvent) -> None:
    """A line for people; the worker sends a message to the drift topic there."""
    from pipeline.stream_drift import detail_of

    phase = "began" if event.has_begun else "ended"
    where = f"{place.topic}/{place.partition}/{event.offset}"
    screen.print(f"{event.type} {phase} at {where}: {detail_of(event)}", style="yellow")


def _refuse_same(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        message = f"--input and --output are the same file, {target}; give the verdicts another"
        raise UsageError(message)


def backtest_stream(
    settings: Settings, name: str, source: Path, labels: Path, *, bundle: Path | None, output: Path | None,
    plot_to: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Score a file, judge its verdicts by labels, and show the measures."""
    from pipeline.backtest import run_backtest
    from pipeline.backtest_plot import plot
    from pipeline.judgement import table
    from pipeline.labels import read_labels
    from pipeline.serving import load_serving

    settings.stream(name)
    if plot_to is not None and plot_to.suffix != ".svg":
        message = f"--plot {plot_to} is no .svg file, the one kind of plot there is; browsers open it, so name it so"
        raise UsageError(message)
    read = read_labels(labels)  # its mistakes are told before minutes go into scoring
    learned = load_serving(settings, name, bundle)
    if learned is None:
        message = f"no bundle serves {name}, so there is nothing to judge; run `offbeat train`, or give one by --bundle"
        raise UsageError(message)
    _size(source)
    if output is not None:
        _refuse_same(source, output)
    with _reading(source, f"scoring {source.name}") as count:
        result = run_backtest(settings, name, learned, source, read, output, count)
    backtest = result.backtest
    if plot_to is not None:
        parts = (("records", backtest.records, result.records), ("sessions", backtest.sessions, result.sessions))
        title = f"{name}: {source.name} by the labels of {labels.name}"
        svg = plot(title, [(what, j, held) for what, j, held in parts if j is not None and held is not None])
        _write_text(plot_to, svg)
    if as_json:
        print(backtest.model_dump_json())
        return
    Console(highlight=False).print(table(backtest))
    if backtest.unused_labels:
        print(f"{backtest.unused_labels:,} of {len(read):,} labels are about nothing in {source}.")
    for where in filter(None, (output, plot_to)):
        print(f"{where} is written.")


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise UsageError(message) from error


def produce_file(settings: Settings, name: str, source: Path, rate: float | None, *, as_json: bool) -> None:
    """Send lines, keyed by their session; a line without one goes without a key, as a faulty producer would."""
    from pipeline.producing import produce_lines

    stream = settings.stream(name)
    clients = Clients(settings)
    admin = clients.admin()
    if stream.topic not in admin.list_topics(timeout=10).topics:
        message = f"topic {stream.topic} does not exist; run `offbeat topics --create`, or correct the stream's `topic`"
        raise TopicError(message)
    _size(source)
    with _reading(source, f"producing {source.name}") as count:
        sent = produce_lines(clients, stream, source, rate, count, time.monotonic, time.sleep)
    print(json.dumps({"records": sent}) if as_json else f"{sent:,} records sent to {stream.topic}.")


def tail_topic(settings: Settings, what: str, *, from_start: bool, limit: int | None, as_json: bool) -> None:
    """Follow an output topic until Ctrl-C or `limit`."""
    from uuid import uuid4

    from pipeline.topics import OUTPUTS, output_topic

    known = (*OUTPUTS, "retrain")
    if what not in known:
        message = f"{what!r} is no output topic; there are {', '.join(known)}"
        raise UsageError(message)
    topic, clients = output_topic(settings, what), Clients(settings)
    if topic not in clients.admin().list_topics(timeout=10).topics:
        message = f"topic {topic} does not exist yet; start `offbeat worker`, or run `offbeat topics --create`"
        raise TopicError(message)
    consumer = clients.confluent_consumer(f"offbeat-tail-{uuid4()}", from_start=from_start)
    consumer.subscribe([topic])
    shown = 0
    try:
        while limit is None or shown < limit:
            message_ = consumer.poll(0.5)
            if message_ is None:
                continue
            if message_.error() is not None:
                raise KafkaException(message_.error())
            print(_line_of(what, message_.value() or b"", as_json=as_json), flush=True)
            shown += 1
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # `offbeat tail | head`: the reader has gone, and nothing may be flushed to it at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KafkaException as error:
        if error.args[0].code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 (the code's public name)
            raise BrokerUnavailableError(str(error.args[0].str())) from None
        raise TopicError(error.args[0].str()) from None
    finally:
        consumer.close()


def _line_of(what: str, value: bytes, *, as_json: bool) -> str:
    """A message as `tail` prints it; what others wrote into our topic is shown as it is."""
    from pipeline.sentences import sentence_of

    if not as_json:
        try:
            return sentence_of(what, orjson.loads(value))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            pass
    return value.decode("utf-8", "replace")


def manage_topics(settings: Settings, *, create: bool, delete: bool, as_json: bool) -> None:
    """List topics with what they are for; create the missing or delete ours first if asked."""
    from pipeline.topics import create_topics, delete_topics, partition_counts, wanted_topics

    admin = Clients(settings).admin()
    wanted = wanted_topics(settings, partition_counts(admin))
    if create:
        create_topics(admin, settings, wanted)
    if delete:
        delete_topics(admin, [t for t in wanted if t.role != "source"])
    existing = partition_counts(admin)
    rows: list[dict[str, Any]] = [
        {"topic": t.name, "role": t.role, "partitions": existing.get(t.name), "config": t.config} for t in wanted
    ]
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("topic", "role", "partitions")
    for row in rows:
        table.add_row(row["topic"], row["role"], "missing" if row["partitions"] is None else str(row["partitions"]))
    Console(highlight=False).print(table)


def show_config(settings: Settings, *, as_json: bool) -> None:
    """Print the settings in force, as YAML or JSON; secrets as `***`."""
    plain = settings.model_dump(mode="json", context=HIDE)
    print(json.dumps(plain) if as_json else yaml.safe_dump(plain, sort_keys=False), end="" if not as_json else "\n")
