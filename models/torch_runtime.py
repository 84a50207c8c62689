"""Models served by torch, on a CPU or a GPU: a slice's operations as runs of events, all runs in packed batches.

The state before an operation depends on its own row alone, so a slice is cut into runs: a row's events one after the
other, begun anew where a session opens. Runs know nothing of each other and go through the model together. What torch
gives a row depends in its last digits on what stands beside it: the promise here is a tolerance, not bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import BundleError, RuntimeUnavailableError
from models.family import make_model
from models.kernels import LATE, STEP
from models.runtime import F32, Scores, add_tails
from models.spec import WINDOWED, ModelSpec

LONGEST = 256  # events of a run that go through the model at once; the rest follows with the state they leave
MOST = 16_384  # events of a batch, padding and windows included: some 100 MB at the widest cores
FEW = 1_024  # so many are computed in one batch, however uneven the runs; of more, at most half shall be padding
MOST_LOGITS = 1 << 22


@dataclass(frozen=True)
class Runs:
    """The m operations of a slice as G runs of k events in all.

    Attributes
    ----------
    row, opens, is_last
        (G,) whose events these are, whether they begin at the learned start, whether no other run of the row follows.
    begin, length
        (G,) where a run stands in `records`, and how long it is; 0 where a row has no events, only an end, say.
    records
        (k,) events, run by run.
    before
        (m,) where an operation's state stands among: the learned start, the G states that runs begin with, and those
        after each of the k events.
    """

    row: NDArray[np.int32]
    opens: NDArray[np.bool_]
    is_last: NDArray[np.bool_]
    begin: NDArray[np.int64]
    length: NDArray[np.int64]
    records: NDArray[np.int32]
    before: NDArray[np.int64]

    @classmethod
    def of(
        cls, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_]
    ) -> Runs:
        """Of operations as `models.kernels` has them."""
        order = np.argsort(row, kind="stable")
        kind, row, record = kind[order], row[order], record[order]
        steps, late = kind == STEP, kind == LATE
        opens, belongs_to_none = np.zeros(len(kind), np.bool_), np.zeros(len(kind), np.bool_)
        opens[steps], belongs_to_none[late] = first[record[steps]], first[record[late]]
        begins = opens | (np.diff(row, prepend=-1) != 0)
        at, run = np.flatnonzero(begins), np.cumsum(begins) - 1
        seen = np.cumsum(steps) - steps  # events before each operation, those of other runs too
        begin = seen[at]
        before = np.where(seen == begin[run], 1 + run, len(at) + seen)
        before[belongs_to_none] = 0
        unsorted = np.empty_like(before)
        unsorted[order] = before
        return cls(
            row[at], opens[at], np.diff(row[at], append=-1) != 0, begin,
            np.diff(begin, append=int(steps.sum())), record[steps], unsorted,
        )  # fmt: skip

    def batches(self, window: int) -> Iterator[NDArray[np.intp]]:
        """Runs with events, the longest first, in batches that go through the model together.

        Batches are bounded in memory and, where they are large, of like lengths. `window` counts for each run the
        events before it that are computed anew.
        """
        order = np.argsort(-self.length, kind="stable")
        order = order[self.length[order] > 0]
        low, costs = 0, (np.minimum(self.length[order], LONGEST) + window).tolist()
        for high in range(1, len(order) + 1):
            size = (high - low) * costs[low]
            is_last, is_full = high == len(order), size + costs[low] > MOST
            if is_last or is_full or (size > FEW and 2 * costs[high] < costs[low]):
                yield order[low:high]
                low = high


class TorchRuntime:
    """Serves any core within a tolerance of `forward`, as `models.runtime.Runtime` says.

    Parameters
    ----------
    weights
        As `SequenceModel.weights` gives them.
    device
        "cpu", where it takes one thread, or "cuda".

    Raises
    ------
    BundleError
        A weight is missing, has another shape, or is not finite.
    """

    def __init__(self, spec: ModelSpec, weights: Mapping[str, F32], device: str = "cpu") -> None:
        # One thread, as in training: workers are one to a core, and OpenMP's threads spin for each other.
        torch.set_num_threads(1)
        self.name = f"torch-{device}"
        self.resumes = False
        self._device = torch.device(device)
        self._model = make_model(spec)
        _check(self._model.state_dict(), weights)
        self._model.load_weights(weights)
        self._model.to(self._device).eval()

    def score_and_step(
        self, kind: NDArray[np.int8], row: NDArray[np.int32], record: NDArray[np.int32], first: NDArray[np.bool_],
        tokens: NDArray[np.int32], log_gap: F32, hidden: F32, among: NDArray[np.int32] | None = None,
        numbers: F32 | None = None, tails: F32 | None = None, time_ms: NDArray[np.int64] | None = None,
    ) -> Scores:  # fmt: skip
        """As `Runtime.score_and_step` says."""
        among = np.empty((len(tokens), 0, 2), np.int32) if among is None else among
        runs = Runs.of(kind, row, record, first)
        is_event = (kind == STEP) | (kind == LATE)
        events, ends = np.flatnonzero(is_event), np.flatnonzero(~is_event)
        with torch.inference_mode(), _full_precision():
            known, after = self._forward(runs, tokens, log_gap, hidden, numbers if self._model.spec.values else None)
            states = known[self._send(runs.before)]
            surprise = torch.empty(len(tokens), len(self._model.spec.sizes), device=self._device)
            end_surprise = torch.zeros(len(kind), device=self._device)
            has_fields = len(self._model.spec.sizes) > 0
            for part in self._parts_of(events) if has_fields else ():
                ids, under = record[part], states[self._send(part)]
                of_part = self._surprise(under, self._send(tokens[ids]), self._send(among[ids]))
                surprise[self._send(ids)] = of_part
            for part in self._parts_of(ends) if has_fields else ():
                at = self._send(part)
                end_surprise[at] = -self._model.log_probabilities(states[at])[0][:, -1]
            found = self._fetch(surprise, states, end_surprise)
        scores = Scores(found[0], found[1], found[2], after)
        add_tails(scores, tails)
        return scores

    def log_probabilities(self, states: F32) -> list[F32]:
        """As `Runtime.log_probabilities` says."""
        with torch.inference_mode(), _full_precision():
            return self._fetch(*self._model.log_probabilities(self._send(states)))

    def _forward(
        self, runs: Runs, tokens: NDArray[np.int32], log_gap: F32, hidden: F32, values: F32 | None
    ) -> tuple[Tensor, NDArray[np.float32]]:
        """What heads read, (1 + G + k, H) as `Runs.before` counts it; and the rows after, as wide as they were."""
        spec, width = self._model.spec, self._model.state_size
        size, window = spec.hidden, spec.window if spec.core in WINDOWED else 0
        after = np.array(hidden, np.float32, order="C")
        begun = self._send(hidden[runs.row, :size])
        start = self._model.start.expand(len(begun) + 1, -1)
        known = torch.empty(1 + len(begun) + len(runs.records), size, device=self._device)
        known[: len(begun) + 1] = torch.where(self._send(np.append(True, runs.opens))[:, None], start, _below(begun))
        for batch in runs.batches(window):
            lengths, begin = runs.length[batch], runs.begin[batch]
            state = self._send(hidden[runs.row[batch], :width])
            state = torch.where(self._send(runs.opens[batch])[:, None], self._model.start_state(len(batch)), state)
            for low in range(0, int(lengths[0]), LONGEST):
                real = np.minimum(lengths[lengths > low] - low, LONGEST)  # the longest run is the first
                place = np.arange(real[0])
                is_real = place < real[:, None]
                at = np.where(is_real, begin[: len(real), None] + low + place, begin[: len(real), None])
                ids, gaps = tokens[runs.records[at]].astype(np.int64), log_gap[runs.records[at]]
                told = None if values is None else self._send(values[runs.records[at]])
                outputs, next_state = self._model(
                    self._send(ids), self._send(gaps), state[: len(real)], torch.from_numpy(real), told
                )
                places = self._send(1 + len(begun) + at[is_real])
                known[places] = outputs.flatten(0, 1)[self._send(np.flatnonzero(is_real))]
                state = torch.cat([next_state, state[len(real) :]])
            last = runs.is_last[batch]
            after[runs.row[batch][last], :width] = self._fetch(state)[0][last]
        return known, after

    def _surprise(self, states: Tensor, tokens: Tensor, among: Tensor) -> Tensor:
        """(c, F) nats of (c, F + I) ids under (c, H) states; of the last G fields given (c, G, 2) ranges of ids."""
        parts = self._model.log_probabilities(states)
        free, out = len(parts) - among.shape[1], []
        for f, log_p in enumerate(parts):
            came = log_p.gather(1, tokens[:, f : f + 1].long())[:, 0]
            if f < free:
                out.append(-came)
                continue
            ids = torch.arange(log_p.shape[1], device=self._device)
            beyond = (ids < among[:, f - free, :1]) | (ids >= among[:, f - free, 1:])
            total = log_p.masked_fill(beyond, -torch.inf).logsumexp(1)
            surprises = total[:, None] - log_p
            mean = ((-surprises).exp() * surprises).masked_fill(beyond, 0.0).sum(1)
            out.append(total - came - mean)
        return torch.stack(out, 1)

    def _parts_of(self, operations: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        """Operations in parts whose logits fit into memory."""
        most = max(1, MOST_LOGITS // sum(self._model.spec.head_widths))
        return [operations[low : low + most] for low in range(0, len(operations), most)]

    def _send(self, array: NDArray[Any]) -> Tensor:
        """To the device; a GPU takes it from pinned memory while we prepare the next."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _fetch(self, *tensors: Tensor) -> list[NDArray[np.float32]]:
        """From the device, all at once."""
        if self._device.type == "cpu":
            return [tensor.numpy() for tensor in tensors]
        here = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
        torch.cuda.current_stream(self._device).synchronize()
        return [tensor.numpy() for tensor in here]


