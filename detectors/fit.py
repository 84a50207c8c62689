"""From history to a bundle: sessions, a split in time, training, and calibration on sessions the model never saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import Calibration
from detectors.intake import take_in, without_duplicates
from detectors.parts import NO_NUMBERS, NO_TEMPLATES, Learned, Parts, pack
from detectors.process import Verdicts, process_batch
from detectors.rows import PartitionState, SessionRows
from features.events import Events
from features.measures import LEAST_SPAN_MS, measure
from features.messages import MessageReader
from features.numbers import UNKNOWN, NumberBins
from features.parameters import with_parameters
from features.sessions import END_INPUT, Walk, log_gaps, number_sessions, walk_sessions
from features.template_mining import mine
from features.templates import Templates
from features.tokens import OOV, RARE, TokenEncoder, Vocabulary
from models.errors import UnsuitableDataError
from models.runtime import Runtime, load_runtime
from models.training import Epoch, Sequence, TrainingOptions, train

# Shares of the sessions, in order of their first events: to learn from, to stop at, and (the rest) to calibrate on.
LEARN, VALIDATE = 0.7, 0.1
MIN_SESSIONS = 100
# Where sessions are fewer, long ones are cut into pieces, each of which the model learns as a session of its own.
PIECES, LEAST_PIECE = 1_000, 32
MAX_VOCABULARY = 10_000


@dataclass(frozen=True)
class Fit:
    """A trained bundle not yet written, and what the user should know about it."""

    content: dict[str, Any]
    files: dict[str, bytes]
    warnings: list[str]
    templates: Templates
    vocabulary: Vocabulary
    numbers: NumberBins


@dataclass(frozen=True)
class _Partition:
    """One partition's events as they came and in order, with the session of each operation over all partitions."""

    arrived: Events
    events: Events
    measures: NDArray[np.float32]
    walk: Walk
    session: NDArray[np.int32]


