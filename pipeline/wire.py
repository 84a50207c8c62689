"""The messages we write, as pydantic models. `docs/schemas/` holds their JSON Schema, and contract tests hold both.

The worker builds these as plain dictionaries, for speed; a test validates what comes out of it against the models.
Messages may gain keys in later versions, so the schemas allow more than they name: readers must too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Score = Annotated[float | None, Field(description="Higher is stranger, in nats; null while there is none, never 0.")]
PValue = Annotated[float | None, Field(gt=0, le=1, description="How often normal data looks this strange.")]
Confidence = Annotated[
    float | None,
    Field(
        ge=0, lt=1, description="While warming up: how much score and p-value say, by how much was learned. Null under "
        "a bundle, and while there is no score.",
    ),
]  # fmt: skip
Tag = Annotated[
    Literal["B", "I", "O"] | None,
    Field(
        description="Whether a bad stretch of the session begins with this record (B), goes on (I), or neither (O); of "
        "a session I or O, as it ended. Null while warming up, and of late records."
    ),
]
TagConfidence = Annotated[
    float | None,
    Field(ge=0, le=1, description="How probable it is, after the session's records so far, that the tag is right."),
]
TimeMs = Annotated[int, Field(ge=0, description="Event time, milliseconds since 1970 (UTC).")]
Segment = Annotated[
    str | None,
    Field(
        description="What the record's `segment` field held, of a session its first record's; null where the stream "
        "has no such field, or the record has none."
    ),
]
Ended = Annotated[
    Literal["event", "gap", "limit", "input"],
    Field(
        description="What ended the session: its end event, silence, its length, or its input. `input`: the file was "
        "over; or the topic was made anew or its offsets were reset on purpose, so its sessions were closed."
    ),
]


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Source(_Message):
    """Where a record lies in Kafka."""

    topic: str
    partition: int
    offset: int


Origin = Annotated[
    Source | None,
    Field(
        description="Where the record lay before it was repartitioned by its session; null where the stream is not "
        "repartitioned, and for sessions."
    ),
]


class Model(_Message):
    """Which bundle decided; the digest is `online` while warming up."""

    name: str
    digest: str


class Expected(_Message):
    """A token and how probable it was."""

    token: str
    probability: float


class ExpectedNumber(_Message):
    """Where a number should have been: of ten, nine lie from low to high. Of a counter it is its rate per second."""

    low: float
    median: float
    high: float


Labelled = Annotated[
    Literal["normal"] | None,
    Field(description="normal: its score is that of an anomaly, but people have called its pattern normal."),
]


class Band(_Message):
    """From where to where a number should have been."""

    low: float
    high: float


class WouldBeNormal(_Message):
    """A change that would have been no anomaly."""

    field: str
    value: str | Band | None = Field(description="What the field should have held; null: nothing at all.")
    p_value: float = Field(description="What its p-value would have been then; with a number at least that.")


class Earlier(_Message):
    """An earlier event of the session, and what it has to do with the anomaly."""

    back: int = Field(ge=1, description="1 is the event just before what is explained, 2 the one before that.")
    time_ms: TimeMs
    share: float = Field(
        description="By how much the score would fall had the event never been; negative where it would rise."
    )


class RecordDecision(_Message):
    """One decision on a record."""

    type: Literal["record"]
    id: str = Field(
        description="stream/topic/partition/offset/record: the same after a restart or a replay. Of a window of "
        "samples its end in milliseconds stands in place of record, as window-END; the offset is its last sample's."
    )
    stream: str
    session: str
    segment: Segment
    time_ms: TimeMs
    score: Score
    p_value: PValue
    anomaly: bool
    confidence: Confidence
    tag: Tag
    tag_confidence: TagConfidence
    status: Literal["ok", "warming_up", "late"] = Field(
        description="late: too far behind its session to step it; never an anomaly."
    )
    labelled: Labelled


class SessionDecision(_Message):
    """One decision on a session that ended."""

    type: Literal["session"]
    id: str = Field(
        description="stream/topic/partition/offset/session, with the session's last record's offset; of windows "
        "session-END, with the last one's end."
    )
    stream: str
    session: str
    segment: Segment
    time_ms: TimeMs = Field(description="Time of the session's last event.")
    first_ms: TimeMs
    events: int = Field(ge=1)
    ended: Ended
    score: Score
    p_value: PValue
    anomaly: bool
    confidence: Confidence
    tag: Tag
    tag_confidence: TagConfidence
    status: Literal["ok", "warming_up"]
    labelled: Labelled


Pattern = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", description="Names what was strange; labels speak for it.")]


Severity = Literal["low", "medium", "high", "critical"]


class _Anomaly(_Message):
    id: str = Field(description="As the decision's. Deliveries may repeat after a crash: drop ids you have seen.")
    stream: str
    session: str
    segment: Segment
    time_ms: TimeMs
    score: float
    p_value: float = Field(description="As the decision's: at most the promise.")
    calibrated_p_value: float = Field(
        description="What held-back data says, before the threshold followed the stream (promise.adapt)."
    )
    confidence: Confidence
    tag: Tag
    tag_confidence: TagConfidence
    status: Literal["ok", "warming_up"]
    severity: Severity = Field(
        description="A level for each factor of ten by which it is rarer than the promise asks for, and one more where "
        "a bad stretch of its session goes on (tag I)."
    )
    expected: dict[str, list[Expected | ExpectedNumber]] = Field(
        description="The three most probable tokens of each token field; of a number one entry, or none if unknown. "
        "None while warming up."
    )
    unit: Literal["nats", "score"] = Field(
        description="Of the contributions. nats: minus logarithms of probabilities. score: parts of a score that is "
        "none, such as how far off forecasts were, or that of an ensemble."
    )
    context: list[dict[str, Any]] = Field(description="The session's last events before, oldest first.")
    would_be_normal: WouldBeNormal | None = Field(
        description="The one field that would have had to hold something else; null where no change of a single field "
        "would have done, while warming up, and, where only a replay can tell (sessions, ensembles), without one."
    )
    earlier: list[Earlier] | None = Field(
        description="The session's last 10 events before what is explained (of a session 8; by `offbeat replay` 32), "
        "oldest first, each by what the score owes to it; null without a replay."
    )
    pattern: Pattern
    explained: Literal["full", "window", "budget", "none"] = Field(
        description="Of `earlier`. full: what was replayed gives the score. window: older events than the session's "
        "row keeps count too, and the replay lacks these. budget: the passes were spent. none: warming up, switched "
        "off, or a session's strangest record is older than what its row keeps."
    )
    model: Model
    source: Source
    origin: Origin
    detected_ms: int = Field(description="When the worker saw it, by its own clock; differs between deliveries.")


class RecordAnomaly(_Anomaly):
    """A record that should not have come next."""

    type: Literal["record"]
    observed: dict[str, str | float | None] = Field(description="What came, per field; of a counter its rate.")
    contributions: dict[str, float] = Field(description="Surprise per field in nats; the score is their sum.")


class EndContributions(_Message):
    """The surprise of a session's worst record and of its end (null while warming up).

    The score is the larger, or where there is a `profile` what that says.
    """

    worst_record: float | None
    end: float | None


class Counted(_Message):
    """How often something came in a session; its field is null for all that has no count of its own."""

    field: str | None = Field(description="A token field, `@events` or `@duration` (in milliseconds).")
    token: str | None = Field(description="The token; null where the field was missing, and of the latter two.")
    count: int


class Difference(Counted):
    """The same, and how often it came in the most similar session of training."""

    usual: int


class CountPair(_Message):
    """Two counts that do not fit each other."""

    given: Counted
    then: Counted
    probability: float = Field(description="How often training's sessions have the second count with the first.")


class Profile(_Message):
    """The session as a whole, against those of training."""

    nats: dict[Literal["surprise", "nearest", "pairs"], float] = Field(
        description="Minus the logarithm of each detector's own p-value: of the largest surprise of a record or the "
        "end, of the distance to the most similar session of training, and of the two counts. The score is minus the "
        "logarithm of their harmonic mean."
    )
    absorbed: bool = Field(
        False, description="Training never met this profile, but so many sessions had it since that it is known."
    )
    differences: list[Difference] = Field(max_length=5, description="To the most similar session, the largest first.")
    pair: CountPair | None = Field(
        description="Null where the session began before profiles were counted, or where absorbed."
    )


class WorstRecord(_Message):
    """A session's strangest record, as its row keeps it."""

    event: dict[str, Any] = Field(description="As in `context`.")
    contributions: dict[str, float] = Field(description="Its fields' shares of its score.")


