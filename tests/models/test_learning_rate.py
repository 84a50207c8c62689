"""The learning rate rises, falls where nothing is won, and knows when nothing is won any more."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.learning_rate import LearningRate


def test_it_rises_to_the_highest_and_stays() -> None:
    """After the warm-up every step has the highest rate, before it ever less."""
    rate, seen = LearningRate(0.01, warm_up=4), []
    for _ in range(8):
        seen.append(rate.rate)
        rate = rate.after_step()
    assert seen[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert seen[5:] == [0.01] * 3


def test_it_halves_after_each_two_epochs_without_progress() -> None:
    """Progress resets the count, and keeps the factor."""
    rate = LearningRate(1.0, warm_up=0)
    factors = []
    for loss in (2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        rate = rate.after_epoch(loss)
        factors.append(rate.factor)
    assert factors == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
    assert rate.stale == 4


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30))
def test_the_best_is_the_least_but_for_a_thousandth(losses: list[float]) -> None:
    """Whatever the losses, those below 0 included, the best lies within a thousandth of the least of them."""
    rate = LearningRate(1.0, 0)
    for loss in losses:
        rate = rate.after_epoch(loss)
    assert min(losses) <= rate.best <= min(losses) + 1e-3 * abs(rate.best) + 1e-12


def test_it_is_plain_numbers() -> None:
    """What is saved gives the same rate again."""
    rate = LearningRate(1.0, 3).after_step().after_epoch(0.5).after_epoch(0.6)
    assert LearningRate(**asdict(rate)) == rate
    assert replace(rate, stale=0) != rate