def fit(
    history: list[Events], parts: Parts, seed: int, on_epoch: Callable[[Epoch], None], clock: Callable[[], float],
    buckets: Mapping[str, int] | None = None,
) -> Fit:  # fmt: skip
    """Learn a stream's grammar from its history.

    Parameters
    ----------
    history
        The events of each partition, in offset order.
    parts
        The stream's rules and fields; `learned` is ignored.
    buckets
        Fields whose tokens are hashed, and into how many buckets.

    Raises
    ------
    UnsuitableDataError
        Too few sessions, or nothing to learn.
    """
    history = [events for events in history if len(events)]
    partitions, first_ms = _sessionise(history, parts)
    if len(first_ms) < MIN_SESSIONS:  # hosts, say, whose sessions never end
        longest = max(LEAST_PIECE, sum(map(len, history)) // PIECES)
        partitions, first_ms = _sessionise(history, parts, longest)
    if len(first_ms) < MIN_SESSIONS:
        message = (
            f"the history holds {len(first_ms)} sessions; at least {MIN_SESSIONS} are needed to learn from and to "
            f"calibrate on (a long one counts as several, of {LEAST_PIECE} events): give a longer time span, or check "
            "session.by and session.gap"
        )
        raise UnsuitableDataError(message)
    role = _split(first_ms)
    templates, partitions = _templates(partitions, role, parts.measures.parameters)
    vocabulary, while_learning = _vocabularies(partitions, role, parts, buckets)
    numbers = _bins(partitions, role, parts)
    seasonal = tuple(name for name in parts.measures.seasonal if _span_ms(first_ms) >= LEAST_SPAN_MS[name])
    knowing, parts = (_knowing(parts, words, numbers, seasonal) for words in (while_learning, vocabulary))
    learning, validation = (
        [s for p in partitions for s in _sequences(p, role == r, with_)] for r, with_ in ((0, knowing), (1, parts))
    )
    # Where nothing is rare, `<rare>` never comes, and there is no need to learn from it.
    unknown = (OOV, RARE) if any(map(len, vocabulary.rare or ())) else (OOV,)
    others = len(parts.number_fields) + len(seasonal)
    options = TrainingOptions(seed=seed, unknown=(unknown,) * parts.shape.fields + ((UNKNOWN,),) * others)
    spec = parts.spec(vocabulary, numbers, seasonal)
    epochs: list[Epoch] = []

    def progress(epoch: Epoch) -> None:
        epochs.append(epoch)
        on_epoch(epoch)

    weights = train(learning, validation, spec, options, progress, clock)
    records, sessions = _calibrate(partitions, role == 2, parts, load_runtime(spec, weights))
    content = {
        "stream": parts.stream,
        "schema": parts.schema | {"seasonal": list(seasonal)},
        "rules": {"gap_ms": parts.rules.gap_ms, "max_events": parts.rules.max_events},
        "data": _data_span(partitions, first_ms),
        "training": {
            "seed": seed, "epochs": len(epochs), "sessions": int((role == 0).sum()),
            "best_validation_loss": min(e.validation_loss for e in epochs),
        },
        "templates": len(templates.templates),
        "vocabulary": {"digest": vocabulary.digest, "fields": vocabulary.summary()},
        "calibration": {"records": records.count, "sessions": sessions.count},
        "versions": {name: version(name) for name in ("offbeat", "torch", "numpy", "numba")},
    }  # fmt: skip
    files = pack(vocabulary, weights, records, sessions, templates, numbers) | _usual_fields(partitions, role, parts)
    return Fit(content, files, _warnings(records, sessions, parts.rate), templates, vocabulary, numbers)


def _knowing(parts: Parts, vocabulary: Vocabulary, numbers: NumberBins, seasonal: tuple[str, ...]) -> Parts:
    """Parts that give a model its ids, but have no model yet."""
    nothing = Calibration.learn([])
    learned = Learned("0" * 64, vocabulary, None, nothing, nothing, numbers=numbers, seasonal=seasonal)
    return replace(parts, encoder=TokenEncoder(parts.shape.fields, vocabulary), learned=learned)


def _span_ms(first_ms: NDArray[np.int64]) -> int:
    return int(first_ms.max() - first_ms.min())


def _bins(partitions: list[_Partition], role: NDArray[np.int8], parts: Parts) -> NumberBins:
    """Bins of the numbers of the sessions to learn from."""
    if not parts.number_fields:
        return NO_NUMBERS
    measures: list[NDArray[np.float32]] = []
    names: list[list[str | None] | None] = [None if by is None else [] for by in parts.measures.named_by]
    for p in partitions:
        records = _records(p, role == 0)
        measures.append(p.measures[records])
        for column, given in zip(names, parts.measures.names(p.events) or (), strict=True):
            if column is not None and given is not None:
                column += [given[i] for i in records.tolist()]
    return NumberBins.learn(np.concatenate(measures).astype(np.float64), names or None)


def _records(partition: _Partition, chosen: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Events of the chosen sessions, but for late ones."""
    steps = partition.walk.steps
    return partition.walk.record[steps[chosen[partition.session[steps]]]]


def _sessionise(
    history: list[Events], parts: Parts, longest: int = 2**31 - 1
) -> tuple[list[_Partition], NDArray[np.int64]]:
    """Walk each partition; also give every session's first event time. `longest` as `number_sessions` has it."""
    partitions: list[_Partition] = []
    first_ms: list[NDArray[np.int64]] = []
    opened = 0
    for arrived in history:
        events, _, _ = without_duplicates(arrived, PartitionState(0), parts)
        rows = SessionRows.empty(len(events.sessions), parts.shape)
        ordered = take_in(events, rows, PartitionState(0), parts, close_all=True).ordered
        walk = walk_sessions(ordered, rows.clocks, parts.rules, close_all=True)
        numbers, begins = number_sessions(walk, longest)
        measures, _, _ = measure(ordered.events, walk, rows.counter_value, rows.counter_ms, parts.measures)
        partitions.append(_Partition(events, ordered.events, measures, walk, numbers + opened))
        first_ms.append(ordered.events.time_ms[begins])
        opened += len(begins)
    return partitions, np.concatenate(first_ms) if first_ms else np.empty(0, np.int64)


def _split(first_ms: NDArray[np.int64]) -> NDArray[np.int8]:
    """Role of each session, by time: 0 learn, 1 validate, 2 calibrate."""
    order = np.argsort(first_ms, kind="stable")
    role = np.full(len(order), 2, np.int8)
    role[order[: int(len(order) * (LEARN + VALIDATE))]] = 1
    role[order[: int(len(order) * LEARN)]] = 0
    return role


def _templates(
    partitions: list[_Partition], role: NDArray[np.int8], parameters: int
) -> tuple[Templates, list[_Partition]]:
    """Mine the messages of the sessions to learn from, and read all by the templates found."""
    if any(p.events.messages is None for p in partitions):
        return NO_TEMPLATES, partitions
    said = [message for p in partitions for message in _learned_messages(p, role)]
    templates = mine(text for _, text in said)
    templates = with_parameters(templates, (text for _, text in sorted(said, key=itemgetter(0))), parameters)
    reader = MessageReader(templates, parameters=parameters)
    return templates, [_with_templates(p, reader) for p in partitions]


def _learned_messages(partition: _Partition, role: NDArray[np.int8]) -> Iterator[tuple[int, str]]:
    """Times and texts."""
    events = partition.events
    for record in _records(partition, role == 0).tolist():
        said = (events.messages or [])[record]
        if said is not None:
            yield int(events.time_ms[record]), said


def _with_templates(partition: _Partition, reader: MessageReader) -> _Partition:
    """The same with what the messages hold; their numbers are no counters, so they are measures as they are."""
    arrived, events = _read(partition.arrived, reader), _read(partition.events, reader)
    fields = partition.measures.shape[1] - reader.parameters
    measures = np.hstack([partition.measures[:, :fields], events.numbers[:, fields:].astype(np.float32)])
    return replace(partition, arrived=arrived, events=events, measures=measures)


def _read(events: Events, reader: MessageReader) -> Events:
    texts, numbers = reader.read(events.messages or [])
    of_fields = events.numbers[:, : events.numbers.shape[1] - reader.parameters]
    return replace(events, tokens=[*events.tokens[:-1], texts], numbers=np.hstack([of_fields, numbers]))


def _vocabularies(
    partitions: list[_Partition], role: NDArray[np.int8], parts: Parts, buckets: Mapping[str, int] | None
) -> tuple[Vocabulary, Vocabulary]:
    """The tokens of the sessions to learn from, as `Vocabulary.learn` gives them; what only others have is `<oov>`."""
    fields = parts.fields[: parts.shape.fields]
    columns: list[list[str | None]] = [[] for _ in fields]
    for p in partitions:
        records = _records(p, role == 0).tolist()
        for column, texts in zip(columns, p.events.tokens, strict=True):
            column.extend(texts[i] for i in records)
    return Vocabulary.learn(fields, columns, MAX_VOCABULARY, buckets)


def _sequences(partition: _Partition, chosen: NDArray[np.bool_], parts: Parts) -> list[Sequence]:
    """The chosen sessions of a partition, as the model takes them."""
    walk, session = partition.walk, partition.session
    ids, gaps = parts.ids(partition.events, partition.measures), log_gaps(walk.gap_ms)
    steps = partition.walk.steps
    steps = steps[np.argsort(session[steps], kind="stable")]  # session by session, each in order
    numbers, starts = np.unique(session[steps], return_index=True)
    seen_end = set(session[walk.of_ends[walk.kind[walk.of_ends] != END_INPUT]].tolist())
    out = []
    for number, records in zip(numbers.tolist(), np.split(walk.record[steps], starts[1:]), strict=True):
        if chosen[number]:
            out.append(Sequence(ids[records], gaps[records], number in seen_end))
    return out


def _calibrate(
    partitions: list[_Partition], held_back: NDArray[np.bool_], parts: Parts, model: Runtime
) -> tuple[Calibration, Calibration]:
    """Score the history as a worker would; keep the scores of records and of ended sessions held back."""
    assert parts.learned is not None, "vocabulary and bins are known by now"
    parts = replace(parts, learned=replace(parts.learned, model=model))
    records: list[NDArray[np.float32]] = []
    sessions: list[NDArray[np.float32]] = []
    for p in partitions:
        rows = SessionRows.empty(len(p.events.sessions), parts.shape)
        verdicts, _, _ = process_batch(p.arrived, rows, PartitionState(0), parts, close_all=True)
        records.append(_record_scores(verdicts, p, held_back))
        ends = verdicts.ends.operation
        counted = held_back[p.session[ends]] & (verdicts.walk.kind[ends] != END_INPUT)
        sessions.append(verdicts.ends.score[counted])
    return Calibration.learn(np.concatenate(records)), Calibration.learn(np.concatenate(sessions))


def _record_scores(verdicts: Verdicts, partition: _Partition, held_back: NDArray[np.bool_]) -> NDArray[np.float32]:
    return verdicts.score[_records(partition, held_back)]


def _usual_fields(partitions: list[_Partition], role: NDArray[np.int8], parts: Parts) -> dict[str, bytes]:
    """How often fields are missing, of a wrong type or unknown, for workers to compare with."""
    if parts.watch is None:
        return {}
    found = []
    for p in partitions:
        # In the order of arrival, in which workers count; events that were put in order are found by their offsets.
        taught = np.isin(p.arrived.offsets, p.events.offsets[_records(p, role == 0)])
        found.append((p.arrived, parts.encoder.ids(p.arrived.tokens, len(p.arrived)), ~taught))
    usual = replace(parts.watch, usual={}).learn(found)
    return {"schema.json": json.dumps(usual, indent=1, sort_keys=True).encode()}


def _data_span(partitions: list[_Partition], first_ms: NDArray[np.int64]) -> dict[str, Any]:
    """What was learned from, with a fingerprint that changes when any event's session, time or token does."""
    fingerprint = sha256()
    for p in partitions:
        fingerprint.update(p.events.time_ms.tobytes() + p.events.session.tobytes())
        for column in p.events.tokens:
            fingerprint.update("\0".join("" if t is None else t for t in column).encode())
    return {
        "records": sum(len(p.events) for p in partitions), "sessions": len(first_ms),
        "first_ms": int(min(p.events.time_ms.min() for p in partitions)),
        "last_ms": int(max(p.events.time_ms.max() for p in partitions)),
        "sha256": fingerprint.hexdigest(),
    }  # fmt: skip


def _warnings(records: Calibration, sessions: Calibration, rate: float) -> list[str]:
    """Say where the data is too little for the promise: a p-value cannot fall below 1 / (1 + held-back scores)."""
    return [
        f"{part.count} {what} were held back for calibration, so no {what[:-1]} can reach a p-value below "
        f"{part.smallest_p_value:.2g}: with the promise of {rate:g} none will ever be an anomaly. Train on about "
        f"{int(1 / (rate * (1 - LEARN - VALIDATE)))} {what}, or raise promise.false_alarm_rate"
        for what, part in (("records", records), ("sessions", sessions))
        if part.smallest_p_value > rate
    ]
