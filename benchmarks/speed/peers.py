"""Offbeat beside other tools that do the same job on the same topic, in turn, in the same run.

A topic of 4 partitions is full before anybody starts. Every round runs Offbeat's whole path and each of
`benchmarks/peers/`, one after the other and alone, with a group, output topics and state of its own, for some seconds
or until the topic is read. A rate is what was taken in, by the time from the first record fetched until all that was
read is saved and acknowledged; of Offbeat, what its checkpoints cover by then. Before the rounds all of them score a
small topic, and every score is held to `models.kernels`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import orjson
from confluent_kafka.admin import AdminClient, NewTopic
from rich.console import Console
from safetensors.numpy import load

from benchmarks.kafka import read_topic
from benchmarks.peers.job import PARTITIONS, RATE, Job, Model, result_of, write_model
from benchmarks.peers.scores import TOLERANCE, Scores, largest_difference, read_scores, scores_of_kernel
from benchmarks.stack import STREAM, Stack, WorkerProcess, send
from benchmarks.workloads import zipf_events
from detectors.calibration import Calibration
from detectors.packing import learned_of
from features.tokens import RESERVED
from models.bundle import read_bundle, serving_digest
from pipeline.broker import LocalBroker

OFFBEAT, HAND_LOOP = "offbeat", "hand_loop"
_ROOT = Path(__file__).parents[2]
_ENVIRONMENT = _ROOT / "benchmarks/peers/.venv"
_START_S = 120.0  # imports, compilation, a group's first assignment
_CHECK_S = 30.0  # for all scores of a small topic
_LOOK_S = 0.1
# No session ends: other tools have no notion of that, and keep a state for each key.
_SETTINGS: dict[str, Any] = {"session": {"by": "session", "gap": "30d", "max_events": 1_000_000_000}}
_CHECKED = 4_000  # records whose scores are compared


class _Run(NamedTuple):
    """Of one run, records a second, and processor time for each: what else the machine does changes that less."""

    records_per_s: float
    processor_us: float


class _Peer(NamedTuple):
    """A module of `benchmarks/peers/`, and whether it needs what `make bench-peers-deps` installs."""

    module: str
    has_own_packages: bool = False

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(_ENVIRONMENT / "bin/python") if self.has_own_packages else sys.executable

    @property
    def why_not(self) -> str | None:
        """Why it cannot run here; None where it can."""
        missing = self.has_own_packages and not (_ENVIRONMENT / "ready").exists()
        return "its packages are not installed: make bench-peers-deps" if missing else None


PEERS = {
    HAND_LOOP: _Peer("hand_loop"),
    "faust_agent": _Peer("faust_agent"),
    "faust_take": _Peer("faust_take"),
    "quix": _Peer("quix", has_own_packages=True),
    "bytewax_batch": _Peer("bytewax_batch", has_own_packages=True),
}


@dataclass(frozen=True)
class Windows:
    """For how many seconds each is measured: the quick ones longer, for their checkpoints come in lumps."""

    quick_s: float = 30.0
    slow_s: float = 20.0

    def of(self, name: str) -> float:
        """Seconds of one."""
        return self.quick_s if name in {OFFBEAT, HAND_LOOP} else self.slow_s


def run(
    records: int, sessions: int, repeats: int, screen: Console, windows: Windows | None = None,
    names: Iterable[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Check the scores of Offbeat and of all peers, or of those named, then measure each `repeats` times, in turn."""
    wanted = [name for name in PEERS if name in set(names) or not set(names)]
    left_out = {name: why for name in wanted if (why := PEERS[name].why_not) is not None}
    for name, why in left_out.items():
        screen.print(f"  {name} is left out: {why}")
    able = [OFFBEAT, *(name for name in wanted if name not in left_out)]
    windows = windows or Windows()
    runs: dict[str, list[_Run]] = {name: [] for name in able}
    with tempfile.TemporaryDirectory() as folder, LocalBroker(Path(folder) / "broker", ephemeral=True) as broker:
        bench = Bench(broker.address, Path(folder))
        differences = bench.check(able, min(records, _CHECKED), sessions)
        for name, off in differences.items():
            screen.print(f"  {name}: scores as the kernel's but for {off:.1e} nats")
        bench.fill("peers.events", records, sessions)
        for i in range(repeats):
            for name in able:
                runs[name].append(bench.measure(name, "peers.events", records, windows.of(name)))
            shown = "  ".join(f"{name} {runs[name][-1].records_per_s:,.0f}" for name in able)
            screen.print(f"  round {i + 1} of {repeats}, records/s: {shown}")
    rates = {name: [found.records_per_s for found in of_name] for name, of_name in runs.items()}
    # Round by round, for what else the machine does meets all of a round.
    over = {
        name: median(ours / theirs for ours, theirs in zip(rates[OFFBEAT], rates[name], strict=True))
        for name in able if name != OFFBEAT
    }  # fmt: skip
    medians = {name: median(found) for name, found in rates.items()}
    processor = {name: median(found.processor_us for found in of_name) for name, of_name in runs.items()}
    for name in able:
        screen.print(
            f"  {name}: {medians[name]:,.0f} ({min(rates[name]):,.0f} to {max(rates[name]):,.0f}) records/s, "
            f"{processor[name]:.1f} us of processor each"
        )
    for name, ratio in over.items():
        screen.print(f"  Offbeat over {name}: {ratio:.2f}")
    return {
        "benchmark": "peers", "records": records, "sessions": sessions, "windows_s": [windows.quick_s, windows.slow_s],
        "runs": rates, "records_per_s_median": medians, "processor_us_median": processor, "offbeat_over": over,
        "largest_difference": differences, "left_out": left_out,
    }  # fmt: skip


