"""Settings: defaults, environment and the rules between keys; wrong configs stand in test_commands.py."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from features.templates import Templates
from features.time_gaps import GAP
from features.tokens import Vocabulary
from features.windows import WindowRules
from models.spec import LAGS, state_size
from pipeline.errors import ConfigError, UsageError
from pipeline.reference import example
from pipeline.secrets import Secret
from pipeline.serving import certificate, make_decoder, make_parts, record_name, saved_name, state_fingerprint
from pipeline.settings import Settings, StreamSettings, environment_variables, load_settings, parse_settings

SERIES = {"by": "k", "max_events": 1_000_000}
FORECAST = {"numbers": "forecast"}


@dataclass(frozen=True)
class Line:
    """A record, as far as a decoder looks at it."""

    value: bytes
    key: bytes | None = None
    offset: int = 0
    timestamp: int = 5


MINIMAL: dict[str, Any] = {"streams": {"orders": {"topic": "t", "session": {"by": "id"}, "tokens": ["action"]}}}


def test_little_is_required() -> None:
    """A stream with its topic, session and tokens is a config; the rest has the documented defaults."""
    settings = parse_settings(MINIMAL, {})
    assert (settings.broker.servers, settings.app, settings.delivery) == ("localhost:9092", "offbeat", "at_least_once")
    assert (settings.checkpoint_interval, settings.topics.retention) == (250, 7 * 86_400_000)
    assert settings.bundles_dir == Path("offbeat-data/models")
    stream = settings.stream("orders")
    assert (stream.session.gap, stream.session.max_events) == (900_000, 10_000)
    assert (stream.model.hidden, stream.model.context, stream.promise.rate(None)) == (64, 32, 0.001)


def test_settings_are_frozen() -> None:
    """Nobody changes a setting once it is read."""
    with pytest.raises(ValidationError):
        parse_settings(MINIMAL, {}).broker = "other"  # type: ignore[misc]


def test_the_example_names_every_key(tmp_path: Path) -> None:
    """The example in docs/configuration.md loads, names every key there is, and comments each."""
    path = tmp_path / "offbeat.yaml"
    path.write_text(example())
    settings = load_settings(path, {})
    raw = yaml.safe_load(example())
    assert _keys(raw | {"streams": {}}) == set(Settings.model_fields) | {
        f"{section}.{key}"
        for section, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for key in field.annotation.model_fields
    }
    assert raw["streams"]["orders"].keys() == StreamSettings.model_fields.keys()
    assert settings.model_dump(mode="json")["streams"]["orders"].keys() == raw["streams"]["orders"].keys()
    assert all("  # " in line and line.rstrip().endswith(".") for line in example().splitlines())


def _keys(section: dict[str, Any]) -> set[str]:
    below = {f"{k}.{j}" for k, v in section.items() if isinstance(v, dict) for j in v}
    return set(section) | below


def test_what_is_dumped_is_loaded() -> None:
    """Settings survive JSON, so that `config show` prints a config."""
    settings = parse_settings(yaml.safe_load(example()), {})
    assert parse_settings(json.loads(settings.model_dump_json()), {}) == settings


# Keys that are right only with others beside them.
TOGETHER = {
    "broker": {
        "security": {
            "protocol": "SASL_SSL", "ca": "a", "certificate": "b", "key": "c", "key_password": "env:A",
            "mechanism": "SCRAM-SHA-512", "username": "u", "password": "env:B",
        }
    },
    "http": {"token": "env:C", "certificate": "d", "key": "e"},
}  # fmt: skip


NOT_ALONE = {"OFFBEAT_ALERTS__RECEIVERS", "OFFBEAT_ALERTS__ROUTES"}  # a test of alerts sets them


@pytest.mark.parametrize("variable", sorted({*environment_variables()} - NOT_ALONE))
def test_every_variable_sets_its_key(variable: str) -> None:
    """Each documented variable overrides its key, also where the file has another value."""
    whole = MINIMAL | ({} if variable.endswith("PROTOCOL") else TOGETHER)
    defaults = parse_settings(whole, {}).model_dump(mode="json")
    path = variable.removeprefix("OFFBEAT_").lower().split("__")
    samples = {
        "http.port": "1", "state.hot_sessions": "777", "state.ttl": "9d", "state.standby_replicas": "2",
        "topics.create": "false", "topics.replication": "3",
        "topics.partitions": "9", "topics.retention": "1h", "decisions.sample": "0.5", "checkpoint_interval": "1s",
        "delivery": "exactly_once", "broker": "b:1",
        "broker.security.protocol": "SSL", "broker.security.mechanism": "PLAIN",
        "broker.security.key_password": "env:X", "broker.security.password": "env:X", "http.token": "env:X",
        "mask_secret": "0123456789abcdef",
        "costs.cpu_core_hour": "0.04", "costs.currency": "EUR",
        "device": "cuda", "runtime": "torch", "incidents.enabled": "false", "incidents.by": "segment",
        "incidents.false_per_day": "2.5", "incidents.together": "1m", "incidents.quiet": "1h",
        "alerts.start": "earliest", "alerts.labels": "{'orders': {'team': 'shop'}}",
        "traces.endpoint": "http://127.0.0.1:4318", "traces.ratio": "0.5",
        "traces.headers": "{'x': 'env:a'}",
        "incidents.maintenance":
            "[{'from': '2026-01-01t00:00:00', 'until': '2026-01-02t00:00:00', 'streams': [], 'segments': []}]",
    }  # fmt: skip
    text = samples.get(".".join(path), "x")
    settings = parse_settings(whole, {variable: text})
    if variable == "OFFBEAT_MASK_SECRET":  # never shown
        assert settings.mask_key == text.encode()
        return
    if text == "env:X":  # not shown either
        found: Any = settings
        for part in path:
            found = getattr(found, part)
        assert found == Secret(text)
        return
    value: Any = settings.model_dump(mode="json")
    for part in path:
        value, defaults = value[part], defaults[part]
    assert str(value).lower() == text.lower()
    assert value != defaults or variable == "OFFBEAT_DELIVERY"


def test_other_variables_are_nobodys_business() -> None:
    """Only names that begin with OFFBEAT_ are looked at."""
    assert parse_settings(MINIMAL, {"PATH": "[", "XOFFBEAT_BROKER": "y"}) == parse_settings(MINIMAL, {})


@pytest.mark.parametrize(("buckets", "said"), [({"other": 8}, "none of the tokens"), ({"a": 1}, "from 2 to 10,000")])
def test_buckets_are_of_token_fields(buckets: dict[str, int], said: str) -> None:
    """A field that is not learned, or a number of buckets that makes no sense, is refused by its key."""
    stream = MINIMAL["streams"]["orders"] | {"tokens": ["a"]}
    assert parse_settings({"streams": {"s": stream | {"buckets": {"a": 256}}}}, {}).stream("s").buckets == {"a": 256}
    with pytest.raises(ConfigError, match=said):
        parse_settings({"streams": {"s": stream | {"buckets": buckets}}}, {})


def test_an_unknown_stream_is_told_the_known_ones() -> None:
    """Asking for a stream that is not there lists those that are."""
    with pytest.raises(ConfigError, match="no stream 'x'; it has: orders"):
        parse_settings(MINIMAL, {}).stream("x")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Settings.model_fields, *StreamSettings.model_fields, "by", "x"]), inner)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*Settings.model_fields, "alerts", "x"]), json_values), json_values)
def test_any_config_is_settings_or_one_sentence(raw: dict[str, Any], stream: Any) -> None:
    """Whatever a file holds, reading it gives settings or a ConfigError with one line, never another error."""
    for config in (raw, raw | {"streams": {"orders": stream}}):
        try:
            assert isinstance(parse_settings(config, {}), Settings)
        except ConfigError as error:
            sentence = str(error)
        else:
            continue
        assert "\n" not in sentence or "\\n" in repr(config)
        assert len(sentence) > 20


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"session": {"by": "user.id"}, "mask": {"user": "drop"}}, "mask.user drops the session"),
        ({"session": {"by": 'user["id"]'}, "mask": {"user.id": "drop"}}, "mask.user.id drops the session"),
        ({"session": {"by": ["k", "user.id"]}, "mask": {"user": "drop"}}, "mask.user drops the session"),
        ({"session": {"by": "@key"}, "mask": {"s": "redact"}}, "mask.s masks nothing"),
        ({"kind": "logs", "message": "m", "mask": {"m": "drop"}}, "mask.m leaves nothing of the message to read"),
        ({"kind": "logs", "message": "m", "format": "text", "mask": {"a": "drop"}}, "write mask.m: redact as well"),
        ({"kind": "logs", "message": "a"}, "the message not at all"),
        ({"format": "text", "pattern": "(?P<k>x)"}, "the pattern gives no field a; its named groups are k"),
    ],
)
def test_masks_that_promise_too_much_are_refused(section: dict[str, Any], sentence: str) -> None:
    """Also by another spelling of the path, or by an object around it."""
    stream = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]} | section
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_settings({"streams": {"s": stream}}, {})


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"kind": "metrics"}, "numbers is empty; a stream of metrics needs at least one number to learn"),
        ({"kind": "metrics", "numbers": ["x"], "message": "m"}, "`message` names the text of log lines"),
        ({"numbers": ["a"]}, "a is a number and also a token, the message or the session"),
        ({"numbers": ['["k"]']}, "is a number and also a token, the message or the session"),
        ({"kind": "logs", "message": "m", "numbers": ["m"]}, "m is a number and also a token"),
        ({"numbers": ["x.y"], "segment": 'x["y"]'}, "x.y is a number and also the segment; let it be one of them"),
        ({"numbers": ["x.y", 'x["y"]']}, "each field may stand in numbers once"),
        ({"numbers": ["x", "x.y"]}, "the field x is used as a value and, in another place, as an object"),
        ({"numbers": ["x"], "counters": ["x", "x"]}, "each counter may be listed once"),
        ({"numbers": ["x"], "counters": ["y"]}, "the counter y is none of the numbers; list it there too"),
        ({"counters": ["x"]}, "counters are some of the numbers, and there are none"),
        ({"numbers": {"name": "a", "value": "x"}}, "a names the numbers, which makes it a token"),
        ({"numbers": {"name": "b", "value": "b"}}, "b is a number and also a token"),
        ({"numbers": {"name": "b"}}, "streams.s.numbers: numbers are a list of at most 64 fields; or, where a record"),
        ({"numbers": "x"}, "streams.s.numbers is 'x'; numbers are a list of at most 64 fields"),
        ({"numbers": ["x", 7]}, "numbers are a list of at most 64 fields"),
        ({"numbers": [f"x{i}" for i in range(65)]}, "numbers are a list of at most 64 fields"),
        ({"numbers": ["x"], "mask": {"x": "redact"}}, "mask.x masks a number, x, which the model takes as it is"),
        ({"numbers": ["x.y"], "mask": {"x": "drop"}}, "mask.x masks a number, x.y"),
        ({"format": "text", "pattern": "(?P<k>x)(?P<a>y)", "numbers": ["x"]}, "the pattern gives no field x"),
        ({"model": FORECAST}, "model.numbers: forecast needs numbers: write them as a list of fields"),
        ({"numbers": {"name": "m", "value": "x"}, "model": FORECAST}, "no parameters, or model.numbers: bins"),
        ({"kind": "logs", "message": "m", "numbers": ["x"], "parameters": 1, "model": FORECAST}, "model.numbers: bins"),
        ({"numbers": ["x"], "model": FORECAST | {"core": "linear"}}, "model.core: linear takes numbers as they are"),
        ({"numbers": ["x"], "model": FORECAST | {"order": "loose"}}, "write model.order: strict"),
        ({"numbers": ["x"], "model": FORECAST, "second_stage": {"core": "tcn"}}, "leave second_stage away"),
        ({"numbers": ["x"], "model": {"core": "linear", "ensemble": ["linear"]}}, "an ensemble of linear alone"),
        (
            {"numbers": ["x"], "session": SERIES, "model": FORECAST | {"core": "seasonal"}},
            "core: seasonal takes numbers",
        ),
        ({"model": {"core": "seasonal"}}, "the core seasonal goes by each number's own last values"),
        ({"numbers": ["x"], "model": {"core": "seasonal"}}, "session.max_events: 10,000 would begin it anew"),
        ({"numbers": ["x"], "model": {"refractory": "1h"}}, "model.refractory is for the core seasonal"),
    ],
)
def test_numbers_that_cannot_be_learned_are_refused(section: dict[str, Any], sentence: str) -> None:
    """What contradicts itself is named, by any spelling of a path."""
    stream = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]} | section
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_settings({"streams": {"s": stream}}, {})


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"window": {"every": "1m"}}, "window has no size; write how long a window is"),
        ({"window": {"aggregate": ["max"]}}, "window has no size"),
        ({"window": {"size": "0s"}}, "window.size is"),
        ({"window": {"size": "1m"}, "kind": "events"}, "write it with kind: metrics, and only with that"),
        ({"window": {"size": "1m"}, "numbers": {"name": "n", "value": "v"}}, "numbers as a list of fields"),
        ({"window": {"size": "1m", "every": "7s"}}, "a window's size must be `every`, or a whole multiple of it"),
        ({"window": {"size": "1h", "every": "1s"}}, "each sample would be in 3600 windows"),
        ({"window": {"size": "1m", "aggregate": []}}, "a window needs an aggregate"),
        ({"window": {"size": "1m", "aggregate": ["max", "max"]}}, "a window needs an aggregate, each at most once"),
        ({"window": {"size": "1m", "aggregate": ["p42"]}}, "'p42' is no aggregate; there are mean, min"),
        ({"window": {"size": "1m", "aggregate": ["last"]}, "counters": ["x"]}, "last of a counter would tell"),
        ({"window": {"size": "1h"}}, "session.gap or state.ttl is shorter than windows are apart"),
    ],
)
def test_windows_that_cannot_be_are_refused(section: dict[str, Any], sentence: str) -> None:
    """Each with what to write instead."""
    stream = {"topic": "t", "session": {"by": "k"}, "kind": "metrics", "numbers": ["x"]} | section
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_settings({"streams": {"s": stream}}, {})


def test_windows_are_read() -> None:
    """`every` is `size` where it is absent; counters are found by any spelling of their path; without a size none."""
    stream = {
        "topic": "t", "session": {"by": "k"}, "kind": "metrics", "numbers": ["x", "y.z"], "counters": ['y["z"]'],
        "window": {"size": "1m"},
    }  # fmt: skip
    settings = parse_settings({"streams": {"s": stream, "t": stream | {"topic": "u", "window": {}}}}, {})
    assert settings.stream("s").window_rules(5) == WindowRules(60_000, 60_000, ("mean", "max"), (1,), keep_ms=5)
    assert settings.stream("t").window_rules(5) is None
    assert parse_settings(json.loads(settings.model_dump_json()), {}) == settings


def test_what_is_learned_stands_in_one_order() -> None:
    """Tokens, a number's name, the message, numbers: the decoder's columns; metrics need no tokens."""
    logs = {
        "kind": "logs", "message": "m", "tokens": ["a"], "numbers": {"name": "n", "value": "v"}, "counters": ["x"],
        "parameters": 2,
    }  # fmt: skip
    for section, tokens, fields in (
        (logs, ("a", "n"), ("a", "n", "m", "v")),
        ({"kind": "metrics", "numbers": ["x", "y.z"], "counters": ['y["z"]']}, (), ("x", "y.z")),
        ({"tokens": ["a"], "numbers": ["x"]}, ("a",), ("a", "x")),
    ):
        settings = parse_settings({"streams": {"s": {"topic": "t", "session": {"by": "k"}} | section}}, {})
        stream = settings.stream("s")
        assert (stream.token_fields, stream.fields) == (tokens, fields)
        assert parse_settings(json.loads(settings.model_dump_json()), {}) == settings
        events = make_decoder(settings, "s").decode([Line(b'{"k": "q", "v": 1, "x": 2}')], check_key=False)
        assert (len(events.tokens), events.numbers.shape) == (
            len(fields) - len(stream.number_fields), (1, len(stream.number_fields) + len(stream.parameter_fields)),
        )  # fmt: skip


def test_a_stream_without_numbers_keeps_its_rows() -> None:
    """Numbers and counters change a stream's fingerprint; a stream that has none is as it was."""
    stream: dict[str, Any] = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}
    found = {
        state_fingerprint(parse_settings({"streams": {"s": stream | more}}, {}), "s")
        for more in (
            {},
            {"numbers": ["x"]},
            {"numbers": ["x"], "counters": ["x"]},
            {"numbers": {"name": "x", "value": "y"}},
        )
    }
    assert len(found) == 4
    assert state_fingerprint(parse_settings(MINIMAL, {}), "orders") == "d0ef0cc95a6d27a0"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"numbers": ["x"], "model": {"gaps": True, "core": "linear"}}, "remove it, or choose another core"),
        ({"tokens": ["a", "@gap_s"]}, 'write the field as ["@gap_s"]'),
        ({"numbers": ["x"], "model": {"gaps": "x"}}, "model.gaps is 'x', which is none of the tokens"),
        ({"numbers": ["x"], "model": {"gaps": True, "ensemble": ["linear"]}}, "linear, seasonal and model.numbers"),
        ({"model": {"gaps": ""}}, "write one as it stands there, or true"),
        ({"numbers": ["x"], "model": {"gaps": True, "numbers": "forecast"}}, "or choose another core or model.numbers"),
        ({"numbers": [f"n{i}" for i in range(64)], "window": {"size": "1m", "aggregate": ["mean", "max"]},
          "kind": "metrics", "model": {"gaps": True, "context": 253}}, "130 numbers of the last 253 events"),
    ],
)  # fmt: skip
def test_where_gaps_cannot_be_predicted(more: dict[str, Any], sentence: str) -> None:
    """Not by forecasts, under no name that is taken, for no field but a token, in no row without room for it."""
    stream = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"], "model": {"gaps": True}} | more
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_settings({"streams": {"s": stream}}, {})


