"""Binning of numbers: what training learns, ids, tails, predicted intervals, names of numbers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from features.numbers import BINS, LARGEST, LOW, MISSING, UNKNOWN, Binning, NumberBins, NumberEncoder, Tail

unhurried = settings(deadline=None)  # the first example compiles
finite = st.floats(allow_nan=False, allow_infinity=False)
numbers = finite | st.sampled_from([0.0, -0.0, 1.0, math.nan, 5e-324, 1.7e308, -1.7e308])
columns = arrays(np.float64, st.integers(0, 80), elements=numbers)


def naive_id(binning: Binning, value: float) -> int:
    if math.isnan(value):
        return MISSING
    if not len(binning.edges):
        return UNKNOWN
    return LOW + sum(edge <= min(max(value, -LARGEST), LARGEST) for edge in binning.edges.tolist())


def naive_nats(binning: Binning, value: float) -> float:
    """Minus the log of the tail's density over that at its edge."""
    if math.isnan(value) or not len(binning.edges):
        return 0.0
    value = min(max(value, -LARGEST), LARGEST)
    low, high = float(binning.edges[0]), float(binning.edges[-1])
    if low <= value < high:
        return 0.0
    tail, z = (binning.low, low - value) if value < low else (binning.high, value - high)
    return (1 + 1 / tail.shape) * math.log1p(min(tail.shape * z / tail.scale, 1e308))


@unhurried
@given(columns, columns, st.sampled_from([2, 4, BINS]))
def test_ids_and_tails_are_what_they_say(learned: NDArray[Any], values: NDArray[Any], bins: int) -> None:
    """Whatever was learned and whatever comes: ids as by counting edges, tails as by the formula, and finite."""
    binning = Binning.learn(learned, bins)
    ids = binning.ids(values)
    assert ids.tolist() == [naive_id(binning, value) for value in values.tolist()]
    tails = binning.tail_surprise(values, ids)
    assert np.isfinite(tails).all()
    np.testing.assert_allclose(tails, [naive_nats(binning, value) for value in values.tolist()], rtol=1e-6, atol=1e-30)
    assert binning.size <= 2 * bins + 5
    assert np.all(np.diff(binning.edges) > 0)


@unhurried
@given(columns, columns)
def test_bits_depend_on_no_neighbour(learned: NDArray[Any], values: NDArray[Any]) -> None:
    """Alone or among others, a value has the same id and the same bits of surprise."""
    binning = Binning.learn(learned, 4)
    ids = binning.ids(values)
    tails = binning.tail_surprise(values, ids)
    for i in range(len(values)):
        one = values[i : i + 1]
        assert binning.ids(one)[0] == ids[i]
        assert binning.tail_surprise(one, ids[i : i + 1]).view(np.int32)[0] == tails[i : i + 1].view(np.int32)[0]


@unhurried
@given(columns)
def test_json_keeps_every_bit(learned: NDArray[Any]) -> None:
    """What is read from JSON text is what was written."""
    binning = Binning.learn(learned, 4)
    again = Binning.from_json(json.loads(json.dumps(binning.to_json(), allow_nan=False)))
    assert again.edges.tobytes() == binning.edges.tobytes()
    assert (again.low, again.high) == (binning.low, binning.high)


@unhurried
@given(columns)
def test_learning_does_not_look_at_the_order(learned: NDArray[Any]) -> None:
    """A training gives the same bins, however its history is sorted; and leaves the values alone."""
    before = learned.copy()
    assert repr(Binning.learn(learned, 4)) == repr(Binning.learn(learned[::-1], 4))
    np.testing.assert_array_equal(learned, before)


def test_bins_hold_equal_mass() -> None:
    """Of a continuous number: a hundredth in each tail, and the rest in bins that differ little."""
    values = np.random.default_rng(1).standard_cauchy(50_000)
    binning = Binning.learn(values)
    counts = np.bincount(binning.ids(values), minlength=binning.size)
    assert counts[:LOW].tolist() == [0, 0]
    assert counts[[LOW, -1]].tolist() == [500, 500]
    inner = counts[LOW + 1 : -1]
    assert BINS - 2 <= len(inner) <= BINS
    assert inner.max() < 1.01 * inner.min()


