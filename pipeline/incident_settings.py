"""The section `incidents` of the config."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from detectors.incident_state import Maintenance
from detectors.incidents import IncidentRules
from pipeline.stream_settings import DurationMs, Section


class MaintenanceSettings(Section):
    """A span of event time in which anomalies count for no incident."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    begin: datetime = Field(alias="from", description="When it begins, ISO 8601; UTC where it has no zone.")
    until: datetime = Field(description="When it ends.")
    streams: list[str] = Field(default_factory=list, description="Of these streams; empty: of all.")
    segments: list[str] = Field(default_factory=list, description="Of these segments; empty: of all.")

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> MaintenanceSettings:
        if _ms(self.until) <= _ms(self.begin):
            message = f"the window ends at {self.until}, before it begins at {self.begin}"
            raise ValueError(message)
        return self

    @property
    def window(self) -> Maintenance:
        """The same as plain numbers."""
        return Maintenance(_ms(self.begin), _ms(self.until), tuple(self.streams), tuple(self.segments))


class IncidentSettings(Section):
    """Anomalies that belong together, as incidents."""

    enabled: bool = Field(True, description="Whether workers make incidents of anomalies.")
    by: Literal["app", "segment"] = Field(
        "app", description="app: an incident may span all streams. segment: it stays within one segment."
    )
    false_per_day: float = Field(
        1.0, gt=0, le=1_000,
        description="False incidents a day that are put up with where all is normal; by segment, in each of them.",
    )  # fmt: skip
    together: DurationMs = Field(
        120_000, ge=1_000, description="Streams and segments that go wrong within that of each other are one incident."
    )
    quiet: DurationMs = Field(
        600_000, ge=1_000, description="An incident is over once nothing has belonged to it for so long."
    )
    maintenance: list[MaintenanceSettings] = Field(
        default_factory=list, max_length=1_000, description="Spans of time in which anomalies count for no incident."
    )

    @model_validator(mode="after")
    def _is_quiet_for_longer(self) -> IncidentSettings:
        if self.quiet < self.together:
            message = "quiet must be at least as long as together, or parts of one incident would end before they meet"
            raise ValueError(message)
        return self

    @property
    def rules(self) -> IncidentRules:
        """The same as the incident stage takes it."""
        windows = tuple(window.window for window in self.maintenance)
        return IncidentRules(self.false_per_day, self.together, self.quiet, windows)


def _ms(moment: datetime) -> int:
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
