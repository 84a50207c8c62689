"""Models ready to serve: one core, or several as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from detectors.calibration import Calibration
from detectors.ensemble import Ensemble, Member
from models.forecast import ForecastRuntime
from models.linear import LinearRuntime
from models.runtime import Runtime, load_runtime
from models.seasonal import SeasonalRuntime
from models.spec import BY_NUMBERS, ModelSpec, state_size


def make_runtime(
    spec: ModelSpec, weights: Mapping[str, NDArray[Any]], fields: int, runtime: str = "auto", device: str = "cpu"
) -> Runtime:
    """What serves a model; `fields` of its sizes are tokens, the others numbers.

    Raises
    ------
    BundleError
        The weights do not fit the model.
    """
    if spec.core == "linear":
        return LinearRuntime(weights, fields, _number_count(spec, fields))
    if spec.core == "seasonal":
        return SeasonalRuntime(weights, fields, _number_count(spec, fields))
    if spec.values:
        return ForecastRuntime(spec, weights, runtime, device)
    return load_runtime(spec, weights, runtime, device)


def make_ensemble(
    specs: Sequence[ModelSpec], runtimes: Sequence[Runtime], records: Sequence[Calibration], fields: int
) -> Ensemble:
    """Members as one, from what serves each and the calibrations of their own records."""
    members = []
    for spec, runtime, own in zip(specs, runtimes, records, strict=True):
        members.append(Member(runtime, own, row_width(spec, fields), _reads(spec, fields)))
    return Ensemble(members)


def row_width(spec: ModelSpec, fields: int) -> int:
    """How many numbers a row keeps of a model; `fields` of its sizes are tokens."""
    if spec.core in BY_NUMBERS:
        return state_size(spec.core, spec.hidden, spec.window, _number_count(spec, fields))
    return spec.state_numbers


def _reads(spec: ModelSpec, fields: int) -> int:
    """How many numbers heads read: of a sequence model its own, else forecasts, or the two ends of where each lies."""
    ends = {"linear": 1, "seasonal": 2}.get(spec.core)
    return spec.hidden + spec.values if ends is None else ends * _number_count(spec, fields)


def _number_count(spec: ModelSpec, fields: int) -> int:
    return spec.values or len(spec.sizes) - fields
