"""`offbeat train` as a process: killed and resumed, refused, and warned of."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from models.memory import Estimate
from models.training_state import load_state
from pipeline.free_memory import free_memory
from pipeline.train import too_large
from pipeline.training_folder import NAME
from tests.kafka import PATIENCE_S, shop_events, wait_until

ARGUMENTS = ["train", "--stream", "orders", "--input", "history.jsonl", "--json"]
# `offbeat` that stops, as SIGSTOP has it, once it has saved so many epochs: then it has not ended before it is killed.
STOPPING = textwrap.dedent(
    """
    import os, signal, sys
    import pipeline.training_folder as folder

    save, left = folder.save_state, [int(sys.argv.pop(1))]

    def save_and_stop(path, state):
        save(path, state)
        if len(state.plain["epochs"]) in left:
            left.clear()  # not again, by the trainings that calibrate
            os.kill(os.getpid(), signal.SIGSTOP)

    folder.save_state = save_and_stop
    from pipeline.cli import main
    main()
    """
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A config and a history that takes some seconds to learn."""
    config = {
        "streams": {
            "orders": {
                "topic": "shop.orders", "session": {"by": "session", "gap": "15m", "end_when": {"action": "close"}},
                "time": "ts", "tokens": ["action", "status"], "model": {"hidden": 16, "max_epochs": 8},
            }
        }
    }  # fmt: skip
    (tmp_path / "offbeat.yaml").write_text(yaml.safe_dump(config))
    write_history(tmp_path, 1)
    return tmp_path


def write_history(folder: Path, seed: int) -> None:
    (folder / "history.jsonl").write_text("".join(json.dumps(e) + "\n" for e in shop_events(seed, 600)))


def environment(folder: Path, models: str) -> dict[str, str]:
    return os.environ | {"OFFBEAT_MODELS_DIR": str(folder / models), "OFFBEAT_DATA_DIR": str(folder / "data")}


def start(folder: Path, models: str, *arguments: str, stops_after: int | None = None) -> subprocess.Popen[str]:
    program = ["-m", "pipeline.cli"] if stops_after is None else ["-c", STOPPING, str(stops_after)]
    return subprocess.Popen(
        [sys.executable, "-P", *program, *ARGUMENTS, *arguments], cwd=folder, env=environment(folder, models),
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(folder: Path, models: str, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, models, *arguments)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def epochs_saved(folder: Path, models: str) -> int:
    state = load_state(folder / models / "orders" / NAME / "model.safetensors")
    return 0 if state is None else len(state.plain["epochs"])


def kill_after(folder: Path, epochs: int, *arguments: str) -> None:
    """Start, and SIGKILL once so many epochs are saved."""
    process = start(folder, "killed", *arguments, stops_after=epochs)
    wait_until(lambda: epochs_saved(folder, "killed") >= epochs or process.poll() is not None, f"epoch {epochs}")
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended by itself: {err}"


def test_a_killed_training_resumes_to_the_same_bundle(folder: Path) -> None:
    """SIGKILL before the first epoch and at others, each time with --resume: the digest is that of one run."""
    code, whole, _ = finish(folder, "whole")
    assert code == 0
    wanted = json.loads(whole)["digest"]
    kill_after(folder, 0)
    for epochs in (1, 5):
        kill_after(folder, epochs, "--resume")
    code, out, err = finish(folder, "killed", "--resume")
    assert code == 0, err
    assert "going on after epoch" in err
    assert json.loads(out)["digest"] == wanted
    assert sorted(p.name for p in (folder / "killed" / "orders").iterdir()) == sorted([wanted, "promotions", "serving"])


def test_another_training_is_not_resumed(folder: Path) -> None:
    """With another seed, other options or other data it ends with a sentence, and what is saved stays."""
    kill_after(folder, 1)
    saved = (folder / "killed" / "orders" / NAME / "model.safetensors").read_bytes()
    refused = {"another seed": ["--seed", "7"], "other options": ["--contamination", "0.1"]}
    for what, arguments in refused.items():
        code, _, err = finish(folder, "killed", "--resume", *arguments)
        assert code == 1
        assert f"had {what} than this one" in " ".join(err.split())
    write_history(folder, 2)
    code, _, err = finish(folder, "killed", "--resume")
    assert code == 1
    assert "had other data than this one" in " ".join(err.split())
    assert (folder / "killed" / "orders" / NAME / "model.safetensors").read_bytes() == saved


def test_two_trainings_of_a_stream_do_not_mix(folder: Path) -> None:
    """While one runs, a second ends with a sentence; the first is not disturbed."""
    process = start(folder, "killed", stops_after=1)
    wait_until(lambda: epochs_saved(folder, "killed") >= 1 or process.poll() is not None, "an epoch")
    code, _, err = finish(folder, "killed", "--resume")
    process.send_signal(signal.SIGCONT)
    assert code == 2
    assert "another `offbeat train` of orders is running" in " ".join(err.split())
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


def test_too_little_memory_is_said() -> None:
    """A training larger than what is free is warned of, with both figures; where nobody knows, nothing is said."""
    estimate = Estimate(weights=2_000_000_000, batch=3_100_000_000)
    said = too_large(estimate, 1_200_000_000)
    assert said is not None
    assert "about 5.1 GB of memory, and 1.2 GB are free" in said
    assert too_large(estimate, 5_200_000_000) is None
    assert too_large(estimate, None) is None


def test_free_memory_is_the_least_that_binds(tmp_path: Path) -> None:
    """What the machine has available, or less where a control group allows less; files' pages count as free."""
    assert free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert free_memory(tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("3000000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 1000000\n")
    for most, free in (("4000000", 2_000_000), ("max", 8000 * 1024), ("1000000000", 8000 * 1024)):
        (group / "memory.max").write_text(f"{most}\n")
        assert free_memory(tmp_path) == free
    assert (free_memory() or 0) > 10_000_000
