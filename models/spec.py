"""What a model is, in plain values: enough to build it, to lay out its state, and to read its weights. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isqrt
from typing import Any

CORES = ("gru", "lstm", "transformer", "tcn")  # of sequence models
BY_NUMBERS = ("linear", "seasonal")  # cores that judge each number by its own past, and know nothing else
LAGS = 10  # values that a linear forecast is made from
SEASONAL = 269  # float32 that the seasonal core keeps of a number
KERNELS = ("gru", "lstm", "tcn")  # cores with a kernel
WINDOWED = ("transformer", "tcn")  # cores whose weights are for one window
LARGE = 500  # symbols of a softmax without classes at most: beyond, it would cost more than all else of a step
LAYERS = 2  # of the Transformer


@dataclass(frozen=True)
class ModelSpec:
    """One sequence model.

    Attributes
    ----------
    core
        One of `CORES`.
    hidden
        H, the width of what the heads read.
    sizes
        Number of ids of each of F fields that are predicted.
    inputs
        Likewise of I further inputs, which are not predicted.
    window
        The events that a core without memory of its own can look back on.
    flat
        No field's softmax has classes, however many its ids: as in bundles of before there were any.
    values
        C, numbers that are given as they are, and forecast; they are no fields. 0 where numbers are ids of bins.
    """

    core: str
    hidden: int
    sizes: tuple[int, ...]
    inputs: tuple[int, ...] = ()
    window: int = 32
    flat: bool = False
    values: int = 0

    @property
    def columns(self) -> int:
        """F + I: ids that one event brings."""
        return len(self.sizes) + len(self.inputs)

    @property
    def symbols(self) -> tuple[int, ...]:
        """What each field's softmax tells apart: its ids, and in the first the end of the session too."""
        return (self.sizes[0] + 1, *self.sizes[1:]) if self.sizes else ()

    @property
    def class_widths(self) -> tuple[int, ...]:
        """Ids in each class of a field's softmax (models/heads.py), about the root of their number; 0: no classes."""
        return tuple(0 if self.flat or n <= LARGE else isqrt(n - 1) + 1 for n in self.symbols)

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Columns of each field's softmax: its symbols, after their classes where it has any."""
        widths = zip(self.symbols, self.class_widths, strict=True)
        return tuple(n + (-(-n // width) if width else 0) for n, width in widths)

    @property
    def core_state(self) -> int:
        """Numbers of a session's row that are the core's; those of the forecasts stand behind them."""
        return state_size(self.core, self.hidden, self.window, self.columns + 2 * self.values)

    @property
    def state_numbers(self) -> int:
        """S, all the numbers of a session's row; of each value its last and its mean squared residual."""
        return self.core_state + 2 * self.values

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def state_size(core: str, hidden: int, window: int, columns: int) -> int:
    """S, the float32 numbers that a session's row keeps of a core with `columns` ids and numbers an event.

    The first H are what the heads read, whichever the core; the rest is the core's own.
    """
    if core == "linear":  # of number columns
        return columns * (LAGS + 1)
    if core == "seasonal":
        return columns * SEASONAL
    if core == "transformer":
        return hidden + 1 + window * (columns + 1)
    return hidden * {"gru": 1, "lstm": 2, "tcn": 1 + sum(dilations(window))}[core]


def dilations(window: int) -> tuple[int, ...]:
    """How far back each block of a TCN looks: 1, 2, 4 and so on, while together they see no more than the window."""
    return tuple(1 << layer for layer in range(window.bit_length() - 1))


def band(window: int) -> int:
    """w, the events that each of a Transformer's L layers looks at: L (w - 1) + 1 are at most the window."""
    return (window - 1) // LAYERS + 1
