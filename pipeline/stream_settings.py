"""The settings of one stream: its topic, sessions, fields, order, windows, masks and model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from detectors.alert_budget import Volume, rate_of
from pipeline.units import format_daily, format_duration_ms, parse_daily, parse_duration_ms

if TYPE_CHECKING:
    from features.masking import Rule
    from features.windows import WindowRules

DurationMs = Annotated[
    int,
    BeforeValidator(parse_duration_ms),
    PlainSerializer(format_duration_ms, when_used="json"),
]
Daily = Annotated[float, BeforeValidator(parse_daily), PlainSerializer(format_daily, when_used="json")]
Scalar = str | bool | int | float
# What a row keeps at most, so that the changelog takes it: numbers of the context and of the model's state, tokens of
# open windows.
_MOST_KEPT_NUMBERS, _MOST_STATE_NUMBERS, _MOST_WINDOW_TOKENS = 32_768, 32_768, 60
_SERIES_EVENTS = 1_000_000  # two years of minutes
_MOST_SAMPLES, _MOST_SAMPLE_BYTES = 1_024, 256 << 10
MAX_BUCKETS = 10_000  # as many as a field has tokens of its own at most


class Section(BaseModel):
    """A part of the config: its keys are known, and it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class SessionSettings(Section):
    """Which events belong together, and when they are over."""

    by: str | tuple[str, ...] = Field(
        description="Field that names the session, or a list of fields that do so together, or @key. The name must be "
        "the record's key; several fields' values stand in it with / between them."
    )
    repartition: bool = Field(
        False,
        description="The topic's records are not keyed by the session: workers bring each to an internal topic under "
        "the session as key, and the stream is read from there. Every record is then stored and read once more.",
    )
    gap: DurationMs = Field(15 * 60_000, ge=1, description="A session is over after this silence, in event time.")
    idle: DurationMs | None = Field(
        None, ge=1_000,
        description="When a partition was read to its end and nothing came for so long by the wall clock, its open "
        "sessions end. Absent: as `gap`, but at least 1m, for clocks must not be quicker than a producer's hiccups.",
    )  # fmt: skip
    end_when: dict[str, Scalar] = Field(
        default_factory=dict, description="An event with all of these field values is its session's last."
    )
    max_events: int = Field(10_000, ge=2, description="A session of this many events is ended.")
    max_duration: DurationMs | None = Field(
        None, ge=1, description="A session is ended so long after its first event, in event time. Absent: never."
    )

    @field_validator("by", mode="before")
    @classmethod
    def _one_or_several(cls, by: object) -> object:
        """A list of one field is that field."""
        if isinstance(by, str):
            return by
        if not isinstance(by, list | tuple) or not by or not all(isinstance(field, str) for field in by):
            message = "expected text or a list of texts: a field, or several"
            raise ValueError(message)
        if len(by) > 1 and "@key" in by:
            message = "@key stands alone: a key names one thing; list fields of the record's value"
            raise ValueError(message)
        return by[0] if len(by) == 1 else tuple(by)

    @property
    def fields(self) -> tuple[str, ...]:
        """What names a session: paths, or `@key` alone."""
        return (self.by,) if isinstance(self.by, str) else self.by


class LateSettings(Section):
    """What becomes of events out of order and of clocks that are wrong."""

    allowed: DurationMs | None = Field(
        None, ge=0,
        description="A record further behind its session's latest event, or so old that its session would be over at "
        "once, is late: scored without stepping the session, never an anomaly. Absent: no record is late.",
    )  # fmt: skip
    send: bool = Field(False, description="Send late records to the late topic, and write no decision on them.")
    reorder: DurationMs = Field(
        0, ge=0, le=3_600_000,
        description="Events wait until the partition has seen an event so much newer, and are scored in the order of "
        "their times, session by session. Verdicts come that much later.",
    )  # fmt: skip
    reorder_events: int = Field(
        16, ge=1, le=256, description="Events of a session that wait at most; the earliest of more goes on at once."
    )
    max_ahead: DurationMs = Field(
        3_600_000, ge=0,
        description="A time field so far ahead of the record's Kafka timestamp is not believed: that timestamp is "
        "taken. So one wrong clock does not end all sessions.",
    )  # fmt: skip


class DuplicateSettings(Section):
    """Which events came twice."""

    id: str | None = Field(
        None, description="Field that names each event. One whose id was seen lately is dropped and counted."
    )
    remember: int = Field(
        4_096, ge=1, le=16_384, description="Ids remembered by each partition: the last ones, in the order of arrival."
    )


