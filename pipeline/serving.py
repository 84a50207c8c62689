"""Parts of a stream from its config section and the bundle that serves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from detectors.alert_budget import Volume
from detectors.drift_watch import DriftWatch
from detectors.packing import unpack
from detectors.parts import Learned, Parts
from detectors.promise_keeper import KeepingRules
from detectors.rate_watch import RateWatch
from detectors.rows import RowShape
from detectors.schema_watch import SchemaWatch
from features.certificate import certify
from features.decode import Decoder
from features.masking import Masker, make_masker
from features.measures import NumberRules
from features.messages import MessageReader, ReadMessages, as_they_came
from features.profiles import ENTRIES
from features.session_names import join_name, name_masker, split_name
from features.sessions import NEVER_MS, SessionRules
from features.templates import Templates
from features.text_lines import LineReader
from features.tokens import TokenEncoder, Vocabulary
from features.unmatched import Unmatched
from features.windows import window_columns
from models.bundle import Bundle, read_bundle
from models.errors import BundleError
from models.folders import Folder
from models.spec import ModelSpec
from pipeline.bundles import read_by_digest, read_serving
from pipeline.errors import UsageError
from pipeline.settings import Settings
from pipeline.stream_settings import StreamSettings


def make_decoder(
    settings: Settings, name: str, read_messages: Callable[[Sequence[str | None]], ReadMessages] | None = None
) -> Decoder:
    """The decoder a stream's section describes; for training, which takes messages as they are."""
    stream = settings.stream(name)
    if read_messages is None:
        read_messages = as_they_came(len(stream.parameter_fields))
    return Decoder(
        stream.session.by, stream.time, stream.token_fields, stream.session.end_when, stream.message,
        read_messages=read_messages, text=_line_reader(stream), masker=_masker(settings, name),
        event_id=stream.duplicates.id, max_ahead_ms=stream.late.max_ahead,
        numbers=stream.wide_numbers, named=stream.named_number,
        of_exports=stream.format == "otlp_metrics", segment=stream.segment,
    )  # fmt: skip


def make_live_decoder(
    settings: Settings, name: str, learned: Learned | None, unmatched: Unmatched | None = None
) -> Decoder:
    """The same with messages read by the templates in force."""
    templates, parameters = None if learned is None else learned.templates, len(settings.stream(name).parameter_fields)
    return make_decoder(settings, name, MessageReader(templates, unmatched, parameters=parameters).read)


def make_session_decoder(stream: StreamSettings) -> Decoder:
    """For producers, which put the session into the record's key: it reads that alone, and masks nothing."""
    return Decoder(stream.session.by, None, [], {}, text=_line_reader(stream))


def certificate(settings: Settings, name: str, vocabulary: Vocabulary, templates: Templates) -> dict[str, str]:
    """What this version and this config make of made-up records."""
    stream = settings.stream(name)
    reader = MessageReader(templates, parameters=len(stream.parameter_fields))
    decoder = make_decoder(settings, name, reader.read)
    ends = list(stream.session.end_when.items())
    found = certify(decoder, vocabulary, stream.session.by, stream.time, ends, stream.number_fields)
    # What made-up JSON cannot show of text and masks stands for itself.
    return found | {"section": _digest_of(_reading(settings, name))}


def _refuse_other_features(settings: Settings, name: str, learned: Learned) -> None:
    """A model that is given other features than it was trained with would be wrong without a sign."""
    stream = settings.stream(name)
    if learned.certificate is None and not stream.mask and stream.message is None and not stream.number_fields:
        return  # of a version that had neither
    certified = learned.certificate or {"section": "not certified"}
    found = certificate(settings, name, learned.vocabulary, learned.templates)
    different = [part for part in certified if found.get(part) != certified[part]]
    if different:
        message = (
            f"bundle {learned.digest[:12]} was trained with other features ({', '.join(different)}): the section of "
            f"stream {name}, its mask secret or Offbeat's version differs; take that back, or run "
            "`offbeat train --promote`"
        )
        raise BundleError(message)


def record_name(settings: Settings, name: str, session: str) -> str:
    """A session's name as its records have it, however the signs in it were typed.

    Raises
    ------
    UsageError
        It has not as many parts as the stream has fields that name a session.
    """
    fields = settings.stream(name).session.fields
    if len(fields) == 1:
        return session
    parts = split_name(session)
    if len(parts) != len(fields):
        message = (
            f"{session!r} names no session of stream {name}: {len(fields)} fields name one; write "
            f"{'/'.join(fields)}, with %2F for a / in a value and %25 for a %"
        )
        raise UsageError(message)
    return join_name(parts)


def saved_name(settings: Settings, name: str, session: str) -> str:
    """Under what a session is kept: masked, where the stream masks sessions; it raises what `record_name` does."""
    mask = name_masker(_masker(settings, name), settings.stream(name).session.fields)
    session = record_name(settings, name, session)
    return session if mask is None else mask(session)


