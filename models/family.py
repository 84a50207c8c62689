"""One family of sequence models: the same inputs and heads around different cores. For training, and as reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.autoregression import CAP
from models.heads import log_probabilities, nats
from models.spec import ModelSpec

EMBEDDING = 16
DROPOUT = 0.1  # in training: few sessions would else be learned by heart


class SequenceModel(nn.Module):
    """Predicts, before each event, every field of the event, or that the session ends instead.

    The input of an event is the embeddings of its ids beside its log time gap; a core carries a state from event to
    event and starts at a learned one; the head is one softmax per field, that of the first field with one more symbol,
    the end of the session. Numbers that are no ids are given as `models.values.told` gives them, and each is forecast
    as its last value and a change. It fails where order carries no information: then counts say as much for less.

    A state is one flat vector, whichever the core. Its first H numbers are what the head reads, so the state before an
    event is all that is needed to be surprised by it.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.state_size = spec.core_state
        self.embeddings = nn.ModuleList([nn.Embedding(size, EMBEDDING) for size in (*spec.sizes, *spec.inputs)])
        self.start = nn.Parameter(torch.zeros(spec.hidden))
        self.head = _head(spec.hidden, sum(spec.head_widths))
        if spec.values:
            self.change = nn.Linear(spec.hidden, spec.values)
            nn.init.zeros_(self.change.weight)  # a number stays as it is, until more is known
            nn.init.zeros_(self.change.bias)

    @property
    def input_size(self) -> int:
        """D, what `embed` gives of an event."""
        return EMBEDDING * len(self.embeddings) + 1 + 2 * self.spec.values

    def embed(self, tokens: Tensor, log_gap: Tensor, values: Tensor | None = None) -> Tensor:
        """(B, T, D) float32 of (B, T, F + I) int64 ids, (B, T) float32 log(1 + seconds) and (B, T, 2C) of numbers."""
        embedded = [embedding(tokens[..., f]) for f, embedding in enumerate(self.embeddings)]
        return torch.cat([*embedded, log_gap.unsqueeze(-1), *([] if values is None else [values])], dim=-1)

    def start_state(self, batch: int) -> Tensor:
        """(B, S): the learned state before a session's first event."""
        rest = self.start.new_zeros(batch, self.state_size - self.spec.hidden)
        return torch.cat([self.start.expand(batch, self.spec.hidden), rest], dim=1)

    def forward(
        self, tokens: Tensor, log_gap: Tensor, state: Tensor, lengths: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """What the head reads after each event, and the state after the last.

        Parameters
        ----------
        tokens, log_gap
            (B, T, F + I) int64; (B, T) float32, log(1 + seconds).
        state
            (B, S) float32 before the first event; left untouched.
        lengths
            (B,) int64, at least 1: how many events of each row are real; the rest is padding. Absent: all.
        values
            (B, T, 2C) float32 of the numbers, where the model forecasts any.

        Returns
        -------
        outputs
            (B, T, H) float32; `outputs[:, t]` predicts event t + 1. Undefined in padding.
        state
            (B, S) float32 after each row's last real event.
        """
        raise NotImplementedError

    def step(self, tokens: Tensor, log_gap: Tensor, state: Tensor, values: Tensor | None = None) -> Tensor:
        """Advance one event per session: (B, F + I), (B,) and (B, S) to (B, S); equals `forward` on every prefix."""
        told = None if values is None else values.unsqueeze(1)
        return self(tokens.unsqueeze(1), log_gap.unsqueeze(1), state, values=told)[1]  # type: ignore[no-any-return]

    def log_probabilities(self, outputs: Tensor) -> list[Tensor]:
        """(..., V_f) log-probabilities per field under (..., H) outputs; the first field's last entry is the end."""
        parts = self.head(outputs).split(self.spec.head_widths, dim=-1)
        return [log_probabilities(part, width) for part, width in zip(parts, self.spec.class_widths, strict=True)]

    def nats(self, outputs: Tensor, targets: Tensor, ignored: int) -> Tensor:
        """(...) minus log-probability of (..., F) int64 targets under (..., H) outputs, all fields together.

        Those that are `ignored` add nothing.
        """
        total = outputs.new_zeros(targets.shape[:-1])
        parts = zip(
            *(torch.split(p, list(self.spec.head_widths)) for p in (self.head.weight, self.head.bias)), strict=True
        )
        for f, (weight, bias) in enumerate(parts):
            counts = targets[..., f] != ignored
            found = nats(outputs[counts], weight, bias, self.spec.class_widths[f], targets[..., f][counts])
            total = total.index_put((counts,), found, accumulate=True)
        return total

    def off(self, outputs: Tensor, last: Tensor, came: Tensor) -> Tensor:
        """(...) how far forecasts under (..., H) outputs are off, in spreads, all numbers together.

        Parameters
        ----------
        last, came
            (..., C) the last values and those that came, NaN where there is none: such a number adds nothing.
        """
        change = came - last
        is_known = ~change.isnan()
        far = (torch.where(is_known, change, 0.0) - self.change(outputs)).abs().clamp(max=CAP)
        return torch.where(is_known, far, 0.0).sum(-1)

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """All parameters as float32 arrays, by the names that serving reads."""
        return {name: value.detach().cpu().numpy().astype(np.float32) for name, value in self.state_dict().items()}

    def load_weights(self, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Inverse of `weights`."""
        self.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})


def _head(hidden: int, width: int) -> nn.Linear:
    """That of no field is empty; torch would warn of making one."""
    head = nn.Linear(hidden, max(width, 1))
    if not width:
        head.weight, head.bias = nn.Parameter(torch.empty(0, hidden)), nn.Parameter(torch.empty(0))
    return head


def latest(x: Tensor, count: int, past: int, lengths: Tensor | None) -> Tensor:
    """(B, count, ...) the last entries of rows that hold `past` of them and then `lengths` (B,) more; absent: all."""
    if lengths is None:
        return x[:, x.shape[1] - count :]
    at = (lengths.to(x.device) + (past - count)).unsqueeze(1) + torch.arange(count, device=x.device)
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), at]


def make_model(spec: ModelSpec, dropout: float = DROPOUT) -> SequenceModel:
    """An untrained model of the core that `spec` names; the GRU has no dropout."""
    from models.gru import GruModel  # cores subclass this module's class
    from models.lstm import LstmModel
    from models.tcn import TcnModel
    from models.transformer import TransformerModel

    if spec.core == "gru":
        return GruModel(spec)
    return {"lstm": LstmModel, "tcn": TcnModel, "transformer": TransformerModel}[spec.core](spec, dropout)
