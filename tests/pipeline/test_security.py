"""Brokers that want TLS and logins: a real one with a listener of each kind."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import clients
from pipeline.broker import LocalBroker
from pipeline.clients import Clients
from pipeline.errors import BrokerRefusedError, BrokerUnavailableError, ConfigError, OffbeatError
from pipeline.settings import Settings, parse_settings
from tests.certificates import Authority, Certificate
from tests.kafka import PATIENCE_S, Stack, WorkerProcess, as_records, shop_events, write_untrained_bundle

PASSWORD, PLAIN_PASSWORD, KEY_PASSWORD = "b7Xq-scram-2f", "b7Xq-plain-9c", "b7Xq-key-51"
SECRETS = (PASSWORD, PLAIN_PASSWORD, KEY_PASSWORD)
STREAMS = {"orders": {"topic": "orders", "session": {"by": "s"}, "tokens": ["a"]}}


@dataclass
class Secured:
    """A broker, and the files and places of secrets that its clients need."""

    broker: LocalBroker
    ca: Path
    other_ca: Path
    client: Certificate
    stranger: Certificate
    password: Path

    def security(self, listener: str) -> dict[str, Any]:
        """What is right for a listener."""
        tls = {"ca": str(self.ca)}
        login = {"username": "shop", "password": f"file:{self.password}"}
        plain = {"username": "shop", "password": "env:TEST_PLAIN_PASSWORD"}
        return {
            "TLS": {"protocol": "SSL", **tls},
            "NAMED": {"protocol": "SSL", **tls},
            "MUTUAL": {
                "protocol": "SSL", **tls, "certificate": str(self.client.certificate), "key": str(self.client.key),
                "key_password": "env:TEST_KEY_PASSWORD",
            },
            "SCRAM": {"protocol": "SASL_SSL", **tls, "mechanism": "SCRAM-SHA-512", **login},
            "LOGIN": {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", **plain},
        }[listener]  # fmt: skip

    def section(self, listener: str, **changed: Any) -> dict[str, Any]:
        """The section `broker` for a listener; what is changed to None is left out."""
        address = self.broker.address if listener == "OPEN" else self.broker.address_of(listener)
        security = {} if listener == "OPEN" else self.security(listener)
        return {"servers": address, "security": {k: v for k, v in (security | changed).items() if v is not None}}

    def settings(self, listener: str, **changed: Any) -> Settings:
        """A config for a listener."""
        return parse_settings({"broker": self.section(listener, **changed), "streams": STREAMS}, {})


@pytest.fixture(scope="module")
def secured(kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A broker with a listener of each kind."""
    folder = tmp_path_factory.mktemp("secured")
    ours, other = Authority(folder / "ours"), Authority(folder / "other", "other")
    module = "org.apache.kafka.common.security"
    settings = {
        "ssl.keystore.type": "PEM", "ssl.keystore.location": str(ours.sign("server").both),
        "ssl.truststore.type": "PEM", "ssl.truststore.location": str(ours.ca),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.named.ssl.keystore.location": str(ours.sign("named", "DNS:kafka.example").both),
        "listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.login.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.login.plain.sasl.jaas.config":
            f'{module}.plain.PlainLoginModule required user_shop="{PLAIN_PASSWORD}";',
    } | {
        f"listener.name.scram.scram-sha-{bits}.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;"
        for bits in (256, 512)
    }  # fmt: skip
    listeners = {"TLS": "SSL", "NAMED": "SSL", "MUTUAL": "SSL", "SCRAM": "SASL_SSL", "LOGIN": "SASL_PLAINTEXT"}
    password = folder / "password"
    password.write_text(f"{PASSWORD}\n")
    with (
        pytest.MonkeyPatch.context() as patch,
        LocalBroker(
            folder / "kafka", ephemeral=True, settings=settings, listeners=listeners, users={"shop": PASSWORD}
        ) as broker,
    ):
        patch.setenv("TEST_PLAIN_PASSWORD", PLAIN_PASSWORD)
        patch.setenv("TEST_KEY_PASSWORD", KEY_PASSWORD)
        client = ours.sign("client", password=KEY_PASSWORD)
        yield Secured(broker, ours.ca, other.ca, client, other.sign("stranger"), password)