class Bench:
    """Starts Offbeat and peers over one broker, each with topics and a folder of its own that are gone afterwards."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self._admin = AdminClient({"bootstrap.servers": address, "log_level": 0})
        self._kept: set[str] = set()
        self._runs = 0

    def fill(self, topic: str, records: int, sessions: int) -> None:
        """Make a topic, and write all records."""
        self._make_topics({topic: {}})
        self._kept.add(topic)
        send(self.address, topic, zipf_events(1, records, sessions))

    def check(self, names: Iterable[str], records: int, sessions: int) -> dict[str, float]:
        """Hold the scores of each to the kernel's.

        Returns
        -------
        differences
            The largest of each, in nats.
        """
        source = "check.events"
        self.fill(source, records, sessions)
        found = {name: self._scores(name, source, records) for name in names}
        stack = self._stack("reference", source)
        expected = scores_of_kernel(self.address, source, Model.read(_write_model(stack)))
        self._clean_up()
        differences = {name: largest_difference(scores, expected) for name, scores in found.items()}
        off = {name: difference for name, difference in differences.items() if not difference <= TOLERANCE}
        assert not off, f"these do another job, their scores are off by so many nats: {off}"
        return differences

    def measure(self, name: str, source: str, records: int, window_s: float) -> _Run:
        """One run."""
        self._runs += 1
        app = f"{name}-{self._runs}"
        try:
            if name == OFFBEAT:
                return _measure_worker(self._stack(app, source), records, window_s)
            result = self.run_peer(name, self.job(app, source, records, window_s))
            return _Run(result["records"] / result["seconds"], result["processor_s"] / result["records"] * 1e6)
        finally:
            self._clean_up()

    def _scores(self, name: str, source: str, records: int) -> Scores:
        """Every score of a topic."""
        app = f"{name}-scores"
        if name == OFFBEAT:
            stack = self._stack(app, source, decisions={"sample": 1.0})
            with WorkerProcess(stack) as worker:
                worker.wait_for(lambda: stack.saved() >= records)
                worker.stop()
            decisions = [
                orjson.loads(message.value() or b"") for message in read_topic(self.address, f"{app}.decisions")
            ]
            places = [decision["id"].split("/")[-3:-1] for decision in decisions]
            return {(int(p), int(o)): d["score"] for (p, o), d in zip(places, decisions, strict=True)}
        job = self.job(app, source, records, _CHECK_S)
        job = replace(job, scores=f"{job.folder}.npy")
        self.run_peer(name, job)
        return read_scores(f"{job.folder}.npy")

    def _stack(self, app: str, source: str, **settings: Any) -> Stack:
        settings = {"state": {"ttl": "30d"}} | settings
        return Stack.make(self.address, self.folder / app, app, source=source, stream=_SETTINGS, **settings)

    def job(self, app: str, source: str, records: int, window_s: float) -> Job:
        """What a peer is told, with topics and a bundle made for it."""
        stack = self._stack(app, source)
        job = Job(
            self.address, source, app, f"{app}.outputs", f"{app}.changelog", str(stack.folder / "models" / STREAM),
            str(_write_model(stack)), str(stack.folder / "state"), records, window_s, str(stack.folder / "result.json"),
        )  # fmt: skip
        Path(job.folder).mkdir()
        self._make_topics({job.outputs: {}, job.changelog: {"cleanup.policy": "compact"}})
        return job

    def run_peer(self, name: str, job: Job) -> dict[str, Any]:
        """Run a peer to its end; its result."""
        path, log = Path(f"{job.folder}.job.json"), Path(f"{job.folder}.log")
        job.write(path)
        environment = os.environ | {"PYTHONPATH": str(_ROOT)}
        command = [PEERS[name].python, "-m", f"benchmarks.peers.{PEERS[name].module}", str(path)]
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=job.folder, env=environment, stdout=file, stderr=file)
        try:
            until = time.monotonic() + _START_S + job.seconds
            while (result := result_of(job)) is None:
                assert process.poll() is None, log.read_text()
                if time.monotonic() >= until:
                    raise TimeoutError(log.read_text())
                time.sleep(_LOOK_S)
        finally:
            process.kill()  # what it wrote is acknowledged; how it would end is not measured
            process.wait()
        return result

    def _make_topics(self, settings: dict[str, dict[str, str]]) -> None:
        topics = [NewTopic(name, PARTITIONS, 1, config=config) for name, config in settings.items()]
        for made in self._admin.create_topics(topics).values():
            made.result()

    def _clean_up(self) -> None:
        """Delete the topics of runs: their logs would fill the disk."""
        names = [name for name in self._admin.list_topics().topics if not name.startswith("__")]
        for deleted in self._admin.delete_topics([name for name in names if name not in self._kept]).values():
            deleted.result()


def _measure_worker(stack: Stack, records: int, window_s: float) -> _Run:
    """Records that checkpoints cover, from the first on."""
    with WorkerProcess(stack) as worker:
        worker.wait_started()
        began = worker.wait_for(lambda: worker.metric("offbeat_records_total") > 0)
        saved, processor_s = 0, worker.processor_s()
        while saved == 0 or (time.monotonic() - began < window_s and saved < records):
            time.sleep(_LOOK_S)
            saved = stack.saved()
        took, processor_s = time.monotonic() - began, worker.processor_s() - processor_s
        worker.stop()
    return _Run(saved / took, processor_s / saved * 1e6)


def _write_model(stack: Stack) -> Path:
    """The weights of a stack's bundle as arrays."""
    bundles = stack.folder / "models" / STREAM
    digest = serving_digest(bundles)
    assert digest is not None, "the stack has promoted it"
    bundle = read_bundle(bundles / digest)
    learned, path = learned_of(bundle), stack.folder / "model.npz"
    actions = [*RESERVED[: learned.vocabulary.reserved], *learned.vocabulary.tokens[0]]
    write_model(path, load(bundle.files["weights.safetensors"]), actions, _threshold(learned.records))
    return path


def _threshold(calibration: Calibration) -> float:
    """The least score that is an anomaly, for peers that have no p-values."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        is_strange = calibration.p_values(np.array([middle], np.float32))[0] <= RATE
        low, high = (low, middle) if is_strange else (middle, high)
    return high