def test_a_heavy_value_has_a_bin_of_its_own() -> None:
    """Zeros stay apart from what lies above and below them, however near."""
    rng = np.random.default_rng(1)
    values = np.where(rng.random(20_000) < 0.5, 0.0, rng.normal(size=20_000))
    binning = Binning.learn(values)
    of_zero, *others = binning.ids(np.array([0.0, 1e-12, -1e-12])).tolist()
    assert of_zero not in others
    assert (binning.ids(values) == of_zero).sum() == (values == 0).sum()


@pytest.mark.parametrize("value", [0.0, -0.0, 5.0, -1e-310, LARGEST, -LARGEST, 1.7e308, 1e17])
@pytest.mark.parametrize("times", [1, 5, 1_000])
def test_a_constant_is_one_bin(value: float, times: int) -> None:
    """What never changed is expected; anything else lies in a tail, the more surprising the further away."""
    binning = Binning.learn(np.full(times, value))
    taken = min(max(value, -LARGEST), LARGEST)
    near, far = taken - max(abs(taken), 1.0) * np.array([0.01, 10.0])
    values = np.array([value, near, far])
    ids = binning.ids(values)
    assert binning.size == LOW + 3
    assert ids.tolist() == ([LOW + 1, LOW, LOW] if abs(value) < LARGEST or value > 0 else [LOW + 1, LOW + 1, LOW + 1])
    same, less, more = binning.tail_surprise(values, ids).tolist()
    assert same == 0
    assert 0 < less < more or value <= -LARGEST


def test_levels_have_bins_and_so_have_the_gaps() -> None:
    """A number of few values is known by them; a value between them has an id that training never gave."""
    values = np.repeat([1.0, 2.0, 4.0], 100)
    binning = Binning.learn(values)
    ids = binning.ids(np.array([1.0, 2.0, 4.0, 3.0, 1.5]))
    assert len(set(ids.tolist())) == 5
    assert set(ids[3:].tolist()).isdisjoint(binning.ids(values).tolist())


def test_what_never_was_has_a_modest_tail() -> None:
    """Beyond a constant, nobody knows what is far: surprise grows slowly, from a thousandth of its size on."""
    for constant, size in ((0.0, 1.0), (1e-6, 1e-6), (5e9, 5e9)):
        values = constant + size * np.array([1e-4, 1e-2, 1.0])
        binning = Binning.learn(np.full(50, constant))
        assert binning.tail_surprise(values, binning.ids(values)) == pytest.approx([0.19, 4.8, 13.8], rel=0.01)


def test_nothing_learned_is_unknown() -> None:
    """A number that training never saw has no bins: only missing is told."""
    for binning in (Binning.learn(np.empty(0)), Binning.learn(np.full(9, np.nan))):
        values = np.array([1.0, np.nan, -1e308])
        assert binning.size == LOW
        assert binning.ids(values).tolist() == [UNKNOWN, MISSING, UNKNOWN]
        assert binning.tail_surprise(values, binning.ids(values)).tolist() == [0, 0, 0]
        assert binning.interval(np.ones(2)) is None


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_a_tail_is_fitted(shape: float) -> None:
    """Shape and scale of a generalised Pareto sample are found, also where a fifth of it is anything."""
    rng = np.random.default_rng(3)
    excesses = 2.0 / shape * (rng.random(200_000) ** -shape - 1)
    found = Tail.fit(excesses, 1e-6)
    assert found.shape == pytest.approx(shape, abs=0.03)
    assert found.scale == pytest.approx(2.0, rel=0.05)
    spoiled = Tail.fit(np.concatenate([excesses[:80], np.full(20, 1e12)]), 1e-6)
    assert spoiled.shape <= 1.0
    assert spoiled.scale < 10


