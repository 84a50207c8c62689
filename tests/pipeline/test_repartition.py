"""Streams whose records are not keyed by their sessions: each is copied once, and scored as from the copies."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from features.decode import Decoder
from pipeline.clients import Clients
from pipeline.errors import ConfigError, RepartitionError, StalledError
from pipeline.health import Health
from pipeline.history import from_topic
from pipeline.labelled_history import in_words, without_labelled
from pipeline.metrics import Metrics
from pipeline.origins import origin_of, with_origin
from pipeline.repartition import Repartitioner, Route
from pipeline.retraining import labels_of
from pipeline.serving import make_decoder, make_session_decoder
from pipeline.settings import load_settings, parse_settings
from pipeline.topic_ids import TopicIds
from tests.kafka import PATIENCE_S, QUIET, Stack, WorkerProcess, by_id, shop_events, wait_until, write_untrained_bundle
from tests.pipeline.test_rebalances import lines, page
from tests.pipeline.test_worker import decisions_of

SESSION = {"by": ["tenant", "session"], "gap": "5s", "end_when": {"action": "close"}, "max_events": 12}
Records = list[tuple[bytes | None, bytes | None]]


class Internal(Stack):
    """The same stack seen from the topic that is scored."""

    @property
    def source(self) -> str:
        """What the workers score."""
        return f"{self.name}.orders.repartition"

    def configure(self, stream: dict[str, Any] | None = None, **settings: Any) -> None:
        """Write offbeat.yaml for the stream's own topic."""
        Stack(self.address, self.folder, name=self.name).configure(stream, **settings)

    def write_back(self, path: Path, *, as_text: bool = False) -> None:
        """Write the copies as `offbeat score` reads them."""
        with path.open("w") as file:
            for m in self.read(self.source):
                about = {"_partition": m.partition(), "_offset": m.offset(), "_timestamp_ms": m.timestamp()[1]}
                if m.value() is not None and m.value().startswith(b"{"):
                    file.write(json.dumps(json.loads(m.value()) | about) + "\n")


@pytest.fixture
def internal(kafka_address: str, tmp_path: Path) -> Internal:
    """A repartitioned stream with its topics."""
    made = Internal(kafka_address, tmp_path)
    made.configure(stream={"session": SESSION | {"repartition": True}})
    Stack(kafka_address, tmp_path, name=made.name).create_source()
    made.run("topics", "--create")
    write_untrained_bundle(made)
    return made


def events(seed: int, sessions: int) -> Iterable[dict[str, Any]]:
    for i, event in enumerate(shop_events(seed, sessions)):
        yield event | {"tenant": f"t/{len(event['session']) % 2}", "n": i}


def keyed_otherwise(seed: int, sessions: int) -> Records:
    """Each session's records under many keys, so that they lie in every partition of the source."""
    return [(f"host-{i % 23}".encode(), json.dumps(e).encode()) for i, e in enumerate(events(seed, sessions))]


def source_of(internal: Internal) -> str:
    return f"{internal.name}.orders"


def place(message: Message) -> tuple[str, int, int]:
    return (message.topic(), message.partition(), message.offset())


def originals(copies: Iterable[Message]) -> Counter[tuple[Any, ...]]:
    class Record:
        headers: Any

    counts: Counter[tuple[Any, ...]] = Counter()
    for copy in copies:
        record = Record()
        record.headers = copy.headers()
        origin = origin_of(record)
        assert origin is not None
        counts[tuple(origin.values())] += 1
    return counts


def wait_until_all_is_scored(internal: Internal, records: int) -> None:
    """All copies are there, and a checkpoint covers each."""
    wait_until(lambda: len(internal.read(internal.source)) >= records, f"{records} copies")
    scored = {p: 0 for p in range(internal.partitions)}
    scored |= {m.partition(): m.offset() + 1 for m in internal.read(internal.source)}
    wait_until(lambda: all(internal.committed().get(p, 0) >= end for p, end in scored.items()), f"offsets {scored}")


