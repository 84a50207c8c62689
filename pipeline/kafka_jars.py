"""Apache Kafka's jars: pinned here, fetched once from Maven Central, verified at every start.

`kafka_jars.txt` pins each jar by Maven coordinates, size and SHA-256. A jar reaches its final name only when its
SHA-256 is right: it grows as `NAME.part`, which a later run continues, and is renamed whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from pipeline.errors import LocalBrokerError
from pipeline.user_cache import user_cache

KAFKA_VERSION = "4.3.1"
MAVEN_CENTRAL = "https://repo1.maven.org/maven2"
PINS = Path(__file__).with_name("kafka_jars.txt")

_CONNECTIONS = 4  # beyond four, Maven Central's per-client rate is the limit
_PAUSES_S = (0.0, 0.5, 2.0)  # before each attempt, which continues where the last one broke off
_SILENCE_S = 15.0  # also what Ctrl-C waits at most for a stalled connection
_CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned jar."""

    group: str
    artifact: str
    version: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """The name in the cache folder and at Maven Central."""
        return f"{self.artifact}-{self.version}.jar"

    def url(self, base_url: str) -> str:
        """Return its address below the root of a Maven repository."""
        return f"{base_url}/{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.file_name}"

    def is_at(self, path: Path) -> bool:
        """Whether `path` holds exactly these bytes; a missing file does not."""
        try:
            if path.stat().st_size != self.size:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except FileNotFoundError:
            return False


Report = Callable[[Jar, int], None]  # told how many bytes of a jar have arrived


class _NetworkError(Exception):
    """A transfer broke off; what has arrived stays in the .part file."""


class _CancelledError(Exception):
    """Another transfer failed or the user interrupted; nobody reads this one's result."""


def read_pins(path: Path = PINS) -> list[Jar]:
    """Read the pins file: `group:artifact:version bytes sha256` a line, `#` opens a comment line."""
    jars = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            coordinates, size, sha256 = line.split()
            group, artifact, version = coordinates.split(":")
            jars.append(Jar(group, artifact, version, int(size), sha256))
    return jars


def cache_folder() -> Path:
    """Where the jars are kept: `offbeat/kafka-VERSION` in the user's cache folder."""
    return user_cache() / f"kafka-{KAFKA_VERSION}"


def fetch_jars(
    folder: Path | None = None,
    *,
    pins: Path = PINS,
    base_url: str = MAVEN_CENTRAL,
    console: Console | None = None,
) -> list[Path]:
    """Return the path of every pinned jar, each verified just now; fetch what is missing or damaged.

    Any number of processes may call this at once: one fetches, the others wait and then find all in place.

    Parameters
    ----------
    folder
        Where the jars are kept; by default `cache_folder()`.
    console
        For notices and the progress bar; by default standard error.

    Raises
    ------
    LocalBrokerError
        The network, the bytes it brought or the disk; the sentence says which, and what to do.
    """
    folder = cache_folder() if folder is None else folder
    console = Console(stderr=True) if console is None else console
    jars = read_pins(pins)
    try:
        if _wanting(jars, folder):
            folder.mkdir(parents=True, exist_ok=True)
            with _one_at_a_time(folder / ".lock", console):
                # Asked again: while we waited, the holder of the lock may have fetched them.
                if wanting := _wanting(jars, folder):
                    _fetch_all(wanting, folder, base_url, console)
    except OSError as error:
        message = (
            f"Cannot keep Kafka's jars in {folder}: {error.strerror or error}. They need "
            f"{_megabytes(jars)}; make room there or set XDG_CACHE_HOME to a folder that has it, then start again."
        )
        raise LocalBrokerError(message) from error
    return [folder / jar.file_name for jar in jars]


def _wanting(jars: Sequence[Jar], folder: Path) -> list[Jar]:
    with ThreadPoolExecutor() as pool:
        good = list(pool.map(lambda jar: jar.is_at(folder / jar.file_name), jars))
    return [jar for jar, is_good in zip(jars, good, strict=True) if not is_good]