def listening_ports(pid: int) -> set[int]:
    """The TCP ports that a process listens on."""
    sockets = {os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()}
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    fields = [line.split() for line in lines]
    return {int(f[1].rpartition(":")[2], 16) for f in fields if f[3] == "0A" and f"socket:[{f[9]}]" in sockets}


@pytest.mark.parametrize("listener", ["TLS", "MUTUAL", "SCRAM", "LOGIN"])
def test_both_clients_are_taken(secured: Secured, listener: str) -> None:
    """Confluent's and aiokafka's, over TLS, with a certificate of ours, and with logins."""
    clients = Clients(secured.settings(listener))
    assert len(clients.admin().list_topics(timeout=PATIENCE_S).brokers) == 1

    async def ask() -> set[str]:
        consumer = clients.end_offset_consumer()
        await consumer.start()
        try:
            return set(await consumer.topics())
        finally:
            await consumer.stop()

    assert asyncio.run(ask()) == set(clients.admin().list_topics(timeout=PATIENCE_S).topics) - {"__consumer_offsets"}
    clients = Clients(secured.settings("SCRAM", mechanism="SCRAM-SHA-256"))
    assert len(clients.admin().list_topics(timeout=PATIENCE_S).brokers) == 1


def test_a_worker_and_commands_work_over_tls_with_a_login(secured: Secured, tmp_path: Path) -> None:
    """All of it: topics made, records scored, topics read, sessions forgotten; nothing shows a secret."""
    stack = Stack(secured.broker.address, tmp_path)
    stack.configure(broker=secured.section("SCRAM"), delivery="exactly_once")
    write_untrained_bundle(stack)
    said = [stack.run("topics", "--create").stdout]
    with WorkerProcess(stack) as worker:
        stack.produce(as_records(shop_events(3, 60)))
        stack.wait_until_scored()
        said.append(stack.run("tail", "decisions", "--from-start", "--limit", "5", "--json").stdout)
        assert len(said[-1].splitlines()) == 5
        assert len(listening_ports(worker.process.pid)) == 1  # of the pages: Faust's own server is not there
        session = json.loads(said[-1].splitlines()[0])["session"]
        said += [stack.run("sessions", "delete", session, "-s", "orders", "--yes").stdout, worker.metrics()]
        assert worker.stop() == 0
        assert [line for line in worker.log() if line.get("level") in {"error", "critical"}] == []
        said.append(worker.log_path.read_text())
    shown = stack.run("config", "show").stdout
    assert "password: '***'" in shown
    for text in (*said, shown, stack.run("config", "show", "--json").stdout):
        assert not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize(
    ("listener", "changed", "said"),
    [
        ("SCRAM", {"password": "env:TEST_PLAIN_PASSWORD"}, "refuses user shop or the password; correct"),
        ("SCRAM", {"username": "nobody"}, "refuses user nobody or the password"),
        ("LOGIN", {"password": "env:TEST_KEY_PASSWORD"}, "refuses user shop or the password"),
        ("SCRAM", {"mechanism": "PLAIN"}, "takes no login by PLAIN; write another broker.security.mechanism"),
        ("TLS", {"ca": "OTHER"}, "cannot be trusted .*; name its CA in broker.security.ca"),
        ("TLS", {"ca": None}, "cannot be trusted .*; name its CA in broker.security.ca"),
        ("NAMED", {}, "is for another name; write a name that stands in it in broker.servers"),
        (
            "MUTUAL",
            {"certificate": None, "key": None, "key_password": None},
            "wants a certificate that it trusts of us",
        ),
        ("MUTUAL", {"certificate": "STRANGER", "key": "STRANGER", "key_password": None}, "wants a certificate that it"),
        ("OPEN", {"protocol": "SSL"}, "speaks no TLS; name its TLS port"),
        ("TLS", {"protocol": None, "ca": None}, "speaks TLS; write broker.security.protocol: SSL, or SASL_SSL"),
        ("SCRAM", {"protocol": "SSL", "mechanism": None, "username": None, "password": None}, "hangs up, or is not"),
    ],
)
def test_a_refusal_is_one_sentence(secured: Secured, listener: str, changed: dict[str, Any], said: str) -> None:
    """It says what to do next, soon, and shows no secret."""
    stranger = secured.stranger
    places = {"ca": secured.other_ca, "certificate": stranger.certificate, "key": stranger.key}
    changed = {k: str(places[k]) if v in {"OTHER", "STRANGER"} else v for k, v in changed.items()}
    with pytest.raises((BrokerRefusedError, BrokerUnavailableError), match=said) as caught:
        Clients(secured.settings(listener, **changed)).admin()
    assert not any(secret in str(caught.value) for secret in SECRETS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ca": "/nowhere/ca.pem"}, "broker.security.ca /nowhere/ca.pem .*cannot be read .No such file"),
        ({"ca": "PASSWORD"}, "broker.security.ca .* holds no certificates in PEM"),
        ({"key": "STRANGER"}, "the key is not its own"),
        ({"key_password": "env:TEST_PLAIN_PASSWORD"}, "the key is not its own, or key_password is wrong"),
        ({"key_password": None}, "the key is not its own, or key_password is wrong"),
        ({"key_password": "env:TEST_NOT_SET"}, "a secret is missing: the environment variable TEST_NOT_SET is not set"),
    ],
)
def test_files_that_are_wrong_are_told_apart(secured: Secured, changed: dict[str, Any], said: str) -> None:
    """Before any broker is asked."""
    places = {"PASSWORD": secured.password, "STRANGER": secured.stranger.key}
    changed = {k: str(places.get(v, v)) if v else None for k, v in changed.items()}
    with pytest.raises(ConfigError, match=said):
        Clients(secured.settings("MUTUAL", **changed)).admin()