def test_a_tail_costs_little_in_training() -> None:
    """On the training's own tail the mean of what is added is 1 + shape, so a usual extreme is no anomaly."""
    values = np.random.default_rng(1).standard_t(3, 100_000)
    binning = Binning.learn(values)
    ids = binning.ids(values)
    added = binning.tail_surprise(values, ids)
    for at, tail in ((LOW, binning.low), (binning.size - 1, binning.high)):
        assert added[ids == at].mean() == pytest.approx(1 + tail.shape, rel=0.1)
    beyond = np.array([1e2, 1e4, 1e6])
    growth = np.diff(binning.tail_surprise(beyond, binning.ids(beyond)))
    assert growth[0] == pytest.approx(growth[1], rel=0.1)  # as the logarithm does


def test_an_interval_is_in_the_numbers_units() -> None:
    """The quantiles of the training's own distribution are found again from its masses."""
    values = np.random.default_rng(1).gamma(2.0, 10.0, 100_000)
    binning = Binning.learn(values)
    mass = np.bincount(binning.ids(values), minlength=binning.size + 3) / len(values)
    interval = binning.interval(mass)
    assert interval == pytest.approx(np.quantile(values, [0.05, 0.5, 0.95]).tolist(), rel=0.03)
    extremes = binning.interval(mass, 0.05, 0.999)
    assert extremes == pytest.approx(np.quantile(values, [0.05, 0.5, 0.999]).tolist(), rel=0.1)
    in_low, in_high = np.eye(binning.size)[[LOW, binning.size - 1]]
    assert max(binning.interval(in_low) or ()) <= binning.edges[0]
    assert min(binning.interval(in_high) or ()) >= binning.edges[-1]


@unhurried
@given(columns, st.data())
def test_any_prediction_gives_an_interval(learned: NDArray[Any], data: st.DataObject) -> None:
    """Ascending and finite, or None where no number is predicted."""
    binning = Binning.learn(learned, 4)
    masses = st.floats(0, 1) | st.sampled_from([0.0, 1.0])
    mass = data.draw(arrays(np.float64, binning.size, elements=masses))
    interval = binning.interval(mass)
    if interval is None:
        assert mass[LOW:].sum() == 0
        return
    assert list(interval) == sorted(interval)
    assert np.isfinite(interval).all()


names = st.sampled_from(["cpu", "mem", "net", "rare", None])


@unhurried
@given(st.lists(st.tuples(names, numbers), max_size=60), st.lists(st.tuples(names | st.just("new"), numbers)))
def test_each_name_has_its_own_bins(learned: list[tuple[Any, float]], given_: list[tuple[Any, float]]) -> None:
    """A named number's id and tail are those of its name's binning; an unknown name's are unknown."""
    found = NumberBins.learn(as_column(learned), [[name for name, _ in learned]], bins=4, max_names=2)
    assert found.names is not None
    (kept,) = found.names
    assert kept is not None
    assert len(kept) <= 2
    of = {name: Binning.learn(np.array([v for n, v in learned if n == name]), 4) for name in kept}
    asked = [[name for name, _ in given_]]
    encoder = found.encoder()
    ids = encoder.ids(as_column(given_), asked)
    tails = encoder.tails(as_column(given_), ids, asked)
    for (name, value), got, added in zip(given_, ids[:, 0].tolist(), tails[:, 0].tolist(), strict=True):
        one = of.get(name, Binning.learn(np.empty(0)))
        assert repr(found.of(0, name)) == (repr(one) if name in of else "None")
        assert got == naive_id(one, value)
        assert added == pytest.approx(naive_nats(one, value), rel=1e-6)
        assert got < found.sizes[0]
    again = NumberBins.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert repr(again) == repr(found)


