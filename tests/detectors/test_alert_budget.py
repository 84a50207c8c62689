"""A budget of alarms a day: the rate it makes of a history, and the alarms a day that it keeps to later."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from detectors.alert_budget import DAY_MS, USUAL_RATE, Volume, rate_of
from detectors.calibration import Calibration
from detectors.fit import fit
from detectors.packing import learned_of
from detectors.parts import Parts
from detectors.promise_keeper import Block, KeeperState, KeepingRules, _due_rates, _keep_records
from models.bundle import Bundle
from pipeline.serving import make_parts
from pipeline.settings import parse_settings
from tests.detectors.test_fit import history

BUDGET, RECORDS = 200.0, 100_000  # a day


def configured(**promise: Any) -> Any:
    stream = {
        "topic": "t", "session": {"by": "session", "gap": "1m"}, "time": "ts", "tokens": ["action", "status"],
        "model": {"hidden": 64}, "promise": promise,
    }  # fmt: skip
    return parse_settings({"broker": "none:9092", "streams": {"s": stream}}, {})


def test_a_budget_is_a_rate_by_the_volume_of_the_history() -> None:
    """Records and sessions together, a day and over all partitions; never more than every second one."""
    data = {"records": 30_000, "sessions": 2_000, "first_ms": 1_000, "last_ms": 1_000 + 2 * DAY_MS, "partitions": 4}
    volume = Volume.of(data)
    assert volume is not None
    assert volume.rate(20.0) == pytest.approx(20 / 16_000)
    assert volume.rate(1e6) == 0.5
    assert volume.block_ms(150) == pytest.approx(150 / (15_000 / 4) * DAY_MS)
    assert volume.block_ms(150, 8) == pytest.approx(2 * volume.block_ms(150))
    assert Volume.of(None) is None
    assert (rate_of(20.0, None, None), rate_of(None, None, volume)) == (USUAL_RATE, USUAL_RATE)
    assert rate_of(None, 0.02, volume) == 0.02


@pytest.mark.parametrize("budget", [50.0, 0.01])
def test_training_and_serving_hold_a_stream_to_the_same_rate(budget: float, parts: Parts) -> None:
    """Training finds it by the history, whoever serves by the bundle; a warning names the budget."""
    events = history(400)
    fitted = fit(events, replace(parts, learned=None, budget=budget), 0, lambda _: None, time.monotonic)
    data = fitted.content["data"]
    days = (max(e.time_ms.max() for e in events) - min(e.time_ms.min() for e in events)) / DAY_MS
    expected = min(0.5, budget * days / (sum(map(len, events)) + data["sessions"]))
    assert fitted.content["calibration"]["promise"] == pytest.approx(expected)
    assert all("or raise promise.alert_budget" in w for w in fitted.warnings if "for calibration" in w)
    assert budget > 1.0 or any("for calibration" in w for w in fitted.warnings)
    learned = learned_of(Bundle("ab" * 32, fitted.content, fitted.files))
    served = make_parts(configured(alert_budget=f"{budget:g}/day"), "s", learned, 8)
    assert served.rate == fitted.content["calibration"]["promise"]
    assert served.keeping is not None
    assert served.keeping.usual_ms == pytest.approx(256 * 8 * days * DAY_MS / data["records"])
    assert make_parts(configured(alert_budget="20/day"), "s", None).rate == USUAL_RATE
    fixed = make_parts(configured(false_alarm_rate=0.01), "s", learned)
    assert (fixed.rate, fixed.keeping) == (0.01, KeepingRules())


def alarms_a_day(volumes: list[int], usual_ms: float | None) -> list[float]:
    """Records of days of so many, a calibration that is right, slices of uneven size; the alarms of each day."""
    rng = np.random.default_rng(3)
    rate = BUDGET / RECORDS
    times = np.concatenate([day * DAY_MS + np.sort(rng.integers(0, DAY_MS, n)) for day, n in enumerate(volumes)])
    p_value = rng.uniform(size=len(times))
    calibration = Calibration.learn(rng.gumbel(size=20_000))
    rules = KeepingRules(usual_ms=usual_ms)
    state, adapted = KeeperState.begin(1, rate, calibration, calibration), []
    cuts = [0, *np.sort(rng.integers(0, len(times), 300)).tolist(), len(times)]
    for low, high in pairwise(cuts):
        p, at = p_value[low:high], times[low:high]
        completes = np.arange(rules.block - state.filled - 1, len(p), rules.block)
        ends = [(int(at[i]), int(low + i)) for i in completes]
        due = _due_rates(state, ends, rules)
        found, records, tally = _keep_records(p, np.zeros(len(p), np.bool_), completes, due, state, rules)
        blocks = (*state.blocks[:-1], *(Block(0.0, *end) for end in ends))[1 - rules.lag :]
        filled = (state.filled + len(p)) % rules.block
        state = replace(state, filled=filled, records=records, tally=tally, blocks=(*blocks, Block(0.0)))
        adapted.append(found)
    alarmed = np.concatenate(adapted) <= rate
    return [float(alarmed[times // DAY_MS == day].sum()) for day in range(len(volumes))]


def test_the_budget_is_kept_where_the_volume_doubles() -> None:
    """Twice the records, and no more alarms a day; with a fixed rate there are twice as many."""
    volumes, usual_ms = [RECORDS] * 10 + [2 * RECORDS] * 10, 256 / RECORDS * DAY_MS
    kept, fixed = alarms_a_day(volumes, usual_ms), alarms_a_day(volumes, None)
    for days in (slice(0, 10), slice(11, 20)):
        assert np.mean(kept[days]) == pytest.approx(BUDGET, rel=0.1)
    assert np.mean(fixed[11:]) == pytest.approx(2 * BUDGET, rel=0.1)


def test_the_budget_follows_a_volume_that_falls_to_a_third() -> None:
    """Fewer records: more of each thousand may be alarms."""
    kept = alarms_a_day([RECORDS] * 3 + [RECORDS // 3] * 15, 256 / RECORDS * DAY_MS)
    assert np.mean(kept[6:]) == pytest.approx(BUDGET, rel=0.1)


def test_a_pause_or_a_flood_asks_for_no_more_than_tenfold() -> None:
    """A night without records is not made up for by alarms at once; nor do clocks that stand take them all away."""
    calibration = Calibration.learn(np.random.default_rng(5).gumbel(size=20_000))
    state = KeeperState.begin(1, 0.01, calibration, calibration)
    rules = KeepingRules(usual_ms=1_000.0)
    assert _due_rates(state, [(0, 255), (10**9, 511)], rules) == pytest.approx([0.01, 0.1])
    assert _due_rates(state, [(7, 255), (7, 511)], rules) == pytest.approx([0.01, 0.001])
    steady = [(1_000 * n, 256 * n) for n in range(20)]
    paused = [(time_ms + 10**9 * (n >= 10), offset) for n, (time_ms, offset) in enumerate(steady)]
    more = np.subtract(_due_rates(state, paused, rules), _due_rates(state, steady, rules))
    assert more.sum() == pytest.approx(9 * 0.01)
    state = replace(state, rate=0.3)
    assert _due_rates(state, [(0, 255), (10**9, 511)], rules) == pytest.approx([0.3, 0.5])