class SessionAnomaly(_Anomaly):
    """A session that was strange as a whole."""

    type: Literal["session"]
    first_ms: TimeMs
    events: int = Field(ge=1)
    ended: Ended
    observed: dict[Literal["end"], Ended]
    contributions: EndContributions
    worst_offset: int | None = Field(description="Offset of the worst record, where it is known.")
    profile: Profile | None = Field(description="Null where the bundle holds no profiles.")
    worst: WorstRecord | None = Field(description="That record, where the session's row still keeps it.")


class ExpectedCount(_Message):
    """How many records would have been normal."""

    low: int = Field(ge=0, description="Fewer are too few.")
    median: int = Field(ge=0)
    high: int = Field(ge=0, description="More are too many.")


class RateAnomaly(_Message):
    """Too many records in a while, or too few; it is about no session, and no record is to blame."""

    type: Literal["rate"]
    id: str = Field(
        description="stream/topic/partition/UNTIL_MS/rate, and where there is a segment /SEGMENT, percent-encoded. "
        "Deliveries may repeat after a crash: drop ids you have seen."
    )
    stream: str
    segment: str | None = Field(description="Whose records were counted; null where the stream has no segments.")
    time_ms: TimeMs = Field(description="The last moment of the bucket.")
    from_ms: TimeMs
    until_ms: TimeMs = Field(description="The bucket's end, left out.")
    count: int = Field(ge=0)
    expected: ExpectedCount
    direction: Literal["too_many", "too_few"]
    p_value: float = Field(gt=0, le=1, description="How often normal counts are this far off; at most the promise.")
    severity: Literal["low", "medium", "high", "critical"] = Field(description="By the p-value, a level a factor ten.")
    status: Literal["ok"]
    judged: int = Field(ge=1, description="How many-th bucket it is that was judged.")
    since_ms: TimeMs = Field(description="Since when.")
    model: Model
    source: Source = Field(
        description="The record that showed by its time that the bucket was over; after silence the last one before."
    )
    detected_ms: int = Field(description="When the worker saw it, by its own clock; differs between deliveries.")