Core = Literal["gru", "lstm", "transformer", "tcn", "linear", "seasonal"]


class ModelSettings(Section):
    """The sequence model of a stream."""

    core: Core = Field(
        "gru",
        description="What carries a session's past from event to event. gru and lstm carry a state and are cheap for "
        "each record; tcn and transformer look back at the last `context` events. linear forecasts each number from "
        "its own last values, and knows nothing else. seasonal judges each number by its own session's past, the time "
        "of day included: for single series, such as a rate or a count.",
    )
    ensemble: list[Core] = Field(
        [], max_length=3,
        description="Further cores, all trained and asked beside `core`: a record's score is then the mean of minus "
        "the logarithms of their p-values. What one sees badly another may see; each costs its own time and state. "
        "The same core again starts from other weights.",
    )  # fmt: skip
    hidden: Literal[16, 32, 64, 128, 256] = Field(64, description="Width of what the core tells the heads.")
    numbers: Literal["bins", "forecast"] = Field(
        "bins",
        description="What a sequence model makes of numbers. bins: it predicts in which part of its range each will "
        "lie. forecast: it forecasts each from the last one, and the score is how far off forecasts have been of late; "
        "so for gauges and counters that go on where they were.",
    )  # fmt: skip
    order: Literal["strict", "loose"] = Field(
        "strict",
        description="Whether an event in the wrong place is strange. loose: sessions are written by several threads or "
        "hosts at once, and training also shows the model orders that could have been; it then alarms less often for "
        "order alone, and what is missing or swapped is harder to see.",
    )  # fmt: skip
    context: int = Field(
        32, ge=4, le=256,
        description="Last events kept per session: shown in explanations, replayed for a new model, and all that a "
        "tcn or transformer sees.",
    )  # fmt: skip
    weights: Literal["float32", "float16"] = Field(
        "float32",
        description="How a bundle stores what was learned: float16 takes half the space, and the manifest says what "
        "that costs. Models compute in float32 either way.",
    )
    gaps: bool | str = Field(
        False,
        description="Whether an event at the wrong time is strange: the time since the session's previous event is "
        "then predicted and scored like a number. A field of `tokens`, or the message: each of its values has usual "
        "times of its own, which finds most. true: all events share them. In many streams times tell of load and not "
        "of behaviour, so they are left out unless asked for.",
    )
    refractory: DurationMs = Field(
        0, ge=0, le=30 * 86_400_000,
        description="Only for the core seasonal: after a strange value, for how long one no stranger scores 0, so "
        "that what lasts alarms once. 0: every value has its score.",
    )  # fmt: skip
    contamination: float = Field(
        0.0, ge=0, le=0.4,
        description="Share of the history's sessions that are taken for bad: the strangest ones, which training learns "
        "nothing from. 0 where the history is as it should be: what is left out in vain alarms later.",
    )  # fmt: skip
    max_epochs: int = Field(
        200, ge=1, le=10_000,
        description="Passes over the history at most; linear and seasonal need none. Training ends by itself once four "
        "have not helped, most often long before. A lower bound holds its time down, and may leave the model worse; "
        "the first three leave nothing out for `contamination`.",
    )  # fmt: skip

    @property
    def cores(self) -> tuple[str, ...]:
        """All that are asked."""
        return (self.core, *self.ensemble)


class SecondStageSettings(Section):
    """A heavier core that looks again at anomalies; what it says goes to the topic `rescores`."""

    core: Literal["transformer", "tcn"] | None = Field(
        None,
        description="Which; it is given the last `model.context` events, for it sees no further. Absent: none.",
    )
    passes: int = Field(
        20, ge=1, le=1_000,
        description="How often it may look in each 1,000 offsets of a partition. The first anomalies have their turn; "
        "others are counted (offbeat_rescored_total, outcome skipped).",
    )  # fmt: skip


class DetectorSettings(Section):
    """What judges beside the sequence model."""

    profile: bool = Field(
        True,
        description="Sessions that end are also judged as a whole: by how often each token came, against the sessions "
        "of training. A row keeps up to 32 counts for it.",
    )
    absorb: int = Field(
        10, ge=0, le=200,
        description="A profile that training never met counts as known once so many sessions with it have ended that "
        "nobody labelled an anomaly, while these are a tenth of all sessions since the first; then only surprise "
        "judges the next. 0: never. Streams with late.reorder or windows absorb none.",
    )  # fmt: skip
    novelty: bool = Field(
        True,
        description="A token that training never met is an anomaly until it has come in 3 % of the partition's blocks "
        "of 256 records or made up 1 % of its records, and adds nothing to scores from then on. Fields in which "
        "training held back unknown tokens too often for the promise are left out, and so are streams with "
        "late.reorder or windows.",
    )
    rate: bool = Field(
        False,
        description="Too many records, too few or none, of each segment and bucket of event time, against the same "
        "hour in training, are anomalies of type rate (docs/rates.md). Off unless asked for: a partition sees a share "
        "of the stream, and its own share is known only where training had the same partitions, over two days or more.",
    )


