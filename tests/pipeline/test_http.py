"""The three pages, asked for over real HTTP."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from pipeline import http
from pipeline.edge_settings import HttpSettings
from pipeline.errors import ConfigError, PortTakenError
from pipeline.health import ALIVE_S, Health
from pipeline.http import Pages
from pipeline.http_limits import BURST, MOST_CONNECTIONS, MOST_HEAD_BYTES, MOST_OF_ONE, REQUESTS_PER_S, Limits
from pipeline.metrics import Metrics
from pipeline.secrets import Secret
from tests.certificates import Authority
from tests.kafka import wait_until

TOKEN = "b7Xq-token-77"
LOOPBACK = HttpSettings(host="127.0.0.1", port=0)


class Site:
    """Pages on a free port, with what stands behind them."""

    def __init__(self, http: HttpSettings | None = None) -> None:
        self.now = 0.0
        self.registry = CollectorRegistry()
        self.metrics, self.health = Metrics(self.registry), Health(lambda: self.now)
        self.pages = Pages(self.registry, self.health, http or LOOPBACK)

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
        """One request over a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.pages.port, timeout=10)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()


def secured(folder: Path, host: str = "127.0.0.1") -> HttpSettings:
    """Pages over TLS for who has the token."""
    made = Authority(folder).sign("pages")
    (folder / "token").write_text(f"{TOKEN}\n")
    token = Secret(f"file:{folder}/token")
    return HttpSettings(host=host, port=0, token=token, certificate=made.certificate, key=made.key)


def ask_raw(port: int, request: bytes) -> bytes:
    """What comes back for bytes that a library would not send."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with site.pages:
        yield site


def test_metrics_are_served(site: Site) -> None:
    """/metrics shows all series in Prometheus' text format, whatever the query says."""
    site.metrics.records.labels("orders").inc(3)
    for path in ("/metrics", "/metrics?name[]=nothing"):
        response, body = site.ask(path)
        assert (response.status, response.getheader("Content-Type", "")[:10]) == (200, "text/plain")
        samples = [s for f in text_string_to_metric_families(body.decode()) for s in f.samples]
        assert ("offbeat_records_total", {"stream": "orders"}, 3.0) in [(s.name, s.labels, s.value) for s in samples]


def test_openmetrics_on_request(site: Site) -> None:
    """A scraper that asks for OpenMetrics gets it, and one that asks for it wrongly gets an answer, too."""
    response, body = site.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert response.getheader("Content-Type", "").startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    with capture_logs() as log:
        response, body = site.ask("/metrics", Accept="application/openmetrics-text; version=x; escaping=y, ;;=,")
    assert (response.status, log) == (200, [])


def test_healthz_follows_the_beat(site: Site) -> None:
    """/healthz is 200 while the event loop beats, else 503, with the age of the last beat."""
    response, body = site.ask("/healthz")
    assert (response.status, json.loads(body)) == (200, {"alive": True, "beat_age_s": 0.0})
    site.now = ALIVE_S
    response, body = site.ask("/healthz?verbose")
    assert (response.status, json.loads(body)) == (503, {"alive": False, "beat_age_s": ALIVE_S})
    assert response.getheader("Content-Type") == "application/json"


def test_ready_follows_the_assignment(site: Site) -> None:
    """/ready is 503 until all that was assigned is open, and names each partition."""
    assert site.ask("/ready")[0].status == 503
    site.health.assigned([("orders", 0)])
    response, body = site.ask("/ready")
    assert (response.status, json.loads(body)["partitions"][0]["state"]) == (503, "opening")
    site.health.opened("orders", 0)
    response, body = site.ask("/ready")
    assert (response.status, json.loads(body)["ready"]) == (200, True)


def test_a_head_is_a_get_without_its_body(site: Site) -> None:
    """HEAD answers with the status and headers of GET, and with nothing after them."""
    site.health.assigned([("orders", 0)])
    for path in ("/healthz", "/ready", "/nowhere"):
        got, body = site.ask(path)
        head, nothing = site.ask(path, "HEAD")
        assert (head.status, nothing) == (got.status, b"")
        assert int(head.getheader("Content-Length", "")) == len(body)


