"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import pipeline  # noqa: F401 (before numba: it says where that keeps kernels, so workers find what tests compiled)
from detectors.calibration import Calibration
from detectors.combined import Combined
from detectors.ensemble import Ensemble, Member
from detectors.novelty import Novelty
from detectors.parts import NO_NUMBERS, Learned, Parts
from detectors.profiles import KnownProfiles, Profiles
from detectors.rows import RowShape
from features.measures import SEASONS, NumberRules
from features.numbers import NumberBins
from features.profiles import count_sessions
from features.sessions import SessionRules
from features.time_gaps import GAP
from features.tokens import TokenEncoder, Vocabulary, stable_hash
from models.autoregression import Autoregression
from models.forecast import ForecastRuntime
from models.gru_kernel import GruKernel
from models.linear import LinearRuntime
from models.seasonal import SeasonalRuntime, seasonal_weights
from models.spec import SEASONAL, ModelSpec, state_size
from models.values import Values
from tests.kafka import Stack, write_untrained_bundle

# Three tests run at a time, beside brokers: how long one takes is no fault of what it tests.
hypothesis.settings.register_profile("offbeat", deadline=None)
hypothesis.settings.load_profile("offbeat")

# Brokers of tests live for seconds or minutes: what C2 and G1 cost to begin with, they do not earn back. Set here, and
# not where brokers are made, so that benchmarks and the demo under test have it as well.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

WORDS = (("view", "add", "pay", "ship", "close"), ("ok", "failed"))
HIDDEN, CONTEXT = 16, 6
MODEL = ModelSpec("gru", HIDDEN, ())


def random_weights(
    seed: int, sizes: tuple[int, ...], hidden: int, inputs: tuple[int, ...] = ()
) -> dict[str, np.ndarray]:
    """Weights of a GRU nobody trained: scores are as deterministic and as sensitive as a trained one's."""
    rng = np.random.default_rng(seed)
    width = 16 * len(sizes + inputs) + 1
    shapes = {
        "start": (hidden,), "core.weight_ih_l0": (3 * hidden, width), "core.weight_hh_l0": (3 * hidden, hidden),
        "core.bias_ih_l0": (3 * hidden,), "core.bias_hh_l0": (3 * hidden,),
        "head.weight": (sum(sizes) + 1, hidden), "head.bias": (sum(sizes) + 1,),
        **{f"embeddings.{f}.weight": (size, 16) for f, size in enumerate(sizes + inputs)},
    }  # fmt: skip
    return {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}


def forecasting_weights(seed: int, spec: ModelSpec) -> dict[str, np.ndarray]:
    """The same of a GRU that forecasts values of about 50, or up to some hundreds, and what is usual of them."""
    rng, count = np.random.default_rng(seed), spec.values
    weights = random_weights(seed, spec.sizes, spec.hidden, spec.inputs)
    given = rng.normal(0, 0.7, (3 * spec.hidden, 2 * count)).astype(np.float32)
    weights["core.weight_ih_l0"] = np.hstack([weights["core.weight_ih_l0"], given])
    weights["change.weight"] = rng.normal(0, 0.7, (count, spec.hidden)).astype(np.float32)
    weights["change.bias"] = rng.normal(0, 0.7, count).astype(np.float32)
    usual, reach = rng.random((2, count)) + 0.1
    values = Values.fit([rng.normal(50, 20, (300, count))]).knowing(usual=usual, reach=reach, unit=2.0)
    return weights | values.to_arrays()


def make_learned(
    seed: int = 0, hidden: int = HIDDEN, vocabulary: Vocabulary | None = None, numbers: NumberBins = NO_NUMBERS,
    seasonal: tuple[str, ...] = (),
) -> Learned:  # fmt: skip
    """A bundle's content without training; about one record in ten is an anomaly at a rate of 0.1."""
    vocabulary = Vocabulary(("action", "status"), WORDS) if vocabulary is None else vocabulary
    rng = np.random.default_rng(seed + 1)
    sizes, inputs = (*vocabulary.sizes, *numbers.sizes), tuple(1 + SEASONS[name] for name in seasonal)
    kernel = GruKernel(ModelSpec("gru", hidden, sizes, inputs), random_weights(seed, sizes, hidden, inputs))
    return Learned(
        f"{seed + 1:x}".ljust(64, "0"), vocabulary, kernel,
        Calibration.learn(rng.gamma(4, 1, 400)), Calibration.learn(rng.gamma(9, 1, 200)),
        numbers=numbers, seasonal=seasonal,
    )  # fmt: skip


