"""The LSTM core."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.family import SequenceModel
from models.spec import ModelSpec


class LstmModel(SequenceModel):
    """One LSTM layer; its state is what the head reads, and the cell beside it.

    References
    ----------
    Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; the forget gate's bias begins at 1 as in Jozefowicz
    et al. 2015 (ICML), so that what is seen early reaches the gradient; dropout where nothing recurs, as in Zaremba et
    al. 2014, arXiv:1409.2329.
    """

    def __init__(self, spec: ModelSpec, dropout: float) -> None:
        super().__init__(spec)
        self.core = nn.LSTM(self.input_size, spec.hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            self.core.get_parameter("bias_ih_l0")[spec.hidden : 2 * spec.hidden] += 1

    def forward(
        self, tokens: Tensor, log_gap: Tensor, state: Tensor, lengths: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `SequenceModel.forward` says."""
        x = self.dropout(self.embed(tokens, log_gap, values))
        h, c = (part.unsqueeze(0).contiguous() for part in state.chunk(2, dim=1))
        if lengths is None:
            outputs, after = self.core(x, (h, c))
        else:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            packed, after = self.core(packed, (h, c))
            outputs = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0]
        return outputs, torch.cat([part[0] for part in after], dim=1)
