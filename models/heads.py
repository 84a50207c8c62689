"""Softmax heads: flat, and in two levels where ids are many."""

from __future__ import annotations

import torch
from torch import Tensor


def log_probabilities(logits: Tensor, width: int) -> Tensor:
    """(..., V) log-probabilities of one field from the (..., K) columns of its head.

    With a `width` of 0 each column is an id. Else the first columns are classes of `width` consecutive ids each, the
    others ids, and log p(id) = log p(its class) + log p(id | its class): normalised exactly, and to score one id a
    kernel needs no other class's ids. Ids are in order of frequency, so those of a class are about as frequent.

    References
    ----------
    Goodman 2001, arXiv:cs/0108006; classes by frequency as in Mikolov et al. 2011, doi:10.1109/ICASSP.2011.5947611.
    """
    if width == 0:
        return logits.log_softmax(-1)
    classes = -(-logits.shape[-1] // (width + 1))  # K ids and classes: width and one of each whole class
    ids = logits.shape[-1] - classes
    of_ids = torch.nn.functional.pad(logits[..., classes:], (0, classes * width - ids), value=-torch.inf)
    given = of_ids.reshape(*of_ids.shape[:-1], classes, width).log_softmax(-1)
    of_class = logits[..., :classes].log_softmax(-1)
    return (of_class.unsqueeze(-1) + given).flatten(-2)[..., :ids]