def with_segments(learned: Learned) -> Learned:
    """The same with calibrations of two segments' own, one of them of records alone."""
    rng = np.random.default_rng(9)
    north, south = (Calibration.learn(rng.gamma(shape, 1, count)) for shape, count in ((3, 130), (6, 40)))
    own = {stable_hash("north"): north, stable_hash("süd"): south}
    return replace(learned, segment_records=own, segment_sessions={stable_hash("north"): south})


def with_profiles(parts: Parts, entries: int = 4) -> Parts:
    """The same with profiles of a few entries, learned of sessions with any tokens."""
    assert parts.learned is not None
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 8, 60)
    hashes = [[stable_hash(word) for word in words] for words in WORDS]
    tokens = [[rng.choice(of_field[:4]) for of_field in hashes] for _ in range(lengths.sum())]
    session = np.repeat(np.arange(60), lengths).astype(np.int32)
    counted = count_sessions(session, np.array(tokens, np.uint64), 60, entries)
    known = KnownProfiles.learn(Profiles(*counted, lengths, lengths * 900), 2)
    combined = Combined.learn(rng.gamma((9, 2, 6), 1, (200, 3)).astype(np.float32))
    learned = replace(
        parts.learned, profiles=known, combined=combined, sessions=Calibration.learn(rng.gamma(2, 1, 200))
    )
    return replace(parts, learned=learned, shape=replace(parts.shape, profile=entries))


def make_number_parts(kind: str, seed: int = 0) -> Parts:
    """Parts of a stream with numbers, `wide`, `named` or `parameters`.

    cpu is a gauge, sent a counter (but for parameters, which are gauges all), size a gauge never learned.
    """
    rng = np.random.default_rng(seed)
    rules = SessionRules(gap_ms=5_000, max_events=12)
    shown = np.stack([rng.normal(50, 20, 300), rng.gamma(2, 40, 300)], axis=1)
    if kind == "wide":
        bins, vocabulary = NumberBins.learn(shown, bins=4), Vocabulary(("action", "status"), WORDS)
        measures, fields = NumberRules(counters=(1,)), ("action", "status", "cpu", "sent")
    elif kind == "parameters":  # a counter of its own, and two numbers in lines of three kinds
        said = [["cpu"] * 150 + ["sent"] * 150, ["cpu"] * 300]
        bins = NumberBins.learn(np.hstack([shown, shown[:, :1]]), [None, *said], bins=4)
        vocabulary = Vocabulary(("action", "name"), (WORDS[0], ("cpu", "sent", "size")))
        measures = NumberRules(counters=(0,), named_by=(None, 1, 1), parameters=2)
        fields = ("action", "name", "grown", "name[0]", "name[1]")
    else:
        named = [name for name in ("cpu", "sent") for _ in range(300)]
        bins = NumberBins.learn(shown.T.reshape(-1, 1), [named], bins=4)
        vocabulary = Vocabulary(("action", "name"), (WORDS[0], ("cpu", "sent")))
        measures, fields = NumberRules(named_by=(1,), counter_names=("sent",)), ("action", "name", "value")
    learned = make_learned(seed, vocabulary=vocabulary, numbers=bins, seasonal=("hour", "weekday"))
    shape = RowShape(HIDDEN, CONTEXT, 2, len(fields) - 2, 1)
    return Parts(
        "orders", "shop.orders", fields, shape, rules, 0.1, TokenEncoder(2, vocabulary), learned, measures=measures,
        model=MODEL,
    )  # fmt: skip


