"""Plans add up: keys as drawn ones fall, more load never for less, and errors that say what to do next."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.rows import RowShape, SessionRows
from pipeline.app import checkpoint_interval_s, hot_rows
from pipeline.capacity import Limits, Load, Plan, Sums, fewest, make_plan, row_bytes
from pipeline.cold_rows import session_key
from pipeline.errors import UsageError
from pipeline.key_shares import ZIPF, KeyShares
from pipeline.plan_command import Asked, load_of, print_plan
from pipeline.plan_report import as_json, lines, remarks, size
from pipeline.plan_tables import LOADS, tables, with_tables
from pipeline.row_format import RowFormat
from pipeline.settings import CostSettings, parse_settings
from pipeline.unit_costs import OURS, read_unit_costs

COSTS = read_unit_costs()
SHAPE = RowShape(64, 32, 1, profile=32)
RATES = st.floats(0.1, 1e9)
SESSIONS = st.integers(1, 10**10)


def plan_of(rate: float, sessions: int, **given: object) -> Plan:
    return make_plan(Load(rate, sessions, SHAPE, **given), COSTS)  # type: ignore[arg-type]


# --- keys


def drawn_shares(keys: int, exponent: float) -> np.ndarray:
    weights = 1.0 / np.arange(1, keys + 1) ** exponent
    return weights / weights.sum()


@pytest.mark.parametrize("exponent", [0.0, ZIPF])
@settings(max_examples=30, deadline=None)
@given(keys=st.integers(1, 20_000), draws=st.integers(1, 20_000), seed=st.integers(0, 2**32 - 1))
def test_distinct_keys_are_those_of_a_draw(exponent: float, keys: int, draws: int, seed: int) -> None:
    """As many distinct keys are expected as Poisson arrivals have, within six standard deviations of that count."""
    came = np.random.default_rng(seed).poisson(draws * drawn_shares(keys, exponent))
    expected = KeyShares(keys, exponent).distinct(draws)
    assert abs((came > 0).sum() - expected) <= 6 * np.sqrt(expected) + 1


@settings(max_examples=30, deadline=None)
@given(keys=st.integers(1, 300_000), draws=st.floats(0.01, 1e7))
def test_blocks_of_ranks_are_as_good_as_the_sum(keys: int, draws: float) -> None:
    """The sum over blocks of ranks is the one over all ranks, within a thousandth, as is the largest share."""
    shares, keyed = drawn_shares(keys, ZIPF), KeyShares(keys, ZIPF)
    assert keyed.distinct(draws) == pytest.approx(-np.expm1(-draws * shares).sum(), rel=1e-3)
    assert keyed.largest == pytest.approx(shares[0], rel=1e-3)


def test_a_store_misses_as_often_as_said() -> None:
    """What a store of the keys that came last misses of a long draw is what is expected, within a hundredth."""
    keys, kept = 5_000, 500
    drawn = np.random.default_rng(1).choice(keys, 200_000, p=drawn_shares(keys, ZIPF)).tolist()
    last: dict[int, None] = {}
    missed = 0
    for number, key in enumerate(drawn):
        missed += key not in last and number >= 50_000
        last.pop(key, None)
        last[key] = None
        if len(last) > kept:
            del last[next(iter(last))]
    assert KeyShares(keys, ZIPF).misses(kept) == pytest.approx(missed / 150_000, abs=0.01)


@given(keys=st.integers(2, 10**9), share=st.floats(0.001, 0.999), exponent=st.sampled_from([0.0, ZIPF]))
@settings(max_examples=50, deadline=None)
def test_draws_for_is_the_inverse(keys: int, share: float, exponent: float) -> None:
    """Among as many records as `draws_for` says, so many keys have come."""
    keyed = KeyShares(keys, exponent)
    assert keyed.distinct(keyed.draws_for(share * keys)) == pytest.approx(share * keys, rel=1e-6)
    assert keyed.draws_for(keys) == float("inf")


# --- plans


@settings(max_examples=60, deadline=None)
@given(rate=RATES, more=st.floats(1.0, 100.0), sessions=SESSIONS)
def test_more_events_never_need_fewer_workers(rate: float, more: float, sessions: int) -> None:
    """With more events workers never become fewer, where no session is too hot; nor does what is stored of records.

    Changelogs may take less: more partitions save each row more seldom.
    """
    few, many = plan_of(rate, sessions), plan_of(rate * more, sessions)
    if few.hottest_fits and many.hottest_fits:
        assert many.workers >= few.workers
        assert many.brokers.source_bytes >= few.brokers.source_bytes


@settings(max_examples=60, deadline=None)
@given(rate=RATES, sessions=SESSIONS, more=st.integers(1, 100), zipf=st.booleans(), workers=st.integers(1, 10_000))
def test_more_sessions_never_take_less(rate: float, sessions: int, more: int, zipf: bool, workers: int) -> None:
    """With more sessions neither processor time nor what is stored becomes less, given the same workers."""
    few, many = (Sums(Load(rate, count, SHAPE, zipf=zipf), COSTS, Limits()) for count in (sessions, sessions * more))
    assert many.processor(workers).total >= few.processor(workers).total * (1 - 1e-4)  # blocks of ranks are that exact
    some, more_of_them = plan_of(rate, sessions, zipf=zipf), plan_of(rate, sessions * more, zipf=zipf)
    assert more_of_them.changelog_live_bytes == some.changelog_live_bytes * more
    assert more_of_them.disk_bytes * more_of_them.workers == pytest.approx(some.disk_bytes * some.workers * more)


@settings(max_examples=60, deadline=None)
@given(rate=RATES, sessions=SESSIONS, zipf=st.booleans(), per_worker=st.integers(1, 8), use=st.floats(0.1, 1.0))
def test_the_workers_have_room(rate: float, sessions: int, zipf: bool, per_worker: int, use: float) -> None:
    """The workers planned leave the headroom, and one fewer would not."""
    load, limits = Load(rate, sessions, SHAPE, zipf=zipf), Limits(use=use, partitions_per_worker=per_worker)
    plan = make_plan(load, COSTS, limits)
    assert plan.busy <= use * (1 + 1e-9)
    assert plan.busy == pytest.approx(rate * plan.processor.total / 1e6 / plan.workers)
    assert plan.partitions == plan.workers * per_worker
    assert plan.workers == 1 or not Sums(load, COSTS, limits).suffices(plan.workers - 1)


@settings(max_examples=60, deadline=None)
@given(rate=RATES, sessions=SESSIONS, zipf=st.booleans())
def test_units_are_consistent(rate: float, sessions: int, zipf: bool) -> None:
    """Parts make the total, no more rows are saved than records come, and bytes are rows times their bytes."""
    plan = plan_of(rate, sessions, zipf=zipf)
    saving = plan.saving
    assert plan.processor.total == pytest.approx(sum(getattr(plan.processor, f.name) for f in fields(plan.processor)))
    assert 0 < saving.rows_per_s <= rate * (1 + 1e-9)
    assert 0 <= saving.misses <= 1
    assert saving.interval_s <= checkpoint_interval_s(250, plan.partitions)
    assert plan.changelog_per_s == pytest.approx(saving.rows_per_s * plan.changelog_live_bytes / sessions)
    # What the config says is divided by all partitions, and leaves each worker what was planned.
    assert hot_rows(plan.hot_sessions, plan.partitions) == plan.load.hot_sessions
    assert plan.brokers.written_per_s >= 3 * (rate * 150 + plan.changelog_per_s)
    assert plan.recovery_longest_s >= plan.recovery_s
    used, kept = plan.price(3.6)
    assert used <= kept
    assert used == pytest.approx(plan.processor.total / 1e3)


def test_a_row_is_as_long_as_one_that_is_saved() -> None:
    """The bytes of a row are those that the format writes for a session with a full profile."""
    rows = SessionRows.empty(1, SHAPE)
    rows.events[0], rows.profile_keys[:], rows.profile_counts[:] = 1, 7, 1
    (encoded,) = RowFormat(SHAPE).encode(rows)
    assert row_bytes(SHAPE) == len(encoded) + len(session_key("session-0000000"))


def test_what_costs_more_asks_for_more() -> None:
    """Standbys, an internal topic, an ensemble and further fields each cost processor time and leave the rest alone."""
    plain = plan_of(1e5, 10**6)
    for more, part in (
        ({"standbys": 1}, "standbys"), ({"repartitioned": True}, "repartition"), ({"cores": ("gru", "gru")}, "core"),
        ({"fields": 3}, "fields"),
    ):  # fmt: skip
        plan = plan_of(1e5, 10**6, **more)
        assert getattr(plan.processor, part) > getattr(plain.processor, part)
        assert plan.processor.total > plain.processor.total
        assert plan.processor.path == plain.processor.path
    standing_by = plan_of(1e5, 10**6, standbys=1)  # and so more workers
    of_all, of_plain = (plan.disk_bytes * plan.workers for plan in (standing_by, plain))
    assert of_all == pytest.approx(2 * of_plain, rel=0.2)
    assert plan_of(1e5, 10**6, repartitioned=True).brokers.written_per_s > plain.brokers.written_per_s


def test_a_session_too_hot_for_a_worker_is_told() -> None:
    """Where one session has more records than a worker serves, a remark says that no number of workers helps."""
    plan = plan_of(1e6, 10**6, zipf=True)
    assert not plan.hottest_fits
    assert any("no number of workers helps" in remark for remark in remarks(plan))
    assert plan_of(1e4, 10**6, zipf=True).hottest_fits
    assert not any("no number of workers" in remark for remark in remarks(plan_of(1e4, 10**6, zipf=True)))


def test_what_a_setting_delays_is_told() -> None:
    """Where outputs wait for checkpoints, or checkpoints for the budget of transactions, a remark says how long."""
    delayed = plan_of(1e7, 10**8, exactly_once=True)
    assert delayed.saving.interval_s > 0.25
    assert any("exactly_once outputs leave with their checkpoint" in remark for remark in remarks(delayed))
    assert any("makes 50 transactions a second" in remark for remark in remarks(delayed))
    assert any("A consumer group of" in remark for remark in remarks(plan_of(1e8, 10**9)))
    small = " ".join(remarks(plan_of(1e4, 10**5)))
    assert not any(words in small for words in ("exactly_once", "transactions", "consumer group"))


def test_the_fewest_is_found() -> None:
    """`fewest` gives the least number that suffices, 1 included."""
    assert [fewest(lambda n, least=least: n >= least) for least in (1, 2, 3, 4, 1_000, 1_025)] == [
        1,
        2,
        3,
        4,
        1_000,
        1_025,
    ]


# --- the command


def shown(capsys: pytest.CaptureFixture[str], asked: Asked, config: Path | None = None) -> dict[str, object]:
    print_plan(asked, config, None, None, as_json=True)
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_config_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Core, fields, interval, rows and price come from the config; options win over it."""
    config = tmp_path / "offbeat.yaml"
    config.write_text(
        "{streams: {s: {topic: t, session: {by: k}, tokens: [a, b], numbers: [x], model: {hidden: 32}}},"
        " checkpoint_interval: 2s, state: {hot_sessions: 5000}, costs: {cpu_core_hour: 0.04, currency: EUR}}"
    )
    load = shown(capsys, Asked(1e4, 10**6, hidden=64), config)["load"]
    assert isinstance(load, dict)
    assert (load["hidden"], load["fields"], load["numbers"], load["checkpoint_ms"], load["hot_sessions"]) == (
        64, 2, 1, 2_000, 5_000,
    )  # fmt: skip
    price = shown(capsys, Asked(1e4, 10**6, hidden=64), config)["price"]
    assert isinstance(price, dict)
    assert price["currency"] == "EUR"
    assert 0 < price["per_million_used"] < price["per_million_kept"]


