"""Room for large arrays: in memory, or beyond a size in files that nobody sees and that vanish with the process."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from models.errors import ScratchError

MOST_IN_MEMORY = 256 << 20


@dataclass(frozen=True)
class Scratch:
    """Where arrays lie.

    Attributes
    ----------
    folder
        For files; absent: all arrays are in memory.
    most_in_memory
        Bytes of the largest array that stays in memory.
    """

    folder: Path | None = None
    most_in_memory: int = MOST_IN_MEMORY

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array to be filled.

        A file has no name, so it is gone as soon as nothing uses it, also after a kill; and it takes its room at once,
        so that a full disk is found here and not by a signal while writing.

        Raises
        ------
        ScratchError
            The folder has no room for it.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.folder is None or size <= self.most_in_memory:
            return np.empty(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, dtype, "r+", shape=shape)
        except OSError as error:
            message = (
                f"the sessions to learn from take {size / 1e9:.1f} GB in {self.folder}, and there is no room for them "
                f"({error.strerror}); free some, or move models_dir"
            )
            raise ScratchError(message) from None


IN_MEMORY = Scratch()