class ExplanationSettings(Section):
    """What is said of anomalies beyond what scoring them tells anyway."""

    passes: int = Field(
        20, ge=0, le=1_000,
        description="How many anomalous records in each 1,000 offsets of a partition are told which earlier events "
        "made them strange. The first have their turn; others are counted (offbeat_explained_total, outcome budget). "
        "Sessions always are, by fewer events. 0: neither. `offbeat replay` needs no pass.",
    )  # fmt: skip


class DriftSettings(Section):
    """When a change is for good."""

    after: DurationMs | None = Field(
        None, ge=1_000,
        description="How long, in event time, a change must last to be a drift. Absent: 4h, or 1d where training saw "
        "less than each hour of a day. What is over within two thirds of that is never told. A bundle brings what it "
        "was trained with, so a change counts from the next training on.",
    )  # fmt: skip


class PromiseSettings(Section):
    """The false alarms a stream is held to."""

    false_alarm_rate: float | None = Field(
        None, gt=0.0, le=0.5,
        description="Share of normal records, and of normal sessions, that may be alarmed. Absent: 0.001, or what "
        "`alert_budget` makes.",
    )  # fmt: skip
    alert_budget: Daily | None = Field(
        None,
        description="False alarms that there may be in a day of event time, of records and sessions together, over all "
        "partitions: `20/day`. Instead of `false_alarm_rate`: training finds the rate by the history's volume.",
    )
    adapt: bool = Field(
        True,
        description="Thresholds follow the stream slowly, so that the promise is kept where what is normal drifts; "
        "false: they stay as calibrated, as they always do with late.reorder or a window.",
    )

    @model_validator(mode="after")
    def _one_promise(self) -> PromiseSettings:
        if self.false_alarm_rate is not None and self.alert_budget is not None:
            message = "false_alarm_rate and alert_budget are both promised; keep one and remove the other"
            raise ValueError(message)
        return self

    def rate(self, volume: Volume | None) -> float:
        """The rate of a stream of this volume, as a bundle tells it."""
        return rate_of(self.alert_budget, self.false_alarm_rate, volume)


DRIFTS_OF_VALUES = (
    "field_missing", "field_type", "field_unknown_values", "input_drift", "unknown_drift", "surprise_drift",
    "calibration_drift", "concept_drift",
)  # fmt: skip


class RetrainSettings(Section):
    """When `offbeat trainer` asks for a training of this stream by itself; people may always."""

    triggers: list[Literal["drift", "schedule", "labels"]] = Field(
        [], description="What asks: a drift event, the age of what serves, new labels. None: only people do."
    )
    drift: list[str] = Field(
        list(DRIFTS_OF_VALUES), min_length=1, description="Types of drift events that ask for a training."
    )
    every: DurationMs = Field(7 * 86_400_000, ge=60_000, description="Schedule: so old a bundle is trained anew.")
    span: DurationMs = Field(
        7 * 86_400_000, ge=60_000,
        description="How far back a training goes that no drift asked for; further where that holds too few records.",
    )  # fmt: skip
    labels: int = Field(50, ge=1, description="Labels: so many new ones ask.")
    cool_down: DurationMs = Field(86_400_000, ge=0, description="Time between two jobs.")
    per_week: int = Field(3, ge=1, description="Jobs in any seven days, those of people apart.")
    quiet_hours: str | None = Field(
        None, pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$",
        description="Hours in UTC in which nothing is asked for, such as 22:00-06:00.",
    )  # fmt: skip
    wait_for_incidents: DurationMs = Field(
        86_400_000, ge=0,
        description="How long an open incident puts trainings off; one that lasts longer is how things are by now.",
    )  # fmt: skip
    settle: DurationMs = Field(
        3_600_000, ge=0,
        description="How long a drift waits for least_records of the new world; after that older ones join.",
    )  # fmt: skip
    least_records: int = Field(5_000, ge=1, description="Fewer records are no training.")
    auto_promote: bool = Field(
        False, description="A better bundle serves at once; otherwise it waits for `offbeat models promote`."
    )

    @property
    def quiet_minutes(self) -> tuple[int, int] | None:
        """The quiet hours as minutes of the day."""
        if self.quiet_hours is None:
            return None
        begin, end = (60 * int(t[:2]) + int(t[3:]) for t in self.quiet_hours.split("-"))
        return begin, end


