"""Parts: all that scoring needs and does not change, put together from the config and a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.alert_budget import Volume, rate_of
from detectors.calibration import Calibration
from detectors.combined import Combined
from detectors.drift_watch import DriftWatch, UsualDrift
from detectors.half_space_trees import Trees
from detectors.novelty import Novelty
from detectors.online import ONLINE, OnlineRules
from detectors.profiles import KnownProfiles
from detectors.promise_keeper import KeepingRules
from detectors.rate_watch import RateWatch
from detectors.rows import RowShape
from detectors.schema_watch import SchemaWatch
from detectors.segments import BySegment
from detectors.usual_rates import UsualRates
from features.events import Events
from features.measures import SEASONS, NumberRules, seasons
from features.numbers import Names, NumberBins, NumberEncoder
from features.sessions import SessionRules
from features.templates import Templates
from features.time_gaps import allow_known
from features.tokens import TokenEncoder, Vocabulary, stable_hash
from features.windows import WindowRules
from models.runtime import Runtime
from models.spec import BY_NUMBERS, WINDOWED, ModelSpec

NO_TEMPLATES = Templates(())
NO_NUMBERS = NumberBins(())
NO_RULES = NumberRules()
USUAL_MODEL = ModelSpec("gru", 64, ())
BINS, FORECAST = "bins", "forecast"  # what a model makes of numbers; bundles of before there was a choice say nothing


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
    drift
        What `detectors.drift_watch` holds against; None where the bundle does not say it.
    volume
        What its history held in a day; None where the bundle does not say it.
    segment_records, segment_sessions
        Calibrations of segments that have their own.
    second
        What looks again; None where nothing does.
    profiles, combined
        Profiles of training's sessions, and how what they say joins a session's surprise; None where too few sessions
        ended, or the stream keeps no profiles.
    novelty
        How often held-back tokens were unknown; None where the bundle does not say it.
    rates
        How many records are usual (detectors/usual_rates.py); None where the bundle does not say it.
    created
        When it was trained, in ISO 8601 by the clock of whoever did; None where the bundle does not say it.
    number
        64 bits of the digest, the mark in each session row this bundle wrote.
    """

    digest: str
    vocabulary: Vocabulary
    model: Runtime | None  # none while it is being trained
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
    profiles: KnownProfiles | None = None
    combined: Combined | None = None
    novelty: Novelty | None = None
    drift: UsualDrift | None = None
    volume: Volume | None = None
    rates: UsualRates | None = None
    created: str | None = None

    @property
    def runtime(self) -> Runtime:
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
    explained
        How many anomalies in each thousand records are explained by leaving events out, and as many sessions.
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
    finds_news
        Whether tokens that training never met are anomalies of their own.
    absorbs_after
        Of how many sessions with a profile that training never met the next are none to wonder at; 0: never.
    refractory_ms
        As `models.seasonal` has it, for that core.
    keeping
        How thresholds follow the stream so that the promise is kept; None where they stay as calibrated.
    budget
        Alarms a day, where those are promised; `rate` follows from it.
    rates
        Judges how many records come; None where nobody does.
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
    drift: DriftWatch | None = None
    model: ModelSpec = USUAL_MODEL
    ensemble: tuple[str, ...] = ()
    second: str | None = None
    passes: int = 0
    explained: int = 0
    weights: str = "float32"
    order: str = "strict"
    online: OnlineRules = ONLINE
    finds_news: bool = True
    absorbs_after: int = 0
    refractory_ms: int = 0
    keeping: KeepingRules | None = None
    budget: float | None = None
    rates: RateWatch | None = None

    def promised_by(self, volume: Volume | None) -> float:
        """The rate that is promised in a stream of such a volume."""
        return rate_of(self.budget, self.rate, volume)

    @property
    def learns_online(self) -> bool:
        """Whether records are scored by what is learned online: before a bundle, and where they count as they come."""
        return self.learned is None and not (self.rules.reorder_ms or self.rules.windowed)

    @cached_property
    def news(self) -> tuple[NDArray[np.bool_], float]:
        """(F,) token fields whose unknown tokens are news, and the part of the promise set aside for these."""
        unordered = self.rules.reorder_ms or self.rules.windowed
        if self.learned is None or self.learned.novelty is None or not self.finds_news or unordered:
            return np.zeros(self.shape.fields, np.bool_), 0.0
        return self.learned.novelty.share(self.rate)

    @property
    def absorbs(self) -> bool:
        """Whether profiles that training never met become known: where records count as they come."""
        unordered = self.rules.reorder_ms or self.rules.windowed
        has_profiles = self.learned is not None and self.learned.profiles is not None
        return bool(self.absorbs_after and has_profiles and not unordered)

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
        if numbers and not set(self.cores) <= {*BY_NUMBERS}:
            schema["model.numbers"] = FORECAST if self.model.values else BINS
        if self.shape.profile:
            schema["profile"] = True
        schema |= {} if self.second is None else {"second_stage": self.second}
        schema |= {"refractory_ms": self.refractory_ms} if "seasonal" in self.cores else {}
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
        return replace(self.model, sizes=sizes, inputs=input_sizes(seasonal))

    @property
    def unit(self) -> str:
        """Of contributions: nats of surprise, or shares of a score that is none, as forecasts and ensembles give it."""
        forecasts = self.model.values or self.model.core in BY_NUMBERS
        return "score" if self.learned is not None and (self.ensemble or forecasts) else "nats"

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
        return self._tails(measures, ids, self.names_of(hashes))

    def _tails(self, measures: NDArray[np.float32], ids: NDArray[np.int32], names: Names | None) -> NDArray[np.float32]:
        if (set(self.cores) <= {*BY_NUMBERS} and self.second is None) or self.model.values:  # there are no bins
            return np.zeros(measures.shape, np.float32)
        mine = np.ascontiguousarray(ids[:, self.shape.fields : len(self.fields)])
        return self._number_encoder.tails(measures.astype(np.float64), mine, names)

    def ids_of_context(
        self, hashes: NDArray[np.uint64], measures: NDArray[np.float32], time_ms: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """The same of (k, F) hashes, (k, N) measures and (k,) times that a row has kept."""
        numbers = self._numbers(measures, self.names_of(hashes))
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
        return self._among(ids, self.names_of(hashes))

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

    def names_of(self, hashes: NDArray[np.uint64]) -> Names | None:
        """For each number column the names of k events' numbers by (k, F) hashes, as `NumberRules.names` gives them."""
        name, columns = self._name_of_hash.get, self.measures.named_by
        return [None if by is None else list(map(name, hashes[:, by].tolist())) for by in columns] or None

    def _beside(
        self, tokens: NDArray[np.int32], numbers: NDArray[np.int32], time_ms: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        wanted = () if self.learned is None else self.learned.seasonal
        return np.concatenate([tokens, numbers, seasons(time_ms, wanted)], axis=1)


def input_sizes(seasonal: Sequence[str]) -> tuple[int, ...]:
    """Ids of each position in time: one more, for a time that is not known."""
    return tuple(1 + SEASONS[name] for name in seasonal)
