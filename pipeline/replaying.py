"""An anomaly judged once more: the records around it through the same path as in the worker, and all that can be told.

There is no budget here: who asks waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from detectors.absolution import absolve
from detectors.contexts import Window
from detectors.explanation import in_words
from detectors.occlusion import LEFT_OUT, Occluded, Occlusion, occlude_records, occlude_session
from detectors.parts import Learned, Parts
from detectors.rescoring import rescore
from detectors.rows import PartitionState
from features.events import Record
from pipeline.anomaly_ids import AnomalyId
from pipeline.outputs import Emitter, Json, record_id, session_id
from pipeline.serving import make_live_decoder, make_parts
from pipeline.settings import Settings
from pipeline.slices import Processed, process_slice
from pipeline.store import RowStore

_AT_ONCE = 4_096  # records in a slice; any other number gives the same verdicts
LOOK_AHEAD = 10_000  # records after the one in question, where events are put in order or gathered


@dataclass(frozen=True)
class Replayed:
    """What was found.

    Attributes
    ----------
    verdict
        The decision with its explanation, as an anomaly has it, but with up to 32 events of context.
    events
        How many of the session's events were read before it.
    """

    verdict: Json
    events: int


def needs_more(settings: Settings, name: str) -> int:
    """How many records after the one in question may have to do with it."""
    parts = make_parts(settings, name, None)
    return LOOK_AHEAD if parts.rules.lead_ms > 0 or parts.windows is not None else 0


def replay_records(
    settings: Settings, learned: Learned, wanted: AnomalyId, records: Iterable[Record], *, check_key: bool
) -> Replayed | None:
    """Judge records of one partition until the record or session in question has its verdict; None where it has none.

    Sessions still open after the last record end there: a session's score is the same however it ends.
    """
    parts = replace(make_parts(settings, wanted.stream, learned), explained=0)
    decoder = make_live_decoder(settings, wanted.stream, learned)
    once = replace(parts, second=None)
    store, state, source = RowStore(parts.shape, parts.rules), PartitionState(0), iter(records)
    while chunk := list(islice(source, _AT_ONCE)):
        done = _processed(store, decoder.decode(chunk, check_key=check_key), state, once)
        state = done.state
        if (found := _find(done, wanted, parts)) is not None:
            return found
    done = _processed(store, decoder.decode([], check_key=check_key), state, once, closing=store.open_names())
    return _find(done, wanted, parts)


def _processed(
    store: RowStore, events: Any, state: PartitionState, parts: Parts, closing: list[str] | None = None
) -> Processed:  # fmt: skip
    done = process_slice(store, events, state, parts, closing=closing)
    assert done is not None, "a store without a bound has room"
    return done


def _find(done: Processed, wanted: AnomalyId, parts: Parts) -> Replayed | None:
    verdicts, place = done.verdicts, wanted.place
    if wanted.is_session:
        numbers = np.flatnonzero(verdicts.ends.last_offset == wanted.offset).tolist()
        named: Iterator[int] = (e for e in numbers if session_id(verdicts, e, place, parts) == str(wanted))
    else:
        numbers = np.flatnonzero(verdicts.events.offsets == wanted.offset).tolist()
        named = (i for i in numbers if record_id(verdicts, i, place, parts) == str(wanted))
    number = next(named, None)
    if number is None:
        return None
    return _explained(done, number, wanted, parts)


def _explained(done: Processed, number: int, wanted: AnomalyId, parts: Parts) -> Replayed:
    verdicts, rows = done.verdicts, done.rows
    told = _alone(done, number, parts, is_session=wanted.is_session)
    again, _ = rescore(told.verdicts, rows, PartitionState(0), replace(parts, passes=1))
    occluded: dict[int, Occlusion]
    if wanted.is_session:
        occluded = {number: occlude_session(verdicts, number, rows, parts, LEFT_OUT)}
        told = replace(told, rescored=again, occluded=Occluded(sessions=occluded))
        operation = int(verdicts.ends.operation[number])
    else:
        occluded = occlude_records(verdicts, np.array([number]), rows, parts, LEFT_OUT)
        told = replace(told, rescored=again, occluded=Occluded(records=occluded))
        operation = int(verdicts.walk.of_events[number])
    emitter, ending = Emitter(parts, wanted.place, 1.0), "/" + wanted.what
    (verdict,) = [
        v for _, v in emitter.decisions(told)
        if v["id"] == str(wanted) and v["id"].endswith(ending)
    ]  # fmt: skip
    is_anomaly = (verdicts.ends.anomaly if wanted.is_session else verdicts.anomaly)[number]
    window = Window.before(verdicts, operation, rows)
    kept = window.last(LEFT_OUT)
    assert parts.learned is not None
    context = in_words(kept.time_ms, kept.hashes, kept.measures, parts, parts.learned.vocabulary)
    return Replayed(verdict | {"anomaly": bool(is_anomaly), "context": context}, len(window.time_ms))


def _alone(done: Processed, number: int, parts: Parts, *, is_session: bool) -> Processed:
    """The same as if this were the only anomaly: what explains those explains this one, be it one or not."""
    verdicts = done.verdicts
    records, ends = np.zeros(len(verdicts.anomaly), np.bool_), np.zeros(len(verdicts.ends.anomaly), np.bool_)
    (ends if is_session else records)[number] = True
    alone = replace(verdicts, anomaly=records, ends=replace(verdicts.ends, anomaly=ends))
    return replace(done, verdicts=alone, absolved=absolve(alone, done.rows, b"", parts)[1])
