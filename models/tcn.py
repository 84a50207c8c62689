"""The TCN core: dilated causal convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.family import SequenceModel, latest
from models.spec import ModelSpec, dilations


class TcnModel(SequenceModel):
    """Residual blocks, each of which looks at an event and at one further back; twice as far from block to block.

    Together they see the largest power of two of events that fits into the window. Zeros stand before a session's
    first event, so the blocks can tell how it began. A state is what the head reads, and the last inputs of each
    block's convolution, oldest first. (A true ring would save a move of these numbers, which is little beside the
    products of a step.) Replaying the window gives the same state as a session that is longer.

    References
    ----------
    Bai et al. 2018, arXiv:1803.01271. Departures: one dilated convolution of two taps a block, so that each number
    kept reaches one event further; and layer norm (Ba et al. 2016, arXiv:1607.06450) before it in place of weight norm,
    which needs nothing of other events and so streams.
    """

    def __init__(self, spec: ModelSpec, dropout: float) -> None:
        super().__init__(spec)
        self.reach = dilations(spec.window)
        self.enter = nn.Linear(self.input_size, spec.hidden)
        self.blocks = nn.ModuleList([_Block(spec.hidden, dropout) for _ in self.reach])
        self.norm = nn.LayerNorm(spec.hidden)

    def forward(
        self, tokens: Tensor, log_gap: Tensor, state: Tensor, lengths: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `SequenceModel.forward` says."""
        x = self.enter(self.embed(tokens, log_gap, values))
        hidden, kept = self.spec.hidden, []
        past = state[:, hidden:].view(len(state), -1, hidden)  # the inputs kept by all blocks, one after the other
        for block, far in zip(self.blocks, self.reach, strict=True):
            x, seen = block(past[:, :far], x)
            past = past[:, far:]
            kept.append(latest(seen, far, far, lengths).flatten(1))
        outputs = self.norm(x)
        return outputs, torch.cat([latest(outputs, 1, 0, lengths).flatten(1), *kept], dim=1)


class _Block(nn.Module):
    """A convolution of two taps, then a product for each event; what comes out adds to what came in."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.before = nn.Linear(hidden, hidden, bias=False)  # the two taps of the convolution
        self.now = nn.Linear(hidden, hidden)
        self.leave = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, past: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, H) of such, and all that the convolution saw: (B, far, H) `past` inputs and (B, T, H) new ones."""
        far = past.shape[1]
        seen = torch.cat([past, self.norm(x)], dim=1)
        inner = torch.relu(self.before(seen[:, :-far]) + self.now(seen[:, far:]))
        return x + self.dropout(self.leave(self.dropout(inner))), seen
