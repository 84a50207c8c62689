"""`offbeat incidents`: which there are, one in full, and what was kept from counting."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pipeline.incident_reader import read_incident, read_incidents, read_states
from pipeline.sessions import iso
from pipeline.settings import Settings

Json = dict[str, Any]
_console = Console(highlight=False)


def list_incidents(settings: Settings, *, only_open: bool, as_json: bool) -> None:
    """Print each incident as it was last told."""
    found = [i for i in read_incidents(settings).values() if not only_open or i["type"] in {"opened", "updated"}]
    if as_json:
        print(json.dumps(found))
        return
    if not found:
        print("There is no open incident." if only_open else "There is no incident.")
        return
    table = Table(*(Column(name, no_wrap=True) for name in ("began", "state", "severity")), "what", "id")
    for incident in found:
        table.add_row(*map(escape, (iso(incident["start_ms"]), state_of(incident), incident["severity"],
                                    incident["summary"], incident["id"])))  # fmt: skip
    _console.print(table)


def list_suppressed(settings: Settings, *, as_json: bool) -> None:
    """Print what mutes and maintenance windows kept from counting: how many anomalies, and the last of them."""
    found = [
        {"by": name, **msgspec.to_builtins(suppressed)}
        for state in read_states(settings) for name, suppressed in sorted(state.suppressed.items())
    ]  # fmt: skip
    if as_json:
        print(json.dumps(found))
        return
    for row in found:
        print(f"{row['by']}: {row['count']:,} anomalies from {iso(row['first_ms'])} to {iso(row['last_ms'])}, such as")
        for example in row["last"][-3:]:
            print(f"  {example['id']}")
    if not found:
        print("Nothing was suppressed.")


def show_incident(settings: Settings, name: str, *, as_json: bool) -> None:
    """Print one incident in full."""
    incident = read_incident(settings, name)
    print(json.dumps(incident) if as_json else "\n".join(in_words(incident)))


def state_of(incident: Json) -> str:
    """Open, closed or merged."""
    return "open" if incident["type"] in {"opened", "updated"} else str(incident["type"])


def in_words(incident: Json) -> list[str]:
    """An incident as lines for people."""
    lines = [
        incident["summary"],
        f"id          {incident['id']}",
        f"state       {state_of(incident)}, revision {incident['revision']}, severity {incident['severity']}",
        f"from        {iso(incident['start_ms'])}",
        f"{'to' if incident['end_ms'] else 'last seen':<12}{iso(incident['last_ms'])}",
        f"sessions    {incident['sessions']:,}: {', '.join(incident['session_names'][:5])}",
    ]
    if incident["merged_into"]:
        lines.append(f"merged into {incident['merged_into']}")
    if incident["suppressed"]:
        lines.append(f"suppressed  {incident['suppressed']:,} anomalies")
    lines.append("likely causes")
    for rank, cause in enumerate(incident["causes"][:5], 1):
        where = cause["stream"] if cause["segment"] is None else f"{cause['segment']} ({cause['stream']})"
        field = "" if cause["field"] is None else f", {cause['field']}"
        lines.append(f"  {rank}. {where}{field}, since {iso(cause['since_ms'])}, {cause['evidence']:,.1f} nats")
    lines.append("examples")
    lines += [f"  {example['id']}  {iso(example['time_ms'])}" for example in incident["examples"]]
    return lines