def test_every_record_is_copied_and_scored_once(internal: Internal) -> None:
    """Workers come, are killed and started anew; each record has one copy, and verdicts are those of the copies."""
    records = keyed_otherwise(51, 1_500)
    fifth = len(records) // 5
    with WorkerProcess(internal, "w0") as one:
        one.wait_ready(4)
        internal.produce(records[:fifth], source_of(internal))
        with WorkerProcess(internal, "w1") as two:
            internal.produce(records[fifth : 2 * fifth], source_of(internal))
            two.wait_ready(2)
            internal.produce(records[2 * fifth : 3 * fifth], source_of(internal))
            one.kill()
            internal.produce(records[3 * fifth : 4 * fifth], source_of(internal))
            with WorkerProcess(internal, "w0") as three:
                internal.produce(records[4 * fifth :], source_of(internal))
                two.kill()
                wait_until_all_is_scored(internal, len(records))
                assert three.stop() == 0
    copies, sources = internal.read(internal.source), internal.read(source_of(internal))
    assert originals(copies) == Counter(place(m) for m in sources)
    assert sorted((m.value(), m.timestamp()[1]) for m in copies) == sorted(
        (m.value(), m.timestamp()[1]) for m in sources
    )
    found: dict[bytes, set[int]] = {}
    for copy in copies:
        event = json.loads(copy.value())
        assert copy.key().decode() == f"t%2F{len(event['session']) % 2}/{event['session']}"
        found.setdefault(copy.key(), set()).add(copy.partition())
    assert all(len(partitions) == 1 for partitions in found.values())
    assert by_id(internal.read_json("decisions")) == decisions_of(scored_by_file(internal))
    at = {place(m): m for m in copies}
    anomalies = [a for a in internal.read_json("anomalies") if a["type"] == "record"]
    assert anomalies
    for anomaly in anomalies:
        copy = at[tuple(anomaly["source"].values())]
        assert originals([copy]) == Counter([tuple(anomaly["origin"].values())])


def scored_by_file(internal: Internal) -> dict[str, dict[str, Any]]:
    from tests.pipeline.test_worker import scored_by_file as scored

    return scored(internal)


def test_what_cannot_be_read_is_a_dead_letter_with_its_reason(internal: Internal) -> None:
    """A record without a session is copied as it came, and the worker says what is wrong with it, and where it lay."""
    good = keyed_otherwise(52, 30)
    bad: Records = [
        (b"k", b"no json"), (b"k", b'{"tenant": "t"}'), (b"k", b'{"tenant": "t", "session": [1]}'), (None, b"\xff"),
        (b"k", b'{"tenant": "t", "session": "s", "ts": "never"}'),
        (b"k", b'{"tenant": "t", "session": "s", "action": {}}'),
        (b"k", None),
    ]  # fmt: skip
    with WorkerProcess(internal) as worker:
        internal.produce(good + bad, source_of(internal))
        wait_until_all_is_scored(internal, len(good) + len(bad))
        wait_until(lambda: page(worker, "/ready")[0] == 200, "the worker to be ready")
        assert page(worker, "/ready")[1]["repartitioning"] == {"orders": True}
        assert f'offbeat_repartitioned_records_total{{stream="orders"}} {len(good) + len(bad)}.0' in worker.metrics()
        assert worker.stop() == 0
    (said,) = lines(worker, "stream is repartitioned")
    assert said["through"] == internal.source
    letters = internal.read_json("dead-letters")
    assert Counter(letter["reason"] for letter in letters) == Counter(
        ["not_json", "missing_session", "wrong_type", "not_json", "bad_time", "wrong_type"]
    )
    sources = {place(m): m for m in internal.read(source_of(internal))}
    for letter in letters:
        original = sources[tuple(letter["origin"].values())]
        assert original.value() == (letter["payload"].encode() if letter["payload"] is not None else b"\xff")
    internal_topic = {place(m): m for m in internal.read(internal.source)}
    for letter in letters:
        if letter["reason"] in {"not_json", "missing_session"}:
            copy = internal_topic[tuple(letter["source"].values())]
            assert copy.partition() == letter["origin"]["partition"]
            assert copy.key() == (None if letter["key"] is None else letter["key"].encode())


def test_a_start_at_the_end_holds_over_restarts(internal: Internal) -> None:
    """With start: latest nothing older is copied, and nothing that comes while no worker runs is passed over."""
    internal.configure(stream={"session": SESSION | {"repartition": True}, "start": "latest"})
    old, new = keyed_otherwise(53, 20), keyed_otherwise(54, 20)
    internal.produce(old, source_of(internal))
    with WorkerProcess(internal) as worker:
        wait_until(lambda: any(line["positions"] for line in lines(worker, "repartitioning")), "the first assignment")
        wait_until(lambda: sum(committed(internal, internal.source).values()) == len(old), "the start to be saved")
        worker.kill()
    internal.produce(new, source_of(internal))
    with WorkerProcess(internal) as worker:
        wait_until_all_is_scored(internal, len(new))
        assert worker.stop() == 0
    assert sorted(m.value() for m in internal.read(internal.source)) == sorted(v for _, v in new if v is not None)


