"""Parts: all that scoring needs and does not change, put together from the config and a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from detectors.calibration import Calibration
from detectors.ensemble import Ensemble, Member
from detectors.half_space_trees import Trees
from detectors.online import ONLINE, OnlineRules
from detectors.rows import RowShape
from detectors.schema_watch import SchemaWatch
from detectors.segments import BySegment, segment_arrays, segments_of
from features.events import Events
from features.measures import SEASONS, NumberRules, seasons
from features.numbers import Names, NumberBins, NumberEncoder
from features.sessions import SessionRules
from features.templates import Templates
from features.time_gaps import allow_known
from features.tokens import TokenEncoder, Vocabulary, stable_hash
from features.windows import WindowRules
from models.bundle import Bundle
from models.errors import BundleError
from models.forecast import ForecastRuntime
from models.linear import LinearRuntime
from models.runtime import Runtime, load_runtime, widened
from models.spec import WINDOWED, ModelSpec, state_size

NO_TEMPLATES = Templates(())
NO_NUMBERS = NumberBins(())
NO_RULES = NumberRules()
_SECOND, _SECOND_WEIGHTS = ("second.records", "second.sessions"), "second."
NO_WINDOW = 0  # of a core whose weights are for any
Model = Runtime | LinearRuntime | Ensemble
USUAL_MODEL = ModelSpec("gru", 64, ())
BINS, FORECAST = "bins", "forecast"  # what a model makes of numbers; bundles of before there was a choice say nothing
CLASSES = "classes"  # of ids, in the softmax of large vocabularies; bundles of before there were any do not say it
VOCABULARY_VERSION = 2  # the first had no version in its file, and no `<rare>`


@dataclass(frozen=True)
class SecondStage:
    """A core that looks again at what is suspicious: what serves it, how wide its states are, and its calibrations."""

    core: str
    model: Runtime
    width: int
    records: Calibration
    sessions: Calibration


@dataclass(frozen=True)
class Learned:
    """What a bundle holds, ready to use.

    Attributes
    ----------
    templates
        Of log messages; none for other streams.
    numbers
        Bins of the number columns.
    seasonal
        Which positions in time the model is given (features/measures.py).
    certificate
        Of the features it was trained with (features/certificate.py); None where the bundle has none.
    usual
        What `detectors.schema_watch` takes for usual; None where the bundle does not say it.
    segment_records, segment_sessions
        Calibrations of segments that have their own.
    second
        What looks again; None where nothing does.
    number
        64 bits of the digest, the mark in each session row this bundle wrote.
    """

    digest: str
    vocabulary: Vocabulary
    model: Model | None  # none while it is being trained
    records: Calibration
    sessions: Calibration
    templates: Templates = NO_TEMPLATES
    certificate: dict[str, str] | None = None
    numbers: NumberBins = NO_NUMBERS
    seasonal: tuple[str, ...] = ()
    usual: dict[str, float] | None = None
    segment_records: BySegment = field(default_factory=dict)
    segment_sessions: BySegment = field(default_factory=dict)
    second: SecondStage | None = None

    @property
    def runtime(self) -> Model:
        """The model, which there is but in training."""
        assert self.model is not None, "a bundle has a model"
        return self.model

    @property
    def number(self) -> int:
        """The bundle's mark in session rows; never 0."""
        return max(1, int(self.digest[:16], 16))


