"""The GRU sequence model, in torch: for training, and as the reference the serving kernel is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EMBEDDING = 16


class GruModel(nn.Module):
    """Predicts, before each event, every token field of the event, or that the session ends instead.

    The input of an event is the embeddings of its tokens beside its log time gap; the core is one GRU layer with a
    learned start state; the head is one softmax per field, that of the first field with one more symbol, the end of
    the session. It fails where order carries no information: then counts say as much for less.

    Parameters
    ----------
    sizes
        Vocabulary size of each of F fields.
    hidden
        H, the size of the state.
    inputs
        Vocabulary size of each of I further inputs, which are not predicted.

    References
    ----------
    Cho et al. 2014, arXiv:1406.1078, in the gate layout of cuDNN (r, z, n), where the reset gate multiplies after the
    recurrent product; Du et al. 2017 (DeepLog), doi:10.1145/3133956.3134015, for next-event surprise on logs.
    """

    def __init__(self, sizes: tuple[int, ...], hidden: int, inputs: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.sizes, self.hidden = sizes, hidden
        self.embeddings = nn.ModuleList([nn.Embedding(size, EMBEDDING) for size in (*sizes, *inputs)])
        self.core = nn.GRU(EMBEDDING * len(self.embeddings) + 1, hidden, batch_first=True)
        self.start = nn.Parameter(torch.zeros(hidden))
        self.head = nn.Linear(hidden, sum(sizes) + 1)

    def inputs(self, tokens: Tensor, log_gap: Tensor) -> Tensor:
        """(B, T, (F+I)*E + 1) float32 of (B, T, F+I) int64 tokens and (B, T) float32 log gaps."""
        embedded = [embedding(tokens[..., f]) for f, embedding in enumerate(self.embeddings)]
        return torch.cat([*embedded, log_gap.unsqueeze(-1)], dim=-1)

    def start_state(self, batch: int) -> Tensor:
        """(B, H): the learned state before a session's first event."""
        return self.start.expand(batch, self.hidden)

    def forward(self, tokens: Tensor, log_gap: Tensor, hidden: Tensor) -> Tensor:
        """States after each event.

        Parameters
        ----------
        tokens, log_gap
            (B, T, F+I) int64; (B, T) float32, log(1 + seconds).
        hidden
            (B, H) float32 before the first event.

        Returns
        -------
        states
            (B, T, H) float32; `states[:, t]` predicts event t + 1.
        """
        states, _ = self.core(self.inputs(tokens, log_gap), hidden.unsqueeze(0).contiguous())
        return states  # type: ignore[no-any-return]

    def step(self, tokens: Tensor, log_gap: Tensor, hidden: Tensor) -> Tensor:
        """Advance one event per session: (B, F+I) and (B,) and (B, H) to (B, H); equals `forward` on every prefix."""
        return self(tokens.unsqueeze(1), log_gap.unsqueeze(1), hidden)[:, 0]  # type: ignore[no-any-return]

    def log_probabilities(self, states: Tensor) -> list[Tensor]:
        """(..., V_f) log-probabilities per field under (..., H) states; the first field's last entry is the end."""
        logits = self.head(states)
        widths = [self.sizes[0] + 1, *self.sizes[1:]]
        return [part.log_softmax(-1) for part in logits.split(widths, dim=-1)]

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """All parameters as float32 arrays, by the names the serving kernel reads."""
        return {name: value.detach().cpu().numpy().astype(np.float32) for name, value in self.state_dict().items()}

    def load_weights(self, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Inverse of `weights`."""
        self.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