def committed(internal: Internal, group: str) -> dict[int, int]:
    from benchmarks.kafka import committed_offsets

    return committed_offsets(internal.address, group, source_of(internal), internal.partitions)


def test_what_retention_took_is_said(internal: Internal) -> None:
    """Records removed before they were copied are counted on the drift topic; the rest goes on."""
    first, second = keyed_otherwise(55, 20), keyed_otherwise(56, 20)
    with WorkerProcess(internal) as worker:
        internal.produce(first, source_of(internal))
        wait_until_all_is_scored(internal, len(first))
        assert worker.stop() == 0
    internal.produce(second, source_of(internal))
    source = internal.read(source_of(internal))
    cut = {m.partition(): m.offset() for m in source}  # all but the last of each partition
    admin = AdminClient({"bootstrap.servers": internal.address, **QUIET})
    for future in admin.delete_records([TopicPartition(source_of(internal), p, at) for p, at in cut.items()]).values():
        future.result(PATIENCE_S)
    with WorkerProcess(internal) as worker:
        wait_until_all_is_scored(internal, len(first) + len(cut))
        assert worker.stop() == 0
    lost = [d for d in internal.read_json("drift") if d["type"] == "records_lost"]
    assert sum(d["amount"] for d in lost) == len(second) - len(cut)
    assert {d["source"]["topic"] for d in lost} == {source_of(internal)}


def test_a_source_made_anew_is_read_from_its_beginning(internal: Internal) -> None:
    """Also where it has grown beyond what was read of the old one: its id tells."""
    first, second = keyed_otherwise(58, 15), keyed_otherwise(59, 40)
    with WorkerProcess(internal) as worker:
        internal.produce(first, source_of(internal))
        wait_until_all_is_scored(internal, len(first))
        assert worker.stop() == 0
    admin = AdminClient({"bootstrap.servers": internal.address, **QUIET})
    admin.delete_topics([source_of(internal)])[source_of(internal)].result(PATIENCE_S)
    wait_until(lambda: source_of(internal) not in admin.list_topics(timeout=PATIENCE_S).topics, "the topic to go")
    internal.run("topics", "--create")
    internal.produce(second, source_of(internal))
    with WorkerProcess(internal) as worker:
        wait_until_all_is_scored(internal, len(first) + len(second))
        assert worker.stop() == 0
    assert len(internal.read(internal.source)) == len(first) + len(second)
    anew = [d for d in internal.read_json("drift") if d["type"] == "topic_recreated"]
    assert sorted(d["source"]["partition"] for d in anew) == [0, 1, 2, 3]


def test_offsets_that_are_gone_are_said(internal: Internal) -> None:
    """Kafka forgets a group that was away for long: the source is read from its beginning, whatever `start` says."""
    internal.configure(stream={"session": SESSION | {"repartition": True}, "start": "latest"})
    records = keyed_otherwise(62, 15)
    with WorkerProcess(internal) as worker:
        wait_until(lambda: any(line["positions"] for line in lines(worker, "repartitioning")), "the first assignment")
        wait_until(lambda: len(committed(internal, internal.source)) == internal.partitions, "the start to be saved")
        internal.produce(records, source_of(internal))
        wait_until_all_is_scored(internal, len(records))
        worker.kill()
    admin = AdminClient({"bootstrap.servers": internal.address, **QUIET})
    wait_until(lambda: deleted(admin, internal.source), "the group to be empty")
    with WorkerProcess(internal) as worker:
        wait_until_all_is_scored(internal, 2 * len(records))
        assert worker.stop() == 0
    assert set(originals(internal.read(internal.source)).values()) == {2}
    assert {d["type"] for d in internal.read_json("drift")} == {"offset_reset"}


def deleted(admin: AdminClient, group: str) -> bool:
    try:
        admin.delete_consumer_groups([group])[group].result(PATIENCE_S)
    except KafkaException:  # it has a member still
        return False
    return True


def test_a_zombie_copies_nothing(internal: Internal) -> None:
    """Stopped in the middle, and woken when another has taken over, it doubles nothing."""
    records = keyed_otherwise(60, 900)
    third = len(records) // 3
    with WorkerProcess(internal, "w0") as one, WorkerProcess(internal, "w1") as two:
        both = (one, two)
        wait_until(lambda: all(any(line["positions"] for line in lines(w, "repartitioning")) for w in both), "both")
        internal.produce(records[:third], source_of(internal))
        one.process.send_signal(signal.SIGSTOP)
        internal.produce(records[third : 2 * third], source_of(internal))
        wait_until(lambda: len(internal.read(internal.source)) == 2 * third, "the other to take over")
        one.process.send_signal(signal.SIGCONT)
        internal.produce(records[2 * third :], source_of(internal))
        wait_until_all_is_scored(internal, len(records))
        wait_until(lambda: page(one, "/ready")[0] == 200, "the zombie to come back")
        assert [w.stop() for w in both] == [0, 0]
    assert originals(internal.read(internal.source)) == Counter(place(m) for m in internal.read(source_of(internal)))
    assert by_id(internal.read_json("decisions")) == decisions_of(scored_by_file(internal))


