"""The three pages, asked for over real HTTP."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from pipeline import http
from pipeline.errors import PortTakenError
from pipeline.health import ALIVE_S, Health
from pipeline.http import Pages
from pipeline.metrics import Metrics
from pipeline.settings import HttpSettings

LOOPBACK = HttpSettings(host="127.0.0.1", port=0)


class Site:
    """Pages on a free port, with what stands behind them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.registry = CollectorRegistry()
        self.metrics, self.health = Metrics(self.registry), Health(lambda: self.now)
        self.pages = Pages(self.registry, self.health, LOOPBACK)

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
        """One request over a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.pages.port, timeout=10)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()


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
    monkeypatch.setattr(http._Handler, "timeout", 1.0)
    hanging = [socket.create_connection(("127.0.0.1", site.pages.port), timeout=10) for _ in range(20)]
    for one in hanging:
        one.sendall(b"GET /metrics HTTP/1.1\r\nHos")
    began = time.monotonic()
    assert site.ask("/healthz")[0].status == 200
    assert time.monotonic() - began < 0.9
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
def test_an_address_that_is_not_ours(host: str) -> None:
    """A host that cannot be listened on is answered with the same sentence and the system's reason."""
    with pytest.raises(PortTakenError, match=rf"http.port 0 on {host} cannot be used \(.+\)"):
        Pages(CollectorRegistry(), Health(), HttpSettings(host=host, port=0))


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