class Rescore(_Message):
    """What a second stage says of an anomaly. One that it had no pass left for has no such message."""

    id: str = Field(description="The anomaly's, then /rescore: the same after a restart or a replay.")
    anomaly: str = Field(description="Id of the anomaly that it is about.")
    type: Literal["record", "session"]
    stream: str
    session: str
    time_ms: TimeMs
    core: str = Field(description="The core that looked again.")
    score: float
    p_value: float = Field(description="How often normal data looks as strange to that core.")
    confirmed: bool = Field(description="Whether that is at most what the stream's promise allows.")
    model: Model
    source: Source
    detected_ms: int = Field(description="When the worker saw it, by its own clock; differs between deliveries.")


class UndeliveredAlert(_Message):
    """What a receiver of alerts did not get."""

    receiver: str
    message: str = Field(description="The message's id; `offbeat alerts redeliver` sends it under this one.")
    changes: list[str] = Field(description="Ids of all changes that the message tells.")
    attempts: int = Field(ge=0, description="Those that were made.")
    change: str = Field(description="The change's id.")
    subject: str = Field(description="The incident's id; of anomalies STREAM/anomalies.")
    kind: Literal["opened", "updated", "merged", "closed", "anomaly"]
    streams: list[str]
    severity: Severity
    labels: dict[str, str]
    at_ms: TimeMs


