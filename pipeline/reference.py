"""The documents made from the code: `python -m pipeline.reference` writes them, `--check` says whether they are stale.

They are docs/configuration.md, docs/metrics.md, docs/schemas/NAME.json, docs/asyncapi.yaml, and the tables of
docs/capacity.md. The same code gives the same bytes, so a difference is a change somebody made to one and not to the
other.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, Field, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo

from pipeline.alerts.receivers.webhook import WebhookBody
from pipeline.alerts.settings import RECEIVER_TYPES, AnyReceiverSettings, Receiver, Receivers, RouteSettings
from pipeline.incident_settings import MaintenanceSettings
from pipeline.judgement import Backtest
from pipeline.metrics import Metrics
from pipeline.plan_tables import with_tables
from pipeline.secrets import Secret
from pipeline.settings import Settings
from pipeline.stream_settings import Daily, DurationMs, NamedNumbers, Scalar, StreamSettings
from pipeline.units import format_duration_ms
from pipeline.wire import MESSAGES

ROOT = Path(__file__).parents[1]
COMMAND = "python -m pipeline.reference"
_MADE = f"Made from the code by `{COMMAND}`; change it there."

# What the example says where a key has no default, or where its default would explain less.
_EXAMPLES: dict[str, Any] = {
    "instance": None,
    "models_dir": "./offbeat-data/models",
    "alerts.receivers": {
        "ops": {"type": "webhook", "url": "https://hooks.example.com/x", "secrets": ["file:/run/secrets/ops"]}
    },
    "alerts.routes": [{"receivers": ["ops"], "severity": "medium"}],
    "alerts.labels": {"orders": {"team": "shop"}},
    "streams.orders.topic": "shop.orders",
    "streams.orders.session.by": "session_id",
    "streams.orders.session.end_when": {"status": "closed"},
    "streams.orders.time": "ts",
    "streams.orders.tokens": ["action", "status"],
    "streams.orders.numbers": ["amount"],
    "streams.orders.mask": {"status": "redact"},
}
_STREAM = "orders"
_CAPACITY = "docs/capacity.md"

# CloudEvents 1.0 in Kafka's binary content mode, as pipeline/outputs.py writes them.
_EVENT_TYPES = {
    "anomalies": "anomaly", "rescores": "rescore", "decisions": "decision", "dead-letters": "dead-letter",
    "late": "late", "drift": "drift", "controls": "control", "models": "promotion", "incidents": "incident",
    "retrain": "retrain", "labels": "label",
}  # fmt: skip
# What the record key is; where nothing is said, the session.
_KEYS = {
    "dead-letters": "The record's own key",
    "drift": "stream/topic/partition",
    "controls": "delete/STREAM/SESSION or pattern/STREAM/PATTERN",
    "labels": "the anomaly's id",
    "models": "The stream",
    "incidents": "The incident's id",
    "retrain": "The stream",
}
_ABOUT = {
    "anomalies": "Each record and each session that should not have been, with what was expected instead.",
    "rescores": "What a second stage says of anomalies, where the stream has one (`second_stage`).",
    "decisions": "Every verdict, or the share of them that decisions.sample says.",
    "dead-letters": "Each record that could not be scored, with the reason and where it lies.",
    "late": "Each record too far behind its session to be scored, where the stream says `late.send`.",
    "drift": "What changed that is not about one record: topics made anew, records or sessions lost, offsets reset.",
    "incidents": "Anomalies that belong together, each time an incident opens, changes, merges or closes.",
    "labels": "What people say of anomalies: normal, or anomalies indeed.",
    "controls": "What users ask of workers, such as forgetting a session. Compacted, one partition: the order counts.",
    "models": "Which bundle serves each stream, at each promotion. Compacted, one partition; workers read it whole.",
    "retrain": "Trainings that are asked for, and what became of each; `offbeat trainer` reads and writes it.",
}


def documents(root: Path = ROOT) -> dict[str, str]:
    """Every document by its path below the repository's root; what is written by hand in one stays."""
    capacity = root / _CAPACITY if (root / _CAPACITY).is_file() else ROOT / _CAPACITY
    schemas = {f"docs/schemas/{name}.json": _json(schema_of(name)) for name in MESSAGES}
    backtest = _schema("backtest", Backtest, "What `offbeat backtest --json` prints.")
    webhook = _schema("webhook", WebhookBody, "The body of alerts to receivers of type webhook.")
    return {
        "docs/configuration.md": _configuration(),
        "docs/metrics.md": _metrics(),
        _CAPACITY: with_tables(capacity.read_text("utf-8")),
        **schemas,
        "docs/schemas/backtest.json": _json(backtest),
        "docs/schemas/webhook.json": _json(webhook),
        "docs/asyncapi.yaml": _asyncapi(),
    }


