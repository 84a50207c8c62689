"""Signatures as Standard Webhooks says, and waits that a restart does not change."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.alerts.schedule import DELAYS_MS, delay_ms, rest_ms
from pipeline.alerts.signing import read_secret, signed_headers, webhook_id
from tests.pipeline.alerts.made import OTHER, SECRET


def naive_hmac(key: bytes, data: bytes) -> bytes:
    """HMAC-SHA256 by its definition (RFC 2104), with nothing of the library's but SHA-256."""
    key = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + data).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).digest()


@given(st.text(), st.integers(0, 2**33), st.binary(), st.lists(st.binary(min_size=24, max_size=64), max_size=3))
def test_a_signature_is_verified_by_its_definition(name: str, time_s: int, body: bytes, keys: list[bytes]) -> None:
    """Each secret's signature stands in the header, over id, time and body; ids have no dot."""
    headers = signed_headers(webhook_id(name), time_s, body, keys)
    assert "." not in headers["webhook-id"]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    assert headers.get("webhook-signature", "").split() == [
        f"v1,{base64.b64encode(naive_hmac(read_secret(f'whsec_{base64.b64encode(key).decode()}'), signed)).decode()}"
        for key in keys
    ]


def test_the_specifications_example_is_reproduced() -> None:
    """The vector that the specification's libraries test themselves with."""
    keys = [read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    headers = signed_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', keys)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_abc", "whsec_QUJD", "whsec_ä" + "A" * 40, "x" * 200, SECRET[:-2]]
)
def test_what_is_no_signing_secret_is_refused_unseen(text: str) -> None:
    """The sentence says how to make one, and shows nothing of what it was."""
    with pytest.raises(ValueError, match="make one by") as error:
        read_secret(text)
    assert len(text) < 8 or text not in str(error.value)
    assert read_secret(SECRET) != read_secret(OTHER)


@given(st.integers(1, 9), st.text(), st.none() | st.integers(0, 2**40))
def test_waits_stay_the_same_and_honour_what_was_asked(attempts: int, seed: str, asked: int | None) -> None:
    """A wait is the schedule's or what was asked for, up to a day, and a fifth more at most; and always the same."""
    wait = delay_ms(attempts, seed, asked)
    least = max(DELAYS_MS[attempts - 1], min(asked or 0, 86_400_000))
    assert wait == delay_ms(attempts, seed, asked)
    assert wait is not None
    assert least <= wait <= 1.2 * least + 1
    rest = rest_ms(attempts, seed, asked)
    assert rest == rest_ms(attempts, seed, asked)
    assert (1_000 if asked is None else min(asked, 86_400_000)) <= rest <= 1.2 * 86_400_000 + 1


def test_the_schedule_ends_after_ten_attempts_and_three_days() -> None:
    """Nine waits of 75 hours in all, as the specification advises; messages that failed together come back apart."""
    assert delay_ms(10, "m") is None
    assert 75 < sum(DELAYS_MS) / 3_600_000 < 76
    assert len({delay_ms(3, f"m{n}") for n in range(100)}) > 90