def test_other_pages_are_not_there(site: Site) -> None:
    """A wrong path is answered with the three that exist, a wrong method with its number."""
    for path in ("/", "/metrics/", "/METRICS", "/ready/now", "/?/metrics"):
        response, body = site.ask(path)
        assert response.status == 404
        assert all(page in body for page in (b"/metrics", b"/healthz", b"/ready"))
    response, body = site.ask("/metrics", "POST")
    assert (response.status, body[:3]) == (501, b"501")


def test_an_unfinished_request_blocks_nobody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that stop in mid-request are let go after a while, and others are served meanwhile."""
    monkeypatch.setattr(http._Handler, "timeout", 5.0)
    hanging = [socket.create_connection(("127.0.0.1", site.pages.port), timeout=10) for _ in range(20)]
    for one in hanging:
        one.sendall(b"GET /metrics HTTP/1.1\r\nHos")
    began = time.monotonic()
    assert site.ask("/healthz")[0].status == 200
    assert time.monotonic() - began < 4.5
    for one in hanging:
        assert one.recv(100) == b""
        one.close()


def test_clients_that_go_away_are_not_news(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    """A client that resets its connection leaves no line on stderr and no log, and the next is served."""
    big = Gauge("big", "x" * 4_000_000, registry=site.registry)
    big.set(1)
    with capture_logs() as log:
        for _ in range(5):
            gone = socket.create_connection(("127.0.0.1", site.pages.port))
            gone.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()
        assert site.ask("/healthz")[0].status == 200
    assert (log, capfd.readouterr().err) == ([], "")


def test_many_at_once(site: Site) -> None:
    """Concurrent requests are all answered whole."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(site.ask, ["/metrics", "/healthz", "/ready", "/x"] * 25))
    assert [response.status for response, _ in answers] == [200, 200, 503, 404] * 25
    assert all(len(body) == int(response.getheader("Content-Length", "")) for response, body in answers)


def test_a_failure_of_ours_is_logged(site: Site) -> None:
    """A page that cannot be made is one log line, and the server goes on."""

    class Broken(Collector):
        def collect(self) -> Iterator[None]:
            message = "no figures"
            raise RuntimeError(message)

    site.registry._collector_to_names[Broken()] = []
    with capture_logs() as log:
        with pytest.raises(ConnectionError):
            site.ask("/metrics")
        assert site.ask("/healthz")[0].status == 200
    assert [(line["event"], line["why"]) for line in log] == [
        ("page could not be served", "RuntimeError('no figures')")
    ]


def test_a_taken_port() -> None:
    """A port in use is refused with the key to change; a closed server's port is free again at once."""
    with Pages(CollectorRegistry(), Health(), LOOPBACK) as first:
        taken = HttpSettings(host="127.0.0.1", port=first.port)
        sentence = rf"http.port {first.port} on 127.0.0.1 cannot be used \(Address already in use\); give this worker"
        with pytest.raises(PortTakenError, match=sentence):
            Pages(CollectorRegistry(), Health(), taken)
    with Pages(CollectorRegistry(), Health(), taken) as again:
        assert again.port == first.port


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1"])
def test_an_address_that_is_not_ours(host: str, tmp_path: Path) -> None:
    """A host that cannot be listened on is answered with the same sentence and the system's reason."""
    with pytest.raises(PortTakenError, match=rf"http.port 0 on {host} cannot be used \(.+\)"):
        Pages(CollectorRegistry(), Health(), secured(tmp_path, host=host))


