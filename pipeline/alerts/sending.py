"""One attempt to deliver one message, and what its answer means."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver
from jinja2 import Template
from pydantic_core import PydanticCustomError

from pipeline.alerts.change import Message, Outcome
from pipeline.alerts.receivers import alertmanager, pagerduty, slack, template, webhook
from pipeline.alerts.safe_http import Answer, RefusedAddressError, SafeClient, tls_context
from pipeline.alerts.settings import (
    AlertmanagerSettings,
    AlertSettings,
    PagerdutySettings,
    Receiver,
    SlackSettings,
    TemplateSettings,
    WebhookSettings,
    check_url,
)
from pipeline.alerts.signing import read_secret, signed_headers, webhook_id
from pipeline.alerts.told import LIMIT
from pipeline.errors import ConfigError, TemplateBodyError
from pipeline.secrets import Secret

_GONE = 410
_THROTTLED = {429, 502, 504}
_NEVER = {400, 413, 422}  # where the API says that the same body will not do later either
_SHOWN = 200  # characters of an answer
_LEAST_HIDDEN = 8  # characters of a part of a secret; shorter ones say nothing, and stand in ordinary words
_SKEW_S = 60  # receivers of signed messages commonly allow 5 min


class Sender:
    """Sends to the receivers of a config; made in a running event loop, and closed there.

    Parameters
    ----------
    environment
        Where secrets named `env:` lie.
    now_ms
        The wall clock.
    resolver, timeout_s
        How names are resolved, and how long an attempt may take; absent: as each receiver's `timeout` says.

    Raises
    ------
    ConfigError
        A secret is missing or wrong, or a template or a file cannot be used.
    """

    def __init__(
        self, alerts: AlertSettings, environment: Mapping[str, str] | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000, resolver: AbstractResolver | None = None,
        timeout_s: float | None = None,
    ) -> None:  # fmt: skip
        environment = os.environ if environment is None else environment
        self._targets = {name: _target(name, r, environment) for name, r in alerts.receivers.items()}
        self._now_ms = now_ms
        self._clients = {
            name: SafeClient(r.allow_networks, target.context, r.parallel, resolver, timeout_s or r.timeout / 1000)
            for (name, target), r in zip(self._targets.items(), alerts.receivers.values(), strict=True)
        }

    async def send(self, message: Message) -> Outcome:
        """Make one attempt; whatever the receiver does becomes an outcome."""
        target, now_ms = self._targets[message.receiver], self._now_ms()
        try:
            body = target.body_of(message, now_ms)
        except TemplateBodyError as error:
            return Outcome("rejected", str(error))
        assert len(body) < LIMIT, "each receiver keeps to it"
        headers = target.headers | signed_headers(webhook_id(message.id), now_ms // 1000, body, target.keys)
        try:
            answer = await self._clients[message.receiver].post(target.url, body, headers)
        except RefusedAddressError as error:
            return Outcome("retry", f"{target.where}: {error}")
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            return Outcome("retry", target.without_secrets(f"{target.where}: {_failure(error)}"))
        return target.outcome(answer, self._now_ms())

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(client.close() for client in self._clients.values()))


class _Target:
    """A receiver with its secrets read."""

    def __init__(self, receiver: Receiver, environment: Mapping[str, str]) -> None:
        self._settings = receiver
        self._environment = environment
        self._secrets: set[str] = set()
        self.url = self._read(receiver.url)
        if isinstance(receiver.url, Secret):
            _refuse_wrong_url(self.url)
        if isinstance(receiver, AlertmanagerSettings):
            self.url = self.url.rstrip("/") + alertmanager.PATH
        self.context = tls_context(receiver.ca_file)
        parts = urlsplit(self.url)
        self.where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        content_type = receiver.content_type if isinstance(receiver, TemplateSettings) else "application/json"
        self.headers = {"Content-Type": content_type} | {k: self._read(v) for k, v in receiver.headers.items()}
        self.keys = [read_secret(self._read(secret)) for secret in getattr(receiver, "secrets", ())]
        self._routing_key = self._read(receiver.routing_key) if isinstance(receiver, PagerdutySettings) else ""
        self._template = _template_of(receiver) if isinstance(receiver, TemplateSettings) else None

    def body_of(self, message: Message, now_ms: int) -> bytes:
        match self._settings:
            case WebhookSettings():
                return webhook.body_of(message)
            case AlertmanagerSettings():
                return alertmanager.body_of(message, now_ms)
            case SlackSettings():
                return slack.body_of(message)
            case PagerdutySettings():
                return pagerduty.body_of(message, self._routing_key)
            case TemplateSettings(content_type=content_type):
                assert self._template is not None
                return template.body_of(message, self._template, is_json=content_type.startswith("application/json"))

    def outcome(self, answer: Answer, now_ms: int) -> Outcome:
        """What an answer means, as Standard Webhooks says; some APIs say more."""
        status = answer.status
        if 200 <= status < 300:
            return Outcome("delivered", f"{self.where} answered {status}", status=status)
        after_ms = retry_after_ms(answer.headers.get("Retry-After"), now_ms)
        detail = f"{self.where} answered {status}{self._said(answer)}{_skew(answer, now_ms)}"
        if 300 <= status < 400:
            detail = f"{self.where} answered {status}, and redirects are not followed; set url to where it leads"
        detail = self.without_secrets(detail)
        if status == _GONE:
            return Outcome("gone", f"{detail}; it wants no more messages", after_ms, status)
        if status in _THROTTLED:
            return Outcome("throttled", detail, after_ms, status)
        if status in _NEVER and not isinstance(self._settings, WebhookSettings | TemplateSettings):
            return Outcome("rejected", detail, after_ms, status)
        return Outcome("retry", detail, after_ms, status)

    def without_secrets(self, text: str) -> str:
        """A text from elsewhere; an answer may repeat what it was sent."""
        for secret in sorted(self._secrets - {self.where}, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def _said(self, answer: Answer) -> str:
        """The beginning of an answer, cut after secrets are hidden: a part of one would be shown otherwise."""
        text = self.without_secrets(" ".join(answer.body.decode("utf-8", "replace").split()))
        shown = "".join(character for character in text if character.isprintable())[:_SHOWN]
        return f": {shown}" if shown else ""

    def _read(self, place: str | Secret) -> str:
        if isinstance(place, str):
            return place
        secret = place.read(self._environment)
        if any(character in secret for character in "\r\n\0"):
            message = f"what {place.place} holds has several lines; a secret is one"
            raise ConfigError(message)
        self._secrets |= _parts_of(secret)
        return secret


def _parts_of(secret: str) -> set[str]:
    """A secret, and what an answer may repeat of it: words of a header, path, query and login of a URL."""
    parts = urlsplit(secret)
    words = {*secret.split(), parts.path, f"{parts.path}?{parts.query}", parts.netloc.rpartition("@")[0]}
    return {secret} | {word for word in words if len(word) >= _LEAST_HIDDEN}


def _target(name: str, receiver: Receiver, environment: Mapping[str, str]) -> _Target:
    try:
        return _Target(receiver, environment)
    except (ConfigError, TemplateBodyError, ValueError) as error:
        message = f"alerts.receivers.{name}: {error}"
        raise ConfigError(message) from None


def _refuse_wrong_url(url: str) -> None:
    """One that was a secret may hold a password; what else it must be is the same."""
    try:
        parts = urlsplit(url)
        check_url(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl())
    except (PydanticCustomError, ValueError):
        message = "the URL that its secret holds is none; put one such as https://HOST/PATH there"
        raise ConfigError(message) from None


def _template_of(receiver: TemplateSettings) -> Template:
    text = receiver.body
    if text.startswith("file:"):
        try:
            text = Path(text.removeprefix("file:")).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            message = f"its template {text} cannot be read ({why}); correct `body`"
            raise ConfigError(message) from None
    return template.compile_template(text)


def retry_after_ms(text: str | None, now_ms: int) -> int | None:
    """What a Retry-After header asks for: seconds, or a moment.

    >>> retry_after_ms("120", 0), retry_after_ms("Thu, 01 Jan 1970 00:00:05 GMT", 2_000), retry_after_ms("soon", 0)
    (120000, 3000, None)
    """
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return int(text[:9]) * 1000
    moment = _moment(text)
    return None if moment is None else max(0, round(moment.timestamp() * 1000) - now_ms)


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _skew(answer: Answer, now_ms: int) -> str:
    """A hint where its clock differs, for it may then take our timestamps for old."""
    moment = _moment(answer.headers.get("Date", ""))
    apart_s = 0.0 if moment is None else moment.timestamp() - now_ms / 1000
    if abs(apart_s) < _SKEW_S:
        return ""
    return f" (its clock is {abs(apart_s):,.0f} s {'ahead of' if apart_s > 0 else 'behind'} ours; correct one of them)"


def _failure(error: Exception) -> str:
    """What went wrong before there was an answer, and what to do."""
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            why = getattr(getattr(error, "certificate_error", error), "verify_message", None) or "TLS failed"
            said = f"its certificate is refused ({why}); correct it, or name its authority in ca_file"
        case aiohttp.ClientConnectorDNSError():
            said = "its name cannot be resolved; correct url, or the machine's DNS"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))):
            said = f"no connection ({os.strerror(number)}); start what should listen there, or correct url"
        case aiohttp.ClientResponseError():
            said = "its answer is no HTTP; look at what listens there"
        case ValueError():  # aiohttp.InvalidURL is one
            said = "its URL cannot be used; correct it"
        case TimeoutError():
            said = "no answer in time; look at what listens there"
        case _:
            said = f"the connection broke ({type(error).__name__}); look at what listens there"
    return said