class NamedNumbers(Section):
    """Where the numbers of records with one sample each are."""

    name: str = Field(description="Field that names the number; it becomes a token too.")
    value: str = Field(description="Field that holds it.")


class WindowSettings(Section):
    """Samples gathered into windows of event time; only with kind: metrics. Without a size each is scored by itself."""

    size: DurationMs | None = Field(
        None, ge=1, description="How long a window is. They begin at whole multiples of `every` since 1970, in UTC."
    )
    every: DurationMs | None = Field(
        None, ge=1, description="How far apart windows begin: a fraction of `size`, at least 1/60. Absent: `size`."
    )
    aggregate: list[str] = Field(
        ["mean", "max"],
        description="What is learned of each number, from its samples in a window: mean, min, max, std, last, rate, "
        "sum, count, p50, p90, p95, p99. Beside them there is always how many samples there were.",
    )  # fmt: skip


MAX_NUMBERS = 64


def _numbers_as_written(value: object) -> object:
    """A list of fields or the keys of `NamedNumbers`: here, for a union would say each mistake once for each."""
    if isinstance(value, list) and len(value) <= MAX_NUMBERS and all(isinstance(path, str) for path in value):
        return value
    if isinstance(value, dict) and value.keys() == {"name", "value"} and {type(v) for v in value.values()} == {str}:
        return NamedNumbers(**value)
    if isinstance(value, NamedNumbers):
        return value
    message = (
        f"numbers are a list of at most {MAX_NUMBERS} fields; or, where a record is one sample, "
        "{name: FIELD, value: FIELD}"
    )
    raise ValueError(message)


