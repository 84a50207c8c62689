"""2,000 log lines of each of seven systems, with their true groups; read from beside the repository, never copied."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path
from typing import NamedTuple

SHARED = Path(os.environ.get("SHARED", Path(__file__).resolve().parents[2] / "shared"))
SYSTEMS = ("Apache", "BGL", "HDFS", "Hadoop", "OpenSSH", "OpenStack", "Spark")


class System(NamedTuple):
    """A system's whole lines, the message in each, and the group the message belongs to."""

    name: str
    lines: list[str]
    messages: list[str]
    groups: list[str]


def available(shared: Path = SHARED) -> bool:
    """Whether the labelled data is here."""
    return (shared / "data" / "loghub2k").is_dir()


def load(name: str, shared: Path = SHARED) -> System:
    """One of the seven."""
    stem = shared / "data" / "loghub2k" / f"{name}_2k.log"
    with gzip.open(f"{stem}_structured.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with gzip.open(f"{stem}.gz", "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    return System(name, lines, [row["Content"] for row in rows], [row["EventId"] for row in rows])
