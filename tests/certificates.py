"""Certificates for tests, made by openssl: an authority, and what it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2")


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path

    @property
    def both(self) -> Path:
        """Key and certificate in one file, as Kafka takes a key store in PEM."""
        path = self.key.with_suffix(".both.pem")
        path.write_text(self.key.read_text() + self.certificate.read_text())
        return path


class Authority:
    """One of its own in a folder; nobody else knows it."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ca = folder, folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", *_CURVE, "-keyout", self._key, "-out", self.ca, "-subj", f"/CN={name}")

    def sign(self, name: str, *also: str, password: str | None = None) -> Certificate:
        """A certificate for 127.0.0.1, or for the names given; a password encrypts its key."""
        made = Certificate(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        names = ",".join(also or ("IP:127.0.0.1", "DNS:localhost"))
        curve = _CURVE if password is None else (*(o for o in _CURVE if o != "-noenc"), "-passout", f"pass:{password}")
        _openssl(
            "req", "-x509", "-CA", self.ca, "-CAkey", self._key, *curve, "-keyout", made.key, "-out", made.certificate,
            "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}",
            "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
        return made


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