@pytest.mark.parametrize("command", [("worker",), ("topics",), ("tail", "anomalies"), ("trainer", "--once")])
def test_commands_say_what_is_wrong(secured: Secured, tmp_path: Path, command: tuple[str, ...]) -> None:
    """A wrong password ends each with the sentence alone, and is not in it."""
    stack = Stack(secured.broker.address, tmp_path)
    stack.configure(broker=secured.section("SCRAM", password="env:TEST_KEY_PASSWORD"))
    done = stack.run(*command, check=False)
    assert done.returncode == 1
    assert "refuses user shop or the password" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not any(secret in done.stderr + done.stdout for secret in SECRETS)
    assert os.environ["TEST_KEY_PASSWORD"] == KEY_PASSWORD


def test_nobody_there_is_still_said(tmp_path: Path) -> None:
    """Where nothing listens, security is not to blame."""
    settings = parse_settings({"broker": "127.0.0.1:1", "streams": STREAMS}, {})
    with pytest.raises(OffbeatError, match=r"no Kafka broker answers at 127.0.0.1:1 .*start one with"):
        Clients(settings).admin()


def test_who_is_slow_is_not_said_to_lack_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that listens and does not answer yet may be busy: it is asked on, as long as any."""
    monkeypatch.setattr(clients, "CONNECT_TIMEOUT_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        broker = {"servers": f"127.0.0.1:{silent.getsockname()[1]}", "security": {"protocol": "SSL"}}
        settings = parse_settings({"broker": broker, "streams": STREAMS}, {})
        with pytest.raises(BrokerUnavailableError, match="hangs up, or is not ready"):
            Clients(settings).admin()
