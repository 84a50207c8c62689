"""What `detectors.drift_watch` found, as messages of the drift topic."""

from __future__ import annotations

from detectors.drift_events import DriftEvent
from pipeline.drift import drift_output
from pipeline.outputs import Output, Place

_WHAT = {
    "input_drift": "{field} is distributed otherwise than in training",
    "unknown_drift": "{field} has values that training never met more often than there",
    "surprise_drift": "records surprise the model otherwise than when it was calibrated",
    "calibration_drift": "p-values are distributed otherwise than when they were calibrated",
    "concept_drift": "verdicts are wrong more often than before, by the labels that came back",
}  # fmt: skip
_ENDED = {
    "input_drift": "{field} is distributed as in training again",
    "unknown_drift": "{field} has values that training never met about as often as there",
    "surprise_drift": "records surprise the model as when it was calibrated",
    "calibration_drift": "p-values are distributed as when they were calibrated",
    "concept_drift": "verdicts are wrong about as often as before",
}  # fmt: skip
_DO = {
    "retrain": "if that is to stay, train again with records since then",
    "recalibrate": "if no field has drifted, train again so that p-values fit the records of today",
    "watch": "nothing need be done",
}  # fmt: skip


def stream_drift_output(event: DriftEvent, *, stream: str, place: Place, now_ms: int) -> Output:
    """Say that a stream changed for good, or that this is over. Pure."""
    return drift_output(
        event.type, stream=stream, place=place, offset=event.offset, amount=event.records, detail=detail_of(event),
        now_ms=now_ms, since_ms=event.since_ms, field=event.field, phase="began" if event.has_begun else "ended",
        statistic=event.statistic, value=event.amount, usual=event.usual, limit=event.limit, p_value=event.p_value,
        action=event.action,
    )  # fmt: skip


def detail_of(event: DriftEvent) -> str:
    """One sentence for people.

    >>> told = DriftEvent("input_drift", "ms", True, 7, None, 9_216, "psi", 0.371, 0.006, 0.106, 2.5e-11)
    >>> detail_of(told)[:90]
    'ms is distributed otherwise than in training: psi 0.371, there at most 0.006; by chance on'
    """
    said = (_WHAT if event.has_begun else _ENDED)[event.type].format(field=event.field)
    figures = f"{event.statistic} {event.amount:.3g}, there at most {event.usual:.3g}"
    chance = f"; by chance once in {1 / event.p_value:,.3g}" if event.has_begun and event.p_value > 0 else ""
    return f"{said}: {figures}{chance}; {_DO[event.action]}"
