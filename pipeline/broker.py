"""`offbeat broker`: a real Apache Kafka on this machine, one node in KRaft mode, without Docker.

A data folder holds all of one broker: `kafka/` (its log folder), `server.properties` and `log4j2.properties` (written
anew at each start), `kafka.log` (what Kafka says), `jvm.out` (what Java says) and `lock`.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import logging
import os
import re
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, MappingProxyType, TracebackType
from typing import IO, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from rich.console import Console

from pipeline.errors import LocalBrokerError, PortTakenError
from pipeline.jvm import Jvm, find_java
from pipeline.kafka_jars import KAFKA_VERSION, fetch_jars

HOST = "127.0.0.1"

_READY_S = 120.0  # 2 s on two quiet cores, 5 or 32 s after a SIGKILL; else for loaded machines and long logs
_PORT_ATTEMPTS = 3  # a port found free can be gone when the JVM binds it
_LAST_LINES = 12

# The options of the JVM. UsePerfData would write to /tmp/hsperfdata_USER all the time.
_JAVA_OPTIONS = (
    "-Xmx512m",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Djava.io.tmpdir=tmp",
)
_LOG4J = "-Dlog4j2.configurationFile=log4j2.properties"

# librdkafka logs to standard error unless told where to.
_SILENT = logging.Logger("offbeat.broker.probe", logging.CRITICAL + 1)

_SERVER = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "inter.broker.listener.name": "BROKER",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    # One node: one copy of everything, and few partitions, as each costs files and time to load.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "num.io.threads": "4",
    "broker.heartbeat.interval.ms": "500",
    # The cleaner takes its buffer at start; the default is a quarter of our heap. 32 MB hold 1.2 M keys a pass.
    "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
}

_LOGGING = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = kafka.log
appender.file.filePattern = kafka.log.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ISO8601} %p %m (%c{1})%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
"""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(port: int) -> None:
    """Return if we could listen on the port.

    Raises
    ------
    PortTakenError
        Another process listens there; named if we may see it.
    LocalBrokerError
        The port cannot be ours for another reason (below 1024, say).
    """
    with socket.socket() as probe:
        # As Java does: connections of the last broker that linger in TIME_WAIT are no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                holder = _listener(port)
                message = f"Port {port} is taken{f' by {holder}' if holder else ''}: stop that or choose another port."
                raise PortTakenError(message) from error
            message = f"Cannot listen on port {port}: {error}. Choose another port."
            raise LocalBrokerError(message) from error


