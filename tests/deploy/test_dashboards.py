"""The dashboards: what Grafana reads, and each query on a Prometheus that scrapes a worker, a trainer and alerts."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import combinations
from pathlib import Path
from socket import create_server
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

import pytest
import yaml
from prometheus_client import CollectorRegistry

from pipeline.metrics import Metrics
from tests.alerting import Alerts, incident, receiver, tell
from tests.deploy.test_rules import HERE, ROOT, rules
from tests.kafka import COMMAND, PATIENCE_S, Stack, WorkerProcess, as_records, wait_until
from tests.pipeline.test_stream_drift import STREAM, visits

GRAFANA = ROOT / "deploy" / "grafana"
BOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
IN_GRAFANA = {"$stream": ".*", "$__rate_interval": "1m", "$__range": "10m"}


def panels(board: Path) -> list[dict[str, Any]]:
    """Those with queries."""
    return [panel for panel in json.loads(board.read_text("utf-8"))["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str, bool]]:
    """Each query with where it stands and whether it asks for a moment alone, as Grafana would send it."""
    for board in BOARDS:
        found = [(p["title"], t["expr"], t["instant"]) for p in panels(board) for t in p["targets"]]
        found += [(a["name"], a["expr"], False) for a in json.loads(board.read_text())["annotations"]["list"]]
        for title, query, instant in found:
            for name, value in IN_GRAFANA.items():
                query = query.replace(name, value)  # noqa: PLW2901 (what is left of it)
            yield f"{board.stem}: {title}", query, instant


def test_files_are_up_to_date() -> None:
    """The JSON is what the generator makes."""
    command = [sys.executable, str(GRAFANA / "make_dashboards.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_panels_are_whole(board: Path) -> None:
    """Ids, titles and places are each panel's own; all ask the source that is provisioned, and say what they show."""
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    made = json.loads(board.read_text("utf-8"))
    assert {a["datasource"]["uid"] for a in [*made["annotations"]["list"], *made["templating"]["list"]]} == {
        source["uid"] for source in sources
    }
    ids = [panel["id"] for panel in made["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)
    for one, other in combinations([panel["gridPos"] for panel in made["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)
    for panel in panels(board):
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["description"]
        assert {t["datasource"]["uid"] for t in panel["targets"]} == {panel["datasource"]["uid"]} == {"prometheus"}


def test_deploys_and_models_are_annotated() -> None:
    """Each dashboard marks when processes began and when models changed."""
    for board in BOARDS:
        names = [annotation["name"] for annotation in json.loads(board.read_text("utf-8"))["annotations"]["list"]]
        assert names == ["Deploys", "Model changes"]


def test_queries_speak_of_what_there_is() -> None:
    """Each metric is one of ours, each recorded name is recorded; what Grafana would fill in is known here."""
    families = list(Metrics(CollectorRegistry()).registry.collect())
    ours = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    for where, query, _ in queries():
        assert "$" not in query, where
        metrics = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\boffbeat_\w+", query)}
        assert metrics <= ours, where
        assert set(re.findall(r"\boffbeat:[a-z_]+:\w+", query)) <= set(rules("record")), where


# --- on a real Prometheus --------------------------------------------------------------------------------------------


@contextmanager
def trainer(stack: Stack) -> Iterator[str]:
    """`offbeat trainer` as a child process; gives HOST:PORT of its pages."""
    path = stack.folder / "trainer.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "trainer", "-c", str(stack.config_path)], stdout=log, stderr=log, cwd=stack.folder
        )
    try:
        lines = wait_until(
            lambda: [line for line in path.read_text().splitlines() if "trainer starts" in line], "the trainer"
        )
        yield json.loads(lines[0])["metrics"].removeprefix("http://")
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


class Prometheus:
    """Prometheus with the config of deploy/, but a second between scrapes, on a free port."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        shutil.copytree(HERE, folder)
        config = folder / "prometheus.yml"
        config.write_text(config.read_text().replace(" 15s", " 1s").replace(" 10s", " 1s"))
        (folder / "alertmanagers.yml").write_text("[]\n")
        found = [{"targets": [at], "labels": {"component": component}} for component, at in targets.items()]
        (folder / "targets" / "offbeat.yml").write_text(yaml.safe_dump(found))
        with create_server(("127.0.0.1", 0)) as server:
            self.address = f"127.0.0.1:{server.getsockname()[1]}"
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={self.address}", "--log.level=warn"],
        )  # fmt: skip

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE_S)

    def numbers(self, query: str, *, instant: bool) -> list[float]:
        """Every finite value of the last minute, or of now."""
        now = time.time()
        of_time = {"time": now} if instant else {"start": now - 60, "end": now, "step": 1}
        where = f"http://{self.address}/api/v1/query{'' if instant else '_range'}"
        try:
            with urllib.request.urlopen(
                where, urlencode({"query": query} | of_time).encode(), timeout=PATIENCE_S
            ) as answer:
                result = json.load(answer)["data"]["result"]
        except OSError as error:  # it has not begun yet, unless it says that the query is wrong
            if isinstance(error, HTTPError):
                with error:
                    if error.code != 503:
                        raise AssertionError(query) from error
            return []
        values = [float(v) for one in result for _, v in ([one["value"]] if instant else one["values"])]
        return [value for value in values if math.isfinite(value)]


@pytest.fixture
def shop(kafka_address: str, tmp_path: Path) -> Stack:
    """A stream with a trained model, a price, and some records that a worker has scored and forgotten again."""
    stack = Stack(kafka_address, tmp_path, partitions=2)
    stack.configure(stream=STREAM, costs={"cpu_core_hour": 0.04})
    stack.create_source()
    history = stack.folder / "history.jsonl"
    history.write_text("".join(json.dumps(event) + "\n" for event in visits(1, 20)))
    stack.run("train", "-s", "orders", "--input", str(history), "--promote")
    stack.score(as_records(visits(2, 4, 20)))
    shutil.rmtree(stack.folder / "data" / "w0")  # so that the next reads the changelog
    return stack


def test_every_query_returns_data(shop: Stack, prometheus: None) -> None:
    """On a worker that meets bad records, a field that vanishes and a changelog to read, each panel shows something."""
    events = [
        {key: value for key, value in event.items() if key != "status" or i < 1_000}
        for i, event in enumerate(visits(3, 12, 24))
    ]
    with ExitStack() as running:
        ops = running.enter_context(receiver())
        shop.configure(
            stream=STREAM, costs={"cpu_core_hour": 0.04},
            alerts={"receivers": {"ops": ops.settings()}, "routes": [{"receivers": ["ops"]}]},
        )  # fmt: skip
        alerts = running.enter_context(Alerts(shop))
        alerts.wait_ready(shop.partitions)
        worker = running.enter_context(WorkerProcess(shop))
        worker.wait_ready(shop.partitions)
        address = next(line["metrics"] for line in worker.log() if line["event"] == "worker starts")
        of_trainer = running.enter_context(trainer(shop))
        targets = {
            "worker": address.removeprefix("http://"), "trainer": of_trainer, "alerts": alerts.address,
        }  # fmt: skip
        watched = running.enter_context(Prometheus(shop.folder / "prometheus", targets))
        wait_until(lambda: watched.numbers('sum(up{job="offbeat"}) == 3', instant=True), "all to be scraped")
        for first in range(0, len(events), 500):
            shop.produce([*as_records(events[first : first + 500]), (b"v", b"{")])
            tell(shop, [incident(f"i{first}", 1)])
            time.sleep(0.5)
        shop.wait_until_scored()
        empty = dict[str, str]()

        def none_is_empty() -> bool:
            asked = [(w, q, i) for w, q, i in queries() if not empty or f"{w}: {q}" in empty]
            lacking = {f"{w}: {q}": q for w, q, i in asked if not watched.numbers(q, instant=i)}
            empty.clear()
            empty.update(lacking)
            return not empty

        try:
            wait_until(none_is_empty, "every query to return something")
        except AssertionError:
            raise AssertionError("no data: " + "; ".join(empty)) from None