@unhurried
@given(st.lists(st.tuples(names, numbers, numbers, numbers, names), max_size=60))
def test_columns_may_have_names_of_their_own(drawn: list[tuple[Any, ...]]) -> None:
    """Named columns beside one that stands for itself: each is read as if it were alone, also after JSON."""
    values = np.array([row[1:4] for row in drawn], np.float64).reshape(-1, 3)
    first, last = ([row[at] for row in drawn] for at in (0, 4))
    called = [first, None, last]
    found = NumberBins.learn(values, called, bins=4)
    found = NumberBins.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    ids = found.encoder().ids(values, called)
    tails = found.encoder().tails(values, ids, called)
    for c, given_ in enumerate(called):
        one = NumberBins.learn(values[:, [c]], None if given_ is None else [given_], bins=4)
        asked = None if given_ is None else [given_]
        assert found.sizes[c] == one.sizes[0]
        assert ids[:, [c]].tolist() == one.encoder().ids(values[:, [c]], asked).tolist()
        assert tails[:, [c]].tolist() == one.encoder().tails(values[:, [c]], ids[:, [c]], asked).tolist()


def as_column(pairs: list[tuple[Any, float]]) -> NDArray[np.float64]:
    return np.array([[value] for _, value in pairs], np.float64).reshape(-1, 1)


def test_the_most_frequent_names_are_kept() -> None:
    """So many at most, ties in order of text; a name seen once is none."""
    seen = ["b"] * 3 + ["c"] * 2 + ["a"] * 2 + ["once", None, None, None, None]
    assert NumberBins.learn(np.zeros((len(seen), 1)), [seen], max_names=2).names == (("b", "a"),)
    assert NumberBins.learn(np.zeros((len(seen), 1)), [seen]).names == (("b", "a", "c"),)


def test_columns_have_their_own_bins() -> None:
    """Several numbers of a record: each column by its own binning, as if it were alone."""
    rng = np.random.default_rng(2)
    values = np.stack([rng.normal(size=500), rng.exponential(size=500), np.full(500, np.nan)], axis=1)
    found = NumberBins.learn(values)
    encoder = found.encoder()
    ids = encoder.ids(values * 3, None)
    tails = encoder.tails(values * 3, ids, None)
    assert found.sizes == tuple(Binning.learn(c).size for c in values.T)
    for c in range(3):
        one = Binning.learn(values[:, c])
        assert ids[:, c].tolist() == one.ids(values[:, c] * 3).tolist()
        assert tails[:, c].tolist() == one.tail_surprise(values[:, c] * 3, ids[:, c]).tolist()


@pytest.mark.parametrize("given_names", [None, [["a", "b"]]])
def test_without_a_bundle_numbers_are_unknown(given_names: list[list[str | None] | None] | None) -> None:
    """Missing is told all the same, and nothing is added."""
    encoder = NumberEncoder(None)
    values = np.array([[1.0], [np.nan]])
    ids = encoder.ids(values, given_names)
    assert ids.tolist() == [[UNKNOWN], [MISSING]]
    assert encoder.tails(values, ids, given_names).tolist() == [[0], [0]]
    assert encoder.ids(np.empty((3, 0)), None).shape == (3, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"edges": [1.0]}, {"edges": [2.0, 1.0]}, {"edges": [1.0, None]}, {"edges": [[1.0, 2.0]]}, {"edges": "x"},
        {"edges": [0.0, 1e308]}, {"low": [1e308, 0.5]},
        {"low": [1.0]}, {"low": [0.0, 0.5]}, {"high": [1.0, 0.0]}, {"high": [math.nan, 0.5]},
        {"high": None},
    ],
)  # fmt: skip
def test_damaged_bins_are_refused(change: dict[str, Any]) -> None:
    """Whatever is wrong with them, in one kind of error."""
    sound = Binning.learn(np.arange(9.0)).to_json()
    with pytest.raises(ValueError, match="the bins of numbers are damaged"):
        Binning.from_json(sound | change)
    with pytest.raises(ValueError, match="the bins of numbers are damaged"):
        NumberBins.from_json({"names": ["a"], "binnings": [sound, sound]})
    with pytest.raises(ValueError, match="the bins of numbers are damaged"):
        NumberBins.from_json([sound])
