"""What `broker.security` says, in the words of each Kafka client, and what a broker's refusal means."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from faust import SASLCredentials, SSLCredentials

from pipeline.edge_settings import BrokerSettings, SecuritySettings
from pipeline.errors import BrokerRefusedError, BrokerUnavailableError, ConfigError, OffbeatError

# What librdkafka says, in small letters.
_WRONG_LOGIN, _WRONG_MECHANISM = "sasl authentication error", "mechanism handshake failed"
_WRONG_CERTIFICATE = ("alert bad certificate", "alert certificate required", "alert unknown ca", "alert handshake")
# What OpenSSL calls a certificate that is for another name or address.
_OTHER_NAME = {62, 64}
_PROBE_S = 2.0


def confluent_options(broker: BrokerSettings) -> dict[str, Any]:
    """Options of any confluent client.

    Raises
    ------
    ConfigError
        A secret or a file cannot be read.
    """
    security, options = broker.security, dict[str, Any]({"bootstrap.servers": broker.servers})
    if security.protocol == "PLAINTEXT":
        return options
    options["security.protocol"] = security.protocol
    if security.has_tls:
        tls_context(security)  # says what is wrong with files sooner and clearer than librdkafka does
        options |= {
            f"ssl.{name}.location": str(path)
            for name, path in (("ca", security.ca), ("certificate", security.certificate), ("key", security.key))
            if path is not None
        }
        if security.key_password is not None:
            options["ssl.key.password"] = security.key_password.read()
    if security.has_login:
        user, password = _login(security)
        options |= {"sasl.mechanism": security.mechanism, "sasl.username": user, "sasl.password": password}
    return options


def aiokafka_options(broker: BrokerSettings) -> dict[str, Any]:
    """Options of any aiokafka client; raises as `confluent_options`."""
    security, options = broker.security, dict[str, Any](bootstrap_servers=broker.addresses)
    if security.protocol == "PLAINTEXT":
        return options
    options["security_protocol"] = security.protocol
    if security.has_tls:
        options["ssl_context"] = tls_context(security)
    if security.has_login:
        user, password = _login(security)
        options |= {
            "sasl_mechanism": security.mechanism, "sasl_plain_username": user, "sasl_plain_password": password
        }  # fmt: skip
    return options


def faust_options(broker: BrokerSettings) -> dict[str, Any]:
    """Options of a Faust app, for what it connects by itself; raises as `confluent_options`."""
    security = broker.security
    options: dict[str, Any] = {"broker": [f"kafka://{server}" for server in broker.addresses]}
    context = tls_context(security) if security.has_tls else None
    if security.has_login:
        user, password = _login(security)
        options["broker_credentials"] = SASLCredentials(
            username=user, password=password, mechanism=security.mechanism, ssl_context=context
        )
    elif context is not None:
        options["broker_credentials"] = SSLCredentials(context)
    return options


def tls_context(security: SecuritySettings) -> ssl.SSLContext:
    """A client's context: certificates and names are checked.

    Raises
    ------
    ConfigError
        A file is missing or is not what it should be.
    """
    context = ssl.create_default_context()
    if security.ca is not None:
        context = _loaded("ca", security.ca, lambda: ssl.create_default_context(cafile=security.ca))
    if security.certificate is not None and security.key is not None:
        certificate, key, secret = security.certificate, security.key, security.key_password
        # Without a password OpenSSL would ask for one on the terminal.
        password = "" if secret is None else secret.read()
        _loaded("certificate", certificate, lambda: context.load_cert_chain(certificate, key, lambda: password))
    return context


def _loaded(name: str, path: Path, load: Any) -> Any:
    try:
        return load()
    except ssl.SSLError:
        ours = "" if name == "ca" else ", or the key is not its own, or key_password is wrong"
        message = f"broker.security.{name} {path} holds no certificates in PEM{ours}; correct that"
    except OSError as error:
        message = (
            f"broker.security.{name} {path} (or its key) cannot be read ({error.strerror}); correct path or rights"
        )
    raise ConfigError(message)


def _login(security: SecuritySettings) -> tuple[str, str]:
    assert security.username is not None
    assert security.password is not None
    return security.username, security.password.read()


def refusal(broker: BrokerSettings, heard: str) -> OffbeatError:
    """What to tell the user when no broker took us: `BrokerRefusedError` where waiting would not help.

    Parameters
    ----------
    heard
        The client's own words; it knows logins best. What is wrong with TLS, a handshake of our own tells better.
    """
    security, said, where = broker.security, heard.lower(), f"the broker at {broker.servers}"
    if security.has_login and _WRONG_MECHANISM in said:
        message = (
            f"{where} takes no login by {security.mechanism}; write another broker.security.mechanism, or a protocol "
            "without SASL"
        )
        return BrokerRefusedError(message)
    if security.has_login and _WRONG_LOGIN in said:
        message = (
            f"{where} refuses user {security.username} or the password; correct username and password in "
            "broker.security, or add the user there"
        )
        return BrokerRefusedError(message)
    if security.has_tls and any(text in said for text in _WRONG_CERTIFICATE):
        message = f"{where} wants a certificate that it trusts of us; write certificate and key in broker.security"
        return BrokerRefusedError(message)
    found = [_handshake(security, address) for address in broker.addresses]
    for refused in found:
        if isinstance(refused, BrokerRefusedError):
            return refused
    if any(found):
        message = (
            f"{where} hangs up, or is not ready; if it wants a login or TLS, set broker.security.protocol to what its "
            f"port speaks, which is now {security.protocol}"
        )
        return BrokerUnavailableError(message)
    why = heard.rpartition("; ")[2]
    message = (
        f"no Kafka broker answers at {broker.servers} ({why}); start one with `offbeat broker`, or correct `broker` in "
        "the config"
    )
    return BrokerUnavailableError(message)


def _handshake(security: SecuritySettings, address: str) -> BrokerRefusedError | bool:
    """What is wrong with TLS at a server; if nothing is, whether anybody listens there."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    host = host.strip("[]")
    if security.has_tls:
        context = tls_context(security)
    else:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said over it
    try:
        connection = socket.create_connection((host, int(port)), timeout=_PROBE_S)
    except (OSError, ValueError):
        return False
    try:
        with connection, context.wrap_socket(connection, server_hostname=host):
            pass
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message
        message = f"the certificate of {address} cannot be trusted ({why}); name its CA in broker.security.ca"
        if error.verify_code in _OTHER_NAME:
            message = (
                f"the certificate of {address} is for another name; write a name that stands in it in broker.servers"
            )
        return BrokerRefusedError(message)
    except OSError as error:  # SSLError among them: no TLS there, or it wants a certificate, which the client heard
        if not security.has_tls or isinstance(error, TimeoutError):  # one that listens may be busy
            return True
        message = f"{address} speaks no TLS; name its TLS port in broker.servers, or correct broker.security.protocol"
        return BrokerRefusedError(message)
    if security.has_tls:
        return True
    message = f"{address} speaks TLS; write broker.security.protocol: SSL, or SASL_SSL where it wants a login"
    return BrokerRefusedError(message)
