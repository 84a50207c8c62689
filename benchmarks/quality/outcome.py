"""Results of scenarios: a table a core, a floor under each measure, and base beside head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.quality.trial import Measures

TOLERANCES = Path(__file__).with_name("tolerances.json")


@dataclass(frozen=True)
class Outcome:
    """What a scenario measured with one core.

    Attributes
    ----------
    measures
        Higher is better, but for rates of false alarms and costs.
    parts
        Measures of each part, where a scenario has parts.
    whole
        Whether every part ran, in full; figures of less are not held to anything.
    """

    scenario: str
    core: str
    measures: Measures
    cost: Measures
    parts: dict[str, Measures] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    whole: bool = True
    setup: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Itself, as the results file has it."""
        return asdict(self)


def mean_of(parts: Sequence[Measures]) -> Measures:
    """The mean of each measure over parts."""
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def table(outcomes: Sequence[Outcome], base: Sequence[dict[str, Any]] = ()) -> Table:
    """One scenario's measures, a column a core, with the base's beside where there is one."""
    based = {(b["scenario"], b["core"]): b["measures"] | b["cost"] for b in base}
    shown = Table("", title=outcomes[0].scenario)
    for o in outcomes:
        shown.add_column(o.core, justify="right")
        if (o.scenario, o.core) in based:
            shown.add_column(f"{o.core}, base", justify="right")
            shown.add_column("change", justify="right")
    of_parts = {f"{part}: {name}": None for o in outcomes for part in o.parts for name in o.parts[part]}
    names = dict.fromkeys(name for o in outcomes for name in (*o.measures, *o.cost)) | of_parts
    for name in names:
        cells = []
        for o in outcomes:
            ours = _all(o).get(name)
            cells.append(_figure(ours))
            if (o.scenario, o.core) in based:
                theirs = based[o.scenario, o.core].get(name)
                cells += [_figure(theirs), "" if ours is None or theirs is None else f"{ours - theirs:+.4g}"]
        shown.add_row(name, *cells)
    return shown


def failures(outcome: Outcome, tolerances: dict[str, Any]) -> list[str]:
    """A sentence for each measure below its floor; partial runs have none."""
    least = tolerances.get(outcome.scenario, {}).get(outcome.core, {}) if outcome.whole else {}
    return [
        f"{outcome.scenario} with {outcome.core}: {name} is {outcome.measures.get(name, float('nan')):.4g}, "
        f"at least {floor:g} is wanted"
        for name, floor in least.items()
        if not outcome.measures.get(name, float("nan")) >= floor  # a measure that is missing or NaN fails too
    ]


def read_tolerances() -> dict[str, Any]:
    """Scenario, core, measure: the least value."""
    found: dict[str, Any] = json.loads(TOLERANCES.read_text())
    return found


def _all(outcome: Outcome) -> Measures:
    of_parts = {f"{part}: {name}": value for part, found in outcome.parts.items() for name, value in found.items()}
    return outcome.measures | outcome.cost | of_parts


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
