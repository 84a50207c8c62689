"""A stream of its own on a broker, its workers as processes, and what can be seen of them from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import yaml

from benchmarks.kafka import committed_offsets, new_producer
from benchmarks.workloads import VOCABULARY
from detectors.calibration import Calibration
from detectors.packing import pack
from features.tokens import Vocabulary
from models.bundle import promote, write_bundle
from pipeline.settings import Settings, load_settings

PARTITIONS = 4
STREAM = "events"
_COMMAND = [sys.executable, "-P", "-m", "pipeline.cli"]
_HIDDEN = 64
_LOOK_S = 0.02  # often enough for times told in tenths of seconds
_START_S = 600.0  # a worker may have to rebuild a million rows first


@dataclass(frozen=True)
class Stack:
    """A folder with config and bundle, and the topics they name.

    Attributes
    ----------
    source
        The topic that is read; several stacks may read the same.
    """

    address: str
    folder: Path
    app: str
    source: str

    @classmethod
    def make(
        cls, address: str, folder: Path, app: str, *, source: str | None = None,
        stream: dict[str, Any] | None = None, **settings: Any,
    ) -> Self:  # fmt: skip
        """Write config and bundle, create the topics; `stream` and `settings` are laid over the defaults here."""
        made = cls(address, folder, app, source or f"{app}.events")
        made._configure(stream or {}, settings)
        _write_bundle(folder / "models" / STREAM)
        made.run("topics", "--create")
        return made

    def _configure(self, stream: dict[str, Any], settings: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True)
        section = {
            "topic": self.source, "start": "earliest", "time": "ts", "tokens": ["action"],
            "session": {"by": "session", "gap": "1h"}, "model": {"hidden": _HIDDEN},
            "promise": {"false_alarm_rate": 0.01},
        }  # fmt: skip
        config = {
            "broker": self.address, "app": self.app, "http": {"port": 0},
            "data_dir": str(self.folder / "data"), "models_dir": str(self.folder / "models"),
            "topics": {"prefix": self.app, "partitions": PARTITIONS},
            "streams": {STREAM: section | stream},
        }  # fmt: skip
        (self.folder / "offbeat.yaml").write_text(yaml.safe_dump(config | settings))

    @property
    def settings(self) -> Settings:
        """The config as the worker reads it."""
        return load_settings(self.folder / "offbeat.yaml", {})

    def run(self, *arguments: str) -> None:
        """Run a command to its end."""
        subprocess.run([*_COMMAND, *arguments, "-c", "offbeat.yaml"], cwd=self.folder, check=True, capture_output=True)

    def saved(self) -> int:
        """Source records that checkpoints cover, all partitions together."""
        return sum(committed_offsets(self.address, self.app, self.source, PARTITIONS).values())


class WorkerProcess:
    """`offbeat worker` as a child process, its log in a file; killed at the end of a `with` unless it was stopped."""

    def __init__(self, stack: Stack, instance: str = "w0", command: Sequence[str] = _COMMAND) -> None:
        self.instance = instance
        self._log_path = stack.folder / f"{instance}-{time.monotonic_ns()}.log"
        with self._log_path.open("wb") as file:
            self._process = subprocess.Popen(
                [*command, "worker", "-c", "offbeat.yaml"], cwd=stack.folder, stdout=file, stderr=file,
                env=os.environ | {"OFFBEAT_INSTANCE": instance},
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Log lines of one kind so far."""
        said = self._log_path.read_text().splitlines()
        found = [json.loads(line) for line in said if line.startswith("{") and line.endswith("}")]
        return [line for line in found if line.get("event") == event]

    def wait_for(self, condition: Callable[[], bool], limit_s: float = _START_S) -> float:
        """Look until it holds; returns the monotonic time then."""
        end = time.monotonic() + limit_s
        while not condition():
            assert self._process.poll() is None, self._log_path.read_text()
            assert time.monotonic() < end, self._log_path.read_text()
            time.sleep(_LOOK_S)
        return time.monotonic()

    def wait_started(self) -> float:
        """Wait for "worker starts", after imports and compilation; returns the monotonic time then."""
        return self.wait_for(lambda: bool(self.lines("worker starts")))

    def wait_ready(self) -> float:
        """Wait until /ready says yes; returns the monotonic time then."""
        self.wait_started()
        return self.wait_for(self.ready)

    def ready(self) -> bool:
        """What /ready says."""
        try:
            self._page("ready")
        except urllib.error.HTTPError:
            return False
        return True

    def metric(self, name: str) -> float:
        """A metric, summed over its labels."""
        samples = (line for line in self._page("metrics").splitlines() if line.startswith((f"{name}{{", f"{name} ")))
        return sum(float(line.rsplit(" ", 1)[1]) for line in samples)

    def resident(self) -> int:
        """Bytes of memory it holds."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def processor_s(self) -> float:
        """Seconds of processor time it has taken; unlike the clock's, others on the machine hardly change them."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def written(self) -> int:
        """Bytes it has had written to disk."""
        lines = Path(f"/proc/{self.pid}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))

    def kill(self) -> None:
        """As kill -9 does."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._process.terminate()
        self._process.wait(300)

    def _page(self, name: str) -> str:
        address = self.lines("worker starts")[0]["metrics"]
        with urllib.request.urlopen(f"{address}/{name}", timeout=60) as page:  # noqa: S310 (our own worker)
            return str(page.read().decode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill()


def send(
    address: str, topic: str, records: Iterable[tuple[bytes, bytes]],
    headers: Callable[[int], list[tuple[str, bytes]]] = lambda _: [],
) -> None:  # fmt: skip
    """Produce records, keys placed as Java's clients place them, and wait for all acknowledgements.

    `headers` are those of the record of a number.
    """
    producer = new_producer(address, **{"partitioner": "murmur2_random", "linger.ms": 20})
    for i, (key, value) in enumerate(records):
        while True:
            try:
                producer.produce(topic, value, key=key, headers=headers(i))
                break
            except BufferError:
                producer.poll(0.05)
    assert producer.flush(60) == 0


def _write_bundle(directory: Path) -> None:
    """A bundle with random weights: speed does not depend on what was learned."""
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary(("action",), (VOCABULARY,))
    size = vocabulary.sizes[0]
    shapes = {
        "start": (_HIDDEN,), "core.weight_ih_l0": (3 * _HIDDEN, 17), "core.weight_hh_l0": (3 * _HIDDEN, _HIDDEN),
        "core.bias_ih_l0": (3 * _HIDDEN,), "core.bias_hh_l0": (3 * _HIDDEN,), "embeddings.0.weight": (size, 16),
        "head.weight": (size + 1, _HIDDEN), "head.bias": (size + 1,),
    }  # fmt: skip
    weights = {name: rng.normal(0, 0.15, shape).astype(np.float32) for name, shape in shapes.items()}
    # Scores of this untrained model lie around log(65); this normal curve puts about 1 % of them above the threshold.
    scores = Calibration.learn(rng.normal(np.log(size + 1), 0.35, 5_000))
    content = {"schema": {"tokens": ["action"], "hidden": _HIDDEN, "core": "gru"}}
    promote(directory, write_bundle(directory, content, pack(vocabulary, weights, scores, scores), "now"))
