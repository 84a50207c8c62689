"""Labels reach training: what was called an anomaly teaches nothing, and nothing that others write stops that."""

from __future__ import annotations

import json
import time

import pytest

from detectors.labelled_sessions import LeftOut
from pipeline.clients import Clients
from pipeline.history import from_topic
from pipeline.labelled_history import anomalies_of, in_words, without_labelled
from pipeline.retraining import TopicLabel
from pipeline.serving import make_decoder
from pipeline.settings import load_settings
from pipeline.topics import Topic, create_topics
from tests.kafka import Stack, as_records, shop_events

PLACES = (0, 2)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"o/t/2/17/record": True, "o/t/2/5/session": True, "o/t/0/3/session-900": True}, [{3}, {17, 5}]),
        ({"o/t/0/17/record": False, "o/t/0/17/session": True}, [{17}, set()]),
        ({"o/t/1/17/record": True, "o/other/0/17/record": True}, [set(), set()]),
        ({"o/t/0/17/record": True, "o/t~1/0/4/record": True, "o/t/2/8/record": True}, [{4}, {8}]),
        ({"o/t~1/0/4/record": False, "o/t/0/17/record": True}, [set(), set()]),
        ({"nonsense": True, "o/t/0/x/record": True, "o/t~0/0/017/record": True, "": True}, [set(), set()]),
        ({}, [set(), set()]),
    ],
)  # fmt: skip
def test_ids_name_offsets(said: dict[str, bool], found: list[set[int]]) -> None:
    """Of records, sessions and windows; of the topic as it is now; of partitions of the history; and of nobody else."""
    labels = {identity: TopicLabel("o", identity, is_anomaly) for identity, is_anomaly in said.items()}
    assert anomalies_of(labels, "t", PLACES) == found


def test_what_was_left_out_is_said() -> None:
    """Nothing where there was nothing."""
    assert in_words(LeftOut(0, 0, 3)) is None
    assert in_words(LeftOut(1_200, 5_000, 0)) == "left out 1,200 sessions (5,000 records) that hold labelled anomalies"


def test_labelled_sessions_teach_nothing(stack: Stack) -> None:
    """`offbeat train --from-topic` says what it left out; minds may change, ids be unknown; a job goes by its time."""
    stack.produce(as_records(shop_events(1, 300)))
    settings = load_settings(stack.config_path, {})
    clients, stream = Clients(settings), settings.stream("orders")
    history = from_topic(clients, stream, make_decoder(settings, "orders"), None, None, lambda _n, _total: None)
    assert without_labelled(settings, clients, "orders", history)[1] == LeftOut()
    place, partition = history.places[0], history.events[0]
    one, other = (int(partition.offsets[at]) for at in (0, len(partition) - 1))
    ids = [f"orders/{stack.source}/{place}/{offset}/record" for offset in (one, other, 10**9)]
    said = [(ids[0], "anomaly"), (ids[1], "anomaly"), (ids[2], "anomaly"), (ids[1], "normal"), ("?", "anomaly")]
    topic = f"{stack.name}.labels"
    create_topics(clients.admin(), settings, [Topic(topic, "output", 1)])
    before_ms = time.time_ns() // 1_000_000 - 1_000
    messages = [{"stream": "orders", "id": identity, "label": label} for identity, label in said]
    stack.produce([(b"k", json.dumps(message).encode()) for message in messages], topic)
    left, told = without_labelled(settings, clients, "orders", history)
    assert (told.sessions, told.unknown) == (1, 1)
    assert one not in left.events[0].offsets
    assert other in left.events[0].offsets
    assert without_labelled(settings, clients, "orders", history, before_ms)[1] == LeftOut()
    done = stack.run("train", "-s", "orders", "--from-topic", "--json")
    assert in_words(told) in " ".join(done.stderr.split())
    assert json.loads(done.stdout)["data"]["records"] == history.records - told.records
