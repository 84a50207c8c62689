"""How fast to learn, and when to stop: a short rise, and halves whenever epochs bring nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

LEAST_GAIN = 1e-3  # share of the validation loss an epoch must win to count as progress


@dataclass(frozen=True)
class LearningRate:
    """The rate of each step, and how the validation loss has gone so far. Plain numbers, so that it can be saved.

    The rate rises from nothing over the first `warm_up` steps, while the optimizer's averages are still of few
    gradients, and halves after each two epochs in a row without progress, so that a small data set still ends in a
    fine minimum. A fixed decay to a last epoch would need to know the last epoch, which early stopping does not.

    Attributes
    ----------
    steps
        Steps taken.
    best
        The least validation loss, in nats per event.
    stale
        Epochs in a row without progress.
    """

    highest: float
    warm_up: int
    steps: int = 0
    factor: float = 1.0
    best: float = math.inf
    stale: int = 0

    @property
    def rate(self) -> float:
        """Of the next step."""
        return self.highest * self.factor * min(1.0, (self.steps + 1) / (self.warm_up + 1))

    def after_step(self) -> LearningRate:
        """One step later."""
        return replace(self, steps=self.steps + 1)

    def is_progress(self, validation_loss: float) -> bool:
        """Whether an epoch with this loss would be the best so far by more than noise."""
        if math.isinf(self.best):
            return True
        return validation_loss < self.best - LEAST_GAIN * abs(self.best)  # densities make losses below 0 possible

    def after_epoch(self, validation_loss: float) -> LearningRate:
        """One epoch later."""
        if self.is_progress(validation_loss):
            return replace(self, best=validation_loss, stale=0)
        stale = self.stale + 1
        return replace(self, stale=stale, factor=self.factor / 2 if stale % 2 == 0 else self.factor)
