"""A webhook receiver: it checks signatures as Standard Webhooks says, and prints what it was told, a line each.

It needs Python alone. RECEIVER_SECRET is the file of the secret, RECEIVER_PORT where it listens.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

MOST_BYTES, TOLERANCE_S = 65_536, 300
SECRET = Path(os.environ.get("RECEIVER_SECRET", "/run/secrets/webhook-secret"))


def is_signed(headers: dict[str, str], body: bytes, secret: str, now_s: float) -> bool:
    """Whether a message is the sender's, whole, and of the last minutes."""
    name, sent_s = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not sent_s.isascii() or not sent_s.isdigit() or abs(now_s - int(sent_s)) > TOLERANCE_S:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    made = base64.b64encode(hmac.digest(key, f"{name}.{sent_s}.".encode() + body, hashlib.sha256)).decode()
    return any(hmac.compare_digest(f"v1,{made}", shown) for shown in headers.get("webhook-signature", "").split())


class Handler(BaseHTTPRequestHandler):
    """204 for what is signed, 401 for what is not."""

    timeout = 10
    seen: ClassVar[set[str]] = set()  # a message may come again after an answer that was lost

    def do_POST(self) -> None:
        """Check and print a message."""
        length = int(self.headers.get("Content-Length", "0"))
        if not 0 < length <= MOST_BYTES:
            return self._answer(413)
        body = self.rfile.read(length)
        headers = {key.lower(): value for key, value in self.headers.items()}
        if not is_signed(headers, body, SECRET.read_text().strip(), time.time()):
            return self._answer(401)
        if headers["webhook-id"] not in self.seen:
            self.seen.add(headers["webhook-id"])
            print(json.dumps({"signed": True, "id": headers["webhook-id"], **json.loads(body)}), flush=True)
        return self._answer(204)

    def do_GET(self) -> None:
        """Say that it lives."""
        self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print messages alone."""


if __name__ == "__main__":
    # Beyond loopback only where it is asked to, as in a container.
    address = (os.environ.get("RECEIVER_HOST", "127.0.0.1"), int(os.environ.get("RECEIVER_PORT", "8080")))
    with ThreadingHTTPServer(address, Handler) as server:
        print(json.dumps({"listening": server.server_port}), flush=True)
        server.serve_forever()
