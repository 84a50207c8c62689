"""`models_dir/STREAM/.training`: what a training leaves after each epoch, so that `--resume` can go on from there."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.training_state import TrainingState, load_state, save_state
from pipeline.errors import TrainingRunsError

NAME = ".training"


class TrainingFolder:
    """The folder of one training; made by `training_folder`."""

    def __init__(self, path: Path, *, resumes: bool) -> None:
        self.path = path
        self.resumes = resumes

    def load(self, name: str) -> TrainingState | None:
        """Where the training of that name stood, if we are to go on from it."""
        return load_state(self._file(name)) if self.resumes else None

    def keep(self, name: str, state: TrainingState) -> None:
        """Replace what is saved of the training of that name."""
        save_state(self._file(name), state)

    def remove(self) -> None:
        """The bundle is written: nothing is left to go on with."""
        shutil.rmtree(self.path)

    @property
    def holds_states(self) -> bool:
        """Whether an epoch was saved."""
        return any(self.path.glob("*.safetensors"))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


@contextmanager
def training_folder(directory: Path, name: str = NAME, *, resumes: bool) -> Iterator[TrainingFolder]:
    """The folder of a stream's training, locked while it runs; gone afterwards unless there is something to resume.

    Parameters
    ----------
    directory
        Of the stream's bundles.
    name
        What the folder is called there.
    resumes
        Keep what an earlier training has left; otherwise begin with an empty folder.

    Raises
    ------
    TrainingRunsError
        Another process is training this stream.
    """
    path = directory / name
    path.mkdir(parents=True, exist_ok=True)
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another `offbeat train` of {directory.name} is running; wait until it has ended, or end it"
            raise TrainingRunsError(message) from None
        folder = TrainingFolder(path, resumes=resumes)
        if not resumes:
            for old in path.glob("*.safetensors*"):
                old.unlink()
        try:
            yield folder
        finally:
            if path.exists() and not folder.holds_states:
                folder.remove()
