"""What figures depend on: the machine and the versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Facts that a result carries."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    packages = ("faust-streaming", "aiokafka", "numba", "numpy", "rocksdict", "torch")
    return {
        "processor": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
