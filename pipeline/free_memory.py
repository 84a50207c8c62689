"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

_KIB = 1_024


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that are available on the machine and within the limit of our control group; None where nobody says.

    Parameters
    ----------
    root
        Where `proc` and `sys` are.
    """
    told = [found for found in (_of_machine(root), _of_group(root)) if found is not None]
    return min(told) if told else None


def _of_machine(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith("MemAvailable:")), None)


def _of_group(root: Path) -> int | None:
    """Of the control group that a container sees as its own (version 2)."""
    folder = root / "sys/fs/cgroup"
    try:
        most = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if most == "max":
        return None
    return max(0, int(most) - used + int(kept.get("inactive_file", 0)))  # files' pages are given back when asked for
