"""What `detectors.schema_watch` found, as messages of the drift topic."""

from __future__ import annotations

from detectors.schema_watch import FIRST, FieldDrift
from pipeline.drift import Kind, drift_output
from pipeline.outputs import Output, Place

_TYPES: dict[str, Kind] = {"missing": "field_missing", "type": "field_type", "unknown": "field_unknown_values"}
_WHAT = {
    "missing": "was missing", "type": "had a type that the config does not allow",
    "unknown": "had values that training never met",
}  # fmt: skip


def schema_drift_output(drift: FieldDrift, *, stream: str, place: Place, now_ms: int) -> Output:
    """Say that a field began to differ from training, or no longer does. Pure."""
    return drift_output(
        _TYPES[drift.kind], stream=stream, place=place, offset=drift.offset, amount=drift.records,
        detail=detail_of(drift), now_ms=now_ms, since_ms=drift.since_ms, field=drift.field,
        phase="began" if drift.has_begun else "ended",
    )  # fmt: skip


def detail_of(drift: FieldDrift) -> str:
    """One sentence for people.

    >>> detail_of(FieldDrift("missing", "user.id", True, 7, None, 512, 1_024, 512, 0.001))
    'user.id was missing in 512 of the last 1,024 records; in training in 0.1% at most'
    """
    if drift.usual is None:
        return f"none of the first {FIRST:,} records has the field {drift.field}; correct its path in the config"
    said = f"{drift.field} {_WHAT[drift.kind]} in {drift.affected:,} of the last {drift.of:,} records"
    if not drift.has_begun:
        return f"{said}, about as few as in training; {drift.records:,} records since it began"
    value = "" if drift.value is None else f"; most of them are {drift.value!r}"
    return f"{said}; in training in {100 * drift.usual:.3g}% at most{value}"
