"""One attempt against real servers: what is sent, what an answer means, and where nothing may be sent."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import subprocess
import tracemalloc
from collections.abc import Coroutine, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from pipeline.alerts.change import Message, Outcome
from pipeline.alerts.safe_http import RefusedAddressError, refuse_unless_public
from pipeline.alerts.sending import Sender
from pipeline.errors import ConfigError
from tests.pipeline.alerts.made import LOCAL, OTHER, SECRET, alerts, incident, webhook
from tests.pipeline.alerts.servers import free_port, http_server, raw_server

ENVIRONMENT = {"KEY": SECRET, "OLD": OTHER, "ROUTING": "R" * 32, "AUTH": "Bearer very-secret"}


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


async def send(receiver: Mapping[str, Any], message_id: str = "m/1", **more: Any) -> Outcome:
    """One attempt to a receiver named ops."""
    sender = Sender(alerts(ops=receiver), ENVIRONMENT, **more)
    try:
        return await sender.send(Message(message_id, "ops", (incident(),)))
    finally:
        await sender.close()


def test_a_webhook_is_signed_and_its_id_stays() -> None:
    """Two attempts have one id, and a signature by each secret; the configured headers stand beside."""

    async def story() -> None:
        async with http_server(204) as server:
            receiver = webhook(server.url(), secrets=["env:KEY", "env:OLD"], headers={"Authorization": "env:AUTH"})
            outcomes = [await send(receiver, now_ms=lambda at=at: at) for at in (1_000_000, 9_000_000)]
            (first, body), (second, again) = server.requests
        assert [o.kind for o in outcomes] == ["delivered", "delivered"]
        assert first["webhook-id"] == second["webhook-id"]
        assert (first["webhook-timestamp"], second["webhook-timestamp"]) == ("1000", "9000")
        assert len(first["webhook-signature"].split()) == 2
        assert first["webhook-signature"] != second["webhook-signature"]
        assert (first["Authorization"], first["Content-Type"]) == ("Bearer very-secret", "application/json")
        assert body == again
        assert orjson.loads(body)["type"] == "incident.opened"

    run(story())


def test_each_receiver_is_reached_as_its_api_wants() -> None:
    """Alertmanager at its path, Slack and PagerDuty with their JSON, a template as it is written."""

    async def story() -> None:
        paths: list[tuple[str, bytes]] = []

        async def note(request: web.Request) -> web.Response:
            paths.append((request.path, await request.read()))
            return web.Response(status=202)

        async with http_server(note) as server:
            local = {"url": server.url("/x"), "allow_networks": LOCAL}
            text = {"type": "template", "body": "{{ changes[0].summary }}", "content_type": "text/plain"}
            receivers: list[dict[str, Any]] = [
                {"type": "alertmanager"}, {"type": "pagerduty", "routing_key": "env:ROUTING"}, text,
            ]  # fmt: skip
            for receiver in receivers:
                assert (await send(local | receiver)).kind == "delivered"
            sender = Sender(
                alerts(ops={"type": "slack", "url": "env:SLACK", "allow_networks": LOCAL}), {"SLACK": server.url("/s")}
            )
            assert (await sender.send(Message("m", "ops", (incident(),)))).kind == "delivered"
            await sender.close()
        assert [path for path, _ in paths] == ["/x/api/v2/alerts", "/x", "/x", "/s"]
        assert orjson.loads(paths[1][1])["routing_key"] == "R" * 32
        assert paths[2][1].startswith(b"orders since")

    run(story())


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, "delivered"), (299, "delivered"), (400, "retry"), (401, "retry"), (404, "retry"), (410, "gone"),
        (429, "throttled"), (500, "retry"), (502, "throttled"), (503, "retry"), (504, "throttled"),
    ],
)  # fmt: skip
def test_what_a_status_means(status: int, kind: str) -> None:
    """As Standard Webhooks says; an API that says a body is wrong gets it no second time."""

    async def story() -> None:
        async with http_server(status) as server:
            outcome = await send(webhook(server.url()))
            assert (outcome.kind, outcome.status) == (kind, status)
            of_api = {"type": "alertmanager", "url": server.url(""), "allow_networks": LOCAL}
            assert (await send(of_api)).kind == ("rejected" if status == 400 else kind)

    run(story())


def test_retry_after_and_clock_skew_are_read() -> None:
    """What a receiver asks for is in the outcome, in seconds or as a moment; a clock that differs is told."""

    async def story() -> None:
        asked = iter(["120", formatdate(1_300, usegmt=True), "soon"])

        async def busy(_: web.Request) -> web.Response:
            return web.Response(
                status=429, headers={"Retry-After": next(asked), "Date": formatdate(1_300, usegmt=True)}
            )

        async with http_server(busy) as server:
            outcomes = [await send(webhook(server.url()), now_ms=lambda: 1_000_000) for _ in range(3)]
        assert [o.retry_after_ms for o in outcomes] == [120_000, 300_000, None]
        assert "its clock is 300 s ahead of ours" in outcomes[0].detail

    run(story())


def test_answers_show_no_secret() -> None:
    """A server that repeats what it was sent does not bring secrets into logs."""

    async def story() -> None:
        async def echo(request: web.Request) -> web.Response:
            said = f"{request.headers['Authorization']} at {request.url}\n\x1b[31m{'x' * 1_000}"
            return web.Response(status=500, text=said)

        async with http_server(echo) as server:
            receiver = webhook("env:URL", headers={"Authorization": "env:AUTH"})
            sender = Sender(alerts(ops=receiver), {**ENVIRONMENT, "URL": server.url("/token-in-path")})
            outcome = await sender.send(Message("m", "ops", (incident(),)))
            await sender.close()
        assert outcome.detail.startswith(f"http://127.0.0.1:{server.port} answered 500: *** at ***")
        assert "token" not in outcome.detail
        assert "\x1b" not in outcome.detail
        assert len(outcome.detail) < 300

    run(story())


@pytest.mark.parametrize(
    "said",
    [
        "Cannot POST /token-in-path",
        "unknown token very-secret",
        "x" * 195 + " very-secret",
        "no login somebody:password",
    ],
)
def test_answers_show_no_part_of_a_secret(said: str) -> None:
    """Servers repeat a path or one word of a header, too; and a secret is hidden before an answer is cut."""

    async def story() -> None:
        async def echo(_: web.Request) -> web.Response:
            return web.Response(status=404, text=said)

        async with http_server(echo) as server:
            url = server.url("/token-in-path").replace("http://", "http://somebody:password@")
            receiver = webhook("env:URL", headers={"X-Key": "env:AUTH"})
            sender = Sender(alerts(ops=receiver), {**ENVIRONMENT, "URL": url})
            outcome = await sender.send(Message("m", "ops", (incident(),)))
            await sender.close()
        assert "answered 404" in outcome.detail
        assert not any(word in outcome.detail for word in ("token-in", "very-", "somebody", "password"))

    run(story())


# --- where nothing may be sent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.2", "localhost", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "0.0.0.0",
     "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "127.0.0.1.",
     "①②⑦.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "[fe80::1]", "[fd00::1]",
     "224.0.0.1", "[::ffff:a9fe:a9fe]"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused_in_any_spelling(host: str) -> None:
    """Nothing listens to us there, however the address is written; most say what to do if it is meant."""

    async def story() -> None:
        async with http_server(200, host="127.0.0.1") as server:
            url = server.url(host=host)
            try:
                outcome = await send(webhook(url, allow_networks=[]))
            except ConfigError:
                outcome = Outcome("retry", "is no URL")
            assert outcome.kind == "retry"
            assert server.requests == []
            canonical = host in {"127.0.0.1", "localhost", "[::1]", "[::ffff:7f00:1]", "169.254.169.254", "0x7f.1"}
            if canonical and (host != "[::1]" or socket.has_ipv6):
                assert "is no public address; if it is meant, add its network" in outcome.detail

    run(story())


@given(st.integers(0, 2**32 - 1))
def test_ipv6_that_holds_ipv4_is_judged_by_it(number: int) -> None:
    """An IPv4 address is refused or not, whether it stands alone or inside IPv6; public is what the registry says."""
    inner = ipaddress.IPv4Address(number)
    hex_ = f"{number >> 16:x}:{number & 0xFFFF:x}"
    answers = {is_refused(text) for text in (str(inner), f"::ffff:{hex_}", f"64:ff9b::{hex_}", f"2002:{hex_}::1")}
    assert answers == {not inner.is_global or inner.is_multicast or inner.is_reserved}


def is_refused(text: str) -> bool:
    try:
        refuse_unless_public(text)
    except RefusedAddressError:
        return True
    return False


def test_a_network_that_is_allowed_is_reached_and_no_other() -> None:
    """allow_networks opens what it names, IPv6 forms of it too."""
    networks = [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")]
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        refuse_unless_public(text, networks)
    for text in ("10.2.0.1", "fe80::1", "::1"):
        with pytest.raises(RefusedAddressError):
            refuse_unless_public(text, networks)


def test_a_redirect_to_this_machine_is_not_followed() -> None:
    """3xx is a failure that says so; where it leads gets nothing."""

    async def story() -> None:
        async with http_server(200, host="127.0.0.2") as inner:

            async def redirect(_: web.Request) -> web.Response:
                return web.Response(status=307, headers={"Location": inner.url(host="127.0.0.2")})

            async with http_server(redirect) as server:
                outcome = await send(webhook(server.url()))
            assert inner.requests == []
        assert (outcome.kind, outcome.status) == ("retry", 307)
        assert "redirects are not followed; set url to where it leads" in outcome.detail

    run(story())


class _Rebinding(AbstractResolver):
    """A name whose address is another one each time it is asked for."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The next address; after the last one, that again."""
        address = self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
        ]

    async def close(self) -> None:
        """Nothing is open."""