@pytest.mark.parametrize("core", ["gru", "transformer"])
def test_a_gap_is_one_number_more(core: str) -> None:
    """Of events and of windows alike: the last column, named by a token if asked, with other rows and features."""
    events: dict[str, Any] = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}
    metrics = events | {"kind": "metrics", "numbers": ["x"], "counters": ["x"]}
    logs = events | {"kind": "logs", "message": "m", "parameters": 1}
    for stream in (events, metrics, metrics | {"window": {"size": "1m"}}, logs):
        found = [
            parse_settings({"streams": {"s": stream | {"model": {"core": core, "gaps": gaps}}}}, {})
            for gaps in (False, True, "m" if stream is logs else "a")
        ]
        without, *with_gap = (make_parts(settings, "s", None) for settings in found)
        for parts, named_by in zip(with_gap, (None, 1 if stream is logs else 0), strict=True):
            assert parts.fields == (*without.fields, GAP)
            assert parts.shape.numbers == without.shape.numbers + 1
            kept = found[0].stream("s").model.context if core == "transformer" else 0  # ids that its state holds
            assert parts.shape.hidden - without.shape.hidden == kept
            assert parts.measures.gaps_named_by == named_by
            assert len(parts.measures.named_by) in {0, parts.shape.numbers}
        assert len({state_fingerprint(settings, "s") for settings in found}) == 3
        words = found[0].stream("s").word_fields
        vocabulary = Vocabulary(words, (("x",),) * len(words))
        assert len({certificate(settings, "s", vocabulary, Templates(()))["section"] for settings in found}) == 3