def _listener(port: int) -> str | None:
    """Return "NAME (pid N)" of the process that listens on the port; None where /proc does not show it to us."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or belongs to another user
            if any(_link(file) in sockets for file in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def _link(file: Path) -> str | None:
    """Where a descriptor leads; None where it was closed since it was listed."""
    try:
        return os.readlink(file)
    except FileNotFoundError:
        return None


class LocalBroker:
    """One Kafka node on 127.0.0.1, for the commands `broker` and `demo` and for tests.

    Works on Linux, for one machine and one user: no TLS, no replicas, 512 MB of heap. It ends with the process that
    started it, also when that is SIGKILLed; then Kafka recovers its logs at the next start, which takes longer.

    Parameters
    ----------
    data_dir
        Made where missing; holds the whole broker, kept for the next start unless `ephemeral`.
    port
        Where clients connect; None picks a free one, which a later `start` of this object uses again.
    ephemeral
        `stop` removes the data. A folder with kept data is refused.
    settings
        Kafka broker settings that go before ours.
    listeners
        Further listeners by name (in capitals), each with its protocol, such as SASL_SSL; `address_of` tells where.
    users
        Passwords of users who may log in by SCRAM, made with the log folder.

    Examples
    --------
    ::

        with LocalBroker(tmp_path, ephemeral=True) as broker:
            producer = Producer({"bootstrap.servers": broker.address})
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        ephemeral: bool = False,
        settings: Mapping[str, str] = MappingProxyType({}),
        listeners: Mapping[str, str] = MappingProxyType({}),
        users: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.ephemeral = ephemeral
        self._settings, self._listeners, self._users = dict(settings), dict(listeners), dict(users)
        self._ports: dict[str, int] = {}  # of further listeners
        self._port = port
        self._jvm: Jvm | None = None
        self._lock: IO[str] | None = None
        self._started_before = False

    @property
    def address(self) -> str:
        """What clients take as `bootstrap.servers`; known once started."""
        assert self._port is not None
        return f"{HOST}:{self._port}"

    def address_of(self, listener: str) -> str:
        """What clients of a further listener take as `bootstrap.servers`; known once started."""
        return f"{HOST}:{self._ports[listener]}"

    @property
    def pid(self) -> int:
        """The JVM's process id, while it is started."""
        assert self._jvm is not None
        return self._jvm.pid

    def start(self) -> None:
        """Start Kafka and return when it accepts connections and its one broker is in the cluster.

        Raises
        ------
        PortTakenError
            Another process listens on the port asked for.
        LocalBrokerError
            No Java, no jars, a data folder in use or not ours, or a JVM that dies or is not ready in 60 s.
        """
        assert self._jvm is None, "already started"
        if self._port is not None:
            check_port(self._port)
        try:
            self._take_folder()
            java = find_java()
            environ = {
                **os.environ,
                "CLASSPATH": os.pathsep.join(map(str, fetch_jars())),
                "LC_ALL": "C.UTF-8",  # else Java cannot open a data folder whose name is not ASCII
            }
            self._format_once(java, environ)
            self._launch(java, environ)
        except OSError as error:
            self._let_go()
            message = f"Cannot start Kafka in {self.data_dir}: {error}. Make room there, or choose another data folder."
            raise LocalBrokerError(message) from error
        except BaseException as error:
            self._let_go(remove=not isinstance(error, Exception))
            raise
        self._started_before = True

    def stop(self) -> None:
        """End Kafka cleanly (SIGKILL after 20 s), or at once where ephemeral, whose data go; stopped ones stay so."""
        self._end_jvm(signal.SIGKILL if self.ephemeral else signal.SIGTERM)
        if self.ephemeral and self._lock is not None:
            self._remove_data()
        self._unlock()

    def kill(self) -> None:
        """End Kafka with SIGKILL, as a crash would; the data stay, and `start` starts it again on the same port."""
        self._end_jvm(signal.SIGKILL)
        if not self.ephemeral:  # else `stop` has data to remove yet, and nobody else may start on them
            self._unlock()

    def wait(self) -> None:
        """Return never; Kafka that ends by itself raises.

        Raises
        ------
        LocalBrokerError
            It ended, with its last log lines.
        """
        assert self._jvm is not None
        self._jvm.ended.wait()
        raise self._died(what="ended by itself")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # The data folder.

    def _take_folder(self) -> None:
        """Make the folder and lock it; the JVM inherits the lock, so it holds for as long as either of us lives."""
        if self._lock is not None:
            return
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = (self.data_dir / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip()
            self._lock.close()
            self._lock = None
            message = (
                f"Another broker{f' (pid {holder})' if holder else ''} runs in {self.data_dir}: "
                "stop it or choose another data folder."
            )
            raise LocalBrokerError(message) from error
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        self._settle_ephemeral()

    def _settle_ephemeral(self) -> None:
        """Note in the folder that its data may go, and never let kept data go."""
        note = self.data_dir / "ephemeral"
        kafka = self.data_dir / "kafka"
        if not self.ephemeral:
            note.unlink(missing_ok=True)
        elif kafka.exists() and not note.exists():
            message = (
                f"{self.data_dir} holds data kept by an earlier broker, which an ephemeral one would remove: "
                "choose another data folder, or start without ephemeral."
            )
            raise LocalBrokerError(message)
        else:
            if not self._started_before and kafka.exists():  # left by one that was SIGKILLed
                shutil.rmtree(kafka)
            note.touch()

    def _remove_data(self) -> None:
        if not (self.data_dir / "ephemeral").exists():
            return
        # By name, not the whole folder: the user may have pointed us at one with other things in it.
        for name in ("kafka", "kafka.part", "tmp"):
            shutil.rmtree(self.data_dir / name, ignore_errors=True)
        for pattern in ("kafka.log*", "jvm.out", "server.properties", "log4j2.properties", "ephemeral", "lock"):
            for path in self.data_dir.glob(pattern):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.data_dir.rmdir()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # The process.

    def _end_jvm(self, first: signal.Signals) -> None:
        if self._jvm is not None:
            self._jvm.end(first)
            self._jvm = None

    def _let_go(self, remove: bool = False) -> None:
        """Undo a start that failed. The data stay, for they hold the reason; ephemeral and interrupted, they go."""
        self._end_jvm(signal.SIGKILL)
        if remove and self.ephemeral and self._lock is not None:
            self._remove_data()
        self._unlock()

    def _command(self, java: Path, *arguments: str, options: Sequence[str] = ()) -> list[str]:
        return [str(java), *_JAVA_OPTIONS, _LOG4J, *options, *arguments]

    def _format_once(self, java: Path, environ: Mapping[str, str]) -> None:
        """Make Kafka's log folder; it gets its name when complete, so a crash half-way leaves nothing half-made."""
        if (self.data_dir / "kafka").exists():
            return
        assert self._lock is not None
        part = self.data_dir / "kafka.part"
        shutil.rmtree(part, ignore_errors=True)
        ports = dict(zip(("BROKER", *self._listeners), range(3, 100), strict=False))  # none is listened on
        self._configure("kafka.part", ports, controller_port=2)
        # C1 compiles quicker, and this process is gone before C2 could help.
        command = self._command(
            java, "kafka.tools.StorageTool", "format", "-t", _new_cluster_id(), "-c", "server.properties",
            *(f"--add-scram={how}=[name={name},password={password}]" for name, password in self._users.items()
              for how in ("SCRAM-SHA-256", "SCRAM-SHA-512")),
            options=("-XX:TieredStopAtLevel=1",),
        )  # fmt: skip
        self._jvm = Jvm(command, self.data_dir, environ, self._lock.fileno())
        self._jvm.launch()
        if not self._jvm.ended.wait(_READY_S) or self._jvm.exit_code != 0:
            raise self._died(what="could not format its log folder")
        self._jvm = None
        part.rename(self.data_dir / "kafka")

    def _launch(self, java: Path, environ: Mapping[str, str]) -> None:
        assert self._lock is not None
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = free_port() if self._port is None else self._port
            further = self._ports or {name: free_port() for name in self._listeners}
            self._configure("kafka", {"BROKER": port, **further}, free_port())
            with suppress(FileNotFoundError):  # what `_died` reads then is of this run
                (self.data_dir / "kafka.log").replace(self.data_dir / "kafka.log.old")
            self._jvm = Jvm(
                self._command(java, "kafka.Kafka", "server.properties"), self.data_dir, environ, self._lock.fileno()
            )
            self._jvm.launch()
            try:
                self._wait_until_ready(port)
            except LocalBrokerError as error:
                if attempt == _PORT_ATTEMPTS or "already in use" not in str(error):
                    raise
                self._end_jvm(signal.SIGKILL)
                if self._port is not None:
                    check_port(self._port)
            else:
                self._port, self._ports = port, further
                return

    def _configure(self, log_folder: str, ports: Mapping[str, int], controller_port: int) -> None:
        """Write Kafka's and log4j's settings; paths are relative to the data folder, where the JVM runs."""
        clients = ",".join(f"{name}://{HOST}:{port}" for name, port in ports.items())
        protocols = {"BROKER": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **self._listeners}
        ours = {
            **_SERVER,
            "log.dirs": log_folder,
            "listeners": f"{clients},CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": clients,
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            # Static voters: they are read from here at each start, not kept in the log as dynamic ones are, so kept
            # data come up behind another controller port.
            "controller.quorum.voters": f"1@{HOST}:{controller_port}",
            # So long may heartbeats stay out before the node is taken for dead and refuses new topics; by default 9 s.
            # After a SIGKILL a start waits as long, for the former life to end; what is ephemeral has none at first.
            "broker.session.timeout.ms": "30000" if self.ephemeral and not self._started_before else "3000",
        }
        lines = [f"{key}={_escape(value)}\n" for key, value in {**ours, **self._settings}.items()]
        (self.data_dir / "tmp").mkdir(exist_ok=True)  # the codecs' native libraries are unpacked there
        (self.data_dir / "server.properties").write_text("".join(lines), encoding="ascii")
        (self.data_dir / "log4j2.properties").write_text(_LOGGING, encoding="ascii")

    def _wait_until_ready(self, port: int) -> None:
        assert self._jvm is not None
        cluster_id = _read_cluster_id(self.data_dir / "kafka" / "meta.properties")
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            if self._jvm.ended.wait(0.03):
                raise self._died(what="ended before it was ready")
            if _answers(port, cluster_id):
                return
        raise self._died(what=f"was not ready in {_READY_S:.0f} s")

    def _died(self, *, what: str) -> LocalBrokerError:
        lines: list[str] = []
        for name in ("kafka.log", "jvm.out"):
            with suppress(OSError):
                text = (self.data_dir / name).read_text(encoding="utf-8", errors="replace")
                lines += [line[:300] for line in text.splitlines() if not line.startswith("\tat ")][-_LAST_LINES:]
        said = "".join(f"\n  {line}" for line in lines) or " nothing."
        code = None if self._jvm is None else self._jvm.exit_code
        ending = "" if code is None else f" (exit code {code})"
        story = "" if self.ephemeral else "; the whole story is in kafka.log and jvm.out there"
        return LocalBrokerError(f"Kafka in {self.data_dir} {what}{ending}{story}. Its last lines:{said}")


def _new_cluster_id() -> str:
    # As Kafka's own random-uuid: 16 bytes in base64, and no leading "-", which would read as an option.
    while (made := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return made


def _read_cluster_id(path: Path) -> str:
    match = re.search(r"^cluster\.id=(.+)$", path.read_text(encoding="ascii"), re.MULTILINE)
    assert match is not None
    return match[1].strip()


def _escape(value: str) -> str:
    r"""Return a value as Java's Properties reads it back: ASCII, with backslash and the rest as \uXXXX."""
    units = value.encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2)]
    return "".join(chr(code) if 0x20 < code < 0x7F and code != 0x5C else f"\\u{code:04x}" for code in codes)


