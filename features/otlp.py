"""OpenTelemetry metrics in OTLP/JSON to samples: one JSON object for each number in an export.

The shape is that of `ExportMetricsServiceRequest` (opentelemetry-proto, `metrics/v1/metrics.proto`) in the JSON mapping
of the OTLP specification: field names in lowerCamelCase, 64-bit whole numbers as decimal text or as numbers,
enumerations as numbers. The Collector's Kafka exporter writes one such document into a record with the encoding
`otlp_json`. Fields that are not named here are passed over, as the specification asks of receivers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import msgspec

from features.errors import NotJsonError, RecordError, TooLongError, WrongTypeError

MAX_BYTES = 16 << 20  # of the samples of one export: each repeats its resource
MAX_DEPTH = 16  # of lists and maps inside an attribute's value
_NO_RECORDED_VALUE = 1  # bit of a data point's flags
_DELTA = 1  # aggregation temporality: each point counts from the one before
_INT64 = 1 << 63
_UINT64 = 1 << 64
# What separates in a series' name is percent-escaped inside attributes, so that no two series share one.
_ESCAPES = str.maketrans({sign: f"%{ord(sign):02X}" for sign in "%{},="})

_Whole: TypeAlias = int | str | None
_Real: TypeAlias = float | str | None


class _Struct(msgspec.Struct, rename="camel", gc=False):
    """Fields in lowerCamelCase; null is absence, as in protobuf's JSON."""


class _Value(_Struct):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: _Whole = None
    double_value: _Real = None
    array_value: _Array | None = None
    kvlist_value: _Map | None = None
    bytes_value: str | None = None


class _KeyValue(_Struct):
    key: str = ""
    value: _Value | None = None


class _Array(_Struct):
    values: list[_Value] | None = None


class _Map(_Struct):
    values: list[_KeyValue] | None = None


class _Quantile(_Struct):
    quantile: _Real = None
    value: _Real = None


class _Point(_Struct):
    """A data point of any kind."""

    attributes: list[_KeyValue] | None = None
    time_unix_nano: _Whole = None
    flags: _Whole = None
    as_double: _Real = None
    as_int: _Whole = None
    count: _Whole = None
    sum: _Real = None
    quantile_values: list[_Quantile] | None = None


class _Data(_Struct):
    data_points: list[_Point] | None = None
    aggregation_temporality: int | None = None
    is_monotonic: bool | None = None


class _Metric(_Struct):
    name: str = ""
    unit: str | None = None
    gauge: _Data | None = None
    sum: _Data | None = None
    histogram: _Data | None = None
    exponential_histogram: _Data | None = None
    summary: _Data | None = None


class _Scope(_Struct):
    name: str | None = None


class _ScopeMetrics(_Struct):
    scope: _Scope | None = None
    metrics: list[_Metric] | None = None


class _Resource(_Struct):
    attributes: list[_KeyValue] | None = None


class _ResourceMetrics(_Struct):
    resource: _Resource | None = None
    scope_metrics: list[_ScopeMetrics] | None = None


class _Export(_Struct):
    resource_metrics: list[_ResourceMetrics]


_decode = msgspec.json.Decoder(_Export).decode
_encode = msgspec.json.Encoder().encode

_SAMPLE_START = b'{"time":'  # what flatten writes; no export begins so
Sample = dict[str, Any]
_Series: TypeAlias = tuple[str, str, int | float | None]  # name, type, value