def test_what_was_scored_is_deleted_later(internal: Internal) -> None:
    """Of the internal topic only what a checkpoint covered at the last look goes; nothing is taken from the reader."""
    settings, metrics = load_settings(internal.config_path), Metrics(CollectorRegistry())
    route = Route(
        "orders", source_of(internal), internal.source, internal.source, internal.name, False,
        make_session_decoder(settings.streams["orders"]), f"{internal.name}.drift",
    )  # fmt: skip
    clients = Clients(settings)
    repartitioner = Repartitioner(route, clients, "test", TopicIds(clients), metrics, Health())
    internal.produce(keyed_otherwise(61, 20), source_of(internal))
    assert not asyncio.run(repartitioner.source_is_copied())
    with WorkerProcess(internal) as worker:
        wait_until_all_is_scored(internal, len(keyed_otherwise(61, 20)))
        assert asyncio.run(repartitioner.source_is_copied())
        assert worker.stop() == 0
    before = len(internal.read(internal.source))
    internal.produce([(b"t", b"not scored yet")], internal.source)
    repartitioner._positions = dict.fromkeys(range(internal.partitions), 0)
    repartitioner._purge()
    assert len(internal.read(internal.source)) == before + 1
    repartitioner._purge()
    assert [m.value() for m in internal.read(internal.source)] == [b"not scored yet"]


def test_training_reads_the_source(internal: Internal) -> None:
    """History of a new stream lies in its source alone; sessions are put together whatever their keys."""
    internal.produce(keyed_otherwise(57, 400), source_of(internal))
    done = internal.run("train", "-s", "orders", "--from-topic", "--json")
    assert "left out" not in done.stderr
    assert json.loads(done.stdout)["data"]["records"] == len(keyed_otherwise(57, 400))


def test_topics_are_made_and_compared(internal: Internal) -> None:
    """`topics` makes and deletes the internal topic; one that does not fit its source stops a worker."""
    made = {row["topic"]: row for row in json.loads(internal.run("topics", "--json").stdout)}
    assert made[internal.source]["role"] == "repartition"
    assert made[internal.source]["partitions"] == internal.partitions
    gone = {row["topic"]: row for row in json.loads(internal.run("topics", "--delete", "--json").stdout)}
    assert gone[internal.source]["partitions"] is None
    Internal(internal.address, internal.folder, 3, internal.name).create_source()
    done = internal.run("worker", check=False)
    assert done.returncode == 1
    assert f"internal topic {internal.source} has 3 partitions but its source has 4" in done.stderr


class Hanging(Clients):
    """Makes a producer that never comes."""

    def __init__(self) -> None:
        super().__init__(
            parse_settings({"streams": {"s": {"topic": "t", "session": {"by": "k"}, "tokens": ["a"]}}}, {})
        )
        self.released = threading.Event()

    def repartition_producer(self, transactional_id: str) -> Any:
        """Hang until the test is over."""
        assert transactional_id == "a.s.repartition/w0"
        self.released.wait(PATIENCE_S)
        raise TimeoutError


@pytest.fixture
def hanging() -> Iterator[tuple[Repartitioner, Clock]]:
    """A repartitioner whose first call does not return, and its clock."""
    clients, clock = Hanging(), Clock()
    decoder = Decoder("k", None, [], {})
    route = Route("s", "t", "a.s.repartition", "a.s.repartition", "a", False, decoder, "drift")
    made = Repartitioner(
        route, clients, "w0", TopicIds(clients), Metrics(CollectorRegistry()), Health(), clock=lambda: clock.now
    )
    yield made, clock
    clients.released.set()
    made.stop()


class Clock:
    """Seconds that the test advances."""

    now = 1_000.0


def test_a_thread_that_hangs_ends_the_worker(hanging: tuple[Repartitioner, Clock]) -> None:
    """After two minutes without a turn; a process that was stopped for as long gets its time anew."""
    repartitioner, clock = hanging
    repartitioner.start()
    repartitioner.start()
    for _ in range(12):
        assert repartitioner.failure() is None
        clock.now += 10
    assert isinstance(repartitioner.failure(), StalledError)
    clock.now += 1_000
    assert repartitioner.failure() is None


