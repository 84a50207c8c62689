"""How much memory a training will take, told before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from models.family import make_model
from models.sequences import Sequences, batches
from models.spec import ModelSpec
from models.training import TrainingOptions

# Of each weight: itself, its gradient, the optimizer's two averages and its scratch, the best so far, and a state as it
# is saved, which is these once more and again as bytes.
_COPIES = 12
# Of each number that a chunk computes: for the way forward and the way back, and what is under way between the two.
_LAYERS, _OF_SOFTMAX = 12, 4


@dataclass(frozen=True)
class Estimate:
    """Bytes that a training takes on top of what is in memory when it starts; a half more or less is to be expected.

    Attributes
    ----------
    weights
        The model's, with all the copies that learning takes.
    batch
        The largest batch with what is computed of one chunk of it; the softmax of large vocabularies rules it.
    """

    weights: int
    batch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.batch


def estimate(spec: ModelSpec, options: TrainingOptions, sequences: Sequences) -> Estimate:
    """What `train` will need for the weights and for one batch; the sequences are there already."""
    model = make_model(spec)
    weights = sum(weight.numel() for weight in model.parameters())
    most_events, most_computed = 0, 0
    for numbers in batches(sequences.lengths, np.arange(len(sequences)), options.batch_of(sequences), None):
        longest = int(sequences.lengths[numbers[-1]]) + 1
        most_events = max(most_events, len(numbers) * longest)
        most_computed = max(most_computed, len(numbers) * min(longest, options.chunk))
    given = most_events * (8 * (spec.columns + len(spec.sizes)) + 4 + 4 * 4 * spec.values)
    layers = _LAYERS * (model.input_size + spec.hidden) + sum(map(partial(_of_field, spec), range(len(spec.sizes))))
    return Estimate(4 * weights * _COPIES, given + 4 * most_computed * layers)


def _of_field(spec: ModelSpec, field: int) -> int:
    """Numbers computed for one event: all columns; where there are classes these, and a copy of one class's weights."""
    width, symbols = spec.class_widths[field], spec.symbols[field]
    if not width:
        return _OF_SOFTMAX * symbols
    return _OF_SOFTMAX * (spec.head_widths[field] - symbols) + width * spec.hidden
