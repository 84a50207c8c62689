"""What a drift event says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DriftType = Literal["input_drift", "unknown_drift", "surprise_drift", "calibration_drift", "concept_drift"]
Action = Literal["retrain", "recalibrate", "watch"]

# What helps, as a word for whoever decides on it: only a new training knows the inputs as they are now; where these are
# as they were and only p-values are off, new calibration data will do.
ACTIONS: dict[DriftType, Action] = {
    "input_drift": "retrain", "unknown_drift": "retrain", "surprise_drift": "retrain", "concept_drift": "retrain",
    "calibration_drift": "recalibrate",
}  # fmt: skip


@dataclass(frozen=True)
class DriftEvent:
    """A stream began to differ from training, for good as far as can be told, or no longer does.

    Attributes
    ----------
    type, field
        What differs, and of which field; None where it is about the model's scores.
    has_begun
        Else it has ended.
    offset
        Of the record at whose count this was seen.
    since_ms
        Event time of the first record of the first interval that differed.
    records
        How many were counted since.
    statistic
        psi and ks of a histogram, unknown for a share of the records, surprise for a mean in nats, errors for a share
        of the labelled records.
    amount, usual, limit
        The statistic now, the highest in training, and from where on it is drift; in the statistic's unit.
    p_value
        How often training would look so by chance, were its intervals independent, times the number of things judged.
    action
        What would help.
    """

    type: DriftType
    field: str | None
    has_begun: bool
    offset: int
    since_ms: int | None
    records: int
    statistic: str
    amount: float
    usual: float
    limit: float
    p_value: float

    @property
    def action(self) -> Action:
        """What would help; once it is over, nothing need be done."""
        return ACTIONS[self.type] if self.has_begun else "watch"

    @property
    def confidence(self) -> float:
        """One less the p-value, in [0, 1]."""
        return 1.0 - min(1.0, self.p_value)