class DeadLetter(_Message):
    """A record that could not be scored, or a change that a receiver of alerts did not get."""

    id: str = Field(description="stream/topic/partition/offset/dead-letter; of alerts CHANGE/RECEIVER/dead-letter.")
    stream: str
    reason: Literal[
        "bad_record", "not_json", "wrong_type", "missing_session", "key_is_not_session", "bad_time", "not_text",
        "too_long", "no_match", "exhausted", "rejected", "gone", "disabled", "no_receiver",
    ] = Field(
        description="Of alerts: exhausted: all attempts failed. rejected: the receiver will never take it. gone: it "
        "wants no message ever again. disabled: it said so before. no_receiver: the config does not have it any more."
    )  # fmt: skip
    detail: str
    source: Source
    origin: Origin
    key: str | None
    payload: str | None = Field(
        description="The record's value as text, cut at 64 kB; null where it is no UTF-8, or where "
        "the stream is masked."
    )
    payload_base64: str | None = Field(description="The value in base64 where it is no UTF-8, cut at 64 kB.")
    truncated: bool
    alert: UndeliveredAlert | None = Field(None, description="Null but for alerts.")
    detected_ms: int


class LateRecord(_Message):
    """A record too far behind its session, where the stream sends these away (`late.send`)."""

    id: str = Field(description="stream/topic/partition/offset/late: the same after a restart or a replay.")
    stream: str
    session: str
    time_ms: TimeMs
    behind_ms: int = Field(description="How far behind the partition's newest event it was when its turn came.")
    observed: dict[str, str | float | None] = Field(description="What came, per field.")
    source: Source
    detected_ms: int = Field(description="When the worker saw it, by its own clock; differs between deliveries.")


class Drift(_Message):
    """Something changed that is not about one record."""

    type: Literal[
        "topic_recreated", "records_lost", "offset_reset", "sessions_lost",
        "field_missing", "field_type", "field_unknown_values",
        "input_drift", "unknown_drift", "surprise_drift", "calibration_drift", "concept_drift",
    ] = Field(
        description="topic_recreated: the source was deleted and made anew. records_lost: its retention removed "
        "records before they were read. offset_reset: the group's offset was moved on purpose, or, of a "
        "repartitioned stream's source, is gone. sessions_lost: saved states were damaged or gone, so these sessions "
        "start anew. field_missing, field_type, field_unknown_values: a field is absent, of a wrong type, or has "
        "values that training never met, in far more records than in training; or no longer. The others are "
        "changes that last, or no longer do. input_drift: a field's tokens or numbers are distributed otherwise. "
        "unknown_drift: it has more unknown values. surprise_drift: records surprise the model otherwise. "
        "calibration_drift: p-values are no longer distributed as calibration had them. concept_drift: verdicts "
        "disagree with labels more often."
    )  # fmt: skip
    id: str = Field(
        description="stream/topic/partition/offset/type, and /field where there is one: the same after a restart or a "
        "replay."
    )
    stream: str
    detail: str = Field(description="One sentence for people.")
    source: Source = Field(description="Where in the stream's topic: the offset at which it was seen.")
    since_ms: int | None = Field(description="Since when it has been so, milliseconds since 1970; null: not known.")
    amount: int = Field(ge=0, description="How many records, sessions or labels it concerns.")
    amount_unit: Literal["records", "sessions", "labels"]
    sessions: list[str] = Field(max_length=100, description="Sessions that were lost, the first hundred; else empty.")
    field: str | None = Field(description="The field's path, where it is about one.")
    phase: Literal["began", "ended"] | None = Field(description="Of what lasts: whether this began or ended.")
    statistic: Literal["psi", "ks", "unknown", "surprise", "errors"] | None = Field(
        None,
        description="What differs: the population stability index or the Kolmogorov-Smirnov distance of a "
        "histogram, the share of unknown values, the mean surprise in nats, the share of wrong verdicts. "
        "Null: it is not about a distribution.",
    )
    value: float | None = Field(None, description="The statistic, the median of the last eight intervals.")
    usual: float | None = Field(None, description="The highest level that training itself kept as long.")
    limit: float | None = Field(None, description="From where on it is drift.")
    p_value: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How often training's own intervals would look so by chance, were they independent, in any field.",
    )
    action: Literal["retrain", "recalibrate", "watch"] | None = Field(None, description="What would help.")
    detected_ms: int = Field(description="When the worker saw it, by its own clock; differs between deliveries.")