def flatten(value: bytes) -> list[bytes]:
    """Samples of an export, in its order, each as JSON.

    Returns
    -------
    samples
        Objects with these keys, in this order:

        - `time`: nanoseconds since 1970; null where the point has none.
        - `metric`: the metric's name, and its point's attributes sorted by key: `http.requests{method=GET,status=200}`.
          Histograms give `NAME.count` and `NAME.sum`; summaries these and `NAME{quantile=0.99}`. The signs `%{},=` are
          percent-escaped in attributes.
        - `value`: a number; null where none was recorded, or where it is none that JSON has (NaN, infinities).
        - `type`: `monotonic` for what only grows until it restarts, `gauge` for what is a level, `sum` for all other
          sums: deltas, and those that may fall.
        - `unit`, `scope`: text, or null.
        - `resource`: its attributes by name; lists and maps as JSON text.

    Raises
    ------
    NotJsonError
        The bytes are no JSON.
    WrongTypeError
        They are no export of metrics, a field has another type than OTLP's, or attributes are nested too deeply.

    Examples
    --------
    >>> point = '{"attributes": [{"key": "cpu", "value": {"intValue": "0"}}], "timeUnixNano": "7", "asDouble": 0.5}'
    >>> metric = '{"name": "load", "unit": "1", "gauge": {"dataPoints": [%s]}}' % point
    >>> resource = '{"attributes": [{"key": "host.name", "value": {"stringValue": "a"}}]}'
    >>> export = '{"resourceMetrics": [{"resource": %s, "scopeMetrics": [{"metrics": [%s]}]}]}' % (resource, metric)
    >>> print(flatten(export.encode())[0].decode())
    {"time":7,"metric":"load{cpu=0}","value":0.5,"type":"gauge","unit":"1","scope":null,"resource":{"host.name":"a"}}
    """
    try:
        export = _decode(value)
    except msgspec.ValidationError as error:
        message = f"this is no export of metrics in OTLP/JSON: {str(error).replace('`', chr(39))}"
        raise WrongTypeError(message) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotJsonError(str(error)) from None
    except RecursionError:
        raise _too_deep() from None
    samples, size = [], 0
    for sample in _samples(export):
        samples.append(_encode(sample))
        size += len(samples[-1])
        if size > MAX_BYTES:
            message = f"the export's samples, each with all of its resource's attributes, take over {MAX_BYTES:,} bytes"
            raise TooLongError(message)
    return samples


def samples_of(value: bytes) -> list[bytes]:
    """Samples of an export; what is one already, or is no export, stays as it is, for `sample_parser` to judge."""
    if value.startswith(_SAMPLE_START):
        return [value]
    try:
        return flatten(value)
    except RecordError:
        return [value]