def test_ipv6() -> None:
    """An IPv6 address can be listened on."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with Pages(CollectorRegistry(), Health(), HttpSettings(host="::1", port=0)) as pages:
        connection = HTTPConnection("::1", pages.port, timeout=10)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()


def test_others_need_the_token(tmp_path: Path) -> None:
    """Over TLS /metrics wants the token; /healthz and /ready want none; who speaks no TLS gets nothing."""
    site = Site(secured(tmp_path))
    trusted = ssl.create_default_context(cafile=str(tmp_path / "authority.pem"))

    def ask(path: str, **headers: str) -> tuple[int, str | None, bytes]:
        connection = HTTPSConnection("127.0.0.1", site.pages.port, timeout=10, context=trusted)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.getheader("WWW-Authenticate"), response.read()

    with site.pages, capture_logs() as log:
        assert ask("/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
        wrong = ("Bearer", "Bearer x", TOKEN, f"bearer {TOKEN}", "Bearer é")
        refused = {ask("/metrics"), ask("/nowhere"), *(ask("/metrics", Authorization=shown) for shown in wrong)}
        assert [(status, how) for status, how, _ in refused] == [(401, "Bearer")]
        assert TOKEN not in str(refused)
        assert (ask("/healthz")[0], ask("/ready")[0]) == (200, 503)
        with suppress(ConnectionError):  # it is hung up on, perhaps after an alert
            assert b"HTTP" not in ask_raw(site.pages.port, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert log == []


def test_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    """A key of another certificate, and a file that is missing: one sentence each."""
    right = secured(tmp_path)
    other = Authority(tmp_path / "other").sign("other")
    for wrong, said in (
        (right.model_copy(update={"key": other.key}), "the key is not its own"),
        (right.model_copy(update={"key": tmp_path / "none"}), "No such file"),
    ):
        with pytest.raises(ConfigError, match=rf"http\.certificate .* cannot be used \({said}"):
            Pages(CollectorRegistry(), Health(), wrong)


@pytest.mark.parametrize("head", [b"GET /" + b"a" * MOST_HEAD_BYTES, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 4_000])
def test_a_request_too_long_is_refused(site: Site, head: bytes) -> None:
    """A line or headers beyond the bound are answered so, and the next request is served."""
    with capture_logs() as log:
        with suppress(ConnectionError):  # the answer can be lost with what nobody read
            assert b" 431 " in ask_raw(site.pages.port, head).splitlines()[0]
        assert site.ask("/healthz")[0].status == 200
    assert log == []


def test_a_request_that_drips_is_let_go(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for a request is for all of it, so a byte now and then keeps no thread."""
    monkeypatch.setattr(http._Handler, "timeout", 0.5)
    with socket.create_connection(("127.0.0.1", site.pages.port), timeout=10) as dripping:
        dripping.setblocking(False)  # so that it is seen when the other side ends

        def ended() -> bool:
            try:
                return dripping.recv(1) == b""
            except BlockingIOError:
                dripping.sendall(b"a")
                return False
            except ConnectionError:
                return True

        wait_until(ended, "the other side to hang up")


def test_too_many_connections_are_closed(site: Site) -> None:
    """One address has some open, more are closed at once; when they go it is served again."""

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", site.pages.port), timeout=10)

    held = [connect() for _ in range(MOST_OF_ONE)]
    with connect() as one_more:
        assert one_more.recv(1) == b""
    for one in held:
        one.close()

    def served() -> bool:
        with suppress(ConnectionError):
            return site.ask("/healthz")[0].status == 200
        return False

    wait_until(served, "being served again")


def test_too_many_requests_are_refused(site: Site) -> None:
    """Beyond a burst an address is answered 429 and told to come back, whatever it asks for."""
    statuses = []
    while 429 not in statuses:
        response, body = site.ask("/healthz")
        statuses.append(response.status)
        assert len(statuses) < 10 * BURST
    assert (response.getheader("Retry-After"), b"ask again" in body) == ("1", True)
    assert statuses.count(200) >= BURST


def test_limits_are_kept_by_address() -> None:
    """An address that asks all the time takes nothing from others, and gets its rate; what is remembered is bounded."""
    now = 0.0
    limits = Limits(lambda: now)
    assert sum(limits.may_ask("a") for _ in range(1_000)) == BURST
    assert limits.may_ask("b")
    now = 10.0
    assert sum(limits.may_ask("a") for _ in range(1_000)) == min(BURST, 10 * REQUESTS_PER_S)
    for n in range(5_000):
        limits.may_ask(f"of-{n}")
    assert len(limits._left) <= 1_024
    assert sum(limits.enter("a") for _ in range(100)) == MOST_OF_ONE
    assert sum(limits.enter(f"of-{n}") for n in range(100)) == MOST_CONNECTIONS - MOST_OF_ONE
    for _ in range(MOST_OF_ONE):
        limits.leave("a")
    assert limits.enter("a")
    assert "a" in limits._open