def test_a_name_that_resolves_to_another_address_later_is_refused_then() -> None:
    """What counts is the address that is connected to, at each connection."""

    async def story() -> None:
        async def bye(_: web.Request) -> web.Response:
            return web.Response(headers={"Connection": "close"})

        async with http_server(bye, host="127.0.0.2") as meant, http_server(200, port=meant.port) as inner:
            config = alerts(ops=webhook(meant.url(host="hooks.example.com"), allow_networks=["127.0.0.2/32"]))
            sender = Sender(config, ENVIRONMENT, resolver=_Rebinding("127.0.0.2", "127.0.0.1"))
            first = await sender.send(Message("m", "ops", (incident(),)))
            second = await sender.send(Message("m", "ops", (incident(),)))
            await sender.close()
        assert (first.kind, len(meant.requests)) == ("delivered", 1)
        assert "127.0.0.1 is no public address" in second.detail
        assert inner.requests == []

    run(story())


# --- receivers that misbehave ----------------------------------------------------------------------------------------


def test_an_answer_of_fifty_megabytes_is_not_read() -> None:
    """The status decides; of the body no more than its beginning is kept."""

    async def story() -> None:
        async def huge(writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 50000000\r\n\r\n")
            for _ in range(50):
                writer.write(b"x" * 1_000_000)
                await writer.drain()

        async with raw_server(huge) as server:
            tracemalloc.start()
            outcome = await send(webhook(server.url()))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert (outcome.kind, outcome.status) == ("retry", 500)
        assert peak < 8_000_000
        assert len(outcome.detail) < 400

    run(story())


@pytest.mark.parametrize(
    ("head", "kind"),
    [(b"Transfer-Encoding: chunked\r\n\r\n", "delivered"), (b"X-Long: ", "retry")],
)
def test_an_answer_that_never_ends_is_left(head: bytes, kind: str) -> None:
    """A status that has come counts; a head that drips on is given up in time."""

    async def story() -> None:
        async def drip(writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n" + head)
            while True:
                writer.write(b"1\r\nx\r\n" if kind == "delivered" else b"x")
                await writer.drain()
                await asyncio.sleep(0.05)

        async with raw_server(drip) as server:
            began = asyncio.get_running_loop().time()
            outcome = await send(webhook(server.url()), timeout_s=15.0 if kind == "delivered" else 3.0)
            took_s = asyncio.get_running_loop().time() - began
        assert outcome.kind == kind
        assert took_s < 25
        assert kind == "delivered" or outcome.detail.endswith("no answer in time; look at what listens there")

    run(story())


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (b"", "the connection broke (ServerDisconnectedError)"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "its answer is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", "its answer is no HTTP"),
    ],
)
def test_what_is_no_http_is_said_and_tried_again(said: bytes, detail: str) -> None:
    """A server that hangs up, speaks another protocol or floods its head is a failure in a sentence."""

    async def story() -> None:
        async def speak(writer: asyncio.StreamWriter) -> None:
            writer.write(said)
            await writer.drain()

        async with raw_server(speak) as server:
            outcome = await send(webhook(server.url()))
        assert outcome.kind == "retry"
        assert f"{detail}; look at what listens there" in outcome.detail

    run(story())


