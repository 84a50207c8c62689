"""A model's heads held against sessions that its weights never saw, and made as sure as they are right."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from models.family import SequenceModel, make_model
from models.sequences import IGNORED, Sequences, batches, pad, pad_values
from models.spec import ModelSpec
from models.temperature import HeadCheck, blocks_of, check_head, fold

F32 = NDArray[np.float32]
MOST_EVENTS = 100_000  # looked at: the second decimal of a temperature needs a few thousand
_BATCH_TOKENS, _CHUNK = 4_096, 256


def temper(
    weights: Mapping[str, F32], spec: ModelSpec, validation: Sequences, fields: int, *, mends: bool
) -> tuple[dict[str, F32], list[HeadCheck | None]]:
    """Weights whose heads are as sure as they are right, and of each token field how sure and how right it was.

    Parameters
    ----------
    fields
        Token fields, which stand before the numbers. Those with a softmax of classes are left as they are, and have no
        check: one temperature cannot serve classes and ids at once.
    mends
        Fold the temperatures into the heads; else only look.
    """
    if not fields:
        return dict(weights), []
    model = make_model(spec)
    model.load_weights(weights)
    model.eval()
    states, targets = _met(model, validation)
    head, bias = weights["head.weight"], weights["head.bias"]
    starts = np.cumsum([0, *spec.head_widths])
    checks: list[HeadCheck | None] = []
    for f in range(fields):
        part, known = slice(starts[f], starts[f + 1]), targets[:, f] != IGNORED
        blocks = blocks_of(states[known], head[part], bias[part], targets[known, f])
        checks.append(None if spec.class_widths[f] else check_head(blocks))
    if not mends:
        return dict(weights), checks
    divisors = [1.0 if check is None else check.temperature for check in checks]
    divisors += [1.0] * (len(spec.sizes) - fields)
    head, bias = fold(head, bias, spec.head_widths, divisors)
    return {**weights, "head.weight": head, "head.bias": bias}, checks


def _met(model: SequenceModel, sessions: Sequences) -> tuple[F32, NDArray[np.int64]]:
    """(n, H) what the heads read before each event and each end, and the (n, F) targets that came."""
    states, targets, seen = [], [], 0
    with torch.no_grad():
        for numbers in batches(sessions.lengths, np.arange(len(sessions)), _BATCH_TOKENS, None):
            given = [sessions[n] for n in numbers.tolist()]
            (tokens, log_gap, came), values = pad(given, model.spec.sizes), pad_values(given)
            state = model.start_state(len(tokens))
            for low in range(0, tokens.shape[1], _CHUNK):
                part = slice(low, low + _CHUNK)
                told = None if values is None else values.told[:, part]
                after, next_state = model(tokens[:, part], log_gap[:, part], state, values=told)
                before = torch.cat([state[:, None, : model.spec.hidden], after[:, :-1]], dim=1)
                real = (came[:, part] != IGNORED).any(-1)
                states.append(before[real].numpy())
                targets.append(came[:, part][real].numpy())
                state, seen = next_state, seen + len(targets[-1])
            if seen >= MOST_EVENTS:
                break
    return np.concatenate(states), np.concatenate(targets)
