"""How fast a receiver is given messages, and by which clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.alerts.clock import SteadyClock
from pipeline.alerts.pace import DOWN_AFTER, Pace


@given(st.integers(1, 5), st.integers(1, 100), st.lists(st.integers(0, 60), max_size=40))
def test_no_more_leave_than_the_rate_allows(most: int, per_ms: int, pauses: list[int]) -> None:
    """However requests come, in no span of the rate's length more than so many leave; and then there is a next one."""
    pace, now, left = Pace("ops", (most, per_ms), 0), 0, list[int]()
    for pause in pauses:
        now += pause
        if (wait_ms := pace.wait_ms(now)) == 0:
            pace.spend(now)
            left.append(now)
        else:
            assert pace.wait_ms(now + wait_ms) == 0
    assert all(sum(at <= other < at + per_ms for other in left) <= most for at in left)


def test_a_receiver_that_fails_again_and_again_is_asked_rarely() -> None:
    """Ten failures in a row begin rests that grow up to minutes; one success ends them."""
    pace, now, rests = Pace("ops", (1_000, 1_000), 0), 0, list[int]()
    for _ in range(DOWN_AFTER - 1):
        pace.failed(now)
        assert pace.wait_ms(now) == 0
        assert not pace.is_down
    for _ in range(10):
        pace.failed(now)
        assert pace.is_down
        rests.append(pace.wait_ms(now))
        now += rests[-1]
        assert not pace.rests(now)
    assert rests[:7] == sorted(rests[:7])
    assert 5_000 <= rests[0] <= 6_000
    assert all(300_000 <= rest <= 360_000 for rest in rests[7:])
    pace.succeeded()
    assert not pace.is_down
    assert pace.wait_ms(now) == 0


def test_answers_that_came_together_count_as_one_throttle() -> None:
    """Four requests under way that are all answered 429 do not make the rest four steps longer."""
    pace = Pace("ops", (1_000, 1_000), 0)
    assert len({pace.throttled(0, None) for _ in range(4)}) == 1
    assert 5_000 <= pace.wait_ms(0) <= 6_000
    assert pace.throttled(10_000, None) >= 10_000, "the next one is longer"
    assert 60_000 <= pace.throttled(30_000, 60_000) <= 72_000, "what it asks for counts"


def test_a_clock_that_is_set_moves_nothing() -> None:
    """Time goes on as a steady clock says, whatever the wall clock is set to."""
    wall, steady = [1_000_000], [5.0]
    clock = SteadyClock(lambda: wall[0], lambda: steady[0])
    wall[0], steady[0] = 5, 6.5
    assert clock.now_ms() == 1_001_500
    wall[0] = 9_000_000
    assert clock.now_ms() == 1_001_500
    assert clock.wall_ms() == 9_000_000