@pytest.mark.parametrize(
    ("by", "sentence"),
    [
        ([], "expected text or a list of texts"), (["k", 1], "expected text or a list of texts"),
        ({"k": 1}, "expected text or a list of texts"), (["@key", "k"], "@key stands alone"),
        (["k", '["k"]'], "each field may stand in session.by once"), (["k", "k.id"], "the field k is used as a value"),
    ],
)  # fmt: skip
def test_what_cannot_name_a_session_is_refused(by: Any, sentence: str) -> None:
    """One field or several different ones, or the key alone."""
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_settings({"streams": {"s": {"topic": "t", "session": {"by": by}, "tokens": ["a"]}}}, {})


def named_by(by: Any, **section: Any) -> Settings:
    stream = {"topic": "t", "session": {"by": by}, "tokens": ["a"]} | section
    return parse_settings({"streams": {"s": stream}, "mask_secret": "0" * 16}, {})


def test_a_list_of_one_field_is_that_field() -> None:
    """So the same saved rows serve both spellings; several fields, or another order, are other rows."""
    prints = [state_fingerprint(named_by(by), "s") for by in ("k", ["k"], ["k", "l"], ["l", "k"])]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_names_as_the_command_line_gives_them() -> None:
    """Each part is masked by its own rule, and a name with another number of parts is refused."""
    settings = named_by(["tenant", "user"], mask={"user": {"truncate": 2}})
    assert record_name(settings, "s", "50%/a%2Fb") == "50%25/a%2Fb"
    assert saved_name(settings, "s", "50%/a%2Fb") == "50%25/a%2F"
    assert saved_name(named_by("user"), "s", "50%/a") == "50%/a"
    with pytest.raises(UsageError, match="2 fields name one; write tenant/user"):
        saved_name(settings, "s", "u-1")


