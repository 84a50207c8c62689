"""What is learned of a stream's fields before a model is: templates, vocabulary, bins of numbers, which seasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import Calibration
from detectors.history import Chosen, History, Partition
from detectors.parts import NO_NUMBERS, NO_TEMPLATES, Learned, Parts
from features.events import Events
from features.measures import LEAST_SPAN_MS
from features.messages import MessageReader
from features.numbers import UNKNOWN, NumberBins
from features.parameters import with_parameters
from features.template_mining import mine
from features.templates import Templates
from features.time_gaps import frequent_enough
from features.tokens import OOV, RARE, TokenEncoder, Vocabulary
from models.spec import ModelSpec

MAX_VOCABULARY = 10_000


@dataclass(frozen=True)
class LearnedFields:
    """All that turns events into what a model takes.

    Attributes
    ----------
    vocabulary, while_learning
        As it is served, and as the sessions that taught it are read, so that they hold tokens it does not know.
    seasonal
        Which positions in time the model is given.
    """

    templates: Templates
    vocabulary: Vocabulary
    while_learning: Vocabulary
    numbers: NumberBins
    seasonal: tuple[str, ...]

    def knowing(self, parts: Parts, *, learning: bool = False) -> Parts:
        """Parts that give a model its ids, but have no model yet."""
        vocabulary, nothing = self.while_learning if learning else self.vocabulary, Calibration.learn([])
        learned = Learned("0" * 64, vocabulary, None, nothing, nothing, numbers=self.numbers, seasonal=self.seasonal)
        return replace(parts, encoder=TokenEncoder(parts.shape.fields, vocabulary), learned=learned)

    def spec(self, parts: Parts) -> ModelSpec:
        """The model over these fields."""
        return parts.spec(self.vocabulary, self.numbers, self.seasonal)

    def unknown(self, parts: Parts) -> tuple[tuple[int, ...], ...]:
        """Of each input, the ids for what is not known, or hardly, which training must put in."""
        # Where nothing is rare, `<rare>` never comes, and there is no need to learn from it.
        of_tokens = (OOV, RARE) if any(map(len, self.vocabulary.rare or ())) else (OOV,)
        others = len(self.numbers.sizes) + len(self.seasonal)
        return (of_tokens,) * parts.shape.fields + ((UNKNOWN,),) * others


def learn_fields(
    history: History, taught: Chosen, parts: Parts, buckets: Mapping[str, int] | None
) -> tuple[LearnedFields, History]:
    """What the sessions to learn from say of the fields, and the history read by it.

    Parameters
    ----------
    buckets
        Fields whose tokens are hashed, and into how many buckets.
    """
    templates, history = _templates(history, taught, parts.measures.parameters)
    vocabulary, while_learning = _vocabularies(history, taught, parts, buckets)
    seasonal = tuple(name for name in parts.measures.seasonal if history.span_ms >= LEAST_SPAN_MS[name])
    return LearnedFields(templates, vocabulary, while_learning, _bins(history, taught, parts), seasonal), history


def _templates(history: History, taught: Chosen, parameters: int) -> tuple[Templates, History]:
    """Mine the messages of the sessions to learn from, and read all by the templates found."""
    if any(p.events.messages is None for p in history.partitions):
        return NO_TEMPLATES, history
    said = [message for p in history.partitions for message in _messages(p, taught)]
    templates = mine(text for _, text in said)
    templates = with_parameters(templates, (text for _, text in sorted(said, key=itemgetter(0))), parameters)
    reader = MessageReader(templates, parameters=parameters)
    return templates, replace(history, partitions=[_with_templates(p, reader) for p in history.partitions])


def _messages(partition: Partition, taught: Chosen) -> Iterator[tuple[int, str]]:
    """Times and texts."""
    events = partition.events
    for record in partition.records(taught).tolist():
        said = (events.messages or [])[record]
        if said is not None:
            yield int(events.time_ms[record]), said


def _with_templates(partition: Partition, reader: MessageReader) -> Partition:
    """The same with what the messages hold; their numbers are no counters, so they are measures as they are."""
    arrived, events = _read(partition.arrived, reader), _read(partition.events, reader)
    columns = events.numbers.shape[1]
    fields = columns - reader.parameters
    said = events.numbers[:, fields:].astype(np.float32)
    measures = np.hstack([partition.measures[:, :fields], said, partition.measures[:, columns:]])
    return replace(partition, arrived=arrived, events=events, measures=measures)


def _read(events: Events, reader: MessageReader) -> Events:
    texts, numbers = reader.read(events.messages or [])
    of_fields = events.numbers[:, : events.numbers.shape[1] - reader.parameters]
    return replace(events, tokens=[*events.tokens[:-1], texts], numbers=np.hstack([of_fields, numbers]))


def _vocabularies(
    history: History, taught: Chosen, parts: Parts, buckets: Mapping[str, int] | None
) -> tuple[Vocabulary, Vocabulary]:
    """The tokens of the sessions to learn from, as `Vocabulary.learn` gives them; what only others have is `<oov>`."""
    fields = parts.fields[: parts.shape.fields]
    columns: list[list[str | None]] = [[] for _ in fields]
    for p in history.partitions:
        records = p.records(taught).tolist()
        for column, texts in zip(columns, p.events.tokens, strict=True):
            column.extend(texts[i] for i in records)
    return Vocabulary.learn(fields, columns, MAX_VOCABULARY, buckets)


def _bins(history: History, taught: Chosen, parts: Parts) -> NumberBins:
    """Bins of the numbers of the sessions to learn from."""
    if not parts.number_fields or parts.model.values:
        return NO_NUMBERS
    measures: list[NDArray[np.float32]] = []
    names: list[list[str | None] | None] = [None if by is None else [] for by in parts.measures.named_by]
    for p in history.partitions:
        records = p.records(taught)
        measures.append(p.measures[records])
        for column, given in zip(names, parts.measures.names(p.events) or (), strict=True):
            if column is not None and given is not None:
                column += [given[i] for i in records.tolist()]
    numbers = np.concatenate(measures).astype(np.float64)
    if names and (of_gaps := names[-1]) is not None and parts.measures.gaps:
        names[-1] = frequent_enough(of_gaps, numbers[:, -1])
    return NumberBins.learn(numbers, names or None)