def sample_parser(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Reads samples by `parse`; what could not be flattened raises why."""

    def read(value: bytes) -> Any:
        if value.startswith(_SAMPLE_START):
            return parse(value)
        flatten(value)
        message = "this is an export of metrics and no sample of one"
        raise WrongTypeError(message)

    return read


def _samples(export: _Export) -> Iterator[Sample]:
    for of_resource in export.resource_metrics:
        resource = {} if of_resource.resource is None else _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_metrics or ():
            scope = None if of_scope.scope is None else of_scope.scope.name or None
            for metric in of_scope.metrics or ():
                for point, series in _points(metric):
                    time_ns = _whole(point.time_unix_nano, 0, _UINT64) or None  # 0: not known
                    for name, kind, value in series:
                        yield {
                            "time": time_ns, "metric": name, "value": value, "type": kind,
                            "unit": metric.unit or None, "scope": scope, "resource": resource,
                        }  # fmt: skip


def _points(metric: _Metric) -> Iterator[tuple[_Point, list[_Series]]]:
    """Each data point, and the series that it has a number for."""
    if metric.gauge is not None:
        for point in metric.gauge.data_points or ():
            yield point, [(_name(metric.name, point), "gauge", _number(point))]
    if metric.sum is not None:
        kind = _kind_of_sum(metric.sum, is_monotonic=bool(metric.sum.is_monotonic))
        for point in metric.sum.data_points or ():
            yield point, [(_name(metric.name, point), kind, _number(point))]
    for histogram in filter(None, (metric.histogram, metric.exponential_histogram)):
        kind = _kind_of_sum(histogram, is_monotonic=True)  # its sum is left out where it could fall
        for point in histogram.data_points or ():
            yield point, _count_and_sum(metric.name, point, kind)
    if metric.summary is not None:
        for point in metric.summary.data_points or ():
            yield point, [*_count_and_sum(metric.name, point, "monotonic"), *_quantiles(metric.name, point)]


def _kind_of_sum(data: _Data, *, is_monotonic: bool) -> str:
    return "monotonic" if is_monotonic and data.aggregation_temporality != _DELTA else "sum"


def _count_and_sum(name: str, point: _Point, kind: str) -> list[_Series]:
    count = None if _is_unrecorded(point) else _whole(point.count, 0, _UINT64) or 0  # absent is 0 in protobuf
    series: list[_Series] = [(_name(f"{name}.count", point), kind, count)]
    if point.sum is not None:
        series.append((_name(f"{name}.sum", point), kind, None if _is_unrecorded(point) else _real(point.sum)))
    return series


def _quantiles(name: str, point: _Point) -> Iterator[_Series]:
    for at in point.quantile_values or ():
        quantile = _real(at.quantile or 0.0)
        value = None if _is_unrecorded(point) else _real(at.value or 0.0)
        yield _name(name, point, ("quantile", quantile)), "gauge", value


def _is_unrecorded(point: _Point) -> bool:
    return bool((_whole(point.flags, 0, 1 << 32) or 0) & _NO_RECORDED_VALUE)


def _number(point: _Point) -> int | float | None:
    """A point's value; None where none was recorded."""
    if _is_unrecorded(point):
        return None
    return _real(point.as_double) if point.as_int is None else _whole(point.as_int, -_INT64, _INT64)


def _whole(value: _Whole, low: int, beyond: int) -> int | None:
    """A whole number in [low, beyond), given as such or as decimal text."""
    if isinstance(value, str):
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
            message = f"{value[:40]!r} is no whole number"
            raise WrongTypeError(message)
        value = int(value)
    if value is not None and not low <= value < beyond:
        message = "a whole number is too small or too large for its field"
        raise WrongTypeError(message)
    return value


def _real(value: _Real) -> float | None:
    """A number; None for those that JSON has not."""
    try:
        number = None if value is None else float(value)
    except ValueError:
        message = f"{str(value)[:40]!r} is no number"
        raise WrongTypeError(message) from None
    return number if number is not None and math.isfinite(number) else None


# --- attributes and names --------------------------------------------------------------------------------------------


def _name(name: str, point: _Point, *more: tuple[str, Any]) -> str:
    """A series' name; of attributes that stand twice the last counts."""
    attributes = _attributes(point.attributes) | dict(more)
    if not attributes:
        return name
    parts = (f"{key.translate(_ESCAPES)}={_text(attributes[key]).translate(_ESCAPES)}" for key in sorted(attributes))
    return f"{name}{{{','.join(parts)}}}"


def _attributes(given: Iterable[_KeyValue] | None) -> dict[str, Any]:
    """Names and values; a list or a map is its JSON."""
    found = {pair.key: _plain(pair.value, 0) for pair in given or ()}
    return {key: _json(value) if isinstance(value, list | dict) else value for key, value in found.items()}


def _plain(value: _Value | None, depth: int) -> Any:
    """An attribute's value as plain JSON; None where it has none."""
    if depth > MAX_DEPTH:
        raise _too_deep()
    if value is None:
        return None
    if value.array_value is not None:
        return [_plain(inner, depth + 1) for inner in value.array_value.values or ()]
    if value.kvlist_value is not None:
        return {pair.key: _plain(pair.value, depth + 1) for pair in value.kvlist_value.values or ()}
    number = _real(value.double_value) if value.int_value is None else _whole(value.int_value, -_INT64, _INT64)
    scalars = (value.string_value, value.bool_value, number, value.bytes_value)
    return next((scalar for scalar in scalars if scalar is not None), None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _too_deep() -> WrongTypeError:
    message = f"attributes are nested more than {MAX_DEPTH} deep"
    return WrongTypeError(message)
