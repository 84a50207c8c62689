"""Sequences lie in a few arrays, in memory or in files that leave nothing behind."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import ScratchError
from models.scratch import Scratch
from models.sequences import Sequence, Sequences, batches
from models.spec import ModelSpec
from models.training import TrainingOptions, train

clock = itertools.count().__next__
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def sessions(lengths: list[int]) -> list[Sequence]:
    rng = np.random.default_rng(len(lengths))
    return [Sequence(rng.integers(2, 6, (n, 2)).astype(np.int32), rng.random(n).astype(np.float32), n % 2 == 0)
            for n in lengths]  # fmt: skip


@given(LENGTHS)
def test_what_was_put_in_comes_out(lengths: list[int]) -> None:
    """Each session comes back as it was, by its number and in order."""
    given_ = sessions(lengths)
    found = Sequences.of(given_)
    assert len(found) == len(given_)
    assert found.lengths.tolist() == lengths
    for one, other in zip(given_, found, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.log_gap, other.log_gap)
        assert one.ended == other.ended


@given(LENGTHS, st.integers(4, 100), st.integers(0, 3))
def test_batches_hold_each_session_once_and_little_padding(lengths: list[int], most: int, seed: int) -> None:
    """Every session drawn comes once; only a batch of one may hold more events than it should, padding included."""
    found = list(batches(np.array(lengths), np.arange(len(lengths)), most, np.random.default_rng(seed)))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or (max(lengths[n] for n in batch) + 1) * len(batch) <= most


def in_files(of: Sequences, scratch: Scratch) -> Sequences:
    def moved(array: NDArray[Any]) -> NDArray[Any]:
        to = scratch.empty(array.shape, array.dtype)
        to[:] = array
        return to

    return Sequences(moved(of.tokens), moved(of.log_gap), of.starts, of.ended)


def test_training_from_files_is_training_from_memory(tmp_path: Path) -> None:
    """The weights are the same bit by bit, and the folder is empty all the while."""
    lengths = [1 + n % 11 for n in range(80)]
    memory = Sequences.of(sessions(lengths))
    mapped = in_files(memory, Scratch(tmp_path, most_in_memory=0))
    assert isinstance(mapped.tokens, np.memmap)
    seen: list[list[Path]] = []
    spec, options = ModelSpec("gru", 16, (6, 6)), TrainingOptions(max_epochs=3)
    one = train(memory, memory, spec, options, lambda _: None, clock)
    other = train(mapped, mapped, spec, options, lambda _: seen.append(list(tmp_path.iterdir())), clock)
    assert all((one[name] == other[name]).all() for name in one)
    assert seen == [[], [], []]


def test_small_arrays_stay_in_memory(tmp_path: Path) -> None:
    """Files are for what is larger than said, and only where there is a folder for them."""
    assert not isinstance(Scratch(tmp_path, most_in_memory=800).empty((100,), np.int64), np.memmap)
    assert isinstance(Scratch(tmp_path, most_in_memory=799).empty((100,), np.int64), np.memmap)
    assert not isinstance(Scratch(None, most_in_memory=0).empty((100,), np.int64), np.memmap)


def test_a_full_disk_is_said_at_once(tmp_path: Path) -> None:
    """What the disk has no room for is refused before anything is written; nothing stays behind."""
    with pytest.raises(ScratchError, match="take 1125899"):
        Scratch(tmp_path).empty((2**50,), np.int8)
    assert list(tmp_path.iterdir()) == []