def _answers(port: int, cluster_id: str) -> bool:
    """Whether our cluster answers at the port and its broker is in it (a fenced one is not listed)."""
    # Asked first, for librdkafka waits and complains where nobody listens yet.
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) != 0:
            return False
    client = AdminClient({"bootstrap.servers": f"{HOST}:{port}"}, logger=_SILENT)
    try:
        cluster = client.list_topics(timeout=2.0)
    except KafkaException:
        return False
    return cluster.cluster_id == cluster_id and len(cluster.brokers) == 1


def run_in_foreground(data_dir: Path, port: int = 9092, ephemeral: bool = False) -> None:
    """Do what `offbeat broker` does: run Kafka until Ctrl-C, SIGTERM or SIGHUP, then stop it cleanly and return.

    Raises
    ------
    PortTakenError
        Another process listens on the port.
    LocalBrokerError
        It cannot start, or ended by itself.
    """
    Console(stderr=True).print(f"Starting Kafka {KAFKA_VERSION} ...")
    broker = LocalBroker(data_dir, port=port, ephemeral=ephemeral)
    try:
        with signals_stop_us(), broker:
            end = "stops it and removes them" if ephemeral else "stops it"
            print(
                f"Kafka {KAFKA_VERSION} is ready at {broker.address} (data in {broker.data_dir}, Ctrl-C {end})",
                flush=True,
            )
            broker.wait()
    except StopAskedError:
        return


class StopAskedError(BaseException):
    """The user or the system asked us to stop; not an Exception, so nothing on the way takes it for a failure."""


@contextmanager
def signals_stop_us() -> Iterator[None]:
    """Raise `StopAskedError` at the first signal; leave later ones out, for stopping has a limit of its own."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise StopAskedError

    before = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
