"""docs/guarantees.md names a test for each promise, and each of these exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def named() -> list[tuple[str, str]]:
    """File and function of each test in the table of promises."""
    text = (ROOT / "docs/guarantees.md").read_text("utf-8")
    rows = [line for line in text.split("## Not promised")[0].splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) == text.split("## Not promised")[0].count("\n| ") - 1  # the heading apart, each row names one
    return [match for row in rows for match in re.findall(r"`(tests/[^`:]+)::(\w+)`", row)]


def test_every_promise_names_a_test_that_exists() -> None:
    """A renamed or deleted test cannot leave a promise without proof."""
    assert len(named()) >= 20
    for path, function in named():
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (path, function)
