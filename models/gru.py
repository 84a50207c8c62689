"""The GRU core."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.family import SequenceModel
from models.spec import ModelSpec


class GruModel(SequenceModel):
    """One GRU layer; its state is its hidden state.

    References
    ----------
    Cho et al. 2014, arXiv:1406.1078, in the gate layout of cuDNN (r, z, n), where the reset gate multiplies after the
    recurrent product; Du et al. 2017 (DeepLog), doi:10.1145/3133956.3134015, for next-event surprise on logs.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.core = nn.GRU(self.input_size, spec.hidden, batch_first=True)

    def forward(
        self, tokens: Tensor, log_gap: Tensor, state: Tensor, lengths: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `SequenceModel.forward` says."""
        x = self.embed(tokens, log_gap, values)
        before = state.unsqueeze(0).contiguous()
        if lengths is None:
            outputs, _ = self.core(x, before)
            return outputs, outputs[:, -1]
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed, after = self.core(packed, before)
        return pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])[0], after[0]
