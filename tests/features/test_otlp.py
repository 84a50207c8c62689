"""OTLP/JSON metrics: each number becomes a sample, and what is no export is a record error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import RecordError
from features.otlp import MAX_DEPTH, flatten

NOW = "1544712660300000000"


def attribute(key: str, **value: Any) -> dict[str, Any]:
    return {"key": key, "value": value}


def export(*metrics: dict[str, Any], resource: Any = None, scope: Any = None) -> bytes:
    """A document with one resource and one scope, and the fields that real ones have beside those we read."""
    attributes = [attribute("service.name", stringValue="cart")] if resource is None else resource
    scope_metrics = {"scope": scope or {"name": "meter", "version": "1.0"}, "metrics": list(metrics), "schemaUrl": "u"}
    found = {"resource": {"attributes": attributes, "droppedAttributesCount": 0}, "scopeMetrics": [scope_metrics]}
    return json.dumps({"resourceMetrics": [found]}).encode()


def samples(*metrics: dict[str, Any], **around: Any) -> list[dict[str, Any]]:
    return [json.loads(sample) for sample in flatten(export(*metrics, **around))]


def gauge(**point: Any) -> dict[str, Any]:
    return {"name": "load", "gauge": {"dataPoints": [{"timeUnixNano": NOW, **point}]}}


def series(*metrics: dict[str, Any]) -> list[tuple[str, str, Any]]:
    return [(s["metric"], s["type"], s["value"]) for s in samples(*metrics)]


def test_a_gauge_becomes_a_sample() -> None:
    """With its time in nanoseconds, its unit, its scope and its resource."""
    point = {"startTimeUnixNano": "1", "timeUnixNano": NOW, "asDouble": 0.5, "exemplars": [{"asDouble": 7}]}
    metric = {"name": "cpu.load", "description": "d", "unit": "1", "gauge": {"dataPoints": [point]}}
    assert samples(metric) == [
        {
            "time": int(NOW), "metric": "cpu.load", "value": 0.5, "type": "gauge", "unit": "1", "scope": "meter",
            "resource": {"service.name": "cart"},
        }
    ]  # fmt: skip


def test_attributes_tell_series_apart() -> None:
    """Sorted by key whatever their order, and escaped, so that no two sets of attributes share a name."""
    get, ok = attribute("method", stringValue="GET"), attribute("status", intValue="200")
    assert series(gauge(asInt="1", attributes=[ok, get]), gauge(asInt=2, attributes=[get, ok])) == [
        ("load{method=GET,status=200}", "gauge", 1), ("load{method=GET,status=200}", "gauge", 2),
    ]  # fmt: skip
    pairs = [attribute("a", stringValue="1,b=2")], [attribute("a", stringValue="1"), attribute("b", intValue=2)]
    names = {name for given in pairs for name, _, _ in series(gauge(asInt=1, attributes=given))}
    assert names == {"load{a=1%2Cb%3D2}", "load{a=1,b=2}"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"boolValue": False}, "false"), ({"doubleValue": 0.25}, "0.25"), ({"intValue": -3}, "-3"),
        ({"bytesValue": "AQI="}, "AQI%3D"), ({}, "null"), ({"stringValue": ""}, ""),
        ({"arrayValue": {"values": [{"intValue": "1"}, {"stringValue": "x"}]}}, '[1%2C"x"]'),
        ({"kvlistValue": {"values": [attribute("b", intValue=1), attribute("a", boolValue=True)]}},
         '%7B"a":true%2C"b":1%7D'),
    ],
)  # fmt: skip
def test_values_of_attributes(value: dict[str, Any], text: str) -> None:
    """Each kind of value has one text."""
    assert series(gauge(asInt=1, attributes=[{"key": "k", "value": value}])) == [(f"load{{k={text}}}", "gauge", 1)]


def test_the_resource_keeps_its_types() -> None:
    """So that a session can be named by a number, too; lists are text."""
    resource = [
        attribute("service.name", stringValue="cart"), attribute("pid", intValue="7"),
        attribute("args", arrayValue={"values": [{"stringValue": "-v"}]}), {"key": "empty"},
    ]  # fmt: skip
    (sample,) = samples(gauge(asInt=1), resource=resource)
    assert sample["resource"] == {"service.name": "cart", "pid": 7, "args": '["-v"]', "empty": None}


@pytest.mark.parametrize(
    ("temporality", "monotonic", "kind"),
    [(2, True, "monotonic"), (1, True, "sum"), (2, False, "sum"), (1, False, "sum"), (2, None, "sum")],
)
def test_what_only_grows_is_monotonic(temporality: int, monotonic: bool | None, kind: str) -> None:
    """A counter is told from deltas and from what may fall, because a rate is made of it."""
    data = {"aggregationTemporality": temporality, "isMonotonic": monotonic, "dataPoints": [{"asInt": "5"}]}
    assert series({"name": "requests", "sum": data}) == [("requests", kind, 5)]


def test_histograms_and_summaries() -> None:
    """Counts and sums, and a summary's quantiles; a sum that was left out is no series."""
    points = [{"count": "4", "sum": 10.5, "bucketCounts": ["1", "3"], "explicitBounds": [1], "min": 1}, {"count": 2}]
    data = {"aggregationTemporality": 2, "dataPoints": points}
    expected = [("t.count", "monotonic", 4), ("t.sum", "monotonic", 10.5), ("t.count", "monotonic", 2)]
    assert series({"name": "t", "histogram": data}) == expected
    assert series({"name": "t", "exponentialHistogram": data}) == expected
    summary = {"count": "3", "sum": 6, "quantileValues": [{"quantile": 0.5, "value": 2}, {"quantile": 1, "value": 3.5}]}
    assert series({"name": "t", "summary": {"dataPoints": [summary]}}) == [
        ("t.count", "monotonic", 3), ("t.sum", "monotonic", 6.0), ("t{quantile=0.5}", "gauge", 2.0),
        ("t{quantile=1.0}", "gauge", 3.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "point", [{"flags": 1}, {"flags": 1, "asDouble": 0.0}, {"asDouble": "NaN"}, {"asDouble": "-Infinity"}, {}]
)
def test_missing_values_are_null(point: dict[str, Any]) -> None:
    """A point without a recorded value is a sample all the same: its gap is seen."""
    assert series(gauge(**point)) == [("load", "gauge", None)]
    unrecorded = {"name": "t", "histogram": {"dataPoints": [{"flags": 1, "sum": 0}]}}
    assert [value for _, _, value in series(unrecorded)] == [None, None]


def test_times() -> None:
    """As number or text; 0 and absence are none, so that the record's own time counts."""
    times = [samples(gauge(asInt=1, timeUnixNano=at))[0]["time"] for at in (NOW, int(NOW), "0", 0, None)]
    assert times == [int(NOW), int(NOW), None, None, None]


def test_an_export_without_points_has_no_samples() -> None:
    """Empty lists and absent ones are the same in protobuf."""
    assert samples() == []
    assert flatten(b'{"resourceMetrics": []}') == []
    assert flatten(b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "m"}]}]}]}') == []


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"intValue": 1}
    for _ in range(depth):
        value = {"arrayValue": {"values": [value]}}
    return value


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (b"", "not_json"), (b"\xff", "not_json"), (b'{"resourceMetrics": [', "not_json"), (b"NaN", "not_json"),
        (b"[]", "wrong_type"), (b"{}", "wrong_type"), (b'{"resourceLogs": []}', "wrong_type"),
        (b'{"resourceMetrics": {}}', "wrong_type"),
        (export(gauge(asInt="seven")), "wrong_type"), (export(gauge(asInt=1.5)), "wrong_type"),
        (export(gauge(asInt=str(2**63))), "wrong_type"), (export(gauge(asInt="9" * 5_000)), "wrong_type"),
        (export(gauge(asDouble="much")), "wrong_type"), (export(gauge(asInt=1, timeUnixNano="-1")), "wrong_type"),
        (export(gauge(asInt=1, timeUnixNano="٣")), "wrong_type"), (export(gauge(asInt=1, flags="x")), "wrong_type"),
        (export(gauge(asInt=1, attributes=[{"key": 1}])), "wrong_type"),
        (export(gauge(asInt=1, attributes=[{"key": "k", "value": nested(MAX_DEPTH + 1)}])), "wrong_type"),
        (b'{"resourceMetrics": [{"resource": {"attributes": [{"value": ' + b'{"arrayValue": {"values": [' * 10_000,
         "wrong_type"),
    ],
)  # fmt: skip
def test_what_is_no_export_is_refused(given: bytes, reason: str) -> None:
    """With a reason that the dead letter names."""
    with pytest.raises(RecordError) as found:
        flatten(given)
    assert found.value.reason == reason
    assert str(found.value)


def test_nesting_to_the_bound_is_read() -> None:
    """The bound itself is allowed."""
    ((name, _, _),) = series(gauge(asInt=1, attributes=[{"key": "k", "value": nested(MAX_DEPTH)}]))
    assert name == "load{k=" + "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH + "}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(
            ["resourceMetrics", "scopeMetrics", "metrics", "gauge", "sum", "dataPoints", "attributes", "key", "value",
             "asInt", "asDouble", "timeUnixNano", "stringValue", "arrayValue", "values", "flags", "name"]
        ), inner, max_size=4,
    ),
)  # fmt: skip


@given(JSON | st.builds(lambda point: json.loads(export(gauge(), point if isinstance(point, dict) else {})), JSON))
def test_any_json_is_read_or_refused(document: Any) -> None:
    """Nothing but samples that are JSON, or a record error."""
    try:
        found = flatten(json.dumps(document).encode())
    except RecordError:
        return
    for sample in found:
        assert list(json.loads(sample)) == ["time", "metric", "value", "type", "unit", "scope", "resource"]
