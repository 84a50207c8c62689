"""`offbeat score`: verdicts for a file, by the same code as the worker."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec
import orjson

from detectors.drift_events import DriftEvent
from detectors.parts import Learned
from detectors.rate_watch import RateAlarm
from detectors.rows import PartitionState
from features.decode import Decoder
from features.events import Events
from pipeline.errors import UsageError
from pipeline.outputs import Emitter, Json, Place, message_id
from pipeline.samples import events_of
from pipeline.serving import make_live_decoder, make_parts
from pipeline.settings import Settings
from pipeline.slices import Processed, process_slice
from pipeline.store import RowStore

OnDrift = Callable[[Place, DriftEvent], None]
CHUNK = 4_096  # lines in one slice; any other number gives the same verdicts


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 2)]
_Moment = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 2)]  # -1: Kafka's own word for none


class _Envelope(msgspec.Struct, gc=False):
    """Where a line's record lay in Kafka, where it says so."""

    key: str | None = msgspec.field(default=None, name="_key")
    timestamp_ms: _Moment | None = msgspec.field(default=None, name="_timestamp_ms")
    topic: str | None = msgspec.field(default=None, name="_topic")
    partition: _Count | None = msgspec.field(default=None, name="_partition")
    offset: _Count | None = msgspec.field(default=None, name="_offset")
    value: str | None = msgspec.field(default=None, name="_value")


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


@dataclass(frozen=True)
class Line:
    """A line of a file as the record it stands for (`features.events.Record`)."""

    number: int  # counted from 1
    place: Place
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


def read_lines(path: Path, topic: str, progress: Callable[[int], None] | None = None) -> Iterator[Line]:
    """Lines of a JSON-lines file, plain or .gz; blank ones are left out but counted.

    Raises
    ------
    UsageError
        The file cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if progress is not None:
                    progress(len(raw))
                if not raw.isspace():
                    yield _line(number, raw.rstrip(b"\r\n"), path, topic)  # blanks at either end may mean something
    except (OSError, EOFError, zlib.error) as error:
        message = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UsageError(message) from error


def _line(number: int, text: bytes, path: Path, topic: str) -> Line:
    try:
        about = _decode_envelope(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if "`$._" in str(error):
            what = str(error).replace("`$.", "`").replace("`", "'")
            message = f"line {number} of {path} does not say where its record lay: {what}; correct it or leave it out"
            raise UsageError(message) from None
        about = _Envelope()  # the decoder will say what is wrong with it
    return Line(
        number,
        Place(topic if about.topic is None else about.topic, 0 if about.partition is None else about.partition),
        number - 1 if about.offset is None else about.offset,
        0 if about.timestamp_ms is None else about.timestamp_ms,
        None if about.key is None else about.key.encode(),
        text if about.value is None else about.value.encode(),
    )


@dataclass
class _Partition:
    """One partition of the file, on its way."""

    emitter: Emitter
    store: RowStore
    state: PartitionState = field(default_factory=lambda: PartitionState(0))
    waiting: dict[int, int] = field(default_factory=dict)  # lines of records without a verdict yet, by offset


class Scorer:
    """Scores lines chunk by chunk; partitions keep their own watermark and sessions. Drift goes to `on_drift`."""

    def __init__(
        self, settings: Settings, name: str, learned: Learned | None, on_drift: OnDrift = lambda *_: None
    ) -> None:
        self._settings, self._name, self._learned, self._on_drift = settings, name, learned, on_drift
        self._decoder: Decoder = make_live_decoder(settings, name, learned)
        self._partitions: dict[Place, _Partition] = {}
        self._shared_by: int | None = None  # a budget of alarms; a file that names no partitions is one

    def score(self, lines: list[Line]) -> Iterator[Json]:
        """One verdict a line, in the lines' order, each followed by the sessions that end with it."""
        if not self._partitions and not any(line.place.partition for line in lines):
            self._shared_by = 1
        by_place: dict[Place, list[int]] = {}
        for position, line in enumerate(lines):
            by_place.setdefault(line.place, []).append(position)
        verdicts: list[list[Json]] = [[] for _ in lines]
        for place, positions in by_place.items():
            records, partition = [lines[p] for p in positions], self._partition(place)
            events = self._decoder.decode(records, check_key=False)
            if partition.emitter.parts.windows is None:
                partition.waiting |= {records[i].offset: records[i].number for i in events.index.tolist()}
            done = self._process(partition, events)
            for seen, verdict in self._decisions(partition, done):
                released = done.verdicts.events
                where = positions[released.index[max(seen, 0)] if len(released) else -1]
                verdicts[where].append(_numbered(verdict, partition, lines[where].number))
            position_of = {records[i].offset: p for i, p in enumerate(positions)} if done.rated.alarms else {}
            for alarm in done.rated.alarms:
                where = position_of.get(alarm.offset, positions[-1])
                verdicts[where].append(_on_rate(alarm, partition, lines[where].number))
            for i in done.duplicates.tolist():
                line = records[i]
                partition.waiting.pop(line.offset, None)
                verdicts[positions[i]].append(self._unscored(line, "duplicate"))
            for reject in events.rejects:
                line = records[reject.index]
                why = {"reason": reject.error.reason, "detail": str(reject.error)}
                verdicts[positions[reject.index]].append(self._unscored(line, "dead_letter") | why)
        for found in verdicts:
            yield from found

    def finish(self) -> Iterator[Json]:
        """End the sessions still open, as `input`: the file is over."""
        nothing = self._decoder.decode([], check_key=False)
        for partition in self._partitions.values():
            done = self._process(partition, nothing, closing=partition.store.open_names())
            for _, verdict in self._decisions(partition, done):
                yield _numbered(verdict, partition) if verdict["type"] == "record" else verdict

    def _partition(self, place: Place) -> _Partition:
        if place not in self._partitions:
            parts = make_parts(self._settings, self._name, self._learned, self._shared_by)
            store = RowStore(parts.shape, parts.rules)
            self._partitions[place] = _Partition(Emitter(parts, place, 1.0), store)
        return self._partitions[place]

    def _process(self, partition: _Partition, events: Events, closing: list[str] | None = None) -> Processed:
        done = process_slice(partition.store, events, partition.state, partition.emitter.parts, closing=closing)
        assert done is not None, "a store without a bound has room"
        partition.state = done.state
        for event in done.drifted.events:
            self._on_drift(partition.emitter.place, event)
        return done

    def _decisions(self, partition: _Partition, done: Processed) -> Iterator[tuple[int, Json]]:
        return partition.emitter.decisions(done)

    def _unscored(self, line: Line, status: str) -> Json:
        return {
            "type": "record", "id": message_id(self._name, line.place, line.offset, "record"), "line": line.number,
            "session": None, "segment": None, "time_ms": None, "score": None, "p_value": None, "anomaly": False,
            "confidence": None, "tag": None, "tag_confidence": None, "status": status, "labelled": None,
        }  # fmt: skip


