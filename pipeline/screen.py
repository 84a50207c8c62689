"""What commands show beside their results: progress and remarks, on stderr, so that `--json | jq` sees results only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

screen = Console(stderr=True, highlight=False)


@contextmanager
def progress_bar(what: str, total: float | None) -> Iterator[Callable[[float, str], None]]:
    """A bar; the function given sets how far it is and a remark."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )  # fmt: skip
    with Progress(*columns, console=screen, transient=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=total, remark="")

        def update(completed: float, remark: str) -> None:
            bar.update(task, completed=completed, remark=remark)

        yield update
