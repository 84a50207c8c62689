"""What a bundle holds, and how two of them differ: as JSON, and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Column, Table

from detectors.calibration import Calibration
from detectors.parts import Learned
from features.tokens import Vocabulary
from models.bundle import Bundle, Manifest
from pipeline.sessions import iso
from pipeline.units import format_duration_ms
from pipeline.wire import Promotion

Json = dict[str, Any]
_P_VALUES = (0.5, 0.1, 0.01, 0.001, 0.0001)
_FIRST = ("data", "training", "schema", "rules", "vocabulary", "calibration")  # of the sections, in this order
_LISTED = {"files", "sizes", "format", "stream"}  # shown elsewhere
_SHOWN = 10  # tokens of a field, added or removed


def describe(manifest: Manifest, bundle: Bundle, learned: Learned, rate: float, promotions: list[Promotion]) -> Json:
    """All that is known of a bundle.

    Parameters
    ----------
    rate
        The stream's promise, for what this bundle cannot keep.
    promotions
        The stream's; those of this bundle are taken.
    """
    return {
        "digest": bundle.digest,
        "created": manifest.created,
        "lineage": manifest.lineage,
        "content": {name: part for name, part in manifest.content.items() if name not in {"files", "sizes"}},
        "quantiles": {what: _quantiles(part) for what, part in _calibrations(learned)},
        "limits": limits(learned, rate),
        "files": {name: {"bytes": len(data), "sha256": bundle.content["files"][name]}
                  for name, data in sorted(bundle.files.items())},
        "promotions": [p.model_dump(exclude={"stream", "digest"}) for p in promotions if p.digest == bundle.digest],
    }  # fmt: skip


def limits(learned: Learned, rate: float) -> list[str]:
    """What the calibration cannot tell apart, as sentences."""
    found = []
    for what, part in _calibrations(learned):
        least = f"no {what[:-1]} gets a p-value below {part.smallest_p_value:.2g}: {part.count:,} were held back"
        never = f", so with the promise of {rate:g} none is ever an anomaly" if part.smallest_p_value > rate else ""
        found.append(least + never)
    return found


def tables(described: Json) -> Iterator[Table]:
    """What `describe` gave, in words."""
    yield _rows("Lineage", _lineage(described))
    content = described["content"]
    sections = [name for name in _FIRST if name in content]
    sections += sorted(name for name in content if name not in {*_FIRST, *_LISTED})
    for name in sections:
        part = content[name]
        yield _rows(_label(name).capitalize(), flat(part) if isinstance(part, dict) else {name: part})
    yield _quantile_table({what: [part] for what, part in described["quantiles"].items()}, ["score"])
    yield _rows("Limits", {str(n): sentence for n, sentence in enumerate(described["limits"], 1)})
    table = Table("file", "bytes", Column("SHA-256", overflow="fold"), title="Files", title_justify="left")
    for name, file in described["files"].items():
        table.add_row(name, f"{file['bytes']:,}", file["sha256"])
    yield table


def _lineage(described: Json) -> Json:
    lineage = described["lineage"]
    code = lineage.get("code", {})
    rows = {
        "digest": described["digest"], "trained": described["created"], "by": lineage.get("by"),
        "why": lineage.get("reason"), "from": lineage.get("source"), "parent": lineage.get("parent"),
        "offbeat": code.get("offbeat"), "commit": code.get("commit"),
    }  # fmt: skip
    for number, promotion in enumerate(described["promotions"], 1):
        rows[f"promotion {number}"] = promotion_in_words(promotion)
    return {name: value for name, value in rows.items() if value is not None}


def promotion_in_words(promotion: Mapping[str, Any]) -> str:
    """When, by whom, after what and why."""
    after = "" if promotion["previous"] is None else f", after {promotion['previous'][:12]}"
    why = "" if promotion["reason"] is None else f": {promotion['reason']}"
    kind = ", rolled back to" if promotion["type"] == "rollback" else ""
    return f"{iso(promotion['issued_ms'])} by {promotion['by']}{kind}{after}{why}"


def compare(a: Bundle, b: Bundle, learned: tuple[Learned, Learned]) -> Json:
    """What differs between two bundles."""
    parts = [flat({n: p for n, p in bundle.content.items() if n not in {"files", "sizes"}}) for bundle in (a, b)]
    keys = list(dict.fromkeys([*parts[0], *parts[1]]))
    files = [bundle.content["files"] for bundle in (a, b)]
    levels = [dict(_calibrations(one)) for one in learned]
    return {
        "a": a.digest,
        "b": b.digest,
        "differs": {key: [part.get(key) for part in parts] for key in keys if parts[0].get(key) != parts[1].get(key)},
        "vocabulary": _words(learned[0].vocabulary, learned[1].vocabulary),
        "quantiles": {what: [_quantiles(level[what]) for level in levels] for what in levels[0]},
        "files": sorted(name for name in {*files[0], *files[1]} if files[0].get(name) != files[1].get(name)),
    }


def comparison_tables(compared: Json) -> Iterator[Table]:
    """What `compare` gave, in words."""
    names = [compared["a"][:12], compared["b"][:12]]
    columns = [Column(name, overflow="fold") for name in names]
    table = Table("what differs", *columns, title="Manifests", title_justify="left")
    for key, (a, b) in compared["differs"].items():
        table.add_row(escape(_label(key)), *(escape(_in_words(key, value)) for value in (a, b)))
    yield table
    table = Table("field", "tokens added", "tokens removed", title="Vocabulary", title_justify="left")
    for field, change in compared["vocabulary"].items():
        table.add_row(escape(field), *(escape(_some(change[what])) for what in ("added", "removed")))
    yield table
    yield _quantile_table(compared["quantiles"], names)


def _words(a: Vocabulary, b: Vocabulary) -> Json:
    """Of each field of either, the tokens that only the other one knows."""
    known = [dict(zip(v.fields, v.tokens, strict=True)) for v in (a, b)]
    found = {}
    for field in dict.fromkeys([*a.fields, *b.fields]):
        before, after = (dict.fromkeys(tokens.get(field, ())) for tokens in known)
        added, removed = [t for t in after if t not in before], [t for t in before if t not in after]
        if added or removed:
            found[field] = {"added": added, "removed": removed}
    return found


def _some(tokens: list[str]) -> str:
    more = f" and {len(tokens) - _SHOWN:,} more" if len(tokens) > _SHOWN else ""
    return ", ".join(tokens[:_SHOWN]) + more


def _calibrations(learned: Learned) -> Iterator[tuple[str, Calibration]]:
    yield "records", learned.records
    yield "sessions", learned.sessions


def _quantiles(calibration: Calibration) -> dict[str, float | None]:
    """The score above which p-values are as small as each or smaller; None where none is."""
    beyond = calibration.p_values(np.nextafter(calibration.levels, np.float32(np.inf)))
    found: dict[str, float | None] = {}
    for p in _P_VALUES:
        reached = np.flatnonzero(beyond <= p)
        found[f"{p:g}"] = float(calibration.levels[reached[0]]) if len(reached) else None
    return found


def _quantile_table(quantiles: Mapping[str, list[dict[str, float | None]]], names: list[str]) -> Table:
    columns = [f"{what}: {name}" for what in quantiles for name in names]
    table = Table("p-value", *columns, title="Scores above which p-values are as small", title_justify="left")
    for p in next(iter(quantiles.values()))[0]:
        scores = [of_one[p] for of_both in quantiles.values() for of_one in of_both]
        table.add_row(p, *("never" if score is None else f"{score:.2f}" for score in scores))
    return table


def flat(value: Mapping[str, Any], prefix: str = "") -> Json:
    """Nested keys joined by dots.

    >>> flat({"a": {"b": 1}, "c": [1, 2]})
    {'a.b': 1, 'c': [1, 2]}
    """
    found: Json = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return found


def _rows(title: str, rows: Mapping[str, Any]) -> Table:
    table = Table("", Column(overflow="fold"), title=title, title_justify="left", show_header=False)
    for key, value in rows.items():
        table.add_row(escape(_label(key)), escape(_in_words(key, value)))
    return table


def _label(key: str) -> str:
    return key.replace("_", " ").removesuffix(" ms")


def _in_words(key: str, value: Any) -> str:
    """A value as people write it; the key's last part says what it is."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(_in_words("", inner) for inner in value) or "none"
    if key.endswith("_ms") and isinstance(value, int):
        is_moment = key.rpartition(".")[2] in {"first_ms", "last_ms"}
        return iso(value) if is_moment else format_duration_ms(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