def with_gaps(parts: Parts, seed: int = 0, by: int | None = None) -> Parts:
    """The same with the time gap as a further number, learned of gaps of all sizes; each token of column `by` its own.

    Of the tokens of that column the first three are known to have gaps.
    """
    assert parts.learned is not None
    known, rules, words = parts.learned.numbers, parts.measures, parts.learned.vocabulary.tokens
    gaps = np.random.default_rng(seed).gamma(0.5, 3, (300, 1))
    of_gaps = NumberBins.learn(gaps, None if by is None else [list(words[by][:3]) * 100], bins=4)
    others = known.names or (None,) * len(known.binnings)
    is_named = known.names is not None or by is not None
    names = (*others, *(of_gaps.names or (None,))) if is_named else None
    numbers = NumberBins((*known.binnings, *of_gaps.binnings), names)
    other = make_learned(seed, vocabulary=parts.learned.vocabulary, numbers=numbers, seasonal=parts.learned.seasonal)
    named_by = (*(rules.named_by or (None,) * len(known.binnings)), by)
    return replace(
        parts, fields=(*parts.fields, GAP), shape=replace(parts.shape, numbers=parts.shape.numbers + 1),
        learned=replace(parts.learned, numbers=numbers, model=other.model),
        measures=replace(rules, named_by=named_by if is_named else (), gaps=True),
    )  # fmt: skip


def make_linear_parts() -> Parts:
    """The wide numbers under the linear core, with scores about as they are calibrated."""
    wide, rng = make_number_parts("wide"), np.random.default_rng(0)
    model = Autoregression.fit([rng.normal(50, 20, (300, 2)) for _ in range(3)])
    assert wide.learned is not None
    learned = replace(
        wide.learned, model=LinearRuntime(model.to_arrays(), 2, 2), seasonal=(),
        records=Calibration.learn(rng.gamma(9, 0.2, 400)), sessions=Calibration.learn(rng.gamma(9, 0.3, 200)),
    )  # fmt: skip
    shape = replace(wide.shape, hidden=state_size("linear", HIDDEN, CONTEXT, 2))
    return replace(wide, learned=learned, shape=shape, model=ModelSpec("linear", HIDDEN, ()))


def make_seasonal_parts() -> Parts:
    """The same numbers under the seasonal core, whose state no bundle shapes."""
    linear, rng = make_linear_parts(), np.random.default_rng(0)
    assert linear.learned is not None
    learned = replace(
        linear.learned, model=SeasonalRuntime(seasonal_weights(2, 2_000), 2, 2),
        records=Calibration.learn(rng.gamma(1, 0.01, 400)), sessions=Calibration.learn(rng.gamma(1, 0.02, 200)),
    )  # fmt: skip
    shape = replace(linear.shape, hidden=2 * SEASONAL)
    return replace(linear, learned=learned, shape=shape, model=ModelSpec("seasonal", HIDDEN, ()), refractory_ms=2_000)


def make_ensemble_parts() -> Parts:
    """The wide numbers under two GRUs and the linear core together."""
    wide, linear, rng = make_number_parts("wide"), make_linear_parts(), np.random.default_rng(0)
    assert wide.learned is not None
    assert linear.learned is not None
    again = make_number_parts("wide", seed=5).learned
    assert again is not None
    others = [Calibration.learn(rng.gamma(shape, scale, 400)) for shape, scale in ((14, 0.8), (9, 0.2))]
    cores = [
        Member(wide.learned.runtime, others[0], HIDDEN, HIDDEN), Member(again.runtime, others[0], HIDDEN, HIDDEN),
        Member(linear.learned.runtime, others[1], linear.shape.hidden, 2),
    ]  # fmt: skip
    learned = replace(
        wide.learned, model=Ensemble(cores),
        records=Calibration.learn(rng.gamma(3, 0.4, 400)), sessions=Calibration.learn(rng.gamma(5, 0.5, 200)),
    )  # fmt: skip
    shape = replace(wide.shape, hidden=2 * HIDDEN + linear.shape.hidden)
    return replace(wide, learned=learned, shape=shape, ensemble=("gru", "linear"))


