"""The Transformer core: causal attention over a rolling window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.family import SequenceModel, latest
from models.spec import LAYERS, ModelSpec, band

MOST_HEADS, LEAST_HEAD = 4, 16
ROTATION = 10_000.0


class TransformerModel(SequenceModel):
    """Pre-norm layers of attention, each over the last few events only, so that all together see one window.

    A key/value cache would be far larger than the events, so a state is what the head reads, how many events are kept,
    and the last W events themselves (ids, log gaps and numbers as float32, oldest first); the layers are computed anew
    over them. L layers that look at w events each reach L (w - 1) + 1 events back, which fits into W: what is
    recomputed equals the whole sequence, and replaying the window gives the state of a session that is longer. A
    learned vector stands before the first event, while it is in reach, so that the model can tell how a session began.

    References
    ----------
    Vaswani et al. 2017, arXiv:1706.03762; layer norm first as in Xiong et al. 2020, arXiv:2002.04745, so that training
    needs no warm-up to be stable; rotary positions, Su et al. 2021, arXiv:2104.09864, which tell how far apart two
    events are and nothing else; the band is the sliding window of Beltagy et al. 2020, arXiv:2004.05150.
    """

    def __init__(self, spec: ModelSpec, dropout: float) -> None:
        super().__init__(spec)
        self.enter = nn.Linear(self.input_size, spec.hidden)
        self.begin = nn.Parameter(torch.randn(spec.hidden))
        self.layers = nn.ModuleList([_Layer(spec.hidden, band(spec.window), dropout) for _ in range(LAYERS)])
        self.norm = nn.LayerNorm(spec.hidden)

    def forward(
        self, tokens: Tensor, log_gap: Tensor, state: Tensor, lengths: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `SequenceModel.forward` says."""
        window, columns = self.spec.window, self.spec.columns
        told = [] if values is None else [values]
        now = torch.cat([tokens.to(log_gap.dtype), log_gap.unsqueeze(-1), *told], dim=-1)
        count = state[:, self.spec.hidden].long()  # at most W
        past = state[:, self.spec.hidden + 1 :].reshape(-1, window, now.shape[-1])
        # As many slots as the fullest needs, one of them for what stands before the first event.
        slots = min(window, int(count.max()) + 1)
        events = torch.cat([past[:, window - slots :], now], dim=1)
        told_then = None if values is None else events[..., columns + 1 :]
        x = self.enter(self.embed(events[..., :columns].long(), events[..., columns], told_then))
        at, first = torch.arange(x.shape[1], device=x.device), (slots - count).unsqueeze(1)
        x = torch.where((at == first - 1).unsqueeze(-1), self.begin, x)
        there = at >= first - 1
        for above, layer in zip(range(LAYERS - 1, -1, -1), self.layers, strict=True):
            # What the layers above need of the past, and no more; the last gives the new events alone.
            keep = now.shape[1] + min(slots, above * (band(window) - 1))
            x = layer(x, there[:, there.shape[1] - x.shape[1] :], keep)
        outputs = self.norm(x)
        taken = now.shape[1] if lengths is None else lengths.to(count.device)
        kept = latest(torch.cat([past, now], dim=1), window, window, lengths).flatten(1)
        after = (count + taken).clamp(max=window).to(now.dtype).unsqueeze(1)
        return outputs, torch.cat([latest(outputs, 1, 0, lengths).flatten(1), after, kept], dim=1)


class _Layer(nn.Module):
    """Attention over a band of events, then a network for each event; both add to what comes in."""

    def __init__(self, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.width = max(1, min(MOST_HEADS, hidden // LEAST_HEAD)), width
        self.attention_norm, self.norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.query, self.look = nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * hidden)  # look: keys and values
        self.write = nn.Linear(hidden, hidden)
        self.network = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, there: Tensor, keep: int) -> Tensor:
        """(B, keep, H) of the last of (B, n, H), of which (B, n) bool are there to be looked at."""
        known = self.attention_norm(x[:, -self.width - keep :])
        x = x[:, x.shape[1] - keep :]
        x = x + self.dropout(self.write(self._attend(known, there[:, -self.width - keep :], keep)))
        return x + self.dropout(self.network(self.norm(x)))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, there: Tensor, keep: int) -> Tensor:
        """Each of the last ones looks at itself and at the width - 1 before it.

        They are cut into blocks as long as the band is wide. A block looks at itself and at the block before it, so
        cost grows with the length and not with its square, and the angles of positions stay small and so precise.
        """
        batch, n, hidden = x.shape
        w, after = self.width, -keep % self.width
        lead = w + keep - n  # to a whole block before the first that is kept
        q = nn.functional.pad(self.query(x[:, n - keep :]), (0, 0, 0, after))
        q = q.view(batch, -1, w, self.heads, hidden // self.heads).transpose(2, 3)  # (B, blocks, heads, w, d)
        seen = nn.functional.pad(self.look(x), (0, 0, lead, after))
        seen = seen.view(batch, -1, w, 2, self.heads, hidden // self.heads).permute(3, 0, 1, 4, 2, 5)
        k, v = torch.cat([seen[:, :, :-1], seen[:, :, 1:]], dim=4)  # (B, blocks, heads, 2w, d)
        there = nn.functional.pad(there, (lead, after)).view(batch, -1, w)
        there = torch.cat([there[:, :-1], there[:, 1:]], dim=2)[:, :, None, None]
        place = torch.arange(2 * w, device=x.device)
        back = place[w:].unsqueeze(1) - place  # (w, 2w): how far back a key lies
        looks = (back >= 0) & (back < w) & (there | (back == 0))  # at itself at least, so that a row sums to 1
        q, k = _rotate(q, place[w:]), _rotate(k, place)
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=looks)
        return found.transpose(2, 3).reshape(batch, -1, hidden)[:, :keep]


def _rotate(x: Tensor, place: Tensor) -> Tensor:
    """(..., n, d) turned by angles that grow with each one's place; half of d is the other half's partner."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    speed = ROTATION ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = place.to(x.dtype).unsqueeze(-1) * speed
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)