@dataclass(frozen=True)
class Parts:
    """Arguments of `process_batch` that stay the same from slice to slice.

    Attributes
    ----------
    fields
        What is learned: the token fields, of which `shape` tells how many, and then the numbers.
    learned
        None until a bundle serves.
    model
        What is trained for it, still without sizes.
    ensemble
        Cores beside that one, of the same width, that are trained and asked too.
    second, passes
        The core that looks again at anomalies, if any, and how often in each thousand records.
    order
        "strict", or "loose" where what is trained shall take no order for strange.
    weights
        "float32" or "float16": how training stores them.
    measures
        What the number columns are.
    windows
        How samples become events; None where each is one. The numbers are the windows' then.
    remembered
        How many event ids a partition remembers, to know duplicates; 0 where events have none.
    sends_late
        Late records are sent to a topic of their own instead of being judged.
    online
        How records are scored until a bundle serves.
    """

    stream: str
    topic: str
    fields: tuple[str, ...]
    shape: RowShape
    rules: SessionRules
    rate: float
    encoder: TokenEncoder
    learned: Learned | None
    remembered: int = 0
    sends_late: bool = False
    measures: NumberRules = NO_RULES
    windows: WindowRules | None = None
    watch: SchemaWatch | None = None
    model: ModelSpec = USUAL_MODEL
    ensemble: tuple[str, ...] = ()
    second: str | None = None
    passes: int = 0
    weights: str = "float32"
    order: str = "strict"
    online: OnlineRules = ONLINE

    @property
    def learns_online(self) -> bool:
        """Whether records are scored by what is learned online: before a bundle, and where they count as they come."""
        return self.learned is None and not (self.rules.reorder_ms or self.rules.windowed)

    @cached_property
    def trees(self) -> Trees | None:
        """The half-space trees of the numbers, where there are any: over each number and its change."""
        numbers = len(self.number_fields)
        return Trees.grow(self.online.trees, self.online.height, 2 * numbers) if numbers else None

    @property
    def schema(self) -> dict[str, Any]:
        """What a bundle must have been trained with, as its manifest holds it."""
        rules = self.measures
        numbers = self.number_fields[:-1] if rules.gaps else self.number_fields
        schema = {
            "tokens": list(self.fields[: self.shape.fields]),
            "core": [self.model.core, *self.ensemble] if self.ensemble else self.model.core,
            "hidden": self.model.hidden, "numbers": list(numbers),
            "counters": [*(numbers[column] for column in rules.counters), *rules.counter_names],
            "gaps": rules.gaps if (by := rules.gaps_named_by) is None else self.fields[by],
        }  # fmt: skip
        if numbers and set(self.cores) != {"linear"}:
            schema["model.numbers"] = FORECAST if self.model.values else BINS
        schema |= {} if self.second is None else {"second_stage": self.second}
        return schema | ({"context": self.model.window} if set(WINDOWED) & {*self.cores, self.second} else {})

    @property
    def cores(self) -> tuple[str, ...]:
        """All that are asked."""
        return (self.model.core, *self.ensemble)

    def of_core(self, core: str) -> Parts:
        """The same of one core alone."""
        return replace(self, model=replace(self.model, core=core), ensemble=())

    def spec(self, vocabulary: Vocabulary, numbers: NumberBins, seasonal: Sequence[str]) -> ModelSpec:
        """The model over what was learned of the fields; of an ensemble the first."""
        sizes = (*vocabulary.sizes, *numbers.sizes)
        return replace(self.model, sizes=sizes, inputs=_input_sizes(seasonal))

    @property
    def number_fields(self) -> tuple[str, ...]:
        """Names of the number columns, that of the time gap included."""
        return self.fields[self.shape.fields :]

    @property
    def columns(self) -> int:
        """F + I: how many ids `ids` gives of an event."""
        seasonal = () if self.learned is None else self.learned.seasonal
        return len(self.fields) - self.model.values + len(seasonal)

    @cached_property
    def _number_encoder(self) -> NumberEncoder:
        return NumberEncoder(None if self.learned is None else self.learned.numbers)

    @cached_property
    def _name_of_hash(self) -> dict[int, str]:
        names = None if self.learned is None else self.learned.numbers.names
        return {stable_hash(name): name for column in names or () for name in column or ()}

    def ids(self, events: Events, measures: NDArray[np.float32]) -> NDArray[np.int32]:
        """(n, F + I) what the model is given of n events and their (n, N) measures: ids of fields, then of seasons.

        Numbers that are forecast have none.
        """
        numbers = self._numbers(measures, self.measures.names(events))
        return self._beside(self.encoder.ids(events.tokens, len(events)), numbers, events.time_ms)

    def tails(self, events: Events, measures: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """(n, N) nats that the tails of numbers add to the surprise of their ids."""
        return self._tails(measures, ids, self.measures.names(events))

    def tails_of_context(
        self, hashes: NDArray[np.uint64], measures: NDArray[np.float32], ids: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """The same of (k, F) hashes and (k, N) measures that a row has kept."""
        return self._tails(measures, ids, self._names_of(hashes))

    def _tails(self, measures: NDArray[np.float32], ids: NDArray[np.int32], names: Names | None) -> NDArray[np.float32]:
        if self.cores == ("linear",) or self.model.values:  # there are no bins
            return np.zeros(measures.shape, np.float32)
        mine = np.ascontiguousarray(ids[:, self.shape.fields : len(self.fields)])
        return self._number_encoder.tails(measures.astype(np.float64), mine, names)

    def ids_of_context(
        self, hashes: NDArray[np.uint64], measures: NDArray[np.float32], time_ms: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """The same of (k, F) hashes, (k, N) measures and (k,) times that a row has kept."""
        numbers = self._numbers(measures, self._names_of(hashes))
        return self._beside(self.encoder.ids_of_hashes(hashes), numbers, time_ms)

    def among(self, events: Events, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """(n, P, 2) among which ids those of parameters are, as the line's template tells (`NumberEncoder.among`).

        So whether a line has a parameter is no surprise beside that of its template, and neither is which bins it has.
        Their surprise is less its mean: a number that is as usual adds about 0, however widely its like are spread.
        The time gap is the last of them, where the stream has it.
        """
        return self._among(ids, self.measures.names(events))

    def among_of_context(self, hashes: NDArray[np.uint64], ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The same of (k, F) hashes that a row has kept."""
        return self._among(ids, self._names_of(hashes))

    def _numbers(self, measures: NDArray[np.float32], names: Names | None) -> NDArray[np.int32]:
        """Ids of their bins."""
        if self.model.values:
            return np.empty((len(measures), 0), np.int32)
        return self._number_encoder.ids(measures.astype(np.float64), names)

    def _among(self, ids: NDArray[np.int32], names: Names | None) -> NDArray[np.int32]:
        if self.model.values:
            return np.empty((len(ids), 0, 2), np.int32)
        numbers = ids[:, self.shape.fields : len(self.fields)]
        first = numbers.shape[1] - self.measures.parameters - self.measures.gaps
        among = np.ascontiguousarray(self._number_encoder.among(numbers, names)[:, first:])
        if self.measures.gaps:
            allow_known(among[:, -1], numbers[:, -1])
        return among

    def _names_of(self, hashes: NDArray[np.uint64]) -> Names | None:
        name, columns = self._name_of_hash.get, self.measures.named_by
        return [None if by is None else list(map(name, hashes[:, by].tolist())) for by in columns] or None

    def _beside(
        self, tokens: NDArray[np.int32], numbers: NDArray[np.int32], time_ms: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        wanted = () if self.learned is None else self.learned.seasonal
        return np.concatenate([tokens, numbers, seasons(time_ms, wanted)], axis=1)


def pack(
    vocabulary: Vocabulary,
    weights: dict[str, Any],
    records: Calibration,
    sessions: Calibration,
    templates: Templates = NO_TEMPLATES,
    numbers: NumberBins = NO_NUMBERS,
    segments: tuple[BySegment, BySegment] = ({}, {}),
    members: Sequence[Calibration] = (),
    second: tuple[Calibration, Calibration] | None = None,
) -> dict[str, bytes]:
    """A bundle's files, from what was learned; of segments and of a second stage those of records and of sessions."""
    calibration = records.to_arrays("records") | sessions.to_arrays("sessions") | segment_arrays(*segments)
    for k, member in enumerate(members):
        calibration |= member.to_arrays(_member(k))
    for name, own in zip(_SECOND, second or (), strict=False):
        calibration |= own.to_arrays(name)
    return {
        "weights.safetensors": save(dict(sorted(weights.items()))),
        "calibration.safetensors": save(calibration),
    } | _vocabulary_files(vocabulary) | _templates_file(templates) | _numbers_file(numbers)  # fmt: skip


def _vocabulary_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    words: dict[str, Any] = {"fields": vocabulary.fields, "tokens": vocabulary.tokens}
    if vocabulary.rare is None:
        return {"vocabulary.json": json.dumps(words, ensure_ascii=False).encode()}
    words |= {"version": VOCABULARY_VERSION, "buckets": vocabulary.buckets}
    rare = {str(field): hashes for field, hashes in enumerate(vocabulary.rare)}
    return {"vocabulary.json": json.dumps(words, ensure_ascii=False).encode(), "rare.safetensors": save(rare)}


def _vocabulary_of(files: dict[str, bytes]) -> Vocabulary:
    """What `_vocabulary_files` wrote, and what was written before it: without a version, and without `<rare>`."""
    words = json.loads(files["vocabulary.json"])
    fields, tokens = tuple(words["fields"]), tuple(map(tuple, words["tokens"]))
    if "version" not in words:
        return Vocabulary(fields, tokens)
    if words["version"] != VOCABULARY_VERSION:
        message = f"its vocabulary has version {words['version']}, and this release reads {VOCABULARY_VERSION}"
        raise ValueError(message)
    rare = load(files["rare.safetensors"])
    return Vocabulary(fields, tokens, tuple(rare[str(f)] for f in range(len(fields))), tuple(words["buckets"]))


def _templates_file(templates: Templates) -> dict[str, bytes]:
    """None where the stream has no messages; a second one where these have numbers."""
    if not templates.templates:
        return {}
    files = {"templates.json": templates.to_json(), "parameters.json": templates.numbers}
    return {name: json.dumps(of, ensure_ascii=False, indent=1).encode() for name, of in files.items() if of}


def _numbers_file(numbers: NumberBins) -> dict[str, bytes]:
    """None where the stream has no numbers."""
    if not numbers.binnings:
        return {}
    return {"numbers.json": json.dumps(numbers.to_json(), ensure_ascii=False).encode()}


def unpack(bundle: Bundle, parts: Parts, runtime: str = "auto", device: str = "cpu") -> Learned:
    """What `pack` wrote, checked against the stream's config; `runtime` and `device` as `load_runtime` has them.

    Raises
    ------
    BundleError
        The bundle was trained for other fields or another hidden size, or a file does not hold what it should.
    """
    wanted = parts.schema
    # As before there were any.
    before = {"core": "gru", "numbers": [], "counters": [], "gaps": False, "model.numbers": BINS}
    schema: dict[str, Any] = before | bundle.content.get("schema", {})
    differs = [part for part, value in wanted.items() if schema.get(part) != value]
    if differs:
        message = (
            f"bundle {bundle.digest[:12]} was trained with {_in_words(schema, differs)}, but the config says "
            f"{_in_words(wanted, differs)}; run `offbeat train --promote`"
        )
        raise BundleError(message)
    return learned_of(bundle, runtime, device)


def learned_of(bundle: Bundle, runtime: str = "auto", device: str = "cpu") -> Learned:
    """What `pack` wrote, whatever the stream's config says now: to look at, to verify, to compare.

    Raises
    ------
    BundleError
        A file does not hold what it should, or the weights do not fit each other.
    """
    schema: dict[str, Any] = {"core": "gru", "hidden": 0, "seasonal": []} | bundle.content.get("schema", {})
    seasonal = tuple(schema["seasonal"])
    try:
        vocabulary = _vocabulary_of(bundle.files)
        texts, places = (bundle.files.get(name) for name in ("templates.json", "parameters.json"))
        templates = Templates.from_json(json.loads(texts or b"[]"), json.loads(places or b"{}"))
        bins = NumberBins.from_json(json.loads(bundle.files.get("numbers.json", b'{"names":null,"binnings":[]}')))
        certificate = json.loads(bundle.files.get("certificate.json", b"null"))
        usual = json.loads(bundle.files.get("schema.json", b"null"))
        weights = widened(load(bundle.files["weights.safetensors"]))
        found = load(bundle.files["calibration.safetensors"])
        records, sessions = (Calibration.from_arrays(found, name) for name in ("records", "sessions"))
        segments = segments_of(found)
        cores = schema["core"] if isinstance(schema["core"], list) else []
        members = [Calibration.from_arrays(found, _member(k)) for k in range(len(cores))]
        again = schema.get("second_stage")
        of_second = () if again is None else tuple(Calibration.from_arrays(found, name) for name in _SECOND)
    except (KeyError, ValueError, SafetensorError) as error:
        message = f"bundle {bundle.digest[:12]} lacks a part ({error}); run `offbeat train --promote`"
        raise BundleError(message) from None
    sizes, inputs = (*vocabulary.sizes, *bins.sizes), _input_sizes(seasonal)
    spec = ModelSpec(
        cores[0] if cores else schema["core"], schema["hidden"], sizes, inputs, schema.get("context", NO_WINDOW),
        flat=schema.get("softmax") != CLASSES,
        values=len(schema["numbers"]) if schema.get("model.numbers") == FORECAST else 0,
    )  # fmt: skip
    second, fields = None, len(vocabulary.sizes)
    if again is not None:
        its = replace(spec, core=again)
        mine = load_runtime(its, _below(weights, _SECOND_WEIGHTS), runtime if runtime != "kernel" else "auto", device)
        second = SecondStage(again, mine, row_width(its, fields), *of_second)
        weights = {name: w for name, w in weights.items() if not name.startswith(_SECOND_WEIGHTS)}
    if cores:
        specs, of_members = [replace(spec, core=core) for core in cores], unjoined(weights, len(cores))
        runtimes = [
            make_runtime(s, w, fields, runtime, device) for s, w in zip(specs, of_members, strict=True)
        ]  # fmt: skip
        model: Model = make_ensemble(specs, runtimes, members, fields)
    else:
        model = make_runtime(spec, weights, fields, runtime, device)
    return Learned(
        bundle.digest, vocabulary, model, records, sessions, templates, certificate, bins, seasonal, usual, *segments,
        second,
    )  # fmt: skip


def make_runtime(
    spec: ModelSpec, weights: Mapping[str, NDArray[Any]], fields: int, runtime: str = "auto", device: str = "cpu"
) -> Runtime | LinearRuntime:
    """What serves a model; `fields` of its sizes are tokens, the others numbers.

    Raises
    ------
    BundleError
        The weights do not fit the model.
    """
    if spec.core == "linear":
        return LinearRuntime(weights, fields, _number_count(spec, fields))
    if spec.values:
        return ForecastRuntime(spec, weights, runtime, device)
    return load_runtime(spec, weights, runtime, device)


def make_ensemble(
    specs: Sequence[ModelSpec], runtimes: Sequence[Runtime | LinearRuntime], records: Sequence[Calibration], fields: int
) -> Ensemble:
    """Members as one, from what serves each and the calibrations of their own records."""
    members = []
    for spec, runtime, own in zip(specs, runtimes, records, strict=True):
        reads = _number_count(spec, fields) if spec.core == "linear" else spec.hidden + spec.values
        members.append(Member(runtime, own, row_width(spec, fields), reads))
    return Ensemble(members)


def row_width(spec: ModelSpec, fields: int) -> int:
    """How many numbers a row keeps of a model; `fields` of its sizes are tokens."""
    if spec.core == "linear":
        return state_size(spec.core, spec.hidden, spec.window, _number_count(spec, fields))
    return spec.state_numbers


def _number_count(spec: ModelSpec, fields: int) -> int:
    return spec.values or len(spec.sizes) - fields


def joined(
    weights: Sequence[Mapping[str, NDArray[Any]]], second: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, NDArray[Any]]:
    """Weights of an ensemble's members and of a second stage under names of their own; a single model's as they are."""
    again = {f"{_SECOND_WEIGHTS}{name}": w for name, w in (second or {}).items()}
    if len(weights) == 1:
        return {**weights[0], **again}
    return {f"{k}.{name}": w for k, of_member in enumerate(weights) for name, w in of_member.items()} | again


def unjoined(weights: Mapping[str, NDArray[Any]], members: int) -> list[dict[str, NDArray[Any]]]:
    """What `joined` was given, of that many members."""
    if members == 1:
        return [dict(weights)]
    return [_below(weights, f"{k}.") for k in range(members)]


def _below(weights: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def _member(k: int) -> str:
    return f"member.{k}.records"


def _input_sizes(seasonal: Sequence[str]) -> tuple[int, ...]:
    """Ids of each position in time: one more, for a time that is not known."""
    return tuple(1 + SEASONS[name] for name in seasonal)


def _in_words(schema: dict[str, Any], parts: Sequence[str]) -> str:
    return " and ".join(f"{part} {schema.get(part)}" for part in parts)
