"""The worker's three pages, `/metrics`, `/healthz` and `/ready`, served by threads of their own.

What clients may cost is bounded: the size of a request, the time it takes, and for each address and all together the
connections and requests. Over TLS and with a token where the config says so; it must where other machines reach us.
"""

from __future__ import annotations

import hmac
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import Any, Self

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipeline.edge_settings import HttpSettings
from pipeline.errors import ConfigError, PortTakenError
from pipeline.health import Health
from pipeline.http_limits import MOST_HEAD_BYTES, Limits
from pipeline.logs import get_logger

_LOOK_S = 0.1  # whether to close; a worker that stops waits for that
_CLIENT_TIMEOUT_S = 10.0  # for a request, and for one write; a slow client costs a thread that long
_Page = tuple[int, str, bytes]  # status, content type, body
_OPEN = ("/healthz", "/ready")  # who looks after processes seldom has a token, and they say little
_NO_TOKEN = b"Show the token that http.token of the config says, as Authorization: Bearer TOKEN.\n"
_TOO_OFTEN = b"That is too many requests from one address; ask again in a second.\n"
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
    ConfigError
        The token or the certificate cannot be read.
    """

    def __init__(self, registry: CollectorRegistry, health: Health, http: HttpSettings) -> None:
        token, tls = None if http.token is None else http.token.read(), _tls_context(http)
        try:
            self._server = _Server(http.host, http.port, lambda path, accept: _page(path, accept, registry, health))
            self._server.token, self._server.tls = token, tls
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


def _tls_context(http: HttpSettings) -> ssl.SSLContext | None:
    if http.certificate is None or http.key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(http.certificate, http.key, lambda: "")  # else OpenSSL asks on the terminal
    except OSError as error:  # SSLError among them
        why = "the key is not its own, or has a password" if isinstance(error, ssl.SSLError) else error.strerror
        message = f"http.certificate {http.certificate} with http.key {http.key} cannot be used ({why}); correct them"
        raise ConfigError(message) from None
    return context


class _Server(ThreadingTCPServer):
    """Not HTTPServer, which asks DNS for the host's full name before it listens."""

    allow_reuse_address = True  # a restart need not wait for connections of its predecessor to be forgotten
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str, port: int, page: Callable[[str, str], _Page]) -> None:
        self.page, self.limits = page, Limits()
        self.token: str | None = None
        self.tls: ssl.SSLContext | None = None
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        super().__init__(address, _Handler)  # type: ignore[arg-type] # an IPv6 address has four parts

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Hang up on an address that has too many connections open."""
        return self.limits.enter(client_address[0])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own; where none can start, the address has its place again."""
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.limits.leave(client_address[0])
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and let the address have another connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.limits.leave(client_address[0])

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

    def setup(self) -> None:
        """Begin TLS here, in the client's own thread."""
        self._end = time.monotonic() + self.timeout
        if self.server.tls is not None:
            self.request.settimeout(self.timeout)
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        """End TLS with the connection, which the server knows only without it."""
        super().finish()
        if self.server.tls is not None:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
            self.connection.close()

    def handle_one_request(self) -> None:
        """Read all of the head first, in bounded space and time."""
        head = self._read_head()
        self.rfile = BytesIO(head[:MOST_HEAD_BYTES])
        if len(head) > MOST_HEAD_BYTES:
            self.requestline, self.request_version, self.command = "", self.protocol_version, ""
            self.send_error(431, "The request is too long")
            self.close_connection = True
            return
        super().handle_one_request()

    def _read_head(self) -> bytes:
        head = b""
        while len(head) <= MOST_HEAD_BYTES and b"\r\n\r\n" not in head and b"\n\n" not in head:
            if (left_s := self._end - time.monotonic()) <= 0:
                raise TimeoutError
            self.connection.settimeout(left_s)
            if not (more := self.connection.recv(MOST_HEAD_BYTES)):
                break
            head += more
        self.connection.settimeout(self.timeout)
        return head

    def do_GET(self) -> None:
        """Answer with a page."""
        status, content_type, body = self._page()
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if status == 429:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def _page(self) -> _Page:
        if not self.server.limits.may_ask(self.client_address[0]):
            return 429, "text/plain; charset=utf-8", _TOO_OFTEN
        if self.path.partition("?")[0] not in _OPEN and not self._has_token():
            return 401, "text/plain; charset=utf-8", _NO_TOKEN
        return self.server.page(self.path, self.headers.get("Accept", ""))

    def _has_token(self) -> bool:
        if self.server.token is None:
            return True
        shown = self.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(shown, f"Bearer {self.server.token}".encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: pages are asked for every few seconds."""
