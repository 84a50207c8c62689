"""A client for URLs that a config names: it reaches public addresses, and others only where that was allowed.

The check is made on the very address that a socket is about to connect to. So it holds for names that resolve to
something else the second time, for addresses in any spelling, and for IPv4 inside IPv6. Redirects are not followed,
certificates are checked, and no proxy is taken from the environment, for it would connect where it likes.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver

from pipeline.errors import ConfigError

TIMEOUT_S = 20.0  # for a whole request, as Standard Webhooks advises (15 to 30 s)
_CONNECT_S = 6.0  # for one address; a name with several leaves time for the others
_DRAIN_S = 2.0  # for the rest of an answer whose status is known
LARGEST_ANSWER = 64 * 1024
_NAT64 = ip_network("64:ff9b::/96")

Address = IPv4Address | IPv6Address


class RefusedAddressError(Exception):
    """A connection to an address that is not public, and that no setting allows; nothing was sent."""


@dataclass(frozen=True)
class Answer:
    """What a server said; `body` is its beginning, at most `LARGEST_ANSWER` bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class SafeClient:
    """Posts to one receiver.

    Parameters
    ----------
    allow_networks
        Networks that may be reached though they are not public.
    context
        From `tls_context`.
    most
        Connections at once.
    resolver
        Resolves names; absent: as the machine does.
    """

    def __init__(
        self, allow_networks: Iterable[str], context: ssl.SSLContext, most: int,
        resolver: AbstractResolver | None = None, timeout_s: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        networks = [ip_network(network) for network in allow_networks]

        def checked_socket(info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
            family, kind, protocol, _, place = info
            refuse_unless_public(str(place[0]), networks)
            return socket.socket(family, kind, protocol)

        connector = aiohttp.TCPConnector(
            limit=most, ssl=context, resolver=resolver, socket_factory=checked_socket, use_dns_cache=False,
            happy_eyeballs_delay=None,  # one address after the other, so that a refusal is the only outcome
        )  # fmt: skip
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False,
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S),
            headers={"User-Agent": "Offbeat", "Accept-Encoding": "identity"},
        )  # fmt: skip

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a request; the answer is read as far as we look at it.

        Raises
        ------
        RefusedAddressError
            It would have gone to an address that is not public.
        aiohttp.ClientError, TimeoutError, OSError, ValueError
            There was no answer that can be read, or the URL is none.
        """
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            return Answer(response.status, response.headers, await _beginning(response))

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


def refuse_unless_public(text: str, allowed: Iterable[object] = ()) -> None:
    """Raise `RefusedAddressError` unless an address is public or in a network that is allowed.

    Examples
    --------
    >>> refuse_unless_public("93.184.216.34")
    >>> refuse_unless_public("::ffff:169.254.169.254")
    Traceback (most recent call last):
    pipeline.alerts.safe_http.RefusedAddressError: 169.254.169.254 is no public address; if it is meant, add \
its network to the receiver's allow_networks
    """
    address = _reached(ip_address(text.split("%", 1)[0]))
    networks = [n for n in allowed if getattr(n, "version", None) == address.version]
    if any(address in network for network in networks):  # type: ignore[operator]
        return
    local = isinstance(address, IPv6Address) and address.is_site_local
    if not address.is_global or address.is_multicast or address.is_reserved or local:
        message = f"{address} is no public address; if it is meant, add its network to the receiver's allow_networks"
        raise RefusedAddressError(message)


def _reached(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, or itself."""
    if isinstance(address, IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address in _NAT64:
        inner = IPv4Address(address.packed[-4:])
    return address if inner is None else inner


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The first bytes of an answer. One that goes on, or that never ends, is cut, and its connection closed."""
    body = bytearray()
    try:
        async with asyncio.timeout(_DRAIN_S):
            while len(body) <= LARGEST_ANSWER and (piece := await response.content.read(LARGEST_ANSWER)):
                body += piece
    except (TimeoutError, aiohttp.ClientError, OSError):
        response.close()  # the status has come, and that decides
    if len(body) > LARGEST_ANSWER:
        response.close()
    return bytes(body[:LARGEST_ANSWER])


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """TLS that checks certificates, by the machine's authorities and those in a PEM file.

    Raises
    ------
    ConfigError
        The file cannot be used.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            message = f"the certificates in {ca_file} cannot be used ({error.strerror}); ca_file is to name a PEM file"
            raise ConfigError(message) from None
    return context