def test_what_fails_again_and_again_ends_the_worker(hanging: tuple[Repartitioner, Clock]) -> None:
    """For a minute on end, and only where a broker answers; single failures and outages are lived through."""
    repartitioner, clock = hanging
    for _ in range(10):
        repartitioner._failed("no answer", is_outage=True)
        clock.now += 20
        repartitioner._failed("a rebalance", is_outage=False)
        clock.now += 40
    assert repartitioner.failure() is None
    for _ in range(7):
        assert repartitioner.failure() is None
        repartitioner._failed("not allowed", is_outage=False)
        clock.now += 10
    assert isinstance(repartitioner.failure(), RepartitionError)
    assert "cannot be repartitioned from t to a.s.repartition: not allowed" in str(repartitioner.failure())


def test_masks_and_repartitioning_exclude_each_other() -> None:
    """The internal topic would hold what must not be kept."""
    session = {"by": "k", "repartition": True}
    section = {"topic": "t", "session": session, "tokens": ["a"], "mask": {"a": "redact"}}
    with pytest.raises(ConfigError, match="before anything is masked"):
        parse_settings({"streams": {"s": section}}, {})


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        (with_origin([("trace", b"1")], "t", 3, 9), {"topic": "t", "partition": 3, "offset": 9}),
        (with_origin(with_origin(None, "first", 1, 2), "t", 3, 9), {"topic": "t", "partition": 3, "offset": 9}),
        (None, None), ([], None),
        ([("offbeat.topic", b"t"), ("offbeat.partition", b"x"), ("offbeat.offset", b"1")], None),
        ([("offbeat.topic", None), ("offbeat.partition", b"1"), ("offbeat.offset", b"1")], None),
    ],
)  # fmt: skip
def test_origins_stand_in_headers(headers: Any, origin: Any) -> None:
    """The last of a name counts, and headers that are none of ours are no origin."""

    class Record:
        pass

    record: Any = Record()
    record.headers = headers
    assert origin_of(record) == origin


def test_what_is_labelled_teaches_nothing(internal: Internal) -> None:
    """Ids name copies, but the source is read: session and time of a label say what is left out, and what is judged."""
    # Partitions are brought together by Kafka's milliseconds: of a gap of seconds some records would be late then.
    session = SESSION | {"repartition": True, "gap": "1h"}
    internal.configure(stream={"session": session, "promise": {"false_alarm_rate": 0.5}})
    settings = load_settings(internal.config_path, {})
    clients, records = Clients(settings), keyed_otherwise(5, 300)
    internal.produce(records, source_of(internal))
    with WorkerProcess(internal):
        wait_until_all_is_scored(internal, len(records))
        told = by_id(internal.read_json("anomalies"), ignore=["detected_ms"]).values()
    of_record = next(one for one in told if one["type"] == "record")
    of_session = next(one for one in told if one["type"] == "session" and one["session"] != of_record["session"])
    for one in (of_record, of_session):
        internal.run("label", one["id"], "--anomaly")
    history = from_topic(
        clients, settings.stream("orders"), make_decoder(settings, "orders"), None, None, lambda _n, _total: None
    )
    of_none_told = f"orders/{internal.source}/0/{len(records)}/record"  # past the last: an id of none of those labelled
    untold = {"stream": "orders", "id": of_none_told, "label": "anomaly"}
    internal.produce([(b"k", json.dumps(untold).encode())], f"{internal.name}.labels")
    left, left_out = without_labelled(settings, clients, "orders", history)
    assert (left_out.sessions, left_out.unknown) == (2, 1)
    (before,), (after,) = history.events, left.events
    gone = set(before.offsets.tolist()) - set(after.offsets.tolist())
    assert len(gone) == left_out.records >= 2
    names = dict(zip(before.offsets.tolist(), (before.sessions[n] for n in before.session.tolist()), strict=True))
    assert {names[offset] for offset in gone} == {of_record["session"], of_session["session"]}
    labels = labels_of(settings, clients, "orders", history.events, history.places)
    assert {(names[offset], kind): label for (_, offset, kind), label in labels.items()} == {
        (of_record["session"], "record"): True
    }  # fmt: skip
    told = internal.run("sessions", "delete", "-s", "orders", of_record["session"], "--verify", "--json", check=False)
    places = {place["place"]: place for place in json.loads(told.stdout)["places"]}
    assert places["labels"]["where"] == f"{internal.name}.labels"
    done = internal.run("train", "-s", "orders", "--from-topic", "--json")
    assert in_words(left_out) in " ".join(done.stderr.split())
