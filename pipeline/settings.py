"""The settings: offbeat.yaml and OFFBEAT_* variables, validated once into frozen objects.

A wrong key or value becomes one `ConfigError` that names the key, the value and what was expected; of what may be a
secret the value is left out.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from models.folders import RemoteFolder, parse_folder
from pipeline import secrets
from pipeline.alerts.settings import RECEIVER_TYPES, AlertSettings, check_url
from pipeline.edge_settings import BrokerSettings, HttpSettings
from pipeline.errors import ConfigError
from pipeline.incident_settings import IncidentSettings
from pipeline.secrets import Secret
from pipeline.stream_settings import DurationMs, Section, StreamSettings
from pipeline.wire import MESSAGES

# What was expected, by pydantic's type of error, where its own words would not help.
_EXPECTED = {
    "string_type": "text", "bool_type": "true or false", "bool_parsing": "true or false", "int_type": "a whole number",
    "int_parsing": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "float_parsing": "a number", "list_type": "a list", "dict_type": "keys and values", "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "path_type": "a path", "invalid_key": "a key that is text",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "at least {min_length}", "too_long": "at most {max_length}",
    "string_too_short": "at least {min_length} character",
}  # fmt: skip
_SHORT_VARIABLES = {"OFFBEAT_BROKER": "OFFBEAT_BROKER__SERVERS"}
_SCALARS = ("str", "bool", "int", "float")


class TraceSettings(Section):
    """Traces by OpenTelemetry, with `pip install 'offbeat[traces]'`."""

    endpoint: str | None = Field(
        None,
        description="Where a collector takes OTLP over HTTP, such as http://127.0.0.1:4318. Absent: no traces.",
    )
    ratio: float = Field(
        0.01, ge=0.0, le=1.0, description="Share of slices that have spans; anomalies, incidents and alerts always do."
    )
    headers: dict[str, Secret] = Field(
        default_factory=dict,
        description="What the collector asks for, from env:NAME or file:PATH, such as `{Authorization: env:NAME}`.",
    )

    @field_validator("endpoint")
    @classmethod
    def _can_be_posted_to(cls, endpoint: str | None) -> str | None:
        if endpoint is not None:
            check_url(endpoint)
        return endpoint


class StateSettings(Section):
    """How much session state a worker keeps, where and how long; what is not in memory lives in RocksDB."""

    hot_sessions: int = Field(
        100_000, ge=100, description="Session rows in memory, all partitions of a worker together (about 1 KB each)."
    )
    ttl: DurationMs = Field(
        7 * 86_400_000, ge=1,
        description="A session without events for this long, in event time, is over, however long its stream's gap.",
    )  # fmt: skip
    standby_replicas: int = Field(
        0, ge=0, le=10,
        description="Further workers that follow each partition's changelog, so that a takeover is quick.",
    )  # fmt: skip


class TopicSettings(Section):
    """Output topics and changelogs."""

    prefix: str = Field("offbeat", pattern=r"^[A-Za-z0-9._-]{1,100}$", description="Begins each output topic's name.")
    create: bool = Field(True, description="Create missing output topics and changelogs at start.")
    replication: int = Field(1, ge=1, le=32767, description="Replication factor of topics we create.")
    partitions: int = Field(4, ge=1, le=10_000, description="Partitions of output topics we create.")
    retention: DurationMs = Field(7 * 86_400_000, description="How long output topics keep messages.")


class DecisionSettings(Section):
    """The topic of all verdicts."""

    sample: float = Field(
        0.01, ge=0.0, le=1.0,
        description="Share of verdicts written to the decisions topic, by a hash of the id (a replay takes the same).",
    )  # fmt: skip


class CostSettings(Section):
    """What a worker's work costs, for /metrics and dashboards."""

    cpu_core_hour: float | None = Field(
        None, ge=0, le=1_000_000, description="Price of an hour of one core. Absent: no costs are shown."
    )
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="Currency of the price, by ISO 4217.")


