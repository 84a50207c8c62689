"""Standard Webhooks signatures: what a receiver checks to know that a message is ours, whole and recent.

References
----------
Standard Webhooks 1.0.0, sections "Signature scheme" and "Webhook headers": the signed bytes are ID.TIMESTAMP.BODY, the
signature is HMAC-SHA256, and one for each secret stands in the header so that secrets can be changed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

_PREFIX = "whsec_"
_LEAST, _MOST = 24, 64  # bytes of a secret, as the specification says


def read_secret(text: str) -> bytes:
    """The key in a secret as it is handed around, `whsec_` and base64.

    Raises
    ------
    ValueError
        It is none; the sentence shows nothing of it.
    """
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX).encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        key = b""
    if not _LEAST <= len(key) <= _MOST:
        message = (
            f"a signing secret is whsec_ and base64 of {_LEAST} to {_MOST} random bytes; make one by "
            f"`echo whsec_$(openssl rand -base64 32)`"
        )
        raise ValueError(message)
    return key


def webhook_id(message_id: str) -> str:
    """A message's id as it stands in a header: short, and without a dot, which would make signed bytes ambiguous.

    >>> webhook_id("shop/shop.orders/0/57/record/incident/1")
    'msg_adabf046493e46cfe3bd190c86286efe'
    """
    return "msg_" + hashlib.sha256(message_id.encode()).hexdigest()[:32]


def signed_headers(name: str, time_s: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """The headers of one attempt; without keys there is no signature, but still an id to drop repetitions by.

    Parameters
    ----------
    name
        From `webhook_id`: the same for each attempt.
    time_s
        Of this attempt, seconds since 1970.
    """
    headers = {"webhook-id": name, "webhook-timestamp": str(time_s)}
    if keys:
        signed = b".".join((name.encode(), str(time_s).encode(), body))
        headers["webhook-signature"] = " ".join(
            "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys
        )
    return headers
