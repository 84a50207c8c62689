"""The documents made from the code are up to date, complete, and say so when they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.metrics import Metrics
from pipeline.reference import ROOT, documents, example, main, schema_of, write
from pipeline.settings import Settings, StreamSettings
from pipeline.wire import MESSAGES


def test_the_documents_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """What lies under docs/ is what the code says now."""
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_document_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check names what is missing, changed or left over and the command to run; writing mends it."""
    assert main(["--check"], tmp_path) == 1
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    capsys.readouterr()
    (tmp_path / "docs" / "metrics.md").write_text("old")
    (tmp_path / "docs" / "schemas" / "left-over.json").write_text("{}")
    assert main(["--check"], tmp_path) == 1
    sentence = capsys.readouterr().err
    assert sentence == (
        "docs/metrics.md, docs/schemas/left-over.json: not what the code says; run `python -m pipeline.reference` "
        "and commit\n"
    )
    assert write(tmp_path) == ["docs/metrics.md", "docs/schemas/left-over.json"]
    assert write(tmp_path) == []


def test_the_same_code_gives_the_same_bytes() -> None:
    """Making the documents twice gives the same text."""
    assert documents() == documents()


def test_every_key_is_documented() -> None:
    """docs/configuration.md names each key of each section, and holds the example."""
    text = documents()["docs/configuration.md"]
    for section in (Settings, StreamSettings):
        for name, field in section.model_fields.items():
            assert f"`{name}`" in text or f".{name}`" in text
            assert field.description is None or field.description in text
    assert f"```yaml\n{example()}\n```" in text


def test_every_metric_is_documented() -> None:
    """docs/metrics.md names each series as it is scraped."""
    text = documents()["docs/metrics.md"]
    metrics = Metrics(CollectorRegistry())
    for metric in vars(metrics).values():
        if getattr(metric, "_labelnames", ()):
            metric.labels(*metric._labelnames)
    page = generate_latest(metrics.registry).decode()
    names = {s.name for family in text_string_to_metric_families(page) for s in family.samples}
    assert len(names) > 20
    assert {name for name in names if f"`{name}`" not in text and not name.endswith("_created")} == set()


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_each_output_topic_has_a_schema(name: str) -> None:
    """The JSON Schema of each topic lies under docs/schemas, names every key, and allows keys of later versions."""
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text())
    assert schema == schema_of(name)
    kinds = [schema["$defs"][kind.__name__] for kind in MESSAGES[name]] if len(MESSAGES[name]) > 1 else [schema]
    for kind, model in zip(kinds, MESSAGES[name], strict=True):
        assert kind.get("additionalProperties", True) is True
        assert set(kind["properties"]) == set(model.model_fields)
        assert set(kind["required"]) == {name for name, field in model.model_fields.items() if field.is_required()}


def test_the_asyncapi_document_hangs_together() -> None:
    """AsyncAPI 3 with a channel and a message for each output topic; every reference leads somewhere."""
    document = yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text())
    assert document["asyncapi"] == "3.0.0"
    assert set(document["channels"]) == set(document["components"]["messages"]) == set(MESSAGES)
    assert {channel["address"] for channel in document["channels"].values()} == {f"offbeat.{name}" for name in MESSAGES}
    references = list(_references(document))
    assert len(references) >= 3 * len(MESSAGES)
    for reference in references:
        if reference.startswith("#/"):
            node = document
            for part in reference.removeprefix("#/").split("/"):
                node = node[part]
        else:
            assert (ROOT / "docs" / reference).is_file()


def _references(node: Any) -> Any:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