def test_rules_of_parents_and_keys_are_taken() -> None:
    """A rule on an object masks the fields in it, and `@key` the session where the key is the session."""
    stream = {
        "topic": "t",
        "session": {"by": "@key"},
        "tokens": ["user.plan"],
        "mask": {"user": "redact", "@key": "redact"},
    }
    assert parse_settings({"streams": {"s": stream}}, {}).stream("s").mask_rules.keys() == {"user", "@key"}


@pytest.mark.parametrize(
    ("core", "section", "numbers"),
    [
        ("gru", {}, 64),
        ("lstm", {"numbers": ["x"]}, 128),
        ("tcn", {"numbers": ["x"]}, 64 * 32),
        ("transformer", {"numbers": ["x"]}, 64 + 1 + 32 * 3),
        ("transformer", {"kind": "logs", "message": "m", "parameters": 2, "season": ["hour"]}, 64 + 1 + 32 * 6),
        ("transformer", {"kind": "metrics", "numbers": ["x", "y"], "window": {"size": "1m"}}, 64 + 1 + 32 * 9),
    ],
)
def test_a_row_holds_the_cores_state(core: str, section: dict[str, Any], numbers: int) -> None:
    """Its width follows from core, hidden, context and all that the model is given of an event."""
    stream = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"], "model": {"core": core}} | section
    settings = parse_settings({"streams": {"s": stream}}, {})
    parts = make_parts(settings, "s", None)
    assert parts.shape.hidden == settings.stream("s").state_numbers == numbers
    columns = len(parts.fields) + len(settings.stream("s").seasons)
    assert numbers == state_size(core, 64, 32, columns)