class StreamSettings(Section):
    """One stream: a topic, its sessions, its fields, its model."""

    @model_validator(mode="before")
    @classmethod
    def _exports_are_samples(cls, section: Any) -> Any:
        """What the samples of an export are called need not be written."""
        if isinstance(section, Mapping) and section.get("format") == "otlp_metrics":
            ready = {"kind": "metrics", "time": "time", "numbers": {"name": "metric", "value": "value"}}
            return ready | dict(section)
        return section

    kind: Literal["events", "logs", "metrics"] = Field(
        "events",
        description="What the topic carries: events; log lines, which have a `message`; or samples of metrics, which "
        "have `numbers`.",
    )
    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$", description="The Kafka topic to read.")
    format: Literal["json", "text", "otlp_metrics"] = Field(
        "json",
        description="What a record is: a JSON object; or text, such as a raw log line; or an export of OpenTelemetry "
        "metrics in OTLP/JSON, each number of which is an event of its own (such streams are always repartitioned; "
        "kind, time and numbers need not be written).",
    )
    pattern: str | None = Field(
        None,
        description="Text: a regular expression whose named groups are the fields. Absent: common formats of logs are "
        "told apart, line by line.",
    )
    start: Literal["latest", "earliest"] = Field("latest", description="Where to begin the very first time.")
    session: SessionSettings
    time: str | None = Field(
        None,
        description="Field with the event's time: ISO 8601, or epoch s, ms, us or ns, told apart by size. "
        "Absent: Kafka's timestamp.",
    )
    tokens: list[str] = Field(
        default_factory=list, max_length=8,
        description="Categorical fields the model learns: text; whole numbers and truth values count as text. Leave "
        "out fields that follow from another: a record's score sums its fields, so what they share would count twice.",
    )  # fmt: skip
    numbers: Annotated[list[str] | NamedNumbers, BeforeValidator(_numbers_as_written)] = Field(
        default_factory=list,
        description="Numeric fields the model learns; of records that hold one sample each, {name: FIELD, value: "
        "FIELD}, where the name's field becomes a token too. Texts are read as numbers; null, an empty text and `nan` "
        "are missing, and so is an infinite number.",
    )
    counters: list[str] = Field(
        default_factory=list, max_length=256,
        description="Those of `numbers` that only grow, such as bytes sent since a process began; with {name, value} "
        "their names. The model learns their rate per second since the session's last sample.",
    )  # fmt: skip
    buckets: dict[str, int] = Field(
        default_factory=dict,
        description="Token fields of very many values, such as a user agent, and into how many buckets the next "
        "training hashes them: no value is unknown then, and values that share a bucket look alike.",
    )
    season: list[Literal["hour", "weekday"]] | None = Field(
        None,
        description="Positions in time that the model is given, in UTC, where the history suffices to learn them: two "
        "days for the hour, two weeks for the weekday. Absent: both for metrics, none for others.",
    )
    message: str | None = Field(
        None,
        description="Logs: the field with the line's text. Training mines templates from it, and a line's template "
        "is a token; a line of no known template is `<oov>`.",
    )
    parameters: int = Field(
        0, ge=0, le=4,
        description="Logs: how many of a line's numbers, the first ones, the model learns for each template, such as "
        "the milliseconds of `took <*> ms`. They are called message[0], message[1] after the field of the message.",
    )  # fmt: skip
    mask: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields (or @key) to mask before anything is kept, logged, learned or sent: drop, hash, redact or "
        "{truncate: N}. With any of these, dead letters hold nothing of a record but the reason.",
    )
    window: WindowSettings = WindowSettings()
    late: LateSettings = LateSettings()
    duplicates: DuplicateSettings = DuplicateSettings()
    segment: str | None = Field(
        None,
        description="Field whose values, such as services, have calibrations of their own: a record's p-value is then "
        "how rare it is in its segment, a session's in that of its first event. A value has one where training held "
        "back as many of its scores as the promise needs, and at least 500; all others share the stream's.",
    )
    model: ModelSettings = ModelSettings()
    second_stage: SecondStageSettings = SecondStageSettings()
    detectors: DetectorSettings = DetectorSettings()
    explanations: ExplanationSettings = ExplanationSettings()
    drift: DriftSettings = DriftSettings()
    promise: PromiseSettings = PromiseSettings()
    retrain: RetrainSettings = RetrainSettings()

    @model_validator(mode="after")
    def _fields_fit_together(self) -> StreamSettings:
        from features.decode import Decoder
        from features.paths import parse_path
        from features.text_lines import LineReader

        if (self.message is None) == (self.kind == "logs"):
            message = "`message` names the text of log lines: write it with kind: logs, and only with that"
            raise ValueError(message)
        if self.kind == "metrics" and not self.number_fields:
            message = "numbers is empty; a stream of metrics needs at least one number to learn"
            raise ValueError(message)
        if self.message is None and self.parameters != type(self).model_fields["parameters"].default:
            message = "`parameters` are numbers in the text of log lines: write it with kind: logs, and only with that"
            raise ValueError(message)
        texts = [*self.tokens, *(() if self.message is None else (self.message,))]
        if len(set(map(parse_path, texts))) != len(texts):
            message = "each field may stand in tokens once, and the message not at all"
            raise ValueError(message)
        if self.session.by != "@key" and len(set(map(parse_path, self.session.fields))) != len(self.session.fields):
            message = "each field may stand in session.by once"
            raise ValueError(message)
        if not self.fields:
            message = "tokens is empty; a stream of events needs at least one field to learn"
            raise ValueError(message)
        self._check_numbers(texts)
        self._check_window()
        self._check_row()
        for path, count in self.buckets.items():
            if path not in self.tokens:
                message = f"buckets.{path} is none of the tokens; write it as it stands there, or remove it"
                raise ValueError(message)
            if not 2 <= count <= MAX_BUCKETS:
                message = f"buckets.{path} is {count}; from 2 to {MAX_BUCKETS:,} buckets make sense"
                raise ValueError(message)
        if self.pattern is not None and self.format != "text":
            message = "`pattern` reads lines of text: write it with format: text, and only with that"
            raise ValueError(message)
        # Refuses what it cannot read.
        text = LineReader(self.pattern) if self.format == "text" else None
        Decoder(
            self.session.by, self.time, self.token_fields, self.session.end_when, self.message, text=text,
            event_id=self.duplicates.id, numbers=self.wide_numbers, named=self.named_number,
            segment=self.segment,
        )  # fmt: skip
        if self.late.send and self.late.allowed is None:
            message = "late.send needs late.allowed, which tells what is late; 0s: all that is behind its session"
            raise ValueError(message)
        return self

    def _check_numbers(self, texts: list[str]) -> None:
        """Numbers are learned once, as numbers, and counters are some of them."""
        from features.paths import parse_path

        taken = set(map(parse_path, texts))
        for path in self.token_fields[len(self.tokens) :]:
            name = parse_path(path)
            if name in taken:
                message = f"{path} names the numbers, which makes it a token: list it in numbers alone"
                raise ValueError(message)
            taken.add(name)
        if self.session.by != "@key":
            taken.update(map(parse_path, self.session.fields))
        numbers = [parse_path(path) for path in self.number_fields]
        for path, parsed in zip(self.number_fields, numbers, strict=True):
            if self.segment is not None and parsed == parse_path(self.segment):
                message = f"{path} is a number and also the segment; let it be one of them"
                raise ValueError(message)
            if parsed in taken:
                message = f"{path} is a number and also a token, the message or the session; let it be one of them"
                raise ValueError(message)
        if len(set(numbers)) != len(numbers):
            message = "each field may stand in numbers once"
            raise ValueError(message)
        if len(set(self.counters)) != len(self.counters):
            message = "each counter may be listed once"
            raise ValueError(message)
        if self.counters and not numbers:
            message = "counters are some of the numbers, and there are none; list the fields in numbers too"
            raise ValueError(message)
        for counter in self.counters if self.named_number is None else ():
            if parse_path(counter) not in numbers:
                message = f"the counter {counter} is none of the numbers; list it there too"
                raise ValueError(message)

    def _check_window(self) -> None:
        """Windows are of samples in columns, and their sessions outlast them."""
        window = self.window
        if window.size is None:
            if window != WindowSettings():
                message = "window has no size; write how long a window is, such as window.size: 1m"
                raise ValueError(message)
            return
        if self.kind != "metrics":
            message = "`window` gathers samples: write it with kind: metrics, and only with that"
            raise ValueError(message)
        if self.named_number is not None:
            message = "`window` needs numbers as a list of fields; with {name, value} it would mix numbers of any name"
            raise ValueError(message)
        if self.late.allowed is not None:
            message = "late.allowed is of records; a sample is late when its windows have closed, so leave it out"
            raise ValueError(message)
        rules = self.window_rules(self.session.gap)
        assert rules is not None, "it has a size"
        self._check_that_windows_fit(self.session.gap)
        if self.session.max_duration is not None and self.session.max_duration < rules.size_ms:
            message = "session.max_duration is shorter than a window, so each would be a session; lengthen it"
            raise ValueError(message)
        texts = len(self.tokens) + (self.segment is not None)
        if rules.overlap * texts > _MOST_WINDOW_TOKENS:
            message = (
                f"each sample is in {rules.overlap} windows, with {texts} tokens kept for each: more than a "
                "session's row can hold; make window.every longer, or leave out tokens"
            )
            raise ValueError(message)

    def _check_that_windows_fit(self, gap_ms: int) -> None:
        """Whether a session outlasts the time between its windows."""
        rules = self.window_rules(gap_ms)
        if rules is not None and gap_ms < rules.every_ms:
            message = (
                "session.gap or state.ttl is shorter than windows are apart, so each window would end its session; "
                "lengthen it"
            )
            raise ValueError(message)

    def _check_row(self) -> None:
        """A session's row must fit into a Kafka message, whatever comes."""
        rules = self.window_rules(self.session.gap)
        columns = len(self.number_fields) if rules is None else len(self.number_fields) * len(rules.aggregates) + 1
        columns += len(self.gap_fields)
        if columns * self.model.context > _MOST_KEPT_NUMBERS:
            message = (
                f"{columns} numbers of the last {self.model.context} events are more than a session's row can hold "
                f"({_MOST_KEPT_NUMBERS:,}); make model.context or the numbers fewer"
            )
            raise ValueError(message)
        if self.model.order == "loose" and self.kind == "metrics":
            message = "model.order: loose is for events and log lines; samples come in the order of their times"
            raise ValueError(message)
        self._check_cores_of_numbers()
        self._check_forecasts()
        self._check_gaps()
        if self.state_numbers > _MOST_STATE_NUMBERS:
            message = (
                f"the state of {' and '.join(self.model.cores)} with model.hidden {self.model.hidden} and "
                f"model.context {self.model.context} is {self.state_numbers:,} numbers, more than a row can hold "
                f"({_MOST_STATE_NUMBERS:,}); make one of the two smaller"
            )
            raise ValueError(message)

    def _check_cores_of_numbers(self) -> None:
        """What a core that goes by each number's own past can do without, and what not."""
        from models.spec import BY_NUMBERS

        cores = self.model.cores
        alone = [core for core in cores if core in BY_NUMBERS]
        if alone and (not self.number_fields or self.named_number is not None):
            message = (
                f"the core {alone[0]} goes by each number's own last values: write numbers as a list of fields, or "
                "choose another core"
            )
            raise ValueError(message)
        if len(alone) == len(cores) > len(set(cores)):
            message = (
                f"an ensemble of {cores[0]} alone says what one does; leave model.ensemble away, or add another core"
            )
            raise ValueError(message)
        if "seasonal" in cores and self.session.max_events < _SERIES_EVENTS:
            message = (
                f"the core seasonal knows a number from its session's begin on, and session.max_events: "
                f"{self.session.max_events:,} would begin it anew; write at least {_SERIES_EVENTS}"
            )
            raise ValueError(message)
        if self.model.refractory and "seasonal" not in cores:
            message = "model.refractory is for the core seasonal; leave it away, or write model.core: seasonal"
            raise ValueError(message)

    def _check_gaps(self) -> None:
        from features.time_gaps import GAP
        from models.spec import BY_NUMBERS

        if self.gap_fields and (set(BY_NUMBERS) & {*self.model.cores} or self.model.numbers == "forecast"):
            message = (
                "model.gaps needs a core that says how likely each time is, and linear, seasonal and model.numbers: "
                "forecast do not: remove it, or choose another core or model.numbers: bins"
            )
            raise ValueError(message)
        if GAP in self.fields and self.gap_fields:
            message = f'{GAP} is what model.gaps calls the time between events: write the field as ["{GAP}"]'
            raise ValueError(message)
        if isinstance(self.model.gaps, str) and self.model.gaps not in self.word_fields:
            message = (
                f"model.gaps is {self.model.gaps!r}, which is none of the tokens and not the message; write one as it "
                "stands there, or true for times that all events share"
            )
            raise ValueError(message)

    def _check_forecasts(self) -> None:
        """What cannot be forecast from the last one of its session."""
        from models.spec import BY_NUMBERS

        if self.model.numbers != "forecast":
            return
        if set(self.model.cores) <= {*BY_NUMBERS}:
            message = (
                f"model.core: {self.model.core} takes numbers as they are in any case; leave model.numbers away, or "
                "choose another core"
            )
            raise ValueError(message)
        if not self.number_fields:
            message = "model.numbers: forecast needs numbers: write them as a list of fields, or leave it away"
            raise ValueError(message)
        if self.named_number is not None or self.parameter_fields:
            message = (
                "model.numbers: forecast tells how each number goes on from the last one of its field, and numbers "
                "that names or templates tell apart have no field of their own; write numbers as a list of fields and "
                "no parameters, or model.numbers: bins"
            )
            raise ValueError(message)
        if self.model.order == "loose":
            message = "model.numbers: forecast goes by the order of numbers; write model.order: strict"
            raise ValueError(message)
        if self.second_stage.core is not None:
            message = (
                "model.numbers: forecast judges by how far off forecasts have been of late, which no second stage can "
                "tell from a session's last events; leave second_stage away, or write model.numbers: bins"
            )
            raise ValueError(message)

    @property
    def state_numbers(self) -> int:
        """How many numbers a row keeps of the model."""
        from features.windows import window_columns
        from models.spec import BY_NUMBERS, ModelSpec, state_size

        windows = self.window_rules(self.session.gap)
        numbers = self.number_fields if windows is None else window_columns(self.number_fields, windows)
        tokens = len(self.fields) - len(self.number_fields)
        columns = tokens + len(numbers) + len(self.parameter_fields) + len(self.gap_fields) + len(self.seasons)
        model, values = self.model, len(numbers) if self.model.numbers == "forecast" else 0
        ids = (1,) * (columns - values)
        specs = [ModelSpec(core, model.hidden, ids, (), model.context, values=values) for core in model.cores]
        return sum(
            state_size(spec.core, 0, 0, len(numbers) + len(self.parameter_fields))
            if spec.core in BY_NUMBERS
            else spec.state_numbers
            for spec in specs
        )

    def window_rules(self, gap_ms: int) -> WindowRules | None:
        """What `window` says; None where samples are scored one by one. Counters are known for a session's gap."""
        from features.paths import parse_path
        from features.windows import WindowRules

        size = self.window.size
        if size is None:
            return None
        every = size if self.window.every is None else self.window.every
        only_grow = {parse_path(path) for path in self.counters}
        counters = tuple(i for i, path in enumerate(self.number_fields) if parse_path(path) in only_grow)
        most = min(_MOST_SAMPLES, _MOST_SAMPLE_BYTES // (16 + 8 * len(self.number_fields)))
        return WindowRules(size, every, tuple(self.window.aggregate), counters, most, gap_ms)

    @model_validator(mode="after")
    def _masks_can_be_applied(self) -> StreamSettings:
        from features.masking import covering

        rules = self.mask_rules
        if rules and self.is_repartitioned:
            message = (
                "the stream is repartitioned, so whole records are written to an internal topic before anything is "
                "masked; remove mask and mask them where they are produced, or remove session.repartition and produce "
                "them with the session as key"
            )
            raise ValueError(message)
        others = [field for field in (self.duplicates.id, self.segment) if field is not None]
        kept = [*self.session.fields, *self.fields, *others]
        over = {path: covering(rules, path) for path in kept}
        for path in rules.keys() - set(over.values()):
            message = (
                f"mask.{path} masks nothing: what is kept of a record is {', '.join(kept)} and its time, which is "
                "never masked; correct the path, or remove the rule"
            )
            raise ValueError(message)
        identity = self.duplicates.id
        if identity is not None and (rule := over[identity]) is not None and rules[rule].kind != "hash":
            message = f"mask.{rule} leaves ids that look alike, so new records would be dropped; write hash"
            raise ValueError(message)
        if self.named_number is not None and self.counters and (rule := over[self.named_number[0]]) is not None:
            message = f"mask.{rule} masks the names of numbers, by which counters are known; remove one of the two"
            raise ValueError(message)
        for path in self.number_fields:
            if (rule := over[path]) is not None:
                message = (
                    f"mask.{rule} masks a number, {path}, which the model takes as it is; remove the rule, or take the "
                    "field out of numbers"
                )
                raise ValueError(message)
        for session in filter(None, (over[field] for field in self.session.fields)):
            if rules[session].kind == "drop":
                message = (
                    f"mask.{session} drops the session; write hash, so that sessions stay apart without their names"
                )
                raise ValueError(message)
        if self.message is not None and rules:
            said = over[self.message]
            if said is not None and rules[said].kind in {"hash", "drop"}:
                message = f"mask.{said} leaves nothing of the message to read; write redact or truncate"
                raise ValueError(message)
            if said is None and self.format == "text":
                message = (
                    "a line's message may hold its other fields too, so masking these is not enough; write "
                    f"mask.{self.message}: redact as well"
                )
                raise ValueError(message)
        return self

    @property
    def is_repartitioned(self) -> bool:
        """Whether workers bring the records to an internal topic first. An export holds samples of many sessions."""
        return self.session.repartition or self.format == "otlp_metrics"

    @property
    def mask_rules(self) -> dict[str, Rule]:
        """By path, each written in one way."""
        from features.masking import parse_rules

        return parse_rules(self.mask)

    @property
    def seasons(self) -> tuple[str, ...]:
        """The positions in time that may be used, each once."""
        default = ["hour", "weekday"] if self.kind == "metrics" else []
        wanted = default if self.season is None else self.season
        return tuple(name for name in ("hour", "weekday") if name in wanted)

    @property
    def named_number(self) -> tuple[str, str] | None:
        """The fields of a number's name and of its value, where a record is one sample."""
        return (self.numbers.name, self.numbers.value) if isinstance(self.numbers, NamedNumbers) else None

    @property
    def wide_numbers(self) -> tuple[str, ...]:
        """The number fields, where a record may have several."""
        return () if isinstance(self.numbers, NamedNumbers) else tuple(self.numbers)

    @property
    def number_fields(self) -> tuple[str, ...]:
        """The fields of numbers' values, in the order of the decoder's columns."""
        return self.wide_numbers if self.named_number is None else self.named_number[1:]

    @property
    def parameter_fields(self) -> tuple[str, ...]:
        """What numbers in the lines of a message are called; they follow those of fields."""
        return () if self.message is None else tuple(f"{self.message}[{place}]" for place in range(self.parameters))

    @property
    def gap_fields(self) -> tuple[str, ...]:
        """What the time gap is called, where it is predicted; it follows all other numbers."""
        from features.time_gaps import GAP

        return (GAP,) if self.model.gaps else ()

    @property
    def token_fields(self) -> tuple[str, ...]:
        """The token fields, with that of a number's name as the last."""
        return (*self.tokens, *(() if self.named_number is None else self.named_number[:1]))

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the model learns of: token fields, the message of a log line, numbers."""
        return (*self.word_fields, *self.number_fields)

    @property
    def word_fields(self) -> tuple[str, ...]:
        """Those of them that are tokens, in the order of the decoder's columns."""
        return (*self.token_fields, *(() if self.message is None else (self.message,)))