@contextmanager
def _one_at_a_time(path: Path, console: Console) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("Another process is fetching Apache Kafka; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file lets go, and so does the kernel if we die


def _fetch_all(jars: Sequence[Jar], folder: Path, base_url: str, console: Console) -> None:
    for jar in jars:
        if (folder / jar.file_name).exists():
            console.print(f"{jar.file_name} in {folder} is damaged; fetching it again.", soft_wrap=True)
    console.print(
        f"Fetching Apache Kafka {KAFKA_VERSION} from {base_url} into {folder} ({len(jars)} jars, {_megabytes(jars)}).",
        soft_wrap=True,
    )
    cancel = threading.Event()
    arrived = dict.fromkeys(jars, 0)
    columns = (TextColumn("Apache Kafka"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=console, transient=True)
    with bar, ThreadPoolExecutor(_CONNECTIONS) as pool:
        task = bar.add_task("", total=sum(jar.size for jar in jars))

        def report(jar: Jar, size: int) -> None:
            arrived[jar] = size
            bar.update(task, completed=sum(arrived.values()))

        transfers = [pool.submit(_fetch_one, jar, folder, base_url, cancel, report) for jar in jars]
        try:
            for transfer in as_completed(transfers):
                transfer.result()
        except BaseException:
            cancel.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch_one(jar: Jar, folder: Path, base_url: str, cancel: threading.Event, report: Report) -> None:
    part = folder / f"{jar.file_name}.part"
    problem = ""
    for pause_s in _PAUSES_S:
        if cancel.wait(pause_s):
            raise _CancelledError
        try:
            began_earlier = _download(jar, part, base_url, cancel, report)
        except _NetworkError as error:
            problem = str(error)
            continue
        if jar.is_at(part):
            part.replace(folder / jar.file_name)
            return
        part.unlink()
        problem = f"its SHA-256 is not the pinned {jar.sha256}"
        if not began_earlier:  # an old .part may be to blame once; a whole download that is wrong stays wrong
            break
    message = (
        f"Cannot fetch {jar.url(base_url)}: {problem}. Nothing of it is used. Check the network, the proxy "
        f"(https_proxy) and the certificates (SSL_CERT_FILE) and start again, or copy that jar into {folder} from a "
        "machine that has it."
    )
    raise LocalBrokerError(message)


def _download(jar: Jar, part: Path, base_url: str, cancel: threading.Event, report: Report) -> bool:
    """Bring `part` to the jar's full size; return whether it began with bytes of an earlier attempt.

    Raises
    ------
    _NetworkError
        The address does not answer, refuses, or broke off.
    OSError
        The disk; never the network.
    """
    size = start = part.stat().st_size if part.exists() else 0
    if start >= jar.size:  # complete but never renamed, or too long: the hash decides
        return True
    with _ask(jar.url(base_url), start) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            size = start = 0  # a server that ignores Range sends all of it
        with part.open("ab" if start else "wb") as file:
            while size < jar.size:
                if cancel.is_set():
                    raise _CancelledError
                chunk = _read(response, min(_CHUNK, jar.size - size))
                if not chunk:
                    problem = f"the connection closed after {size} of {jar.size} bytes"
                    raise _NetworkError(problem)
                file.write(chunk)
                size += len(chunk)
                report(jar, size)
    return start > 0


def _ask(url: str, start: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"offbeat (Apache Kafka {KAFKA_VERSION})"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310, our own https address
        response = urllib.request.urlopen(request, timeout=_SILENCE_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        with error:
            problem = f"the server answers {error.code} {error.reason}"
            raise _NetworkError(problem) from error
    except urllib.error.URLError as error:
        raise _NetworkError(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(str(error) or type(error).__name__) from error
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _read(response: http.client.HTTPResponse, count: int) -> bytes:
    try:
        return response.read(count)
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(str(error) or type(error).__name__) from error


def _megabytes(jars: Sequence[Jar]) -> str:
    return f"{sum(jar.size for jar in jars) / 1e6:.0f} MB"