@pytest.mark.parametrize(
    ("core", "numbers"), [("gru", 64 + 4), ("lstm", 128 + 4), ("tcn", 64 * 32 + 4), ("transformer", 65 + 32 * 6 + 4)]
)
def test_a_row_holds_what_forecasts_need(core: str, numbers: int) -> None:
    """Of each number its last value and how far off it was; rows of before are not gone on with."""
    given = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"], "numbers": ["x", "y"]}
    streams = {how: given | {"model": {"core": core, "numbers": how}} for how in ("bins", "forecast")}
    settings = parse_settings({"streams": {h: s | {"topic": h} for h, s in streams.items()}}, {})
    parts = make_parts(settings, "forecast", None)
    assert parts.shape.hidden == settings.stream("forecast").state_numbers == numbers
    assert parts.model.values == 2
    assert parts.schema["model.numbers"] == "forecast"
    assert state_fingerprint(settings, "forecast") != state_fingerprint(settings, "bins")


def test_a_state_too_large_for_a_row_is_refused() -> None:
    """A wide core that sees far keeps more than a changelog takes; the sentence says what to make smaller."""
    stream: dict[str, Any] = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}
    for context, fits in ((255, True), (256, False)):
        model = {"core": "tcn", "hidden": 256, "context": context}
        if fits:
            parse_settings({"streams": {"s": stream | {"model": model}}}, {})
            continue
        with pytest.raises(ConfigError, match=r"256 is 65,536 numbers, more than a row can hold \(32,768\)"):
            parse_settings({"streams": {"s": stream | {"model": model}}}, {})