class DeleteSession(_Message):
    """A control: forget the session. Its key is delete/STREAM/SESSION, so compaction keeps the latest of each."""

    type: Literal["delete_session"]
    stream: str
    session: str = Field(min_length=1)
    issued_ms: int = Field(ge=0, description="When it was asked for, by the clock of who asked.")


class Contributor(_Message):
    """A field, and its share in what made the incident's anomalies strange."""

    stream: str
    field: str
    share: float = Field(ge=0, le=1)


class Cause(_Message):
    """Where an incident may have begun."""

    stream: str
    segment: Segment
    field: str | None = Field(description="The field that contributed most there; null where none is known.")
    since_ms: TimeMs
    evidence: float = Field(ge=0, description="Nats beyond twice what the promise explains.")
    weight: float = Field(
        ge=0, description="What causes are ranked by: evidence for each false alarm that was due meanwhile, and one "
        "more; halved for each `incidents.together` that it began after the first."
    )  # fmt: skip


class IncidentExample(_Message):
    """An anomaly of an incident."""

    id: str = Field(description="The anomaly's.")
    stream: str
    session: str
    time_ms: TimeMs


class Incident(_Message):
    """An incident, whole, as it is after a change. Id and revision together name the message."""

    type: Literal["opened", "updated", "merged", "closed"] = Field(
        description="merged: it turned out to be part of `merged_into`, and nothing more comes of it."
    )
    id: str = Field(description="Its first anomaly's, then /incident: the same after a restart or a replay.")
    revision: int = Field(ge=1, description="Counts its messages, without a hole.")
    severity: Severity = Field(
        description="A level each for strong evidence, for lasting as long as `incidents.quiet`, and for more than one "
        "stream or segment. It never falls."
    )  # fmt: skip
    start_ms: TimeMs
    last_ms: TimeMs = Field(description="Event time of the last anomaly that showed it to go on.")
    end_ms: int | None = Field(description="As last_ms once it is closed; null before.")
    merged_into: str | None
    anomalies: int = Field(ge=1)
    suppressed: int = Field(ge=0, description="Anomalies meanwhile that a mute or maintenance kept from counting.")
    withheld: int = Field(ge=0, description="Changes that were not told at once, for one had been told just before.")
    streams: list[str] = Field(max_length=20)
    segments: list[str] = Field(max_length=20)
    sessions: int = Field(ge=1, description="How many; at least so many, beyond 256 in a stream and segment.")
    session_names: list[str] = Field(max_length=20)
    contributors: list[Contributor] = Field(max_length=5)
    causes: list[Cause] = Field(max_length=10, description="The likeliest first.")
    examples: list[IncidentExample] = Field(max_length=5)
    summary: str = Field(description="One sentence for people.")
    scope: str = Field(description="The segment it stays within, with `incidents.by: segment`; else empty.")
    detected_ms: int = Field(description="When the worker saw it, by its own clock.")


class Labels(_Message):
    """How many anomalies of a stream have a label, the latest of each."""

    normal: int = Field(ge=0)
    anomaly: int = Field(ge=0)


class LabelPattern(_Message):
    """A control: a pattern was labelled. Its key is pattern/STREAM/PATTERN, so the latest label of each stays."""

    type: Literal["label_pattern"]
    stream: str
    pattern: Pattern
    label: Literal["normal", "anomaly"] = Field(
        description="normal: what shows it is no anomaly from the next checkpoint on. anomaly: it is one again."
    )
    labels: Labels
    issued_ms: int = Field(ge=0, description="When it was asked for, by the clock of who asked.")


