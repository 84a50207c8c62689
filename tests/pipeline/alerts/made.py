"""Changes and configs for tests of alerts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from detectors.severity import SEVERITIES
from pipeline.alerts.change import Change, change_of
from pipeline.alerts.settings import AlertSettings

SECRET = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="  # of 26 bytes
OTHER = "whsec_" + "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXo="
LOCAL = ["127.0.0.0/8"]


def alerts(routes: list[dict[str, Any]] | None = None, **receivers: Mapping[str, Any]) -> AlertSettings:
    """Settings of these receivers, reached by one route unless told."""
    routes = [{"receivers": list(receivers)}] if routes is None else routes
    return AlertSettings.model_validate({"receivers": receivers, "routes": routes})


def webhook(url: str, **more: Any) -> dict[str, Any]:
    """A receiver that may lie on this machine."""
    return {"type": "webhook", "url": url, "secrets": ["env:KEY"], "allow_networks": LOCAL, **more}


def incident(
    kind: str = "opened",
    *,
    revision: int = 1,
    severity: str = "high",
    streams: tuple[str, ...] = ("orders",),
    **more: Any,
) -> Change:
    """A change of an incident, whole."""
    body = {
        "type": kind, "id": f"{streams[0]}/shop.orders/0/57/record/incident", "revision": revision,
        "severity": severity, "start_ms": 1_700_000_000_000, "last_ms": 1_700_000_060_000, "end_ms": None,
        "merged_into": None, "anomalies": 3, "suppressed": 0, "withheld": 0, "streams": list(streams),
        "segments": ["eu"], "sessions": 2, "session_names": ["a"], "contributors": [], "causes": [], "examples": [],
        "summary": "orders since 2023-11-14 22:13:20 UTC: 3 anomalies in 2 sessions.", "scope": "", "detected_ms": 0,
    }  # fmt: skip
    return change_of(body | more, {})


def rate_anomaly(number: int = 0) -> Change:
    """An anomaly that needs no session."""
    body = {
        "type": "rate", "id": f"orders/shop.orders/0/{number}/rate", "stream": "orders", "segment": None,
        "time_ms": 1_700_000_000_000, "from_ms": 1_699_999_940_000, "until_ms": 1_700_000_000_001, "count": 0,
        "expected": {"low": 31, "median": 52, "high": 78}, "direction": "too_few", "p_value": 0.001,
    }  # fmt: skip
    return change_of(body, {})


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_long = st.builds(lambda text, times: text * times, st.text(max_size=30), st.sampled_from([1, 1, 50, 2_000]))


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """Any change whatever, with texts and lists of any length."""
    kind = draw(st.sampled_from(["opened", "updated", "merged", "closed", "anomaly"]))
    body = draw(st.dictionaries(st.text(max_size=10), _values, max_size=6))
    body |= {"summary": draw(_long), "session_names": [draw(_long)] * draw(st.integers(0, 20))}
    return Change(
        id=draw(_long), subject=draw(_long), kind=kind, streams=tuple(draw(st.lists(_long, max_size=20))),
        severity=draw(st.sampled_from(SEVERITIES)), labels=draw(st.dictionaries(_long, _long, max_size=8)),
        at_ms=draw(st.integers(0, 2**53)), body=body,
    )  # fmt: skip