def test_options_make_the_row_that_a_config_makes() -> None:
    """A row planned for by options is as wide as the config's for the same core and fields."""
    stream = {"topic": "t", "session": {"by": "k"}, "tokens": ["a", "b"], "numbers": ["x"]}
    for core, by_options in (("gru", {}), ("transformer", {}), ("linear", {})):
        section = stream | {"model": {"core": core}}
        made = load_of(Asked(1.0, 1), parse_settings({"streams": {"s": section}}, {}), None)
        asked = Asked(1.0, 1, core=core, hidden=64, token_fields=2, numbers=1, **by_options)
        assert load_of(asked, None, None).shape == made.shape


def test_the_table_has_each_figure_with_its_terms(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints each line with its terms, what dominates, and whose unit costs these are."""
    print_plan(Asked(1e6, 10**7), None, None, None, as_json=False)
    said = " ".join(capsys.readouterr().out.split())
    for line in lines(plan_of(1e6, 10**7), COSTS, CostSettings()):
        assert line.what in said
        assert line.figure in said
    assert "of the processor time is" in said
    assert COSTS.machine in said


def test_json_has_what_the_table_says() -> None:
    """JSON carries the seconds for a million records and the remarks, and can be written."""
    plan = plan_of(1e6, 10**7)
    found = json.loads(json.dumps(as_json(plan, COSTS, CostSettings(cpu_core_hour=0.05))))
    assert found["cpu_s_per_million"] == pytest.approx(plan.processor.total)
    assert found["price"]["per_million_kept"] == pytest.approx(plan.workers * 0.05 / 3_600)
    assert found["remarks"] == remarks(plan)


def test_the_document_says_what_the_command_says() -> None:
    """The tables of docs/capacity.md are the command's figures for three loads, and a changed one is mended."""
    text = (Path(__file__).parents[2] / "docs" / "capacity.md").read_text("utf-8")
    assert with_tables(text) == text
    for rate, sessions in LOADS:
        said = list(lines(plan_of(rate, sessions), COSTS, CostSettings()))
        assert all(line.figure in tables()["uniform"] for line in said)
    cut = text.replace("| workers |", "| wrokers |", 1)
    assert cut != text
    assert with_tables(cut) == text
    assert set(tables()) == {"uniform", "zipf", "costs", "cores"}
    assert size(1e15) == "1 PB"


# --- errors


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"events_per_second": 0.0}, "--events-per-second 0 cannot be planned for: give a number above 0"),
        ({"events_per_second": -5.0}, "--events-per-second -5 cannot be planned for"),
        ({"events_per_second": float("nan")}, "--events-per-second nan cannot be planned for"),
        ({"events_per_second": float("inf")}, "--events-per-second inf cannot be planned for"),
        ({"sessions": 0}, "--sessions 0 cannot be planned for: give a number above 0"),
        ({"sessions": -1}, "--sessions -1 cannot be planned for"),
        ({"record_bytes": 0.0}, "--record-bytes 0 cannot be planned for"),
        ({"replication": 0}, "--replication 0 cannot be planned for"),
        ({"partitions_per_worker": 0}, "--partitions-per-worker 0 cannot be planned for"),
        ({"headroom": 1.0}, "--headroom 1 is no share that can be left free: give one from 0 to 0.95"),
        ({"headroom": -0.1}, "--headroom -0.1 is no share"),
        ({"token_fields": -1}, "--token-fields -1 cannot be planned for: give a whole number from 0"),
        ({"numbers": 10_000}, "--numbers 10000 cannot be planned for: give a whole number from 0 to 1000"),
        ({"core": "rnn"}, "there is no core rnn: --core takes gru, lstm"),
        ({"hidden": 65}, "--hidden 65 is no width that a model can have: 16, 32"),
        ({"core": "linear"}, "the core linear judges numbers alone: say how many by --numbers"),
        ({"token_fields": 0}, "nothing to learn from: give --token-fields or --numbers"),
        ({"retention": "soon"}, "--retention soon is no duration: a duration such as 250ms"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused(asked: dict[str, object], sentence: str) -> None:
    """Each option that makes no sense is named with its value and what to give instead."""
    with pytest.raises(UsageError) as caught:
        print_plan(replace(Asked(10.0, 10), **asked), None, None, None, as_json=True)  # type: ignore[arg-type]
    assert str(caught.value).startswith(sentence) or sentence in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no unit costs (the whole: invalid json"), ("[]", "holds no unit costs (the whole:"),
        ('{"machine": "m"}', "holds no unit costs (measured: field required)"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_costs_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    """A file that holds something else is named with what is wrong and the command that makes one."""
    path = tmp_path / "costs.json"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_unit_costs(path)
    assert f"{path} {sentence}" in str(caught.value)
    assert "python -m benchmarks unit-costs" in str(caught.value)


def test_costs_that_cannot_be_read_or_lack_a_core_are_told(tmp_path: Path) -> None:
    """A file that is not there, a negative cost, a core and a width that nobody measured each have their sentence."""
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_unit_costs(tmp_path / "none.json")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(json.loads(OURS.read_text()) | {"record_us": -1}))
    with pytest.raises(UsageError, match=r"holds no unit costs \(record_us"):
        read_unit_costs(wrong)
    few = COSTS.model_copy(update={"cores": {"gru": {64: COSTS.of_core("gru", 64)}}})
    with pytest.raises(UsageError, match="the costs have no core lstm; they have gru: name one by --core"):
        make_plan(Load(1.0, 1, SHAPE, cores=("lstm",)), few)
    with pytest.raises(UsageError, match="no gru with 128 hidden numbers; they have 64: name one by --hidden"):
        make_plan(Load(1.0, 1, SHAPE, hidden=128), few)


def test_one_of_several_streams_must_be_named() -> None:
    """A config with several streams asks for the name of one."""
    stream = {"session": {"by": "k"}, "tokens": ["a"]}
    several = parse_settings({"streams": {"s": stream | {"topic": "t"}, "u": stream | {"topic": "v"}}}, {})
    with pytest.raises(UsageError, match="the config has several streams: say which by --stream, of s, u"):
        load_of(Asked(1.0, 1), several, None)
    assert load_of(Asked(1.0, 1), several, "u").fields == 1
