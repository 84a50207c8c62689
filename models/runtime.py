"""A trained model ready to serve: by numpy weights and the row-wise kernels, which need no torch; else by torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.spec import KERNELS, ModelSpec

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """What the model says of a slice of n events and m operations.

    Attributes
    ----------
    surprise
        (n, F) float32: minus log-likelihood of each field, in nats, under the state before the event.
    states
        (m, H) float32: what the heads read, which each operation was scored under.
    end_surprise
        (m,) float32: surprise of a session's end; defined where the operation is an end.
    hidden
        (S, width) float32 after the slice, as wide as the rows are.
    """

    surprise: F32
    states: F32
    end_surprise: F32
    hidden: F32


class Runtime(Protocol):
    """What serves a model.

    Attributes
    ----------
    name
        For logs.
    resumes
        Whether the states it tells are what rows hold, so that a row may begin with one, and ADVANCE is an operation.
    """

    name: str
    resumes: bool

    def score_and_step(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, hidden: F32, among: NDArray[np.int32] | None = None,
        numbers: F32 | None = None, tails: F32 | None = None, time_ms: NDArray[np.int64] | None = None,
    ) -> Scores:  # fmt: skip
        """Score each event under the state before it, then learn it.

        Parameters
        ----------
        kind, row, record, first
            m operations on S rows and of n events, as `models.kernels` has them.
        tokens, log_gap
            (n, F + I) int32 ids, those of F fields and of I inputs that are not predicted; (n,) float32.
        hidden
            (S, width) float32, untouched. It may be wider than the model's state; what lies beyond stays as it is.
        among
            (n, G, 2) int32 ranges of ids in which those of the last G fields are known to lie.
        numbers
            (n, N) values themselves, for what reads them by no ids: a core that forecasts, what `models.values.told`
            says of them.
        tails
            (n, N) nats that come on top of the surprise of their ids.
        time_ms
            (n,) when each event was, for what goes by the time of day.
        """

    def log_probabilities(self, states: F32) -> list[F32]:
        """(k, V_f) per field for (k, H) of what heads read; the first field's last column is the session's end."""


def load_runtime(spec: ModelSpec, weights: Mapping[str, F32], runtime: str = "auto", device: str = "cpu") -> Runtime:
    """The runtime for a model.

    Parameters
    ----------
    runtime
        "kernel", for cores that have one; "torch"; or "auto": the kernel where there is one, but not where CUDA is
        asked for.
    device
        "cpu", "cuda", or "auto": for torch CUDA where there is some.

    Raises
    ------
    BundleError
        The weights do not fit the model.
    RuntimeUnavailableError
        CUDA is asked for, and there is none.
    """
    has_kernel = spec.core in KERNELS and spec.hidden % 8 == 0
    if runtime == "kernel" or (runtime == "auto" and has_kernel and device != "cuda"):
        assert has_kernel, "the config's rules let nobody ask for a kernel that there is not"
        return make_kernel(spec, weights)
    from models.torch_runtime import TorchRuntime, choose_device  # a worker maps libtorch only where it must

    return TorchRuntime(spec, weights, choose_device(device))


def make_kernel(spec: ModelSpec, weights: Mapping[str, F32]) -> Runtime:
    """The kernel of a core that has one.

    Raises
    ------
    BundleError
        The weights do not fit the model.
    """
    from models.gru_kernel import GruKernel  # kernels are made of this module's parts
    from models.lstm_kernel import LstmKernel
    from models.tcn_kernel import TcnKernel

    return {"gru": GruKernel, "lstm": LstmKernel, "tcn": TcnKernel}[spec.core](spec, weights)


def add_tails(scores: Scores, tails: F32 | None) -> None:
    """Put (n, N) nats on top of the surprise of the last N fields."""
    if tails is not None and tails.shape[1]:
        scores.surprise[:, -tails.shape[1] :] += tails


def widened(weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What a bundle holds, with float32 for float16."""
    return {name: w.astype(np.float32) if w.dtype == np.float16 else w for name, w in weights.items()}
