"""What one record, one row and one worker cost, as a benchmark measured them: all that `offbeat plan` multiplies.

Offbeat's own figures stand in unit_costs.json; `python -m benchmarks unit-costs --out FILE` measures those of another
machine, in the same format.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from pipeline.errors import UsageError
from pipeline.stream_settings import Section

OURS = Path(__file__).parent / "unit_costs.json"


class CoreCosts(Section):
    """Processor time of a core for a record, at one width."""

    record_us: float = Field(ge=0, description="With one token field; of cores that go by numbers, with none.")
    field_us: float = Field(ge=0, description="Of each further token field.")
    number_us: float = Field(ge=0, description="Of each number.")


class UnitCosts(Section):
    """Processor times are microseconds of one core; a KB is 1,000 bytes of a saved row with its key."""

    machine: str = Field(description="The processor, and how many cores of it.")
    measured: str = Field(description="The day.")
    record_us: float = Field(
        ge=0,
        description="Of a record with one token field, from fetching to telling: all but the core.",
    )
    field_us: float = Field(ge=0, description="Of each further token field, the core's part apart.")
    number_us: float = Field(ge=0, description="Of each number, the core's part apart.")
    cores: dict[str, dict[int, CoreCosts]] = Field(
        min_length=1, description="By core and model.hidden; 0 for cores that have no width."
    )
    repartition_us: float = Field(ge=0, description="Of bringing a record to an internal topic.")
    session_us: float = Field(ge=0, description="Of a session, for its beginning and its end.")
    row_read_us: float = Field(ge=0, description="Of a row that is not in memory.")
    row_saved_us: float = Field(ge=0, description="Of a row in a checkpoint, to changelog and RocksDB.")
    row_saved_kb_us: float = Field(ge=0, description="Of each KB of it.")
    row_replayed_us: float = Field(gt=0, description="Of a row that is read back from the changelog, by the clock.")
    row_replayed_kb_us: float = Field(ge=0, description="Of each KB of it.")
    checkpoint_us: float = Field(ge=0, description="Of a checkpoint without rows.")
    base_bytes: int = Field(ge=0, description="Memory of a busy worker but for its rows and what torch maps.")
    torch_bytes: int = Field(ge=0, description="What torch maps, where a core has no kernel.")
    row_object_bytes: int = Field(ge=0, description="Of a row in memory beside its columns: its name, its place.")
    space_amplification: float = Field(ge=1, description="Bytes on disk for a byte of rows.")
    write_amplification: float = Field(ge=1, description="Bytes written to disk for a byte of rows saved.")
    decision_bytes: int = Field(ge=0, description="Of a decision as a message, headers included.")
    anomaly_bytes: int = Field(ge=0, description="Of an anomaly likewise.")

    def of_core(self, core: str, hidden: int) -> CoreCosts:
        """What a core costs at a width.

        Raises
        ------
        UsageError
            Nobody measured it.
        """
        widths = self.cores.get(core)
        if widths is None:
            message = f"the costs have no core {core}; they have {', '.join(self.cores)}: name one by --core"
            raise UsageError(message)
        found = widths.get(hidden, widths.get(0))
        if found is None:
            known = ", ".join(str(width) for width in sorted(widths))
            message = f"the costs have no {core} with {hidden} hidden numbers; they have {known}: name one by --hidden"
            raise UsageError(message)
        return found


def read_unit_costs(path: Path = OURS) -> UnitCosts:
    """The costs in a file.

    Raises
    ------
    UsageError
        It cannot be read, or holds something else.
    """
    try:
        return UnitCosts.model_validate_json(path.read_bytes())
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise UsageError(message) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        message = (
            f"{path} holds no unit costs ({where}: {first['msg'].lower()}); "
            "`python -m benchmarks unit-costs --out FILE` measures and writes them"
        )
        raise UsageError(message) from error
