"""What a bundle knows of normal data, and judges by: small, the same after saving, and calm with constants.

How strange scores are is the business of each detector's own tests; here is what all of them have in common.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import detectors
from detectors.calibration import Calibration
from detectors.combined import Combined
from detectors.novelty import Novelty
from detectors.profiles import KnownProfiles, Profiles
from features.profiles import count_sessions
from tests.contracts.test_streams import bound_of

Arrays = dict[str, NDArray[Any]]
Draw = NDArray[np.float64]  # (n,) of [0, 1): how strange each piece of data is
NAMES = ("surprise", "nearest", "pairs")


@dataclass(frozen=True)
class Case:
    """A detector that is learned once; `judge` gives (n,) numbers that rise with strangeness."""

    learn: Callable[[Draw], Any]
    save: Callable[[Any], Arrays]
    read: Callable[[Mapping[str, NDArray[Any]]], Any]
    judge: Callable[[Any, Draw], NDArray[Any]]
    kinds: int = 1  # of numbers that share the bound in its docstring


def _scores(drawn: Draw) -> NDArray[np.float32]:
    return -np.log1p(-drawn).astype(np.float32)


def _three(drawn: Draw) -> NDArray[np.float32]:
    return np.stack([_scores(drawn), 2 * _scores(drawn), np.sqrt(_scores(drawn))], axis=1)


def _profiles(drawn: Draw) -> Profiles:
    """Sessions of as many `a` as `b`; strange ones, drawn above 1 - 1e-9, have one `b` more."""
    of_each = 1 + (drawn * 997).astype(np.int64) % 4
    strange = drawn > 1 - 1e-9
    lengths = 2 * of_each + strange
    session = np.repeat(np.arange(len(drawn)), lengths).astype(np.int32)
    place = np.arange(len(session)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    tokens = np.where(place < np.repeat(of_each, lengths), 11, 13).astype(np.uint64)[:, None]
    return Profiles(*count_sessions(session, tokens, len(drawn)), lengths, 1_000 * lengths)


def _news(known: Novelty, drawn: Draw) -> NDArray[Any]:
    """Of each promise whether news of the field are watched for."""
    return np.array([known.share(promise)[0][0] for promise in np.clip(drawn, 1e-6, 1)], np.float64)


CASES = {
    Calibration: Case(
        lambda drawn: Calibration.learn(_scores(drawn)), lambda known: known.to_arrays("x"),
        lambda arrays: Calibration.from_arrays(arrays, "x"), lambda known, drawn: 1 - known.p_values(_scores(drawn)),
    ),
    Combined: Case(
        lambda drawn: Combined.learn(_three(drawn)), lambda known: known.to_arrays(NAMES),
        lambda arrays: Combined.from_arrays(arrays, NAMES), lambda known, drawn: known.score(_three(drawn)), kinds=3,
    ),
    KnownProfiles: Case(
        lambda drawn: KnownProfiles.learn(_profiles(drawn), 1), KnownProfiles.to_arrays, KnownProfiles.from_arrays,
        lambda known, drawn: known.score(_profiles(drawn)).pairs,
    ),
    Novelty: Case(
        lambda drawn: Novelty.learn(np.array([int((drawn > 0.999).sum())]), len(drawn)), Novelty.to_arrays,
        Novelty.from_arrays, _news,
    ),
}  # fmt: skip
each = pytest.mark.parametrize("case", CASES.values(), ids=[case.__name__ for case in CASES])
STRANGE = np.nextafter(1.0, 0.0)


def normal(n: int, seed: int = 0) -> Draw:
    return 0.999_999 * np.random.default_rng(seed).random(n)


def test_every_detector_has_a_case() -> None:
    """Whatever a bundle keeps as arrays and takes back is held to the contract."""
    found = set()
    for module in pkgutil.iter_modules(detectors.__path__):
        classes = inspect.getmembers(import_module(f"detectors.{module.name}"), inspect.isclass)
        found |= {c for _, c in classes if c.__module__.startswith("detectors.") and hasattr(c, "from_arrays")}
    assert found == set(CASES)


@pytest.mark.parametrize("detector", CASES, ids=lambda detector: detector.__name__)
def test_memory_is_what_the_docstring_says(detector: type) -> None:
    """However much it learns from."""
    case = CASES[detector]
    arrays = case.save(case.learn(normal(200_000)))
    assert sum(array.nbytes for array in arrays.values()) < case.kinds * bound_of(detector)


@each
def test_saving_changes_nothing(case: Case) -> None:
    """Saved and read back in mid-stream it judges what follows by the same bits, and so it does in any slices."""
    known, later = case.learn(normal(5_000)), normal(2_000, seed=1)
    whole = case.judge(known, later)
    again = case.read(case.save(known))
    sliced = [case.judge(known if low < 700 else again, later[low : low + 350]) for low in range(0, len(later), 350)]
    np.testing.assert_array_equal(np.concatenate(sliced), whole)


@each
def test_input_and_knowledge_are_left_untouched(case: Case) -> None:
    """Judging changes neither what is judged nor what is known."""
    taught, later = normal(3_000), normal(500, seed=1)
    copies = taught.copy(), later.copy()
    known = case.learn(taught)
    before = {name: array.copy() for name, array in case.save(known).items()}
    case.judge(known, later)
    np.testing.assert_array_equal(taught, copies[0])
    np.testing.assert_array_equal(later, copies[1])
    for name, array in case.save(known).items():
        np.testing.assert_array_equal(array, before[name])


@each
def test_constant_values(case: Case) -> None:
    """Training of one value and nothing else: what is like it is judged alike, and everything is a number."""
    known = case.learn(np.full(500, 0.25))
    judged = case.judge(known, np.r_[np.full(50, 0.25), STRANGE, 0.0])
    assert np.isfinite(judged).all()
    assert len(set(judged[:50].tolist())) == 1


@each
def test_strange_from_the_first_record_or_never(case: Case) -> None:
    """What a bundle knows does not fade: a strange stream stays as strange as at first, beyond the usual."""
    known = case.learn(normal(5_000))
    strange, usual = case.judge(known, np.full(1_000, STRANGE)), case.judge(known, normal(1_000, seed=2))
    assert len(set(strange.tolist())) == 1
    assert strange[0] >= usual.max()
    assert np.isfinite(usual).all()