def _on_rate(alarm: RateAlarm, partition: _Partition, line: int) -> Json:
    anomaly = partition.emitter.rate_anomaly(alarm)
    return {"type": "rate", "id": anomaly["id"], "line": line, **anomaly, "anomaly": True}


def _numbered(verdict: Json, partition: _Partition, seen_at: int | None = None) -> Json:
    """The verdict with its line; the order of keys is for people who read the file."""
    line = seen_at
    if verdict["type"] == "record":
        line = partition.waiting.pop(int(verdict["id"].rsplit("/", 2)[1]), seen_at)
    return {"type": verdict["type"], "id": verdict["id"], "line": line, **verdict}


def verdicts_of(
    settings: Settings, name: str, learned: Learned | None, source: Path,
    progress: Callable[[int], None] | None = None, on_drift: OnDrift = lambda *_: None,
) -> Iterator[Json]:  # fmt: skip
    """The verdicts on a whole file, in the lines' order; those on sessions that it leaves open come last."""
    scorer = Scorer(settings, name, learned, on_drift)
    lines = events_of(settings.stream(name), read_lines(source, settings.topic_of(name), progress))
    while chunk := list(islice(lines, CHUNK)):
        yield from scorer.score(chunk)
    yield from scorer.finish()


def written(verdicts: Iterable[Json], target: Path) -> Iterator[Json]:
    """The same verdicts, each once it is a line of the file.

    Raises
    ------
    UsageError
        The file cannot be written.
    """
    try:
        with target.open("wb") as out:
            for verdict in verdicts:
                out.write(orjson.dumps(verdict) + b"\n")
                yield verdict
    except OSError as error:
        message = f"{target} cannot be written: {error.strerror or error}"
        raise UsageError(message) from error


def score_file(
    settings: Settings, name: str, learned: Learned | None, source: Path, target: Path,
    progress: Callable[[int], None] | None = None, on_drift: OnDrift = lambda *_: None,
) -> dict[str, int]:  # fmt: skip
    """Score a whole file into another; returns counts for a summary."""
    counts = {"records": 0, "sessions": 0, "record_anomalies": 0, "session_anomalies": 0, "dead_letters": 0}
    for verdict in written(verdicts_of(settings, name, learned, source, progress, on_drift), target):
        kind = verdict["type"]
        if kind == "rate":
            counts["rate_anomalies"] = counts.get("rate_anomalies", 0) + 1
            continue
        counts[f"{kind}s"] += 1
        counts[f"{kind}_anomalies"] += verdict["anomaly"]
        counts["dead_letters"] += verdict["status"] == "dead_letter"
    return counts
