"""The worker's three pages, `/metrics`, `/healthz` and `/ready`, served by threads of their own."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import Any, Self

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipeline.errors import PortTakenError
from pipeline.health import Health
from pipeline.logs import get_logger
from pipeline.settings import HttpSettings

_LOOK_S = 0.1  # whether to close; a worker that stops waits for that
_CLIENT_TIMEOUT_S = 10.0  # for one read or write; a client that stops in mid-request costs a thread that long
_Page = tuple[int, str, bytes]  # status, content type, body
_NOT_FOUND = b"There is no such page; there are /metrics, /healthz (is it alive?) and /ready (is all of it open?).\n"

log = get_logger()


class Pages:
    """Serves while it is open; requests do not wait for each other, nor the worker for them.

    Parameters
    ----------
    http
        Where to listen; port 0 takes a free one.

    Raises
    ------
    PortTakenError
        Another process listens there, or the address is not this machine's.
    """

    def __init__(self, registry: CollectorRegistry, health: Health, http: HttpSettings) -> None:
        try:
            self._server = _Server(http.host, http.port, lambda path, accept: _page(path, accept, registry, health))
        except OSError as error:
            message = (
                f"http.port {http.port} on {http.host} cannot be used ({error.strerror}); give this worker another "
                "http.port, or 0 for a free one"
            )
            raise PortTakenError(message) from None
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(_LOOK_S,), name="pages", daemon=True).start()

    def close(self) -> None:
        """Stop listening; requests under way may end."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _page(path: str, accept: str, registry: CollectorRegistry, health: Health) -> _Page:
    match path.partition("?")[0]:  # no page has parameters
        case "/metrics":
            try:
                encode, content_type = choose_encoder(accept)
            except (TypeError, ValueError):  # the client names a version that is none
                encode, content_type = choose_encoder("")
            return 200, content_type, encode(registry)
        case "/healthz":
            return _answer(*health.alive())
        case "/ready":
            return _answer(*health.ready())
    return 404, "text/plain; charset=utf-8", _NOT_FOUND


def _answer(good: bool, body: dict[str, Any]) -> _Page:
    return 200 if good else 503, "application/json", orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)


class _Server(ThreadingTCPServer):
    """Not HTTPServer, which asks DNS for the host's full name before it listens."""

    allow_reuse_address = True  # a restart need not wait for connections of its predecessor to be forgotten
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, page: Callable[[str, str], _Page]) -> None:
        self.page = page
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        super().__init__(address, _Handler)  # type: ignore[arg-type] # an IPv6 address has four parts

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet about clients that went away; say what else went wrong."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("page could not be served", why=repr(error)[:300])


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _CLIENT_TIMEOUT_S
    server_version, sys_version = "offbeat", ""
    error_message_format, error_content_type = "%(code)d %(message)s\n", "text/plain; charset=utf-8"

    def do_GET(self) -> None:
        """Answer with a page."""
        status, content_type, body = self.server.page(self.path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: pages are asked for every few seconds."""
