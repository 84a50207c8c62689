"""What a dashboard is in Grafana's JSON. Places and looks follow from the order of panels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

SOURCE = {"type": "prometheus", "uid": "prometheus"}
SCHEMA = 41  # Grafana 12; older ones read it, newer ones bring it up to theirs
COLUMNS = 24

Rows = Mapping[str, Sequence["Panel"]]  # by their titles


@dataclass(frozen=True)
class Panel:
    """Queries by their legends; `good` and `bad` colour a number from there on, whichever comes first."""

    title: str
    about: str
    queries: dict[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    good: float | None = None
    bad: float | None = None
    stacked: bool = False


def dashboard(
    name: str, title: str, since: str, rows: Rows, annotations: Mapping[str, tuple[str, str, str]]
) -> dict[str, Any]:
    """A dashboard with a choice of streams; annotations are colour, query and text by their names."""
    return {
        "uid": f"offbeat-{name}", "title": title, "tags": ["offbeat"], "schemaVersion": SCHEMA, "version": 1,
        "editable": True, "graphTooltip": 1, "timezone": "", "refresh": "30s", "time": {"from": since, "to": "now"},
        "templating": {"list": [_streams()]},
        "annotations": {"list": [_annotation(*one) for one in annotations.items()]},
        "links": [
            {"title": "Offbeat", "type": "dashboards", "tags": ["offbeat"], "asDropdown": False, "keepTime": True,
             "includeVars": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": ""}
        ],
        "panels": list(_panels(rows)),
    }  # fmt: skip


def _streams() -> dict[str, Any]:
    query = "label_values(offbeat_records_total, stream)"
    return {
        "name": "stream", "label": "Stream", "type": "query", "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": "streams", "qryType": 1}, "refresh": 2, "sort": 1, "multi": True,
        "includeAll": True, "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}, "options": [],
        "hide": 0,
    }  # fmt: skip


def _annotation(name: str, about: tuple[str, str, str]) -> dict[str, Any]:
    colour, query, text = about
    return {
        "name": name, "datasource": SOURCE, "enable": True, "hide": False, "iconColor": colour, "expr": query,
        "titleFormat": name, "textFormat": text, "tagKeys": "", "step": "60s", "useValueForTime": True,
    }  # fmt: skip


def _panels(rows: Rows) -> Iterator[dict[str, Any]]:
    """Rows one below the other, in each of them panels from left to right."""
    ids, y = count(1), 0
    for title, panels in rows.items():
        yield {
            "id": next(ids), "type": "row", "title": title, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }  # fmt: skip
        y, x, tallest = y + 1, 0, 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            yield _panel(panel, next(ids), {"x": x, "y": y, "w": panel.width, "h": panel.height})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest


def _panel(panel: Panel, number_: int, place: dict[str, int]) -> dict[str, Any]:
    now_only = panel.kind != "timeseries"
    targets = [
        {
            "refId": chr(ord("A") + i), "datasource": SOURCE, "editorMode": "code", "expr": query,
            "legendFormat": legend or "__auto", "range": not now_only, "instant": now_only,
            "format": "table" if panel.kind == "table" else "time_series",
        }
        for i, (legend, query) in enumerate(panel.queries.items())
    ]  # fmt: skip
    return {
        "id": number_, "type": panel.kind, "title": panel.title, "description": panel.about, "datasource": SOURCE,
        "gridPos": place, "targets": targets, "options": _options(panel),
        "fieldConfig": {"defaults": _looks(panel), "overrides": []},
        "transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}]
        if panel.kind == "table" else [],
    }  # fmt: skip


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value",
            "graphMode": "none", "textMode": "auto", "justifyMode": "auto", "orientation": "auto", "wideLayout": True,
        }  # fmt: skip
    if panel.kind == "table":
        return {"showHeader": True, "cellHeight": "sm"}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _looks(panel: Panel) -> dict[str, Any]:
    looks: dict[str, Any] = {"unit": panel.unit, "mappings": []}
    if panel.kind == "timeseries":
        looks["min"] = 0
        looks["custom"] = {
            "drawStyle": "line", "lineWidth": 1, "fillOpacity": 30 if panel.stacked else 5, "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }  # fmt: skip
    looks["thresholds"] = {"mode": "absolute", "steps": _steps(panel)}
    return looks


def _steps(panel: Panel) -> Sequence[dict[str, Any]]:
    """The lowest colour begins at minus infinity, which is null."""
    if panel.good is None or panel.bad is None:
        return [{"color": "blue", "value": None}]
    (_, first), (second, then) = sorted([(panel.good, "green"), (panel.bad, "red")])
    return [{"color": first, "value": None}, {"color": then, "value": second}]
