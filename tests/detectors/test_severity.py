"""Severity rises with surprise, persistence and extent, and stays on its scale."""

from hypothesis import given
from hypothesis import strategies as st

from detectors.severity import SEVERITIES, severity_of, severity_of_incident

LEVEL = {name: level for level, name in enumerate(SEVERITIES)}


@given(
    p=st.floats(1e-12, 1.0), q=st.floats(1e-12, 1.0), promise=st.sampled_from([0.01, 0.001, 0.0001]),
    persists=st.booleans(),
)  # fmt: skip
def test_it_rises_with_surprise_and_persistence(p: float, q: float, promise: float, *, persists: bool) -> None:
    """What is rarer, or goes on, is never less severe."""
    rarer, other = (severity_of(pick(p, q), promise, persists=persists) for pick in (min, max))
    assert LEVEL[rarer] >= LEVEL[other]
    assert LEVEL[severity_of(p, promise, persists=True)] >= LEVEL[severity_of(p, promise)]


def test_its_levels_are_factors_of_ten_below_the_promise() -> None:
    """From what just breaks the promise to what is a thousand times rarer."""
    assert [severity_of(0.01 / 10**k, 0.01) for k in range(5)] == [*SEVERITIES, "critical"]
    assert [severity_of(0.01 / 10**k, 0.01, persists=True) for k in range(4)] == [*SEVERITIES[1:], "critical"]


def test_an_incident_has_a_level_for_each_sign() -> None:
    """Strong evidence, long duration and wide extent count alike."""
    assert severity_of_incident(is_strong=False, is_long=False, is_wide=False) == "low"
    assert severity_of_incident(is_strong=True, is_long=False, is_wide=False) == "medium"
    assert severity_of_incident(is_strong=True, is_long=True, is_wide=True) == "critical"
