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


def nats(outputs: Tensor, weight: Tensor, bias: Tensor, width: int, targets: Tensor) -> Tensor:
    """(N,) minus log-probabilities of (N,) targets of one field under (N, H) outputs, as `log_probabilities` has them.

    `weight` (K, H) and `bias` (K,) are the field's part of the head. Of classes each target's own is computed alone.
    """
    cross_entropy = torch.nn.functional.cross_entropy
    if width == 0:
        return cross_entropy(torch.nn.functional.linear(outputs, weight, bias), targets, reduction="none")
    classes = -(-len(weight) // (width + 1))
    missing = classes * (width + 1) - len(weight)  # of the last class
    which = targets // width
    of_class = cross_entropy(outputs @ weight[:classes].T + bias[:classes], which, reduction="none")
    own = torch.nn.functional.pad(weight[classes:], (0, 0, 0, missing)).view(classes, width, -1)
    own_bias = torch.nn.functional.pad(bias[classes:], (0, missing), value=-torch.inf).view(classes, width)
    logits = torch.bmm(own[which], outputs.unsqueeze(2)).squeeze(2) + own_bias[which]
    return of_class + cross_entropy(logits, targets - which * width, reduction="none")