def test_seasons_are_in_a_transformers_rows_alone() -> None:
    """It keeps the ids of events, so rows written with other seasons cannot be followed; other cores' rows can."""
    for core, count in (("gru", 1), ("tcn", 1), ("transformer", 2)):
        stream = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"], "model": {"core": core}}
        found = {
            state_fingerprint(parse_settings({"streams": {"s": stream | {"season": season}}}, {}), "s")
            for season in ([], ["hour"])
        }
        assert len(found) == count


@pytest.mark.parametrize(
    ("asked", "core", "sentence"),
    [
        ({"runtime": "kernel"}, "transformer", "there is no kernel for model.core transformer; write runtime: auto"),
        ({"runtime": "kernel", "device": "cuda"}, "gru", "kernel compute on the CPU; write device: auto, or runtime"),
        ({"runtime": "numba"}, "gru", "runtime is 'numba'; expected 'auto', 'kernel' or 'torch'"),
    ],
)
def test_a_runtime_that_there_is_not_is_refused(asked: dict[str, str], core: str, sentence: str) -> None:
    """Before anything is loaded; what there is passes."""
    stream = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"], "model": {"core": core}}
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        parse_settings({"streams": {"s": stream}} | asked, {})
    parse_settings({"streams": {"s": stream}, "runtime": "torch", "device": "cuda"}, {})
    for served in ("gru", "lstm", "tcn"):
        parse_settings({"streams": {"s": stream | {"model": {"core": served}}}, "runtime": "kernel"}, {})


