"""HTTP servers on this machine that tests send to; each keeps what it was sent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Server:
    """Where it listens, and the requests it had: headers and body."""

    port: int
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def url(self, path: str = "/hook", host: str = "127.0.0.1", scheme: str = "http") -> str:
        """Where to send to."""
        return f"{scheme}://{host}:{self.port}{path}"


@asynccontextmanager
async def http_server(
    handler: Handler | int = 200, *, host: str = "127.0.0.1", port: int = 0, ssl_context: object = None
) -> AsyncIterator[Server]:
    """A server that answers with a status, or as the handler does."""
    server = Server(0)

    async def handle(request: web.Request) -> web.StreamResponse:
        server.requests.append((dict(request.headers), await request.read()))
        return web.Response(status=handler, text="") if isinstance(handler, int) else await handler(request)

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=ssl_context)  # type: ignore[arg-type]
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_server(talk: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[Server]:
    """A server that reads a request's head and says whatever it likes."""
    server, tasks = Server(0), set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            server.requests.append(({}, await reader.readuntil(b"\r\n\r\n")))
            await talk(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client, or the test, has had enough
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