def test_nobody_there_is_said() -> None:
    """A port where nobody listens, and a name that nobody has, are told apart."""

    async def story() -> None:
        refused = await send(webhook(f"http://127.0.0.1:{free_port()}"))
        assert "no connection (Connection refused); start what should listen there" in refused.detail
        unknown = await send(webhook("http://nobody.invalid/"))
        assert "its name cannot be resolved; correct url, or the machine's DNS" in unknown.detail

    run(story())


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    """A certificate of its own signing is refused unless ca_file names it; then a wrong name still is."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip

    async def story() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        async with http_server(200, ssl_context=context) as server:
            url, numeric = server.url(host="localhost", scheme="https"), server.url(scheme="https")
            unknown = await send(webhook(url))
            assert unknown.kind == "retry"
            assert "its certificate is refused (self-signed certificate)" in unknown.detail
            assert "its certificate is refused" in (await send(webhook(numeric, ca_file=str(certificate)))).detail
            assert server.requests == []
            assert (await send(webhook(url, ca_file=str(certificate)))).kind == "delivered"

    run(story())


@pytest.mark.parametrize(
    ("receiver", "sentence"),
    [
        (webhook("http://x", secrets=["env:NONE"]), "a secret is missing: the environment variable NONE is not set"),
        (webhook("http://x", secrets=["file:/nowhere/x"]), "a secret is missing: the file /nowhere/x cannot be read"),
        (webhook("http://x", secrets=["env:AUTH"]), "a signing secret is whsec_ and base64"),
        (webhook("env:AUTH"), "the URL that its secret holds is none"),
        (webhook("http://x", ca_file="/nowhere/ca"), "the certificates in /nowhere/ca cannot be used"),
        ({"type": "template", "url": "http://x", "body": "{% nix %}"}, "the template is wrong at line 1"),
        ({"type": "template", "url": "http://x", "body": "file:/nowhere/t"}, "cannot be read (No such file"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_sent(receiver: dict[str, Any], sentence: str) -> None:
    """Missing secrets, files and wrong templates stop at start, with the receiver's name and no secret."""

    async def story() -> None:
        with pytest.raises(ConfigError) as error:
            Sender(alerts(ops=receiver), ENVIRONMENT)
        assert str(error.value).startswith("alerts.receivers.ops: ")
        assert sentence in str(error.value)
        assert "very-secret" not in str(error.value)

    run(story())
