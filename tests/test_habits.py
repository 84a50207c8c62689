"""Habits of the house that no linter knows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_says_what_holds(path: Path) -> None:
    """Each test function has a docstring that is a sentence: what holds."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            first = (ast.get_docstring(node) or "").split("\n\n")[0]
            assert first.endswith("."), f"{path}:{node.lineno} {node.name}: {first!r} is no sentence"
            assert len(first.split()) > 3, f"{path}:{node.lineno} {node.name}: {first!r} says too little"


@pytest.mark.parametrize("package", ["pipeline", "models", "features"])
def test_the_error_tree_is_whole(package: str) -> None:
    """errors.py opens with its tree drawn, every class in it; each has a docstring, and is used somewhere."""
    path = ROOT / package / "errors.py"
    tree = ast.parse(path.read_text())
    drawn = ast.get_docstring(tree) or ""
    sources = (p for folder in ("pipeline", "models", "features", "detectors") for p in (ROOT / folder).rglob("*.py"))
    code = "".join(p.read_text() for p in sources)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            assert node.name in drawn, f"{node.name} is not in the tree of {path}"
            assert ast.get_docstring(node), f"{node.name} has no docstring"
            assert len(re.findall(rf"\b{node.name}\b", code)) > 2, f"{node.name} is never raised"
