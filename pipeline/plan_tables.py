"""The tables of docs/capacity.md, made by the same lines as `offbeat plan`, so that the two cannot disagree."""

from __future__ import annotations

import re

from detectors.rows import RowShape
from features.profiles import ENTRIES
from pipeline.capacity import Load, make_plan
from pipeline.plan_report import as_table, remarks
from pipeline.unit_costs import UnitCosts, read_unit_costs

LOADS = ((10_000.0, 100_000), (1_000_000.0, 10_000_000), (100_000_000.0, 1_000_000_000))  # events/s, live sessions
_USUAL = RowShape(64, 32, 1, profile=ENTRIES)
_BLOCK = re.compile(r"<!-- (?!end)(\w+) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(text: str) -> str:
    """The document, with what stands between `<!-- NAME -->` and `<!-- end -->` made anew."""
    made = tables()
    return _BLOCK.sub(lambda found: f"<!-- {found[1]} -->\n{made[found[1]]}\n<!-- end -->", text)


def tables() -> dict[str, str]:
    """Each table by its name."""
    costs = read_unit_costs()
    return {
        "costs": _of_costs(costs), "cores": _of_cores(costs), "uniform": _of_loads(costs, zipf=False),
        "zipf": _of_loads(costs, zipf=True),
    }  # fmt: skip


def _of_loads(costs: UnitCosts, *, zipf: bool) -> str:
    plans = [make_plan(Load(rate, sessions, _USUAL, zipf=zipf), costs) for rate, sessions in LOADS]
    said = [f"- {plan.load.events_per_s:,.0f} events/s: {' '.join(remarks(plan))}" for plan in plans]
    return "\n".join([as_table([(plan, costs) for plan in plans]), "", *said])


def _of_costs(costs: UnitCosts) -> str:
    rows = [
        f"| `{name}` | {_figure(getattr(costs, name))} | {field.description} |"
        for name, field in UnitCosts.model_fields.items()
        if name != "cores"
    ]
    return "\n".join(["| cost | figure | of what |", "|---|---|---|", *rows])


def _of_cores(costs: UnitCosts) -> str:
    rows = [
        f"| {core} | {width or ''} | {of.record_us:.2f} | {of.field_us:.2f} | {of.number_us:.2f} |"
        for core, widths in costs.cores.items()
        for width, of in sorted(widths.items())
    ]
    head = ["| core | hidden | us a record | each further token field | each number |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}" if value < 1_000 else f"{value:,.0f}"
