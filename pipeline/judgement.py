"""What `offbeat backtest` says: verdicts held against labels, as models, as a table and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from detectors.judging import Curve, count, interval, precision_recall

_Share = Annotated[float | None, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class FalseAlarms(_Part):
    """The promised rate of false alarms beside the kept one."""

    promised: float = Field(
        description="The stream's promise.false_alarm_rate, or what its promise.alert_budget makes by the bundle."
    )
    kept: _Share = Field(description="Share of what is normal that was alarmed; null where nothing is normal.")
    low: float = Field(description="Lower end of the 95 % interval of the kept rate (Wilson's score interval).")
    high: float = Field(description="Upper end of it. Only above `promised` does `low` speak against the promise.")


class TimeToDetect(_Part):
    """How long after their begin labelled ranges were found."""

    ranges: int = Field(description="Labelled ranges.")
    found: int = Field(description="Those with an alarm in them.")
    median_ms: float | None = Field(description="From the begin to the first alarm, of the ranges found.")
    p90_ms: float | None = Field(description="Nine of ten ranges found were found within this time.")


class Judgement(_Part):
    """Verdicts of one kind, records or sessions, against the labels."""

    judged: int = Field(description="Verdicts judged; of sessions labelled by name, names.")
    not_judged: int = Field(description="Verdicts left out, for their label is not known.")
    unscored: int = Field(description="Of those judged, how many have no score, so that they cannot be alarmed.")
    anomalous: int = Field(description="Of those judged, how many the labels call anomalous.")
    alarmed: int = Field(description="Of those judged, how many are alarmed.")
    precision: _Share = Field(description="Share of the alarms that are right; null without alarms.")
    recall: _Share = Field(description="Share of what is anomalous that is alarmed; null where nothing is.")
    f1: _Share = Field(description="Their harmonic mean, at the calibrated threshold.")
    auc_pr: _Share = Field(description="Area under the precision-recall curve of the scores (average precision).")
    false_alarms: FalseAlarms
    time_to_detect: TimeToDetect | None = Field(description="Null unless the labels are ranges.")


class KeptBudget(_Part):
    """Alarms a day of event time beside the budget, records and sessions together."""

    promised: float = Field(description="The stream's promise.alert_budget.")
    alarms: float = Field(description="All alarms a day of the input.")
    false_alarms: float = Field(description="Those a day that the labels call normal; where they judge one kind, its.")


class Backtest(_Part):
    """What `offbeat backtest --json` prints."""

    stream: str
    model: str = Field(description="Digest of the bundle that scored.")
    labels: Literal["sessions", "lines", "ranges"] = Field(description="What the labels are about.")
    unused_labels: int = Field(description="Labels of sessions, lines or ranges that do not occur in the input.")
    records: Judgement | None = Field(description="Null where the labels say nothing about records.")
    sessions: Judgement | None = Field(description="Null where no session ended.")
    budget: KeptBudget | None = Field(None, description="Null without promise.alert_budget.")


@dataclass(frozen=True)
class Held:
    """Verdicts of one kind held against labels, as (n,) columns.

    Attributes
    ----------
    anomalous, known
        What the labels say, and whether they say anything; what is not known is not judged.
    score
        NaN where there is none.
    found_after_ms
        (r,) of each labelled range how long it took to be found, NaN where it was not; None without ranges.
    """

    anomalous: NDArray[np.bool_]
    known: NDArray[np.bool_]
    score: NDArray[np.float64]
    alarmed: NDArray[np.bool_]
    found_after_ms: NDArray[np.float64] | None = None

    @property
    def curve(self) -> Curve | None:
        """Precision and recall at every threshold; None where nothing is anomalous."""
        return precision_recall(self.score[self.known], self.anomalous[self.known])


def judge(held: Held, promise: float) -> Judgement:
    """Measures at the calibrated threshold, and over all thresholds the curve's area."""
    anomalous, alarmed = held.anomalous[held.known], held.alarmed[held.known]
    counts, curve = count(alarmed, anomalous), held.curve
    low, high = interval(int(counts.false_alarms), int(counts.false_alarms + counts.passed))
    return Judgement(
        judged=len(anomalous),
        not_judged=int((~held.known).sum()),
        unscored=int(np.isnan(held.score[held.known]).sum()),
        anomalous=int(anomalous.sum()),
        alarmed=int(alarmed.sum()),
        precision=counts.precision,
        recall=counts.recall,
        f1=counts.f1,
        auc_pr=None if curve is None else min(1.0, curve.area),
        false_alarms=FalseAlarms(promised=promise, kept=counts.false_alarm_rate, low=low, high=high),
        time_to_detect=None if held.found_after_ms is None else _time_to_detect(held.found_after_ms),
    )


def _time_to_detect(found_after_ms: NDArray[np.float64]) -> TimeToDetect:
    found = found_after_ms[~np.isnan(found_after_ms)]
    return TimeToDetect(
        ranges=len(found_after_ms),
        found=len(found),
        median_ms=float(np.median(found)) if len(found) else None,
        p90_ms=float(np.quantile(found, 0.9, method="inverted_cdf")) if len(found) else None,
    )


def table(backtest: Backtest) -> Table:
    """The measures, a column for records and one for sessions."""
    parts = {name: part for name in ("records", "sessions") if (part := getattr(backtest, name)) is not None}
    shown = Table("", title=f"{backtest.stream}, model {backtest.model[:12]}, labels of {backtest.labels}")
    for name in parts:
        shown.add_column(name, justify="right")
    if (budget := backtest.budget) is not None:
        shown.caption = (
            f"alarms a day: {budget.promised:.3g} in the budget, {budget.alarms:.3g} in all, "
            f"{budget.false_alarms:.3g} of them false"
        )
    for row in zip(*(_rows(part) for part in parts.values()), strict=True):
        shown.add_row(row[0][0], *(cell for _, cell in row))
    return shown


def _rows(part: Judgement) -> list[tuple[str, str]]:
    alarms, detect = part.false_alarms, part.time_to_detect
    rows = [
        ("judged", f"{part.judged:,}"), ("anomalous by the labels", f"{part.anomalous:,}"),
        ("alarmed", f"{part.alarmed:,}"),
        ("precision", _figure(part.precision)), ("recall", _figure(part.recall)), ("F1", _figure(part.f1)),
        ("AUC-PR", _figure(part.auc_pr)),
        ("false alarms promised", f"{alarms.promised:.3g}"),
        ("false alarms kept", "-" if alarms.kept is None else f"{alarms.kept:.3g}"),
        ("  95 % interval", f"{alarms.low:.2g} to {alarms.high:.2g}"),
    ]  # fmt: skip
    if detect is not None:
        rows += [
            ("ranges found", f"{detect.found:,} of {detect.ranges:,}"),
            ("time to detect, median", _duration(detect.median_ms)), ("  90th percentile", _duration(detect.p90_ms)),
        ]  # fmt: skip
    return rows


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _duration(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    units = (("h", 3_600_000), ("min", 60_000), ("s", 1_000))
    unit, size = next((found for found in units if milliseconds >= 2 * found[1]), units[-1])
    return f"{milliseconds / size:.3g} {unit}"
