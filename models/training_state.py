"""What a training needs to go on after its process was killed: one file, replaced in one step after each epoch.

The file is safetensors: arrays, and plain JSON in its header. Nothing in it is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from models.errors import ResumeError
from models.sequences import Sequences
from models.spec import ModelSpec

FORMAT = 1
_OTHERS = {
    "data": "other data", "seed": "another seed", "options": "other options", "model": "another model",
    "format": "another version of offbeat",
}  # fmt: skip


@dataclass(frozen=True)
class TrainingState:
    """A training between two epochs.

    Attributes
    ----------
    began
        What it was begun with, as `beginning` gives it.
    plain
        JSON: epochs so far, learning rate, shuffling, and whether it is over.
    arrays
        Weights, the best so far, the optimizer's averages, torch's generator.
    """

    began: dict[str, Any]
    plain: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    def part(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays whose names begin with `name.`, without that."""
        return {key.removeprefix(f"{name}."): a for key, a in self.arrays.items() if key.startswith(f"{name}.")}


def beginning(sequences: Sequences, validation: Sequences, spec: ModelSpec, options: Any) -> dict[str, Any]:
    """JSON that tells apart trainings that would end otherwise: data (by its SHA-256), seed, options, model."""
    data = sha256()
    for part in (sequences, validation):
        values = () if part.values is None else (part.values,)
        for array in (part.starts, part.ended, part.log_gap, part.tokens, *values):
            data.update(np.ascontiguousarray(array).data)
    wanted = asdict(options)
    seed = wanted.pop("seed")
    began = {"format": FORMAT, "data": data.hexdigest(), "seed": seed, "model": spec.to_json(), "options": wanted}
    return json.loads(json.dumps(began))  # type: ignore[no-any-return]


def check_resumable(state: TrainingState, began: Mapping[str, Any]) -> None:
    """Whether a training may go on from what another run has saved.

    Raises
    ------
    ResumeError
        That run had other data, another seed, or other options, and would have come to another end.
    """
    differs = [words for what, words in _OTHERS.items() if state.began.get(what) != began[what]]
    if differs:
        message = (
            f"the training that was interrupted had {' and '.join(differs)} than this one, so it cannot go on from "
            "there; repeat its command as it was, with --since and --until as points in time, or leave out --resume to "
            "begin anew"
        )
        raise ResumeError(message)


def save_state(path: Path, state: TrainingState) -> None:
    """Replace the file in one step: whoever reads sees this state or the one before, whole."""
    header = {"began": state.began, "plain": state.plain}
    arrays = {name: np.ascontiguousarray(array) for name, array in sorted(state.arrays.items())}
    data = save(arrays, metadata={"training": json.dumps(header)})
    scratch = path.with_name(f"{path.name}.writing")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def load_state(path: Path) -> TrainingState | None:
    """What `save_state` wrote; None if nothing was written yet.

    Raises
    ------
    ResumeError
        The file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            header = json.loads(file.metadata()["training"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        return TrainingState(header["began"], header["plain"], arrays)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        message = f"{path} is damaged, so the training cannot go on from there; leave out --resume to begin anew"
        raise ResumeError(message) from None