class Label(_Message):
    """What somebody says of an anomaly. The latest of an id counts, and so does the latest of a pattern."""

    id: str = Field(description="Of the anomaly.")
    stream: str
    label: Literal["normal", "anomaly"]
    pattern: Pattern
    by: str = Field(description="Who said it.")
    at_ms: int = Field(ge=0, description="When, by the clock of who said it.")
    reason: str | None = Field(description="Why, in their words.")
    session: str | None = Field(
        default=None, description="The anomaly's, where the stream is repartitioned: its trainings read another topic "
        "than ids name, and find by session and time what is meant. Else null.",
    )  # fmt: skip
    time_ms: TimeMs | None = Field(default=None, description="The anomaly's, where `session` is told.")


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Promotion(_Message):
    """A bundle serves from now on. Its key is the stream's name, so compaction keeps the latest of each stream."""

    type: Literal["promote", "rollback"] = Field(
        description="rollback: the bundle served before, and what was promoted since is passed over by the next one."
    )
    stream: str
    digest: Digest = Field(description="The bundle that serves.")
    previous: Digest | None = Field(description="What served until then; null where none did.")
    issued_ms: int = Field(ge=0, description="When, by the clock of who promoted.")
    by: str = Field(description="Who promoted.")
    reason: str | None = Field(description="Why, in their words.")


class RetrainJob(_Message):
    """A training that is asked for. Its key is the stream's name, so that a stream's messages stay in order."""

    type: Literal["job"]
    id: str = Field(description="stream/cause/trigger: who sees the same trigger asks for the same job.")
    stream: str
    cause: Literal["drift", "schedule", "labels", "manual"]
    detail: str = Field(description="One sentence for people; of a job asked for by hand, their reason.")
    trigger: str | None = Field(description="Id of the drift event or of the label that asked; else null.")
    since_ms: int = Field(ge=0, description="Records from this Kafka timestamp on are used,")
    until_ms: int = Field(ge=0, description="and before this one.")
    world_ms: int | None = Field(
        description="After a drift the event time before which records are of another world and left out, if enough "
        "are left; null: all count."
    )
    least_records: int = Field(ge=0, description="With fewer records left, all count.")
    seed: int
    asked_ms: int = Field(ge=0, description="When, by the clock of who asked.")
    by: str = Field(description="Who asked.")


class RetrainFigures(_Message):
    """What a bundle made of the newest part of the span, which nothing was trained on."""

    records: int
    alarms_of_records: int
    sessions: int
    alarms_of_sessions: int
    unknown: float = Field(description="Share of the tokens that it does not know.")
    nats: float | None = Field(
        description="Mean surprise of the tokens of records that both bundles know and find normal; null where that "
        "cannot be compared."
    )
    f1: float | None = Field(description="Of its alarms against labels; null where no label says anomaly.")


class RetrainComparison(_Message):
    """Both bundles on the same records; `serving` is null where none served."""

    new: RetrainFigures
    serving: RetrainFigures | None


class RetrainOutcome(_Message):
    """What became of a job. All but `started` are its end, and the first of them counts."""

    type: Literal["started", "offered", "promoted", "kept", "refused", "failed"] = Field(
        description="started: a trainer has taken it; again where one died. offered: the new bundle is better, and "
        "waits for `offbeat models promote`. promoted: it serves. kept: the one that serves stays, for the new one is "
        "no better. refused: nothing can be learned or compared, detail says why. failed: the training broke off."
    )
    id: str = Field(description="The job's id, then /type; of started then /trainer.")
    job: str
    stream: str
    trainer: str = Field(description="The process that says so, by its name in the consumer group.")
    detail: str = Field(description="One sentence for people.")
    digest: Digest | None = Field(description="The new bundle.")
    serving: Digest | None = Field(description="The bundle that served when the two were compared.")
    figures: RetrainComparison | None
    at_ms: int = Field(ge=0, description="When, by the trainer's clock.")


MESSAGES: dict[str, tuple[type[_Message], ...]] = {
    "anomalies": (RecordAnomaly, SessionAnomaly, RateAnomaly),
    "rescores": (Rescore,),
    "decisions": (RecordDecision, SessionDecision),
    "dead-letters": (DeadLetter,),
    "late": (LateRecord,),
    "drift": (Drift,),
    "controls": (DeleteSession, LabelPattern),
    "labels": (Label,),
    "models": (Promotion,),
    "incidents": (Incident,),
    "retrain": (RetrainJob, RetrainOutcome),
}