class Settings(Section):
    """All of offbeat.yaml."""

    broker: BrokerSettings = BrokerSettings()
    app: str = Field(
        "offbeat", pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Consumer group; also begins changelog topics and transactional ids.",
    )  # fmt: skip
    instance: str | None = Field(
        None, pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="This worker's name, unique in the group. Absent: HOSTNAME-N, N the first free one in data_dir.",
    )  # fmt: skip
    data_dir: Path = Field(Path("./offbeat-data"), description="Session state lives in data_dir/INSTANCE.")
    models_dir: str | None = Field(
        None, min_length=1,
        description="Trained bundles: a folder, or the URL of a store that fsspec knows, such as s3://BUCKET/models. "
        "Absent: data_dir/models.",
    )  # fmt: skip
    user: str | None = Field(
        None, min_length=1, max_length=200,
        description="Who trains and promotes, for the record. Absent: USER@HOST.",
    )  # fmt: skip
    http: HttpSettings = HttpSettings()
    traces: TraceSettings = TraceSettings()
    mask_secret: SecretStr | None = Field(
        None, description="Key of the hashes that `mask` makes, at least 16 bytes. Best set as OFFBEAT_MASK_SECRET."
    )
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="at_least_once: outputs leave at once and may come twice after a crash, with the same id and "
        "content. exactly_once: they leave with the next checkpoint, and readers at read_committed see them once.",
    )  # fmt: skip
    checkpoint_interval: DurationMs = Field(250, ge=10, le=60_000, description="Time between two checkpoints.")
    state: StateSettings = StateSettings()
    topics: TopicSettings = TopicSettings()
    decisions: DecisionSettings = DecisionSettings()
    incidents: IncidentSettings = IncidentSettings()
    alerts: AlertSettings = AlertSettings()
    costs: CostSettings = CostSettings()
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where torch serves models; auto: on a CUDA device where there is one, else on the CPU."
    )
    runtime: Literal["auto", "kernel", "torch"] = Field(
        "auto",
        description="What serves models. kernel: compiled for the CPU, the same bits however a stream is cut; for "
        "gru, lstm and tcn. torch: any core, the same within a tolerance. auto: the kernel where there is one, unless "
        "device is cuda.",
    )
    streams: dict[str, StreamSettings] = Field(min_length=1, description="One section a stream, by its name.")

    @field_validator("models_dir")
    @classmethod
    def _bundles_can_be_reached(cls, models_dir: str | None) -> str | None:
        parse_folder(models_dir or "")  # or a sentence
        return models_dir

    @field_validator("streams")
    @classmethod
    def _names_and_topics(cls, streams: dict[str, StreamSettings]) -> dict[str, StreamSettings]:
        topics: dict[str, str] = {}
        for name, stream in streams.items():
            if not re.fullmatch(r"[a-z0-9._-]+", name) or name in {".", ".."}:
                message = f"a stream's name may have a-z, 0-9, dot, dash and underscore only; {name!r} has others"
                raise ValueError(message)
            if stream.topic in topics:
                message = f"streams {topics[stream.topic]} and {name} read the same topic; give one of them another app"
                raise ValueError(message)
            topics[stream.topic] = name
        return streams

    @model_validator(mode="after")
    def _runtimes_exist(self) -> Settings:
        from models.spec import BY_NUMBERS, KERNELS

        if self.runtime == "kernel" and self.device == "cuda":
            message = "the kernels of runtime: kernel compute on the CPU; write device: auto, or runtime: torch"
            raise ValueError(message)
        for name, stream in self.streams.items():
            without = [core for core in stream.model.cores if core not in {*KERNELS, *BY_NUMBERS}]
            if self.runtime == "kernel" and without:
                message = f"stream {name}: there is no kernel for model.core {without[0]}; write runtime: auto"
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _windows_fit(self) -> Settings:
        for name, stream in self.streams.items():
            try:
                stream._check_that_windows_fit(min(stream.session.gap, self.state.ttl))  # noqa: SLF001 (of this module)
            except ValueError as error:
                message = f"stream {name}: {error}; the shorter of session.gap and state.ttl counts"
                raise ValueError(message) from None
        return self

    @model_validator(mode="after")
    def _hashes_have_a_secret(self) -> Settings:
        from features.masking import make_masker

        for name, stream in self.streams.items():
            try:
                make_masker(stream.mask_rules, self.mask_key)
            except ValueError as error:
                message = f"stream {name}: {error}; set OFFBEAT_MASK_SECRET"
                raise ValueError(message) from None
        return self

    @model_validator(mode="after")
    def _maintenance_is_of_streams(self) -> Settings:
        for name in (name for window in self.incidents.maintenance for name in window.streams):
            if name not in self.streams:
                message = (
                    f"incidents.maintenance names stream {name}, which there is not; it has: {', '.join(self.streams)}"
                )
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _alerts_are_of_streams(self) -> Settings:
        named = [*self.alerts.labels, *(name for route in self.alerts.routes for name in route.streams)]
        for name in named:
            if name not in self.streams:
                message = f"alerts names stream {name}, which there is not; the config has: {', '.join(self.streams)}"
                raise ValueError(message)
        return self

    @property
    def mask_key(self) -> bytes | None:
        """The secret as bytes."""
        return None if self.mask_secret is None else self.mask_secret.get_secret_value().encode()

    @model_validator(mode="after")
    def _reads_no_output(self) -> Settings:
        ours = {f"{self.topics.prefix}.{what}" for what in MESSAGES} | {self.incident_feed, self.incident_state}
        ours |= {self.alert_outbox, self.alert_requests}
        for name, stream in self.streams.items():
            if stream.topic in ours:
                message = (
                    f"stream {name} reads {stream.topic}, which is a topic of Offbeat's own; read another topic, or "
                    "set another topics.prefix"
                )
                raise ValueError(message)
        return self

    def repartition_topic(self, name: str) -> str:
        """The internal topic that a stream's records are brought to where they are not keyed by their session."""
        return f"{self.app}.{name}.repartition"

    @property
    def incident_feed(self) -> str:
        """The internal topic that brings anomalies to the incident stage."""
        return f"{self.app}.incident-feed"

    @property
    def incident_state(self) -> str:
        """The changelog of the incident stage."""
        return f"{self.app}.incident-state"

    @property
    def alert_outbox(self) -> str:
        """The topic of what receivers of alerts have not got yet."""
        return f"{self.app}.alert-outbox"

    @property
    def alert_requests(self) -> str:
        """The internal topic that brings requests to running `offbeat alerts` processes."""
        return f"{self.app}.alert-requests"

    def topic_of(self, name: str) -> str:
        """The topic in which a stream's sessions lie in one partition each: workers score this one."""
        stream = self.stream(name)
        return self.repartition_topic(name) if stream.is_repartitioned else stream.topic

    @property
    def bundles_dir(self) -> Path | RemoteFolder:
        """Where bundles live: `models_dir`, or its default under `data_dir`."""
        return self.data_dir / "models" if self.models_dir is None else parse_folder(self.models_dir)

    @property
    def copies_dir(self) -> Path | None:
        """Where verified copies of a remote store's bundles live, apart for each store; None where bundles are local.

        Its layout is the store's own, so it is itself a folder of bundles.
        """
        if self.models_dir is None or isinstance(self.bundles_dir, Path):
            return None
        return self.data_dir / "model-copies" / sha256(self.models_dir.encode()).hexdigest()[:12]

    def stream(self, name: str) -> StreamSettings:
        """The section of one stream, or a sentence that lists those there are."""
        if name not in self.streams:
            message = f"the config has no stream {name!r}; it has: {', '.join(self.streams)}"
            raise ConfigError(message)
        return self.streams[name]


