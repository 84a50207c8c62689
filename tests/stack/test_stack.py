"""The stack of docker-compose.yml: its files are right, and its processes work together.

The processes run here without containers, by the commands and config files that Compose gives them: only addresses and
paths are others, by environment variables alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.broker import LocalBroker, free_port
from tests.conftest import need_of_stack
from tests.kafka import COMMAND, PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROGRAMS = ("prometheus", "prometheus-alertmanager", "promtool", "amtool", "openssl")


@pytest.fixture(scope="module")
def programs() -> None:
    """Prometheus and Alertmanager are installed."""
    need_of_stack(*PROGRAMS)


def run(*command: str | Path, **options: Any) -> str:
    """Run to the end, which must be good; returns what was said."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=PATIENCE_S, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- the files -------------------------------------------------------------------------------------------------------


def test_compose_follows_its_specification() -> None:
    """docker-compose.yml is what the Compose specification's schema says."""
    schema = ("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    assert "ok" in run(sys.executable, *schema, ROOT / "docker-compose.yml")


@pytest.mark.parametrize("name", SERVICES)
def test_services_may_do_no_more_than_they_must(name: str) -> None:
    """Pinned images, no root, read-only roots, no rights, limits, profiles, and ports on loopback alone."""
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert not service["user"].startswith("0")
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory", "pids"} == service["deploy"]["resources"]["limits"].keys()
    assert set(service["profiles"]) <= {"minimal", "full"}
    assert "full" in service["profiles"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "inside" in service["networks"]
    assert ("pages" in service["networks"]) == ("ports" in service)
    lasts = name not in {"topics", "storefront"}
    assert ("healthcheck" in service) == lasts
    assert not any("password" in str(value).lower() for value in service.get("environment", {}).values()
                   if not str(value).startswith("/run/secrets/"))  # fmt: skip


@pytest.mark.parametrize("name", [n for n, s in SERVICES.items() if s["image"].startswith("offbeat:")])
def test_kernels_have_a_place(name: str) -> None:
    """With a root that is read-only compiled kernels lie with the state, or where anybody may write; or nobody asks."""
    service = SERVICES[name]
    has_state = any(volume.endswith(":/var/lib/offbeat/state") for volume in service.get("volumes", ()))
    place = service.get("environment", {}).get("NUMBA_CACHE_DIR", "")
    assert has_state or place.startswith("/tmp/") or name in {"topics", "receiver"}


def test_what_compose_names_is_there() -> None:
    """Files of configs exist, secrets and volumes are somebody's, and alerts may go to the internal network alone."""
    assert COMPOSE["networks"]["inside"]["internal"] is True
    for config in COMPOSE["configs"].values():
        assert (ROOT / config["file"]).is_file()
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", ())}
    assert used == set(COMPOSE["secrets"])
    mounted = {volume.split(":")[0] for s in SERVICES.values() for volume in s.get("volumes", ()) if volume[0] != "."}
    assert mounted == set(COMPOSE["volumes"])
    subnet = COMPOSE["networks"]["inside"]["ipam"]["config"][0]["subnet"]
    receivers = yaml.safe_load((DEPLOY / "offbeat.yaml").read_text())["alerts"]["receivers"]
    assert all(receiver["allow_networks"] == [subnet] for receiver in receivers.values())


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """All that Compose mounts is made, for its owner alone; a second run changes nothing; certificates hold."""
    run("sh", DEPLOY / "secrets.sh", tmp_path / "secrets")
    folder = tmp_path / "secrets"
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {Path(secret["file"]).name for secret in COMPOSE["secrets"].values()} <= set(made)
    assert folder.stat().st_mode & 0o777 == 0o700
    run("sh", DEPLOY / "secrets.sh", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made
    for name in ("broker", "pages"):
        assert "OK" in run("openssl", "verify", "-CAfile", folder / "ca.pem", folder / f"{name}.pem")


def test_scripts_and_configs_are_checked(programs: None) -> None:
    """By the programs that read them."""
    for script in (DEPLOY / "secrets.sh", DEPLOY / "kafka" / "start.sh"):
        run("sh", "-n", script)
    assert "SUCCESS" in run("amtool", "check-config", DEPLOY / "alertmanager" / "alertmanager.yml")
    assert "SUCCESS" in run("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus" / "stack.yml")


def test_the_image_is_of_what_is_there() -> None:
    """What the Dockerfile copies exists and is let through by .dockerignore; it ends as no root."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed
    assert all((ROOT / path).exists() for path in copied)
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 10001:10001"


# --- the processes ---------------------------------------------------------------------------------------------------


@dataclass
class Native:
    """The stack's processes on this machine."""

    folder: Path
    broker: LocalBroker
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def secrets(self) -> Path:
        """What secrets.sh has made."""
        return self.folder / "secrets"

    def environ(self, service: str) -> dict[str, str]:
        """The environment that moves a service of ours here."""
        receivers = yaml.safe_load((DEPLOY / "offbeat.yaml").read_text())["alerts"]["receivers"]
        for name, port in (("hook", "receiver"), ("alertmanager", "alertmanager")):
            receivers[name] |= {"url": f"http://127.0.0.1:{self.ports[port]}", "allow_networks": ["127.0.0.0/8"]}
        receivers["hook"]["secrets"] = [f"file:{self.secrets}/webhook-secret"]
        return os.environ | {
            "OFFBEAT_BROKER": self.broker.address_of("CLIENTS"),
            "OFFBEAT_BROKER__SECURITY__CA": f"{self.secrets}/ca.pem",
            "OFFBEAT_BROKER__SECURITY__PASSWORD": f"file:{self.secrets}/kafka-password",
            "OFFBEAT_DATA_DIR": f"{self.folder}/state-{service}",
            "OFFBEAT_MODELS_DIR": f"{self.folder}/models",
            "OFFBEAT_HTTP__HOST": "127.0.0.1",
            "OFFBEAT_HTTP__PORT": str(self.ports.get(service, 0)),
            "OFFBEAT_HTTP__TOKEN": f"file:{self.secrets}/metrics-token",
            "OFFBEAT_HTTP__CERTIFICATE": f"{self.secrets}/pages.pem",
            "OFFBEAT_HTTP__KEY": f"{self.secrets}/pages.key",
            "OFFBEAT_ALERTS__RECEIVERS": json.dumps(receivers),
            "RECEIVER_PORT": str(self.ports["receiver"]),
            "RECEIVER_SECRET": f"{self.secrets}/webhook-secret",
        }

    def command(self, service: str) -> list[str]:
        """What Compose runs, with this machine's paths and ports."""
        moved = {
            "/etc/offbeat/offbeat.yaml": str(DEPLOY / "offbeat.yaml"),
            "/etc/alertmanager/alertmanager.yml": str(DEPLOY / "alertmanager" / "alertmanager.yml"),
            "/etc/prometheus/stack.yml": str(self.folder / "prometheus" / "stack.yml"),
            "=/alertmanager": f"={self.folder}/alertmanager-data", "=/prometheus": f"={self.folder}/prometheus-data",
        }  # fmt: skip
        words = list(SERVICES[service]["command"])
        for n, word in enumerate(words):
            for there, here in moved.items():
                if word.endswith(there):
                    words[n] = word.removesuffix(there) + here
        if service == "receiver":
            return [sys.executable, str(DEPLOY / "receiver" / "receiver.py")]
        if service in {"alertmanager", "prometheus"}:
            program = {"alertmanager": "prometheus-alertmanager"}.get(service, service)
            return [program, *words, f"--web.listen-address=127.0.0.1:{self.ports[service]}"]
        return [*COMMAND, *words]

    def configure_prometheus(self) -> None:
        """Prometheus' folder with addresses of here; all else is as it stands."""
        folder = self.folder / "prometheus"
        shutil.copytree(DEPLOY / "prometheus", folder)
        for path in (folder / "alertmanagers.yml", *(folder / "targets").glob("*.yml")):
            moved = re.sub(r"\b(\w+):(\d+)\b", lambda m: f"127.0.0.1:{self.ports[m[1]]}", path.read_text())
            path.write_text(moved)
        stack = folder / "stack.yml"
        stack.write_text(stack.read_text().replace("/run/secrets/", f"{self.secrets}/").replace(": 15s", ": 2s"))

    def start(self, service: str) -> None:
        """Start a service; what it says goes to a file."""
        with (self.folder / f"{service}.log").open("wb") as log:
            self.processes[service] = subprocess.Popen(
                self.command(service), stdout=log, stderr=log, cwd=self.folder, env=self.environ(service)
            )

    def log(self, service: str) -> str:
        """What a service has said; it must live."""
        text = (self.folder / f"{service}.log").read_text()
        assert self.processes[service].poll() is None, text[-3_000:]
        return text

    def told(self) -> list[dict[str, Any]]:
        """What the receiver has printed."""
        lines = [json.loads(line) for line in self.log("receiver").splitlines() if line.startswith("{")]
        return [line for line in lines if "type" in line]

    def ask(self, service: str, path: str) -> Any:
        """An answer in JSON; None while there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[service]}{path}", timeout=5) as page:
                return json.loads(page.read())
        except OSError:
            return None

    def alerts(self) -> str:
        """What fires in Alertmanager, as text."""
        return json.dumps(self.ask("alertmanager", "/api/v2/alerts?active=true") or [])

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus knows."""
        answer = self.ask("prometheus", f"/api/v1/query?query={expression}")
        return [] if answer is None else answer["data"]["result"]

    def secret_texts(self) -> list[str]:
        """The secrets that are a line."""
        names = ("kafka-password", "metrics-token", "webhook-secret")
        return [(self.secrets / name).read_text().strip() for name in names]

    def stop(self) -> None:
        """End all of them."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def native(kafka: None, programs: None, tmp_path: Path) -> Iterator[Native]:
    """The stack's Kafka, with its properties, listener and user."""
    run("sh", DEPLOY / "secrets.sh", tmp_path / "secrets")
    lines = (DEPLOY / "kafka" / "server.properties").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for key in ("listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"):
        del settings[key]
    settings = {key: value.replace("/run/secrets", f"{tmp_path}/secrets") for key, value in settings.items()}
    password = (tmp_path / "secrets" / "kafka-password").read_text().strip()
    names = ("worker", "trainer", "alerts", "receiver", "alertmanager", "prometheus")
    broker = LocalBroker(
        tmp_path / "kafka", ephemeral=True, settings=settings, listeners={"CLIENTS": "SASL_SSL"},
        users={"offbeat": password},
    )  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(broker)
        made = Native(tmp_path, broker, {name: free_port() for name in names})
        stack.callback(made.stop)
        yield made


def changes_of(told: list[dict[str, Any]], *kinds: str) -> set[str]:
    """The incidents of which a change of these kinds was told."""
    return {c["subject"] for message in told for c in message["data"]["changes"] if c["kind"] in kinds}


def test_an_incident_goes_through_the_stack(native: Native) -> None:
    """A model learns of a healthy storefront; it breaks: that is told, signed, and fires, until it is over."""
    native.configure_prometheus()
    run(*native.command("topics"), env=native.environ("topics"), cwd=native.folder)
    for service in ("storefront", "worker", "receiver", "alertmanager", "alerts", "prometheus", "trainer"):
        native.start(service)
    wait_until(lambda: '"first training ended"' in native.log("worker"), "the first bundle", 900)
    before = changes_of(native.told(), "opened")
    native.processes["storefront"].send_signal(signal.SIGUSR1)

    def opened() -> set[str]:
        return changes_of(native.told(), "opened") - before

    wait_until(opened, "an incident at the receiver")

    def fires() -> str | None:
        """One of them: the first may be over before its alert is there."""
        firing = native.alerts()
        return min((name for name in opened() if name in firing), default=None)

    name = wait_until(fires, "an incident to fire")
    asked = wait_until(lambda: native.query("offbeat_records_total"), "figures over TLS with the token")
    assert float(asked[0]["value"][1]) > 0
    over = ("closed", "merged")  # into an older one
    wait_until(lambda: name in changes_of(native.told(), *over), "the incident to close")
    wait_until(lambda: name not in native.alerts(), "the alert to be resolved")
    assert all(message["signed"] for message in native.told())
    said = "".join(native.log(service) for service in native.processes)
    assert not any(secret in said for secret in native.secret_texts())