def test_a_segment_is_a_field_of_the_record() -> None:
    """It may be a token too, or masked; it changes the fingerprint, and only where there is one."""

    def settings_with(**more: Any) -> Settings:
        stream = {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]} | more
        return parse_settings({"streams": {"s": stream}}, {})

    for more in ({"segment": "a"}, {"segment": "b.c", "mask": {"b": {"truncate": 2}}}):
        assert settings_with(**more).stream("s").segment == more["segment"]
    prints = [state_fingerprint(settings_with(**more), "s") for more in ({}, {"segment": "a"}, {"segment": "b"})]
    assert len(set(prints)) == 3
    with pytest.raises(ConfigError, match=r"b\["):
        settings_with(segment="b[")


@pytest.mark.parametrize("model", [{"core": "linear"}, {"core": "gru", "ensemble": ["linear"]}])
def test_a_row_holds_forecasts_of_parameters_too(model: dict[str, Any]) -> None:
    """The linear core forecasts what lines hold as well as what fields do: a row has room for all of it."""
    stream = {"topic": "t", "kind": "logs", "session": {"by": "k"}, "message": "m", "numbers": ["x"], "parameters": 2}
    settings = parse_settings({"streams": {"s": stream | {"model": model}}}, {})
    rest = 64 if "ensemble" in model else 0
    assert make_parts(settings, "s", None).shape.hidden == rest + 3 * (LAGS + 1)