def load_settings(path: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the file and OFFBEAT_* variables (these win) into settings.

    Raises
    ------
    ConfigError
        The file is missing, is no YAML, or a key or value in it is wrong; the sentence names it.
    """
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        message = f"there is no config file {path}; write one (the README has an example) or name it with -c"
        raise ConfigError(message) from None
    except (OSError, UnicodeDecodeError) as error:
        message = f"the config file {path} cannot be read: {error}"
        raise ConfigError(message) from error
    except yaml.YAMLError as error:
        message = f"the config file {path} is no YAML: {' '.join(str(error).split())}"
        raise ConfigError(message) from error
    if not isinstance(raw, dict):
        message = f"the config file {path} must hold keys and values, such as `broker: localhost:9092`"
        raise ConfigError(message)
    return parse_settings(raw, os.environ if environment is None else environment, source=str(path))


def parse_settings(raw: Mapping[str, Any], environment: Mapping[str, str], source: str = "the config") -> Settings:
    """Validate a config already read; `source` begins the sentence of an error."""
    merged = _with_environment(raw, environment)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        sentences = dict.fromkeys(_sentence(e) for e in error.errors())  # a union tells one mistake several times
        raise ConfigError(f"{source}: " + "; ".join(sentences)) from None


def _with_environment(raw: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """OFFBEAT_STATE__HOT_SESSIONS=5 becomes state: {hot_sessions: 5}; only keys above the streams."""
    merged: dict[str, Any] = copy.deepcopy(dict(raw))
    if isinstance(merged.get("broker"), str):
        merged["broker"] = {"servers": merged["broker"]}
    for variable, text in environment.items():
        if not variable.startswith("OFFBEAT_"):
            continue
        *parents, leaf = _SHORT_VARIABLES.get(variable, variable).removeprefix("OFFBEAT_").lower().split("__")
        annotation = _annotation_of_variable(variable, [*parents, leaf])
        section = merged
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                section[parent] = {}
            section = section[parent]
        section[leaf] = _value_of_variable(variable, text, annotation)
    return merged


def _annotation_of_variable(variable: str, path: list[str]) -> Any:
    """The type of the setting a variable names."""
    import difflib

    known, name = environment_variables(), _variable(path)
    if name not in known:
        near = difflib.get_close_matches(name, [*_SHORT_VARIABLES, *known], n=1, cutoff=0.8)
        hint = f"did you mean {near[0]}?" if near else "docs/configuration.md lists them"
        message = f"the environment variable {variable} names no setting; {hint}"
        raise ConfigError(message)
    return known[name]


def _value_of_variable(variable: str, text: str, annotation: Any) -> Any:
    """Text and paths as they are (an empty one is none), everything else as YAML."""
    if annotation in (str, Path):
        return text
    if annotation in (str | None, Path | None, SecretStr | None, secrets.Secret, secrets.Secret | None):
        return text or None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        message = f"the environment variable {variable} is {text!r}, which is no YAML value"
        raise ConfigError(message) from None


def environment_variables() -> dict[str, Any]:
    """Every variable that sets something, with the type of what it sets."""
    return _variables_of(Settings, [])


def _variables_of(section: type[BaseModel], path: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= _variables_of(annotation, [*path, name])
        elif name != "streams":
            found[_variable([*path, name])] = annotation
    return found


def _variable(path: list[str]) -> str:
    return "OFFBEAT_" + "__".join(path).upper()


def _sentence(error: Any) -> str:
    """One pydantic error as key, value and expectation."""
    loc, of_receiver = error["loc"], error["loc"][:2] == ("alerts", "receivers")
    if of_receiver:
        loc = _of_receiver(loc)
    of_union = "end_when" in loc and loc[-1] in _SCALARS and len(loc) - loc.index("end_when") > 2
    key = ".".join(str(part) for part in (loc[:-1] if of_union else loc) if part != "[key]")
    if error["type"] == "extra_forbidden":
        return f"{key} is no setting{_suggestion(error['loc'])}"
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == secrets.ERROR_TYPE:  # its sentence shows no value
        return f"{key}: {error['msg']}"
    if error["type"] in {"union_tag_not_found", "union_tag_invalid"}:
        return f"{key}.type is not right; expected one of {', '.join(RECEIVER_TYPES)}"
    if error["type"] == "value_error":
        sentence: str = error["msg"].removeprefix("Value error, ")
        whole = isinstance(error["input"], dict | list | BaseModel)
        before = f"{key}: " if whole or of_receiver else f"{key} is {error['input']!r}; "
        return before + sentence if key else sentence
    what = _EXPECTED.get(error["type"], error["msg"].removeprefix("Input should be ")).format(**error.get("ctx", {}))
    what = "text, a number, or true or false" if of_union else what
    value = "empty" if error["input"] is None else repr(error["input"])
    if key == "mask_secret" or of_receiver:
        value = "not right"  # nobody should see what it is
    return f"{key} is {value}; expected {what}"


def _of_receiver(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """A place in a receiver without the names of unions' members, which nobody wrote."""
    without_type = loc[:3] + (loc[4:] if loc[3:4] and loc[3] in RECEIVER_TYPES else loc[3:])
    return without_type[:4] if without_type[3:4] == ("url",) else without_type


def _suggestion(loc: tuple[Any, ...]) -> str:
    """The nearest key that exists in the section where a misspelt one was found."""
    import difflib

    section: Any = Settings
    for part in loc[:-1]:
        section = _below(section, part)
    known = list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


def _below(annotation: Any, part: Any) -> Any:
    """What stands at one step further down: a section's key, a name of a dict, a place in a list, a union's tag."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields[part].annotation
    if get_origin(annotation) is Annotated:
        return _below(get_args(annotation)[0], part)
    if get_origin(annotation) in {UnionType, Union}:
        return next((one for one in get_args(annotation) if part == _tag(one)), None)
    inner = get_args(annotation)
    return inner[-1] if inner else None


def _tag(section: Any) -> Any:
    """What the `type` of a section says, where it has one."""
    field = getattr(section, "model_fields", {}).get("type")
    return None if field is None else get_args(field.annotation)[0]
