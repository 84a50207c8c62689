"""How bad: of one anomaly by its p-value and its session's past, of an incident by evidence, duration and extent."""

from __future__ import annotations

SEVERITIES = ("low", "medium", "high", "critical")
_STEP = 10.0  # a level for each factor ten below what the promise allows


def severity_of(p_value: float, promise: float, *, persists: bool = False) -> str:
    """Severity of one anomaly.

    A level for each factor of ten by which it is rarer than the promise asks for, and one more where it persists: its
    session was in a bad stretch before. How far it reaches is told by the incident; a partition sees other sessions in
    an order that depends on how its stream was cut.

    Parameters
    ----------
    p_value, promise
        In (0, 1]; an anomaly's p-value is at most the promise.
    persists
        Whether its session's bad stretch began before it (detectors/tags.py).

    Examples
    --------
    >>> severity_of(0.001, 0.001), severity_of(0.00005, 0.001), severity_of(0.00005, 0.001, persists=True)
    ('low', 'medium', 'high')
    """
    level, limit = 0, promise / _STEP
    while level < len(SEVERITIES) - 1 and p_value <= limit:
        level, limit = level + 1, limit / _STEP
    return SEVERITIES[min(level + persists, len(SEVERITIES) - 1)]


def severity_of_incident(*, is_strong: bool, is_long: bool, is_wide: bool) -> str:
    """Severity of an incident: a level for each of strong evidence, long duration and wide extent.

    Examples
    --------
    >>> severity_of_incident(is_strong=True, is_long=False, is_wide=True)
    'high'
    """
    return SEVERITIES[is_strong + is_long + is_wide]