# --- docs/configuration.md -------------------------------------------------------------------------------------------


def _configuration() -> str:
    lines = [
        "# Configuration", "", _MADE, "",
        "A config is one YAML file, `offbeat.yaml` unless `-c` names another. A wrong key or value stops every command "
        "with a sentence that names the key, the value and what was expected; `offbeat config check` says whether a "
        "file is right, `offbeat config show` prints what is in force, defaults included, and `offbeat config schema` "
        "prints a JSON Schema for editors.", "",
        "## A complete example", "",
        "Every key, with its default where it has one. Only `streams` is required, and in a stream `topic`, "
        "`session.by` and something to learn: `tokens`, `numbers` or a `message`.", "",
        "```yaml", example(), "```", "",
        "## Environment variables", "",
        "Every key above `streams` can also come from the environment, which wins over the file: `OFFBEAT_` and the "
        "key in capitals, with two underscores where the key has a dot (`OFFBEAT_BROKER`, "
        "`OFFBEAT_STATE__HOT_SESSIONS`). Text and paths are taken as they are, an empty one as absent; other values "
        "are read as YAML. An `OFFBEAT_` variable that names no setting is an error. Streams cannot be set so.", "",
        "## Fields", "",
        "A field of a JSON record is written as a path: `user.id` for a key inside an object, `items[0].sku` for an "
        'element of a list (from 0), `attributes["service.name"]` for a key that has dots itself. Only the fields the '
        "config names are read. Absence and null are the same.", "",
        "| where | taken | refused, as `wrong_type` in the dead letters |", "|---|---|---|",
        "| `session.by` | text; whole numbers as text; several with `/` between them, and `%2F` and `%25` for "
        "`/` and `%` inside | fractions, truth values, objects, lists; over 1,024 characters in all |",
        "| `tokens` | text; whole numbers and `true`, `false` as text | fractions, objects, lists; over 1,024 "
        "characters |",
        "| `numbers` | numbers; texts that Python's `float` reads, without underscores; null, an empty text and `nan` "
        "are missing, and infinite ones (`inf`, `1e999`) too | other texts, truth values, objects, lists; whole "
        "numbers of over 4,300 digits |",
        "| `time` | ISO 8601 (UTC where it has no zone), epochs as numbers or text | truth values, objects, lists |",
        "| `session.end_when` | any value; it matches where value and kind are equal, so `1` is not `true` | nothing |",
        "",
        "## Durations", "",
        "A whole number of milliseconds, or a number with a unit: `250ms`, `1.5s`, `15m`, `2h`, `7d`.", "",
    ]  # fmt: skip
    for title, section, about in _sections():
        lines += [f"## {title}", "", about, "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{f.alias or name}` | {_cell(_type(f))} | {_cell(_default(f))} | {_cell(f.description or '')} |"
            for name, f in section.model_fields.items()
            if not _is_section(f.annotation) and name != "streams" and name in section.__annotations__  # its own
        ]
        lines.append("")
    return "\n".join(lines)


def _sections() -> Iterator[tuple[str, type[BaseModel], str]]:
    """Each section with its dotted name, outermost first."""
    yield "Top level", Settings, "Keys that stand in no section. `streams` holds one section a stream, see below."
    yield from _sections_below(Settings, "")
    yield "`alerts.receivers.NAME`", AnyReceiverSettings, _sentence(AnyReceiverSettings)
    for kind, receiver in zip(RECEIVER_TYPES, get_args(Receiver), strict=True):
        yield f"`alerts.receivers.NAME`, type `{kind}`", receiver, _sentence(receiver)
    yield "`alerts.routes`, each", RouteSettings, _sentence(RouteSettings)
    yield (
        "`streams.NAME`",
        StreamSettings,
        f"{_sentence(StreamSettings)} NAME may have a-z, 0-9, dot, dash and underscore.",
    )
    yield from _sections_below(StreamSettings, "streams.NAME.")