def make_forecasting_parts() -> Parts:
    """The wide numbers forecast by a GRU."""
    wide = make_number_parts("wide")
    assert wide.learned is not None
    spec = ModelSpec("gru", HIDDEN, wide.learned.vocabulary.sizes, (25, 8), values=2)
    model = ForecastRuntime(spec, forecasting_weights(0, spec))
    learned = replace(wide.learned, model=model, numbers=NO_NUMBERS)
    shape = replace(wide.shape, hidden=spec.state_numbers)
    return replace(wide, learned=learned, shape=shape, model=replace(spec, sizes=(), inputs=()))


@pytest.fixture(scope="session")
def learned() -> Learned:
    return make_learned()


@pytest.fixture
def parts(learned: Learned) -> Parts:
    """Parts of a stream with two token fields, short gaps and small limits, so that every rule is met often."""
    return Parts(
        stream="orders", topic="shop.orders", fields=("action", "status"), shape=RowShape(HIDDEN, CONTEXT, 2),
        rules=SessionRules(gap_ms=5_000, max_events=12), rate=0.1, encoder=TokenEncoder(2, learned.vocabulary),
        learned=learned, model=MODEL,
    )  # fmt: skip


KINDS = [
    "tokens", "wide", "named", "parameters", "linear", "seasonal", "forecast", "ensemble", "segments", "gaps",
    "profiles", "novelty",
]  # fmt: skip


@pytest.fixture(params=KINDS)
def any_parts(request: pytest.FixtureRequest, parts: Parts, learned: Learned) -> Parts:
    """Parts of a stream of tokens, with numbers of three sorts, with segments, time gaps and profiles."""
    makers = {
        "tokens": lambda: parts,
        "gaps": lambda: with_gaps(make_number_parts("parameters"), by=0),
        "linear": make_linear_parts,
        "seasonal": make_seasonal_parts,
        "forecast": make_forecasting_parts,
        "ensemble": make_ensemble_parts,
        "profiles": lambda: with_profiles(parts),
        "novelty": lambda: replace(parts, learned=replace(learned, novelty=Novelty((0.01, 0.2)))),
        "segments": lambda: replace(parts, learned=with_segments(learned)),
    }
    return makers[request.param]() if request.param in makers else make_number_parts(request.param)


@pytest.fixture
def unlearned_parts(parts: Parts) -> Parts:
    """The same before any bundle serves."""
    return replace(parts, learned=None, encoder=TokenEncoder(2, None))


@pytest.fixture(scope="session")
def kafka() -> None:
    """Java and Kafka's jars are here, or can be fetched; else tests that need them skip, or fail if they may not."""
    from pipeline.errors import LocalBrokerError
    from pipeline.jvm import find_java
    from pipeline.kafka_jars import fetch_jars

    try:
        find_java()
        fetch_jars()
    except LocalBrokerError as error:
        if os.environ.get("REQUIRE_KAFKA") == "1":
            raise
        pytest.skip(f"no local Kafka: {error}")


@pytest.fixture(scope="session")
def prometheus() -> None:
    """Prometheus and promtool are installed."""
    need_of_stack("prometheus", "promtool")


def need_of_stack(*programs: str) -> None:
    """Skip where a program of the stack is not installed, or fail if that may not be."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("REQUIRE_STACK") == "1":
        pytest.fail(f"REQUIRE_STACK=1, but {', '.join(missing)} cannot be found; run `make stack-deps`")
    if missing:
        pytest.skip(f"{', '.join(missing)} cannot be found; `make stack-deps` installs it")


@pytest.fixture(scope="session")
def kafka_address(kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the run's own Kafka broker; tests keep apart by topics of their own."""
    from pipeline.broker import LocalBroker

    with LocalBroker(tmp_path_factory.mktemp("kafka"), ephemeral=True) as broker:
        yield broker.address


@pytest.fixture
def stack(kafka_address: str, tmp_path: Path) -> Stack:
    """A config, a source topic and a bundle of its own on the shared broker."""
    made = Stack(kafka_address, tmp_path)
    made.configure()
    made.create_source()
    write_untrained_bundle(made)
    return made


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The labelled real data beside the repository; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "data" / "hdfs").is_dir():
        pytest.skip("the labelled data (../shared/data) is not here")
    return folder