def _masker(settings: Settings, name: str) -> Masker:
    return make_masker(settings.stream(name).mask_rules, settings.mask_key)


def _line_reader(stream: StreamSettings) -> LineReader | None:
    return LineReader(stream.pattern) if stream.format == "text" else None


def make_parts(settings: Settings, name: str, learned: Learned | None, partitions: int | None = None) -> Parts:
    """Parts for a stream; each partition takes its own, for the token encoder remembers.

    `partitions` is over how many a budget of alarms is shared; as many as were trained on, if not told.
    """
    stream = settings.stream(name)
    words = len(stream.fields) - len(stream.number_fields)
    windows = stream.window_rules(_gap_ms(settings, stream))
    numbers = (*stream.number_fields, *stream.parameter_fields)
    if windows is not None:
        numbers = window_columns(stream.number_fields, windows)
    measures = _measures(stream) if windows is None else NumberRules(seasonal=stream.seasons)
    if stream.gap_fields:
        measures, numbers = _with_gap(measures, len(numbers), stream), (*numbers, *stream.gap_fields)
    counters = len(measures.counters) or len(measures.counter_names)
    values = len(numbers) if stream.model.numbers == "forecast" else 0
    model = ModelSpec(stream.model.core, stream.model.hidden, (), (), stream.model.context, values=values)
    return Parts(
        stream=name,
        topic=settings.topic_of(name),
        fields=(*stream.fields[:words], *numbers),
        shape=_shape(stream, words, len(numbers), counters),
        rules=_rules(settings, stream),
        rate=stream.promise.rate(None if learned is None else learned.volume),
        budget=stream.promise.alert_budget,
        encoder=TokenEncoder(words, None if learned is None else learned.vocabulary),
        learned=learned,
        model=model,
        ensemble=tuple(stream.model.ensemble),
        second=stream.second_stage.core,
        passes=stream.second_stage.passes,
        explained=stream.explanations.passes,
        weights=stream.model.weights,
        order=stream.model.order,
        finds_news=stream.detectors.novelty,
        absorbs_after=stream.detectors.absorb,
        refractory_ms=stream.model.refractory,
        remembered=0 if stream.duplicates.id is None else stream.duplicates.remember,
        sends_late=stream.late.send,
        measures=measures,
        windows=windows,
        drift=DriftWatch.of(
            stream.fields[:words], stream.number_fields, None if learned is None else learned.drift, stream.drift.after
        ),
        keeping=_keeping(stream, learned, partitions),
        rates=_rates(stream, learned),
        watch=SchemaWatch(
            stream.fields[:words],
            stream.number_fields,
            stream.session.fields,
            stream.time,
            None if learned is None else learned.usual,
            tells_values=not stream.mask,
        ),
    )


def _shape(stream: StreamSettings, words: int, numbers: int, counters: int) -> RowShape:
    entries = ENTRIES if words and stream.detectors.profile else 0
    return RowShape(stream.state_numbers, stream.model.context, words, numbers, counters, entries)


def _keeping(stream: StreamSettings, learned: Learned | None, partitions: int | None) -> KeepingRules | None:
    """None too where records wait to be put in order or for their window: when they are judged, slices decide."""
    waits = stream.late.reorder > 0 or stream.window.size is not None
    if not stream.promise.adapt or waits:
        return None
    volume, rules = None if learned is None else learned.volume, KeepingRules()
    if stream.promise.alert_budget is None or volume is None:
        return rules
    return replace(rules, usual_ms=volume.block_ms(rules.block, partitions))


def _rates(stream: StreamSettings, learned: Learned | None) -> RateWatch | None:
    if learned is None or learned.rates is None or not stream.detectors.rate:
        return None
    return RateWatch(learned.rates, stream.promise.rate(learned.volume), stream.late.reorder)


def _measures(stream: StreamSettings) -> NumberRules:
    parameters, is_named = len(stream.parameter_fields), stream.named_number is not None
    fields = [len(stream.tokens) if is_named else None for _ in stream.number_fields]
    named_by = (*fields, *[len(stream.token_fields)] * parameters) if is_named or parameters else ()
    rules = NumberRules(named_by=named_by, seasonal=stream.seasons, parameters=parameters)
    if is_named:
        return replace(rules, counter_names=tuple(stream.counters))
    return replace(rules, counters=tuple(stream.number_fields.index(field) for field in stream.counters))


def _with_gap(rules: NumberRules, columns: int, stream: StreamSettings) -> NumberRules:
    """The same with the time gap after so many columns, named by a token where the stream says by which."""
    by = None if stream.model.gaps is True else stream.word_fields.index(str(stream.model.gaps))
    named_by = (*(rules.named_by or [None] * columns), by)
    return replace(rules, gaps=True, named_by=named_by if rules.named_by or by is not None else ())