def _sections_below(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel], str]]:
    for name, field in section.model_fields.items():
        if _is_section(annotation := field.annotation):
            yield f"`{prefix}{name}`", annotation, _sentence(annotation)
            yield from _sections_below(annotation, f"{prefix}{name}.")


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _sentence(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _type(field: FieldInfo) -> str:
    """A field's type in words, with its bounds."""
    return ", ".join([_words(field.annotation, field.metadata), *_bounds(field)])


_WORDS: dict[Any, str] = {
    str: "text", SecretStr: "text, never shown", Path: "path",
    int: "whole number", float: "number",
    bool: "true or false", list[str]: "list of texts", tuple[str, ...]: "list of texts",
    list[DurationMs]: "list of durations", dict[str, Any]: "field: rule pairs",
    NamedNumbers: "`{name: FIELD, value: FIELD}`",
    dict[str, int]: "field: whole number pairs",
    Secret: "`env:NAME` or `file:PATH`", list[Secret]: "list of `env:NAME` or `file:PATH`",
    dict[str, Secret]: "header: `env:NAME` or `file:PATH` pairs", dict[str, str]: "label: text pairs",
    dict[str, dict[str, str]]: "stream: labels pairs", list[RouteSettings]: "list of routes",
    Receivers: "name: receiver pairs",
    list[MaintenanceSettings]: "list of `{from, until, streams, segments}`",
    dict[str, Scalar]: "field: value pairs; a value is text, a number, or true or false",
}  # fmt: skip


def _words(annotation: Any, metadata: list[Any]) -> str:
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
    if any(m in get_args(DurationMs) for m in metadata):
        return "duration"
    if any(m in get_args(Daily) for m in metadata):
        return "number a day"
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is list and get_origin(get_args(annotation)[0]) is Literal:
        return "list of " + ", ".join(f"`{value}`" for value in get_args(get_args(annotation)[0]))
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        inner = [_words(a, []) for a in get_args(annotation) if a is not NoneType]
        return " or ".join(inner) + (", or absent" if NoneType in get_args(annotation) else "")
    return _WORDS[annotation]


def _bounds(field: FieldInfo) -> Iterator[str]:
    duration = _words(field.annotation, field.metadata).startswith("duration")
    is_list = get_origin(field.annotation) is list
    for m in field.metadata:
        for attribute, words in (("gt", "above"), ("ge", "at least"), ("le", "at most"), ("lt", "below")):
            if (bound := getattr(m, attribute, None)) is not None:
                yield f"{words} {format_duration_ms(bound) if duration else f'{bound:,}'}"
        if is_list and (least := getattr(m, "min_length", None)) is not None:
            yield f"at least {least}"
        if is_list and (most := getattr(m, "max_length", None)) is not None:
            yield f"at most {most}"
        if (pattern := getattr(m, "pattern", None)) is not None:
            yield f"matching `{pattern}`"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "absent"
    return f"`{_plain(value, field)}`"


def _plain(value: Any, field: FieldInfo) -> str:
    """A value as it is written in the file."""
    if value is not None and _words(field.annotation, field.metadata).startswith("duration"):
        return format_duration_ms(value)
    if isinstance(value, Path):
        return f"./{value}"
    if field.annotation == list[DurationMs]:
        return f"[{', '.join(map(format_duration_ms, value))}]"
    return yaml.safe_dump(value, default_flow_style=True, width=1_000).removesuffix("\n...\n").strip()


def example() -> str:
    """A complete offbeat.yaml with a comment for each key; a test loads it."""
    return "\n".join(_example(Settings, "", 0))


def _example(section: type[BaseModel], prefix: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in section.model_fields.items():
        path = prefix + name
        if path == "streams":
            yield f"streams:  # {field.description}"
            yield f"  {_STREAM}:  # {_sentence(StreamSettings)}"
            yield from _example(StreamSettings, f"streams.{_STREAM}.", 2)
        elif _is_section(field.annotation):
            yield f"{indent}{name}:  # {_sentence(field.annotation)}"
            yield from _example(field.annotation, f"{path}.", depth + 1)
        else:
            value = _EXAMPLES[path] if path in _EXAMPLES else field.get_default(call_default_factory=True)
            yield f"{indent}{name}: {_plain(value, field)}  # {field.description}"


# --- docs/metrics.md -------------------------------------------------------------------------------------------------


def _metrics() -> str:
    lines = [
        "# Metrics", "", _MADE, "",
        "A worker serves them at `http://HOST:PORT/metrics`, where `http.host` and `http.port` of the config say; port "
        "0 takes a free one and logs it. No session is ever a label. Beside these stand the Python client's own "
        "(`process_...`, `python_...`) and, for each counter and histogram, a `..._created` time.", "",
        "| name | type | labels | meaning |", "|---|---|---|---|",
    ]  # fmt: skip
    for metric in vars(Metrics(CollectorRegistry())).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001 (no other way to them)
            lines.append(f"| {_names(family.name, family.type)} | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def _names(name: str, kind: str) -> str:
    """The names as they stand on the page."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return ", ".join(f"`{name}{suffix}`" for suffix in suffixes.get(kind, ("",)))


# --- docs/schemas and docs/asyncapi.yaml -----------------------------------------------------------------------------


def schema_of(name: str) -> dict[str, Any]:
    """JSON Schema of one output topic's messages."""
    kinds = MESSAGES[name]
    message: Any = kinds[0] if len(kinds) == 1 else Annotated[Union[kinds], Field(discriminator="type")]  # noqa: UP007
    return _schema(name, message, _ABOUT[name])


def _schema(name: str, of: Any, about: str) -> dict[str, Any]:
    schema = TypeAdapter(of).json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": _MADE,
        "title": name,
        "description": about,
        **{key: value for key, value in schema.items() if key not in {"title", "description"}},
    }


def _asyncapi() -> str:
    prefix = Settings.model_fields["topics"].get_default().prefix
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Offbeat's topics",
            "version": "1.0.0",
            "description": "What workers and commands write to Kafka. Names begin with topics.prefix of the config, "
            f"`{prefix}` unless set. After a crash a message may come twice, with the same id and content (but for "
            "detected_ms): drop ids you have seen.",
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(name, prefix) for name in MESSAGES},
        "operations": {
            f"send-{name}": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{name}"},
                "summary": _ABOUT[name],
            }
            for name in MESSAGES
        },
        "components": {"messages": {name: _message(name) for name in MESSAGES}},
    }
    return f"# {_MADE}\n" + yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)


