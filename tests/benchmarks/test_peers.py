"""Other tools do the same job beside Offbeat, and give the same scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.kafka import committed_offsets, read_topic
from benchmarks.peers.job import PARTITIONS, Model, TorchGru
from benchmarks.peers.scores import TOLERANCE, scores_of_kernel
from benchmarks.speed.peers import HAND_LOOP, OFFBEAT, PEERS, Bench
from features.sessions import log_gaps
from models.gru_kernel import GruKernel
from models.kernels import STEP
from models.spec import ModelSpec
from pipeline.cold_rows import ColdRows


def test_smoke(kafka: None, tmp_path: Path) -> None:
    """`python -m benchmarks peers --smoke` measures all that can run here, each with the kernel's scores."""
    out = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "peers", "--smoke", "--out", str(out)], capture_output=True, text=True,
        timeout=1800, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text())["results"]
    assert set(found["left_out"]) == {name for name, peer in PEERS.items() if peer.why_not is not None}
    able = {OFFBEAT, *PEERS} - set(found["left_out"])
    assert set(found["runs"]) == set(found["largest_difference"]) == able
    assert max(found["largest_difference"].values()) <= TOLERANCE
    assert all(rate > 0 for rate in found["records_per_s_median"].values())


def test_the_hand_loop_saves_all(kafka_address: str, tmp_path: Path) -> None:
    """At its end offsets, changelog, RocksDB and outputs hold all that the hand-written loop has read."""
    bench = Bench(kafka_address, tmp_path)
    bench.fill("hand.events", 3_000, 100)
    job = bench.job("hand", "hand.events", 3_000, 60.0)
    assert bench.run_peer(HAND_LOOP, job)["records"] == 3_000
    assert sum(committed_offsets(kafka_address, job.group, job.source, PARTITIONS).values()) == 3_000
    rows = {message.key(): message.value() for message in read_topic(kafka_address, job.changelog)}
    assert rows.keys() == {message.key() for message in read_topic(kafka_address, job.source)}
    cold = ColdRows(Path(job.folder) / "rows")
    assert cold.get_many(list(rows)) == list(rows.values())
    cold.close()
    assert sum(int(np.frombuffer(row, np.int64)[-3]) for row in rows.values()) == 3_000  # how many events each had
    model = Model.read(job.model)
    scores = scores_of_kernel(kafka_address, job.source, model)
    strange = {place for place, score in scores.items() if score >= model.threshold}
    assert 5 < len(strange) < 100
    told = [json.loads(message.value()) for message in read_topic(kafka_address, job.outputs)]
    places = {(int(partition), int(offset)) for partition, offset in (body["id"].split("/") for body in told)}
    assert places == strange | {place for place in scores if place[1] % 100 == 0}
    assert {body["id"] for body in told if body["anomaly"]} == {f"{p}/{o}" for p, o in strange}


def test_torch_and_kernel_agree() -> None:
    """The peers' model in torch gives the kernel's surprise and states, of one record and of runs of any lengths."""
    rng = np.random.default_rng(0)
    shapes = {
        "start": (8,), "core.weight_ih_l0": (24, 5), "core.weight_hh_l0": (24, 8), "core.bias_ih_l0": (24,),
        "core.bias_hh_l0": (24,), "embeddings.0.weight": (10, 4), "head.weight": (11, 8), "head.bias": (11,),
    }  # fmt: skip
    weights = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    lengths = [2, 5, 1, 5, 3]
    n, row = sum(lengths), np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    ids, gaps_ms = rng.integers(0, 10, n), rng.integers(0, 10_000_000, n)
    hidden = rng.normal(0, 0.5, (len(lengths), 8)).astype(np.float32)
    expected = GruKernel(ModelSpec("gru", 8, (10,)), weights).score_and_step(
        np.full(n, STEP, np.int8), row, np.arange(n, dtype=np.int32), np.zeros(n, np.bool_),
        ids[:, None].astype(np.int32), log_gaps(gaps_ms), hidden,
    )  # fmt: skip
    model = TorchGru(Model(weights, {}, 0.0))
    surprise, after = model.score_runs(lengths, ids.tolist(), gaps_ms.tolist(), hidden)
    np.testing.assert_allclose(surprise, expected.surprise[:, 0], atol=1e-5)
    np.testing.assert_allclose(after, expected.hidden, atol=1e-5)
    one_by_one = hidden.copy()
    for i in range(n):
        score, one_by_one[row[i]] = model.score_one(int(ids[i]), int(gaps_ms[i]), one_by_one[row[i]])
        assert abs(score - expected.surprise[i, 0]) < 1e-5
    np.testing.assert_allclose(one_by_one, expected.hidden, atol=1e-5)
