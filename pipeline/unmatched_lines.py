"""What log lines of a worker matched no template: samples in its folder, for whoever trains next."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from features.templates import Matcher, Templates
from features.unmatched import Unmatched
from pipeline.logs import get_logger
from pipeline.settings import Settings

_WRITE_EVERY_S = 60.0

log = get_logger()


class UnmatchedLines:
    """Samples of a worker's log streams, by stream; taken up again when the worker restarts.

    A sample is for people, and may lack the last minute after a crash.
    """

    def __init__(self, folder: Path, streams: Iterable[str]) -> None:
        self._paths = {name: sample_path(folder, name) for name in streams}
        self.of = {name: _read(path) or Unmatched() for name, path in self._paths.items()}
        self._written = {name: sample.lines for name, sample in self.of.items()}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to write; again is nothing."""
        if self._task is None and self.of:
            self._task = asyncio.create_task(self._keep_writing())

    async def stop(self) -> None:
        """Write a last time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self.write()

    async def _keep_writing(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_EVERY_S)
            self.write()

    def write(self) -> None:
        """Write the samples that have changed."""
        for name, sample in self.of.items():
            if sample.lines != self._written[name]:
                try:
                    _replace(self._paths[name], json.dumps(sample.snapshot()))
                except OSError as error:  # a full disk, say; scoring needs none of this
                    log.warning("unmatched lines cannot be written", stream=name, why=str(error)[:300])
                else:
                    self._written[name] = sample.lines


def sample_path(folder: Path, stream: str) -> Path:
    """Where a worker keeps a stream's sample."""
    return folder / f"{stream}.unmatched.json"


def covered_now(settings: Settings, stream: str, templates: Templates) -> tuple[int, int, list[str]]:
    """What new templates make of the lines that workers on this machine could not match.

    Returns
    -------
    lines, matched, examples
        How many there were of the shapes sampled, how many of these match now, and the most frequent that do not.
    """
    matcher, lines, matched = Matcher(templates), 0, 0
    still: dict[str, tuple[int, str]] = {}
    for path in sorted(settings.data_dir.glob(f"*/{settings.app}/{sample_path(Path(), stream).name}")):
        sample = _read(path)
        for shape, count, example in [] if sample is None else sample.shapes():
            lines += count
            if matcher.match([example]).ids[0] is not None:
                matched += count
            else:
                still[shape] = (count + still.get(shape, (0, ""))[0], example)
    examples = [example for _, example in sorted(still.values(), key=lambda found: (-found[0], found[1]))]
    return lines, matched, examples


def _read(path: Path) -> Unmatched | None:
    """A sample that cannot be read begins anew: it is no state that verdicts depend on."""
    try:
        content: Any = json.loads(path.read_bytes())
        return Unmatched.restore(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("unmatched lines begin anew", file=str(path), why=str(error)[:300])
        return None


def _replace(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_text(text)
    scratch.replace(path)
