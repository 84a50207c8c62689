"""Which fields made a record strange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def leading_fields(anomaly: Mapping[str, Any]) -> list[tuple[str, float]]:
    """A record's fields with what each contributed to its score, the largest first.

    A number that neither came nor was expected counts as a usual one where forecasts are judged, and usual may be much:
    it is left out unless there is nothing else.

    >>> record = {"observed": {"cpu": 99.0, "net": None}, "contributions": {"cpu": 3.2, "net": 3.3}}
    >>> leading_fields(record | {"expected": {"cpu": [{"low": 38.0, "median": 41.0, "high": 44.0}], "net": []}})
    [('cpu', 3.2)]
    """
    found = {field: nats for field, nats in anomaly["contributions"].items() if nats is not None}
    observed, expected = anomaly.get("observed", {}), anomaly.get("expected", {})
    absent = {field for field, likely in expected.items() if not likely and observed.get(field) is None}
    told = {field: nats for field, nats in found.items() if field not in absent}
    return sorted((told or found).items(), key=lambda item: (-item[1], item[0]))
