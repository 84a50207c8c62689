"""A training that was interrupted after any epoch ends as one that was not; what does not fit is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.errors import ResumeError
from models.sequences import Sequence
from models.spec import ModelSpec
from models.training import Epoch, TrainingOptions, train
from models.training_state import TrainingState, load_state, save_state

SPEC = ModelSpec("gru", 16, (6,))
OPTIONS = TrainingOptions(
    max_epochs=7, batch_tokens=128, contamination=0.1, trim_after=2, by_square_root=True, delayed=0.2
)  # fmt: skip
clock = itertools.count().__next__


def sessions(seed: int, count: int) -> list[Sequence]:
    rng = np.random.default_rng(seed)
    return [
        Sequence(rng.integers(2, 6, (n, 1)).astype(np.int32), rng.random(n).astype(np.float32), ended=True)
        for n in rng.integers(1, 9, count)
    ]


LEARN, CHECK = sessions(0, 80), sessions(1, 20)


def run(
    options: TrainingOptions = OPTIONS, resume: TrainingState | None = None, learn: list[Sequence] = LEARN
) -> tuple[dict[str, np.ndarray], list[Epoch], list[TrainingState]]:
    epochs: list[Epoch] = []
    states: list[TrainingState] = []
    weights = train(learn, CHECK, SPEC, options, epochs.append, clock, resume=resume, keep=states.append)
    return weights, epochs, states


def test_going_on_from_any_epoch_ends_the_same(tmp_path: Path) -> None:
    """From each state that was saved, the weights come out bit by bit, and the epochs but for their speed."""
    whole, epochs, states = run()
    assert len(states) == 7
    for number, state in enumerate(states):
        save_state(tmp_path / "state", state)
        weights, again, later = run(resume=load_state(tmp_path / "state"))
        assert all((weights[k] == whole[k]).all() for k in whole)
        assert [replace(e, events_per_s=0) for e in again] == [replace(e, events_per_s=0) for e in epochs]
        assert len(later) == 6 - number


@pytest.mark.parametrize(
    ("what", "options", "learn"),
    [
        ("another seed", replace(OPTIONS, seed=1), LEARN),
        ("other options", replace(OPTIONS, learning_rate=1e-3), LEARN),
        ("other data", OPTIONS, LEARN[1:]),
    ],
)
def test_another_training_is_not_gone_on_with(what: str, options: TrainingOptions, learn: list[Sequence]) -> None:
    """Other data, another seed or other options would end elsewhere, so they are refused by name."""
    state = run()[2][0]
    with pytest.raises(ResumeError, match=f"had {what} than this one"):
        run(options, state, learn)


def test_nothing_saved_is_no_error_and_damage_is(tmp_path: Path) -> None:
    """Before the first epoch there is no state; of a file that was cut or altered a sentence tells."""
    path = tmp_path / "state"
    assert load_state(path) is None
    save_state(path, run()[2][0])
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\xff" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(ResumeError, match="is damaged"):
            load_state(path)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