def _rules(settings: Settings, stream: StreamSettings) -> SessionRules:
    session, late = stream.session, stream.late
    return SessionRules(
        gap_ms=_gap_ms(settings, stream), max_events=session.max_events,
        max_duration_ms=NEVER_MS if session.max_duration is None else session.max_duration,
        reorder_ms=late.reorder, reorder_events=late.reorder_events, allowed_ms=late.allowed,
        windowed=stream.window.size is not None,
    )  # fmt: skip


def load_serving(settings: Settings, name: str, bundle: Path | Folder | None = None) -> Learned | None:
    """The bundle in `bundle`, or the one that serves the stream; None while none does.

    Raises
    ------
    BundleError
        It is damaged, or trained for another config.
    RuntimeUnavailableError
        The config asks for CUDA, and there is none.
    """
    if bundle is not None:
        return _learned(settings, name, read_bundle(bundle))
    digest = read_serving(settings, name)
    return None if digest is None else load_bundle(settings, name, digest)


def serving_rate(settings: Settings, name: str) -> float:
    """What a stream is held to by the bundle that serves it; that one's manifest tells the volume."""
    promise, digest = settings.stream(name).promise, None
    if promise.alert_budget is not None:
        digest = read_serving(settings, name)
    data = None if digest is None else read_by_digest(settings, name, digest).content.get("data")
    return promise.rate(Volume.of(data))


def load_bundle(settings: Settings, name: str, digest: str) -> Learned:
    """A stream's bundle by its digest, such as one that was promoted; it raises what `load_serving` does."""
    return _learned(settings, name, read_by_digest(settings, name, digest))


def _learned(settings: Settings, name: str, bundle: Bundle) -> Learned:
    learned = unpack(bundle, make_parts(settings, name, None), settings.runtime, settings.device)
    _refuse_other_features(settings, name, learned)
    return learned


def _gap_ms(settings: Settings, stream: StreamSettings) -> int:
    """However long the gap, no session is silent for longer than `state.ttl`."""
    return min(stream.session.gap, settings.state.ttl)


def state_fingerprint(settings: Settings, name: str) -> str:
    """Sixteen hex digits that change when the section changes in a way that alters saved rows."""
    stream = settings.stream(name)
    excluded = {"idle"} if stream.session.repartition else {"idle", "repartition"}
    excluded |= {"max_duration"} if stream.session.max_duration is None else set()
    session = stream.session.model_dump(mode="json", exclude=excluded) | {"gap": _gap_ms(settings, stream)}
    parts: dict[str, Any] = {
        "session": session, "tokens": stream.fields, "time": stream.time,
        "core": stream.model.core, "hidden": stream.model.hidden, "context": stream.model.context,
    }  # fmt: skip
    # Only where they are used, so that rows of streams without them stay as they are.
    if stream.late.reorder:
        parts["reorder"] = [stream.late.reorder, stream.late.reorder_events]
    if stream.late.allowed is not None:
        parts["allowed"] = stream.late.allowed
    if stream.duplicates.id is not None:
        parts["duplicates"] = stream.duplicates.model_dump()
    if stream.model.numbers == "forecast":
        parts["forecast"] = True
    if stream.model.ensemble:
        parts["ensemble"] = stream.model.ensemble
    if not stream.detectors.profile:
        parts["profile"] = False
    if "transformer" in stream.model.cores:
        parts["seasons"] = stream.seasons  # its state holds the ids of events, these too
    parts |= _reading(settings, name)
    return _digest_of(parts)


def _reading(settings: Settings, name: str) -> dict[str, Any]:
    """How a stream's texts are read and masked, and what its numbers are; empty where it has none of these."""
    stream = settings.stream(name)
    parts: dict[str, Any] = {}
    if stream.number_fields:
        parts["numbers"] = {"named": stream.named_number, "wide": stream.wide_numbers, "counters": stream.counters}
    if (windows := stream.window_rules(0)) is not None:
        parts["window"] = [windows.size_ms, windows.every_ms, windows.aggregates]
    if stream.gap_fields:
        parts["gaps"] = stream.model.gaps
    if stream.message is not None:
        parts["message"] = stream.message
    if stream.parameter_fields:
        parts["parameters"] = len(stream.parameter_fields)
    if stream.format == "text":
        parts["text"] = stream.pattern
    if stream.format == "otlp_metrics":
        parts["format"] = stream.format
    if stream.segment is not None:
        parts["segment"] = stream.segment
    if stream.mask:
        example = _masker(settings, name).value  # hashes depend on the secret
        parts["mask"] = {"rules": stream.mask, "example": [example(path, "example") for path in stream.mask_rules]}
    return parts


def _digest_of(parts: dict[str, Any]) -> str:
    return sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
