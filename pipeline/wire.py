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
    status: Literal["ok", "warming_up", "late"] = Field(
        description="late: too far behind its session to step it; never an anomaly."
    )


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
    status: Literal["ok", "warming_up"]


class _Anomaly(_Message):
    id: str = Field(description="As the decision's. Deliveries may repeat after a crash: drop ids you have seen.")
    stream: str
    session: str
    segment: Segment
    time_ms: TimeMs
    score: float
    p_value: float
    confidence: Confidence
    status: Literal["ok", "warming_up"]
    expected: dict[str, list[Expected | ExpectedNumber]] = Field(
        description="The three most probable tokens of each token field; of a number one entry, or none if unknown. "
        "None while warming up."
    )
    unit: Literal["nats", "score"] = Field(
        description="Of the contributions. nats: minus logarithms of probabilities. score: parts of a score that is "
        "none, such as how far off forecasts were, or that of an ensemble."
    )
    context: list[dict[str, Any]] = Field(description="The session's last events before, oldest first.")
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
    """What made a session strange: its worst record, or its end (null while warming up). The score is the larger."""

    worst_record: float | None
    end: float | None


class SessionAnomaly(_Anomaly):
    """A session that was strange as a whole."""

    type: Literal["session"]
    first_ms: TimeMs
    events: int = Field(ge=1)
    ended: Ended
    observed: dict[Literal["end"], Ended]
    contributions: EndContributions
    worst_offset: int | None = Field(description="Offset of the worst record, where it is known.")


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


class DeadLetter(_Message):
    """A record that could not be scored."""

    id: str = Field(description="stream/topic/partition/offset/dead-letter")
    stream: str
    reason: Literal[
        "bad_record", "not_json", "wrong_type", "missing_session", "key_is_not_session", "bad_time", "not_text",
        "too_long", "no_match",
    ]  # fmt: skip
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
    """Something changed that is not about one record. Later versions add types for changed distributions."""

    type: Literal[
        "topic_recreated", "records_lost", "offset_reset", "sessions_lost",
        "field_missing", "field_type", "field_unknown_values",
    ] = Field(
        description="topic_recreated: the source was deleted and made anew. records_lost: its retention removed "
        "records before they were read. offset_reset: the group's offset was moved on purpose, or, of a "
        "repartitioned stream's source, is gone. sessions_lost: saved states were damaged or gone, so these sessions "
        "start anew. field_missing, field_type, field_unknown_values: a field is absent, of a wrong type, or has "
        "values that training never met, in far more records than in training; or no longer."
    )  # fmt: skip
    id: str = Field(
        description="stream/topic/partition/offset/type, and /field where there is one: the same after a restart or a "
        "replay."
    )
    stream: str
    detail: str = Field(description="One sentence for people.")
    source: Source = Field(description="Where in the stream's topic: the offset at which it was seen.")
    since_ms: int | None = Field(description="Since when it has been so, milliseconds since 1970; null: not known.")
    amount: int = Field(ge=0, description="How many records or sessions it concerns.")
    amount_unit: Literal["records", "sessions"]
    sessions: list[str] = Field(max_length=100, description="Sessions that were lost, the first hundred; else empty.")
    field: str | None = Field(description="The field's path, where it is about one.")
    phase: Literal["began", "ended"] | None = Field(description="Of a field: whether this began or ended.")
    detected_ms: int = Field(description="When the worker saw it, by its own clock; differs between deliveries.")


class DeleteSession(_Message):
    """A control: forget the session. Its key is delete/STREAM/SESSION, so compaction keeps the latest of each."""

    type: Literal["delete_session"]
    stream: str
    session: str = Field(min_length=1)
    issued_ms: int = Field(ge=0, description="When it was asked for, by the clock of who asked.")


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


MESSAGES: dict[str, tuple[type[_Message], ...]] = {
    "anomalies": (RecordAnomaly, SessionAnomaly),
    "rescores": (Rescore,),
    "decisions": (RecordDecision, SessionDecision),
    "dead-letters": (DeadLetter,),
    "late": (LateRecord,),
    "drift": (Drift,),
    "controls": (DeleteSession,),
    "models": (Promotion,),
}
