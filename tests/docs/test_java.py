"""The Java of docs/consume.md, compiled and run as it stands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.kafka_jars import fetch_jars
from tests.kafka import PATIENCE_S, Stack, WorkerProcess, as_records, by_id, shop_events, wait_until

CONSUME = Path(__file__).parents[2] / "docs" / "consume.md"


def test_java_reads_each_anomaly_once(stack: Stack) -> None:
    """Each anomaly is printed once, also those that were sent again."""
    if shutil.which("javac") is None:
        pytest.skip("javac is not here, a JDK has it")
    (code,) = re.findall(r"^```java\n(.*?)^```$", CONSUME.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (stack.folder / "ReadAnomalies.java").write_text(code)
    classpath = os.pathsep.join([".", *map(str, fetch_jars())])
    built = subprocess.run(
        ["javac", "-Xlint:all,-path", "-Werror", "-proc:none", "-cp", classpath, "ReadAnomalies.java"],
        cwd=stack.folder, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    stack.produce(as_records(shop_events(8, 200)))
    with WorkerProcess(stack) as worker:
        stack.wait_until_scored()
        assert worker.stop() == 0
    expected = set(by_id(stack.read_json("anomalies"), ignore=["detected_ms"]))
    assert expected
    topic = f"{stack.name}.anomalies"
    again = [(m.key(), m.value()) for m in stack.read(topic)[::3]]
    last = [(f"k{k}".encode(), json.dumps({"id": f"last-{k}", "score": 0.0}).encode()) for k in range(40)]
    stack.produce([*again, *last], topic)  # 40 keys: some in every partition, after all that is read for it
    printed = stack.folder / "printed"
    with (
        printed.open("wb") as out, (stack.folder / "errors").open("wb") as errors,
        subprocess.Popen(
            ["java", "-cp", classpath, "ReadAnomalies", stack.address, topic], stdout=out, stderr=errors,
            cwd=stack.folder,
        ) as reader,
    ):  # fmt: skip
        try:
            wait_until(lambda: printed.read_text().count("last-") == len(last), "Java to read all")
        finally:
            reader.kill()
    ids = [line.split()[0] for line in printed.read_text().splitlines()]
    assert sorted(i for i in ids if not i.startswith("last-")) == sorted(expected)
