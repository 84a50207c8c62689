"""`offbeat plan`: how many workers, brokers and bytes a load takes, from the config and from measured unit costs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from detectors.rows import RowShape
from features.profiles import ENTRIES
from models.spec import BY_NUMBERS, CORES, ModelSpec, state_size
from pipeline.capacity import Limits, Load, make_plan
from pipeline.errors import UsageError
from pipeline.plan_report import as_json as json_of
from pipeline.plan_report import lines, remarks
from pipeline.serving import make_parts
from pipeline.settings import CostSettings, Settings, load_settings
from pipeline.stream_settings import ModelSettings
from pipeline.unit_costs import OURS, read_unit_costs
from pipeline.units import parse_duration_ms

_CONTEXT = ModelSettings().context
_console = Console(highlight=False)


@dataclass(frozen=True)
class Asked:
    """What the command line says; None: the config, or a default, does."""

    events_per_second: float
    sessions: int
    zipf: bool = False
    core: str | None = None
    hidden: int | None = None
    token_fields: int | None = None
    numbers: int | None = None
    session_events: float = 50.0
    record_bytes: float = 150.0
    retention: str = "1d"
    headroom: float = 0.4
    partitions_per_worker: int = 1
    replication: int = 3
    broker_mb_per_second: float = 100.0
    broker_tb: float = 10.0


def print_plan(
    asked: Asked, config: Path | None, stream: str | None, costs_file: Path | None, *, as_json: bool
) -> None:
    """Plan, and print it; without a config for a stream that has the defaults.

    Raises
    ------
    UsageError
        What is asked for cannot be planned.
    """
    _refuse_what_is_no_load(asked)
    costs = read_unit_costs(OURS if costs_file is None else costs_file)
    settings = None if config is None else load_settings(config)
    load = load_of(asked, settings, stream)
    limits = Limits(
        use=1.0 - asked.headroom, partitions_per_worker=asked.partitions_per_worker, replication=asked.replication,
        broker_bytes_per_s=asked.broker_mb_per_second * 1e6, broker_bytes=asked.broker_tb * 1e12,
    )  # fmt: skip
    plan, money = make_plan(load, costs, limits), CostSettings() if settings is None else settings.costs
    if as_json:
        print(json.dumps(json_of(plan, costs, money)))
        return
    table = Table(Column("", no_wrap=True), Column("", no_wrap=True, justify="right"), Column("from"))
    for line in lines(plan, costs, money):
        table.add_row(*line)
    _console.print(table)
    for remark in remarks(plan):
        _console.print(remark, markup=False)
    _console.print(f"Unit costs of {costs.machine}, {costs.measured}; other machines differ.", markup=False)


def _refuse_what_is_no_load(asked: Asked) -> None:
    above_0 = {
        "--events-per-second": asked.events_per_second, "--sessions": asked.sessions,
        "--session-events": asked.session_events, "--record-bytes": asked.record_bytes,
        "--partitions-per-worker": asked.partitions_per_worker, "--replication": asked.replication,
        "--broker-mb-per-second": asked.broker_mb_per_second, "--broker-tb": asked.broker_tb,
    }  # fmt: skip
    for option, value in above_0.items():
        if not 0 < value <= 1e15:  # and NaN is not either
            message = f"{option} {value:g} cannot be planned for: give a number above 0, at most 1e15"
            raise UsageError(message)
    if not 0 <= asked.headroom <= 0.95:
        message = f"--headroom {asked.headroom:g} is no share that can be left free: give one from 0 to 0.95"
        raise UsageError(message)
    for option, count in {"--token-fields": asked.token_fields, "--numbers": asked.numbers}.items():
        if count is not None and not 0 <= count <= 1_000:
            message = f"{option} {count} cannot be planned for: give a whole number from 0 to 1000"
            raise UsageError(message)


def load_of(asked: Asked, settings: Settings | None, stream: str | None) -> Load:
    """The load of a stream; without a config, of one that has the defaults."""
    load = Load(asked.events_per_second, asked.sessions, RowShape(64, _CONTEXT, 1, profile=ENTRIES))
    if settings is not None:
        load = _of_config(load, settings, stream)
    load = replace(
        load, zipf=asked.zipf, session_events=asked.session_events, record_bytes=asked.record_bytes,
        retention_s=_seconds(asked.retention),
    )  # fmt: skip
    if asked.core is None and asked.hidden is None and asked.token_fields is None and asked.numbers is None:
        return load
    return _with_model(load, asked)


def _of_config(load: Load, settings: Settings, stream: str | None) -> Load:
    if stream is None and len(settings.streams) > 1:
        message = f"the config has several streams: say which by --stream, of {', '.join(settings.streams)}"
        raise UsageError(message)
    name = next(iter(settings.streams)) if stream is None else stream
    section, shape = settings.stream(name), make_parts(settings, name, None).shape
    return replace(
        load, shape=shape, cores=section.model.cores, hidden=section.model.hidden, fields=shape.fields,
        numbers=shape.numbers, checkpoint_ms=settings.checkpoint_interval, hot_sessions=settings.state.hot_sessions,
        decisions=settings.decisions.sample, alarms=section.promise.rate(None),
        output_retention_s=settings.topics.retention / 1e3, standbys=settings.state.standby_replicas,
        repartitioned=section.is_repartitioned, exactly_once=settings.delivery == "exactly_once",
    )  # fmt: skip


def _with_model(load: Load, asked: Asked) -> Load:
    """The same with what the command line says of the model; context and profile stay."""
    cores = load.cores if asked.core is None else (asked.core,)
    hidden = load.hidden if asked.hidden is None else asked.hidden
    by_numbers = all(core in BY_NUMBERS for core in cores)
    numbers = load.numbers if asked.numbers is None else asked.numbers
    usual = 0 if asked.core in BY_NUMBERS else load.fields
    token_fields = usual if asked.token_fields is None else asked.token_fields
    unknown = [core for core in cores if core not in {*CORES, *BY_NUMBERS}]
    if unknown:
        message = f"there is no core {unknown[0]}: --core takes {', '.join([*CORES, *BY_NUMBERS])}"
        raise UsageError(message)
    if hidden not in {16, 32, 64, 128, 256}:
        message = f"--hidden {hidden} is no width that a model can have: 16, 32, 64, 128 and 256 are"
        raise UsageError(message)
    if by_numbers and not numbers:
        message = f"the core {cores[0]} judges numbers alone: say how many by --numbers"
        raise UsageError(message)
    if not token_fields and not numbers:
        message = "without token fields and numbers there is nothing to learn from: give --token-fields or --numbers"
        raise UsageError(message)
    widths = (
        state_size(core, 0, 0, numbers)
        if core in BY_NUMBERS
        else ModelSpec(core, hidden, (1,) * (token_fields + numbers), (), load.shape.context).state_numbers
        for core in cores
    )
    profile = (load.shape.profile or ENTRIES) if token_fields else 0
    shape = replace(load.shape, hidden=sum(widths), fields=token_fields, numbers=numbers, profile=profile)
    return replace(load, cores=cores, hidden=hidden, fields=token_fields, numbers=numbers, shape=shape)


def _seconds(duration: str) -> float:
    try:
        return parse_duration_ms(duration) / 1e3
    except ValueError as error:
        message = f"--retention {duration} is no duration: {error}"
        raise UsageError(message) from None
