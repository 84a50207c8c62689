"""What is said to be needed is about what is taken."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from models.memory import estimate
from models.sequences import Sequence, Sequences
from models.spec import ModelSpec
from models.training import TrainingOptions

PEAK = """
def peak():  # ru_maxrss would begin with the parent's
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
"""
MEASURE = """
import time
from pathlib import Path
from tests.models.test_memory import of_size
from models.memory import estimate
from models.training import train

small, large = of_size(8), of_size({size})
train(small[0], small[0], *small[1:], lambda _: None, time.monotonic)
before = peak()
train(large[0], large[0], *large[1:], lambda _: None, time.monotonic)
print(peak() - before, estimate(large[1], large[2], large[0]).total)
"""


def of_size(vocabulary: int, length: int = 40) -> tuple[Sequences, ModelSpec, TrainingOptions]:
    rng = np.random.default_rng(0)
    sessions = [
        Sequence(
            rng.integers(1, (vocabulary, 8), (length, 2)).astype(np.int32), np.zeros(length, np.float32), ended=True
        )
        for _ in range(60)
    ]
    spec = ModelSpec("gru", 64, (vocabulary, 8))
    return Sequences.of(sessions), spec, TrainingOptions(max_epochs=1, least_steps=1)


@pytest.mark.parametrize("size", [6_000, 20_000])
def test_the_estimate_is_near_what_is_taken(size: int) -> None:
    """For large vocabularies, which rule it, the peak lies between half and twice of what was said."""
    code = PEAK + MEASURE.format(size=size)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    taken, said = map(int, done.stdout.split())
    assert said / 2 < taken < said * 2, (taken, said)


def test_longer_sessions_take_little_more() -> None:
    """Chunks bound what is computed at once: ten times the length is far from ten times the memory."""
    short, long = (estimate(s[1], s[2], s[0]).total for s in (of_size(6_000, 100), of_size(6_000, 1_000)))
    assert long < 1.5 * short


LONG = """
import time
import numpy as np
from models.sequences import Sequence
from models.spec import ModelSpec
from models.training import TrainingOptions, train

def session(n): return Sequence(np.arange(n, dtype=np.int32)[:, None] % 5 + 1, np.zeros(n, np.float32), True)
def learn(n):
    train([session(n)], [session(9)], ModelSpec("gru", 16, (8,)), TrainingOptions(max_epochs=1), lambda _: None,
          time.monotonic)
learn(1_000)
before = peak()
learn(100_000)
print(peak() - before)
"""


def test_a_session_of_a_hundred_thousand_events_takes_little() -> None:
    """It is learned chunk by chunk: some tens of megabytes on top of what a thousand events take."""
    done = subprocess.run([sys.executable, "-c", PEAK + LONG], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 60_000_000