@pytest.mark.parametrize("budget", ["20", 20, "20/hour", "0/day", "-1/day", "1e3/day", "1000001/day", True])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    """It is so many a day, and says so."""
    with pytest.raises(ConfigError, match=r"promise\.alert_budget is .*; a number above 0 and up to 1000000 a day"):
        promised(alert_budget=budget)


def test_one_promise_is_kept() -> None:
    """A rate or a budget; a config that is printed and read again is the same."""
    with pytest.raises(ConfigError, match=r"streams\.s\.promise: false_alarm_rate and alert_budget are both promised;"):
        promised(alert_budget="20/day", false_alarm_rate=0.001)
    promise = promised(alert_budget=" 2.5 / day")
    assert (promise.alert_budget, promise.false_alarm_rate) == (2.5, None)
    assert promised(**promise.model_dump(mode="json")) == promise
    assert promised(**promised().model_dump(mode="json")) == promised()


def promised(**promise: Any) -> Any:
    stream = {"topic": "t", "session": {"by": "id"}, "tokens": ["a"], "promise": promise}
    return parse_settings({"broker": "none:9092", "streams": {"s": stream}}, {}).stream("s").promise


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"broker": {"security": {"protocol": "SASL_SSL"}}}, "needs mechanism and username and password"),
        ({"broker": {"security": {"ca": "ca.pem"}}}, "ca has no use with protocol PLAINTEXT; write protocol: SSL or"),
        ({"broker": {"security": {"protocol": "SSL", "username": "u"}}}, "username has no use with protocol SSL"),
        ({"broker": {"security": {"protocol": "SSL", "key": "k"}}}, "certificate and key go together"),
        ({"broker": {"security": {"protocol": "TLS"}}}, "broker.security.protocol is 'TLS'; expected 'PLAINTEXT'"),
        ({"broker": {"server": "b:1"}}, "broker.server is no setting; did you mean servers"),
        ({"http": {"host": "0.0.0.0"}}, "other machines reach 0.0.0.0, so the pages need token, certificate, key"),
        ({"http": {"host": "pages.internal", "token": "env:T"}}, "the pages need certificate, key as well"),
        ({"http": {"certificate": "c"}}, "http: certificate and key go together"),
    ],
)
def test_what_is_half_secured_is_refused(raw: dict[str, Any], said: str) -> None:
    """Keys that would be idle, those that miss another, and pages that others could read: one sentence each."""
    with pytest.raises(ConfigError, match=said):
        parse_settings(MINIMAL | raw, {})


def test_a_broker_is_text_or_a_section() -> None:
    """The two say the same, also where a variable adds to the text; editors are told so."""
    assert parse_settings(MINIMAL | {"broker": "b:1"}, {}) == parse_settings(
        MINIMAL | {"broker": {"servers": "b:1"}}, {}
    )
    secured = parse_settings(MINIMAL | {"broker": "b:1, c:2"}, {"OFFBEAT_BROKER__SECURITY__PROTOCOL": "SSL"})
    assert (secured.broker.addresses, secured.broker.security.protocol) == (["b:1", "c:2"], "SSL")
    moved = parse_settings(MINIMAL | TOGETHER, {"OFFBEAT_BROKER": "d:4"})
    assert (moved.broker.servers, moved.broker.security.username) == ("d:4", "u")
    schema = Settings.model_json_schema()["$defs"]["BrokerSettings"]
    assert [kind["type"] for kind in schema["anyOf"]] == ["string", "object"]


def test_a_secret_in_the_config_is_refused_and_not_shown() -> None:
    """Whoever wrote the password itself is told what to write, without it, by the file as by a variable."""
    security = TOGETHER["broker"]["security"] | {"password": "hunter2"}
    with pytest.raises(ConfigError, match=r"security\.password: a secret is written as") as caught:
        parse_settings(MINIMAL | {"broker": {"security": security}}, {})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"security\.password: a secret is") as caught:
        parse_settings(MINIMAL | TOGETHER, {"OFFBEAT_BROKER__SECURITY__PASSWORD": "hunter2"})
    assert "hunter2" not in str(caught.value)