def _channel(name: str, prefix: str) -> dict[str, Any]:
    return {
        "address": f"{prefix}.{name}",
        "description": _ABOUT[name],
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {"kafka": {"topic": f"{prefix}.{name}", "bindingVersion": "0.5.0"}},
    }


_TRACED = {
    "traceparent": {"type": "string", "description": "The span it came from, as W3C says; only where traces are on."},
    "tracestate": {"type": "string", "description": "What came with the record's, if anything did."},
}


def _message(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "required": ["ce_specversion", "ce_id", "ce_type", "ce_source", "ce_time", "content-type"],
            "properties": {
                "ce_specversion": {"const": "1.0"},
                "ce_id": {"type": "string", "description": "The message's id."},
                "ce_type": {"const": f"io.offbeat.{_EVENT_TYPES[name]}"},
                "ce_source": {"type": "string", "pattern": "^/offbeat/[a-z0-9._-]+$", "description": "The stream."},
                "ce_time": {"type": "string", "format": "date-time", "description": "When it was written."},
                "content-type": {"const": "application/json"},
                **(_TRACED if name in {"anomalies", "rescores", "incidents"} else {}),
            },
        },
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": {"$ref": f"./schemas/{name}.json"},
        },
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": _KEYS.get(name, "The session")},
                "bindingVersion": "0.5.0",
            }
        },
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# --- writing and checking --------------------------------------------------------------------------------------------


def stale(root: Path) -> list[str]:
    """Documents under `root` that are missing, differ from the code, or that the code no longer makes."""
    made = documents(root)
    found = [
        name for name, text in made.items() if not (root / name).is_file() or (root / name).read_text("utf-8") != text
    ]
    schemas = sorted(f"docs/schemas/{path.name}" for path in (root / "docs" / "schemas").glob("*.json"))
    return found + [name for name in schemas if name not in made]


def write(root: Path) -> list[str]:
    """Bring the documents under `root` up to date; returns those that changed."""
    changed, made = stale(root), documents(root)
    for name in changed:
        path = root / name
        if name in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[name], "utf-8")
        else:
            path.unlink()
    return changed


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write, or check, and say what was found; returns the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Write the documents made from the code.")
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    if parser.parse_args(arguments).check:
        found = stale(root)
        if found:
            print(f"{', '.join(found)}: not what the code says; run `{COMMAND}` and commit", file=sys.stderr)
        return 1 if found else 0
    for name in write(root):
        print(f"{name} written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