def choose_device(asked: str) -> str:
    """The device for what the config asks: "auto" is CUDA where there is some.

    Raises
    ------
    RuntimeUnavailableError
        CUDA is asked for, and there is none.
    """
    there_is_cuda = torch.cuda.is_available()
    if asked == "cuda" and not there_is_cuda:
        message = (
            "the config asks for device: cuda, and torch finds no CUDA device; check the driver with `nvidia-smi`, or "
            "write device: auto"
        )
        raise RuntimeUnavailableError(message)
    return "cuda" if there_is_cuda and asked != "cpu" else "cpu"


def _full_precision() -> Any:
    """No TF32 in cuDNN, whose recurrent layers use it unasked: three digits would be left of seven."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _below(rows: Tensor) -> Tensor:
    """(1 + n, H) rows under one of zeros."""
    return torch.nn.functional.pad(rows, (0, 0, 1, 0))


def _check(wanted: Mapping[str, Tensor], weights: Mapping[str, F32]) -> None:
    missing = sorted(wanted.keys() - weights.keys())
    if missing:
        message = f"the bundle has no weight {missing[0]}; train it again"
        raise BundleError(message)
    if {name: tuple(w.shape) for name, w in wanted.items()} != {name: w.shape for name, w in weights.items()}:
        message = "the bundle's weights do not fit its vocabulary; train it again"
        raise BundleError(message)
    if not all(np.isfinite(w).all() for w in weights.values()):
        message = "the bundle holds weights that are not finite; train it again"
        raise BundleError(message)
