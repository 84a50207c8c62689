"""All that is watched for drift in a partition: its inputs as they arrive, and its scores as they are given."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from detectors.drift_events import DriftEvent
from detectors.input_watch import InputWatch, UsualInputs
from detectors.intervals import KINDS, Floats, IntervalState
from detectors.score_watch import ScoreState, ScoreWatch, UsualScores
from features.events import Events

NAME = "drift"
P_VALUE = "p_value"  # in place of a field's name, of what is about scores
_VERSION = 1
_HEADER = struct.Struct("<BII")


@dataclass(frozen=True, eq=False)
class UsualDrift:
    """What training left for both."""

    inputs: UsualInputs
    scores: UsualScores

    def to_json(self) -> dict[str, Any]:
        """As a bundle holds it."""
        return {"inputs": self.inputs.to_json(), "scores": self.scores.to_json()}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """What `to_json` gave. KeyError, ValueError: it is none."""
        return cls(UsualInputs.from_json(saved["inputs"]), UsualScores.from_json(saved["scores"]))


@dataclass(frozen=True, eq=False)
class DriftState:
    """What a partition remembers of both, of 128 fields: less than 128 KB; None before the first record."""

    inputs: IntervalState | None = None
    scores: ScoreState | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DriftState) and self.pack() == other.pack()

    def __hash__(self) -> int:
        return hash(self.pack())

    def pack(self) -> bytes:
        """As it is saved."""
        parts = [b"" if state is None else state.pack() for state in (self.inputs, self.scores)]
        return b"".join([_HEADER.pack(_VERSION, *map(len, parts)), *parts])

    @classmethod
    def unpack(cls, packed: bytes) -> DriftState | None:
        """What `pack` gave; None of another version. ValueError: it is none."""
        if len(packed) < _HEADER.size:
            message = "it cannot be unpacked: it is too short"
            raise ValueError(message)
        version, of_inputs, of_scores = _HEADER.unpack_from(packed)
        if version != _VERSION:
            return None
        inputs = packed[_HEADER.size : _HEADER.size + of_inputs]
        scores = packed[_HEADER.size + of_inputs : _HEADER.size + of_inputs + of_scores]
        return cls(
            IntervalState.unpack(inputs) if inputs else None, ScoreState.unpack(scores) if scores else None
        )  # fmt: skip


class Scored(NamedTuple):
    """(n,) p-values in the order they were given, with times, groups of sessions and offsets."""

    p_values: Floats
    time_ms: NDArray[np.int64]
    group: NDArray[np.int64]
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Drifted:
    """What one slice gave: what began or ended, and how far the latest interval is towards being drift.

    Attributes
    ----------
    levels
        Where an interval ended, by field (`P_VALUE` for scores) and kind: the statistic as a share of its limit.
    """

    events: tuple[DriftEvent, ...] = ()
    levels: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True)
class DriftWatch:
    """Watches both; bundles of before there was a reference leave nothing to hold against."""

    inputs: InputWatch
    scores: ScoreWatch

    @classmethod
    def of(
        cls, tokens: tuple[str, ...], numbers: tuple[str, ...], usual: UsualDrift | None, after_ms: int | None
    ) -> DriftWatch:
        """Of a stream's fields; `usual` None: nothing is watched."""
        if usual is None:
            return cls(InputWatch(tokens, numbers, None, after_ms), ScoreWatch())
        return cls(InputWatch(tokens, numbers, usual.inputs, after_ms), ScoreWatch(usual.scores))

    def update_many(
        self, state: DriftState, arrived: Events, ids: NDArray[np.int32], scored: Scored
    ) -> tuple[DriftState, Drifted]:
        """Take in a slice.

        Parameters
        ----------
        arrived
            Records as they came.
        ids
            (n, F) their tokens' ids.
        scored
            Records that got a p-value, late ones left out.
        """
        inputs, of_inputs = self.inputs.update_many(state.inputs, arrived, ids)
        scores, of_scores = self.scores.update_many(state.scores, *scored)
        if inputs is state.inputs and scores is state.scores:
            return state, Drifted()
        levels = (*self._of_inputs(state, inputs), *self._of_scores(state, scores))
        return DriftState(inputs, scores), Drifted((*of_inputs, *of_scores), levels)

    def _of_inputs(self, before: DriftState, after: IntervalState | None) -> list[tuple[str, str, float]]:
        """Levels of the latest interval, where one ended."""
        if self.inputs.usual is None or after is None or not after.is_later_than(before.inputs):
            return []
        levels = self.inputs.usual.reference.levels_of(after)
        return [(field, KINDS[k], float(levels[c, k])) for c, field in enumerate(self.inputs.fields) for k in (0, 1)]

    def _of_scores(self, before: DriftState, after: ScoreState | None) -> list[tuple[str, str, float]]:
        if self.scores.usual is None or after is None:
            return []
        if not after.intervals.is_later_than(before.scores.intervals if before.scores is not None else None):
            return []
        levels = self.scores.usual.reference.levels_of(after.intervals)
        return [(P_VALUE, KINDS[k], float(levels[0, k])) for k in (0, 2)]
