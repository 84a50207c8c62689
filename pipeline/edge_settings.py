"""The settings of what a process talks to: the broker, and whoever asks for its pages."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from pipeline.secrets import Secret
from pipeline.stream_settings import Section


class SecuritySettings(Section):
    """How brokers are spoken to, and who we are there.

    Secrets are written as `env:NAME` or `file:PATH`, where they are kept.
    """

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT",
        description="SSL: over TLS. SASL: with a login. SASL_PLAINTEXT shows the records to whoever listens on the "
        "network, and with mechanism PLAIN the password too.",
    )
    ca: Path | None = Field(
        None, description="File (PEM) of the authorities that brokers' certificates must be from. Absent: the system's."
    )
    certificate: Path | None = Field(
        None, description="Our own certificate (PEM), with those between it and its authority, where brokers want one."
    )
    key: Path | None = Field(None, description="The certificate's private key (PEM).")
    key_password: Secret | None = Field(None, description="The password of the key, where it has one.")
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="How we log in; required with SASL."
    )
    username: str | None = Field(None, min_length=1, description="Who we log in as; required with SASL.")
    password: Secret | None = Field(None, description="The user's password; required with SASL.")

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.protocol in {"SSL", "SASL_SSL"}

    @property
    def has_login(self) -> bool:
        """Whether brokers are told a user and a password."""
        return self.protocol in {"SASL_PLAINTEXT", "SASL_SSL"}

    @model_validator(mode="after")
    def _keys_fit_the_protocol(self) -> SecuritySettings:
        for keys, used, kind in (
            (("ca", "certificate", "key", "key_password"), self.has_tls, "SSL or SASL_SSL"),
            (("mechanism", "username", "password"), self.has_login, "SASL_SSL or SASL_PLAINTEXT"),
        ):
            idle = [key for key in keys if getattr(self, key) is not None and not used]
            if idle:
                message = f"{idle[0]} has no use with protocol {self.protocol}; write protocol: {kind}, or remove it"
                raise ValueError(message)
        missing = [key for key in ("mechanism", "username", "password") if self.has_login and not getattr(self, key)]
        if missing:
            message = f"protocol {self.protocol} needs {' and '.join(missing)}"
            raise ValueError(message)
        if (self.certificate is None) != (self.key is None) or (self.key_password and not self.key):
            message = "certificate and key go together, and key_password with them; write both, or none"
            raise ValueError(message)
        return self


def _or_text(schema: dict[str, Any]) -> None:
    """Tell editors that text is as good as the section."""
    whole = dict(schema)
    schema.clear()
    schema |= {"anyOf": [{"type": "string", "minLength": 1}, whole]}


class BrokerSettings(Section):
    """Where Kafka is; `broker: HOST:PORT` says the same as `broker: {servers: HOST:PORT}`."""

    model_config = ConfigDict(json_schema_extra=_or_text)

    servers: str = Field("localhost:9092", min_length=1, description="Kafka bootstrap servers, host:port, comma apart.")
    security: SecuritySettings = SecuritySettings()

    @property
    def addresses(self) -> list[str]:
        """Each server alone."""
        return [server.strip() for server in self.servers.split(",")]

    @model_validator(mode="before")
    @classmethod
    def _text_is_servers(cls, value: Any) -> Any:
        return {"servers": value} if isinstance(value, str) else value


class HttpSettings(Section):
    """Where a process serves /metrics, /healthz and /ready.

    Other machines reach an address that is not loopback, so there `token`, `certificate` and `key` are required.
    """

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(6066, ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")
    token: Secret | None = Field(
        None,
        description="What who asks for /metrics must show, as `Authorization: Bearer TOKEN`; `env:NAME` or "
        "`file:PATH`. /healthz and /ready answer everybody.",
    )
    certificate: Path | None = Field(
        None, description="The server's certificate (PEM), with those between it and its authority: pages over TLS."
    )
    key: Path | None = Field(None, description="The certificate's private key (PEM).")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can ask."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def scheme(self) -> str:
        """How the pages' addresses begin."""
        return "http" if self.certificate is None else "https"

    @model_validator(mode="after")
    def _others_need_a_token(self) -> HttpSettings:
        if (self.certificate is None) != (self.key is None):
            message = "certificate and key go together; write both, or none"
            raise ValueError(message)
        missing = [key for key in ("token", "certificate", "key") if getattr(self, key) is None]
        if missing and not self.is_loopback:
            message = (
                f"other machines reach {self.host}, so the pages need {', '.join(missing)} as well; write them, or let "
                "host be 127.0.0.1"
            )
            raise ValueError(message)
        return self
