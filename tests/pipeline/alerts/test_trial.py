"""`offbeat alerts test`, and the receiver that the documents show."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import pytest
import yaml

from pipeline.cli import main
from tests.kafka import PATIENCE_S, wait_until
from tests.pipeline.alerts.made import LOCAL, OTHER, SECRET
from tests.pipeline.alerts.servers import Server, free_port, http_server

ROOT = Path(__file__).parents[3]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A config with one receiver, which tests change before they write it; the folder is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEY", SECRET)
    (tmp_path / "old").write_text(OTHER)
    return {
        "streams": {"orders": {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}},
        "alerts": {
            "receivers": {
                "ops": {"type": "webhook", "secrets": ["env:KEY", "file:old"], "allow_networks": LOCAL},
                "chat": {"type": "slack", "url": "env:NOT_THERE"},  # another receiver's secrets are not asked for
            },
            "routes": [{"receivers": ["ops", "chat"]}],
        },
    }


def write(config: dict[str, object], url: str) -> None:
    config["alerts"]["receivers"]["ops"]["url"] = url  # type: ignore[index]
    Path("offbeat.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def offbeat(*arguments: str) -> int:
    """A command in this process, as the console script runs it; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["offbeat", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


def beside(status: int, config: dict[str, object], *arguments: str) -> tuple[int, Server]:
    """A command while a server, on a thread of its own, answers with a status."""
    ready, done, loop = Queue[Server](), asyncio.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        async with http_server(status) as server:
            ready.put(server)
            await done.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    try:
        server = ready.get(timeout=PATIENCE_S)
        write(config, server.url())
        return offbeat(*arguments), server
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(PATIENCE_S)
        loop.close()


def test_a_test_message_is_marked_and_told(config: dict[str, object], capfd: pytest.CaptureFixture[str]) -> None:
    """One request, marked as a test; what came back is one sentence, or JSON."""
    code, server = beside(204, config, "alerts", "test", "ops")
    assert code == 0
    assert (
        capfd.readouterr().out == f"Receiver ops took the test message: http://127.0.0.1:{server.port} answered 204.\n"
    )
    ((headers, body),) = server.requests
    assert (json.loads(body)["type"], json.loads(body)["data"]["test"]) == ("test", True)
    assert len(headers["webhook-signature"].split()) == 2
    assert beside(200, config, "alerts", "test", "ops", "--json")[0] == 0
    assert json.loads(capfd.readouterr().out)["kind"] == "delivered"


def test_a_receiver_that_does_not_take_it_is_an_error(
    config: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and the reason; of a receiver that is not there, exit code 2 and those that are."""
    code, server = beside(500, config, "alerts", "test", "ops")
    sentence = f"receiver ops did not take the test message: http://127.0.0.1:{server.port} answered 500"
    assert (code, capfd.readouterr().err) == (1, f"offbeat: {sentence}\n")
    assert offbeat("alerts", "test", "opps") == 2
    assert "there is no receiver 'opps'; alerts.receivers has: ops, chat" in capfd.readouterr().err
    assert offbeat("alerts", "test", "chat") == 2
    assert "alerts.receivers.chat: a secret is missing: the environment variable NOT_THERE" in capfd.readouterr().err


@contextmanager
def documented_receiver(secret: str) -> Iterator[tuple[str, Path]]:
    """The receiver of docs/alerts.md as a process: its URL, and what it prints."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE | re.DOTALL)
    port, printed = free_port(), Path("printed.txt")
    assert code.count("8088") == 1
    with (
        printed.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-c", code.replace("8088", str(port))], stdout=file, stderr=file,
            env=os.environ | {"WEBHOOK_SECRET": secret},
        ) as process,
    ):  # fmt: skip
        try:
            wait_until(lambda: status_of(f"http://127.0.0.1:{port}", {}) == 401, "the receiver to listen")
            yield f"http://127.0.0.1:{port}", printed
        finally:
            process.kill()


def status_of(url: str, headers: dict[str, str]) -> int | None:
    try:
        return int(urllib.request.urlopen(urllib.request.Request(url, b"{}", headers), timeout=60).status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_the_documented_receiver_verifies_what_we_send(config: dict[str, object], secret: str) -> None:
    """With either secret of a rotation it takes our message; with another one, or without signature, it does not."""
    with documented_receiver(secret) as (url, printed):
        write(config, url)
        assert offbeat("alerts", "test", "ops") == 0
        assert '"test":true' in printed.read_text()
        forged = {"webhook-id": "msg_1", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,AAAA"}
        assert status_of(url, forged) == 401
    with documented_receiver("whsec_" + "eHh4" * 10) as (url, printed):
        write(config, url)
        assert offbeat("alerts", "test", "ops") == 1
        assert re.search(r"^msg_\w+ refused$", printed.read_text(), re.MULTILINE)


def test_the_documented_receiver_refuses_what_is_old(config: dict[str, object]) -> None:
    """A true signature of an hour ago is somebody's repetition."""
    from pipeline.alerts.signing import read_secret, signed_headers

    with documented_receiver(SECRET) as (url, _):
        for age_s, status in ((0, 204), (3_600, 401)):
            headers = signed_headers("msg_1", int(time.time()) - age_s, b"{}", [read_secret(SECRET)])
            assert status_of(url, headers) == status
