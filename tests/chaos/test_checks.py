"""The checks can fail, and the schedule is what it says."""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from zlib import crc32

import pytest

from detectors.parts import Parts
from features.sessions import SessionRules
from pipeline.failpoints import POINTS
from tests.chaos.checks import OffsetWatch, check_anomalies, check_committed, check_messages, check_rows
from tests.chaos.oracle import Expected, expect_partition
from tests.chaos.rows import read_session
from tests.chaos.schedule import FAULTS, SESSION_TIMEOUT_S, WORKERS, make_schedule
from tests.chaos.workload import GAP_MS, MAX_EVENTS, records

GOLDEN = Path(__file__).parents[1] / "golden" / "row-v2.json"


@pytest.fixture
def storm_parts(parts: Parts) -> Parts:
    """Parts with a storm's rules."""
    return replace(parts, rules=SessionRules(GAP_MS, MAX_EVENTS))


@pytest.fixture
def expected(storm_parts: Parts) -> Expected:
    """One partition of a few hundred records, as the oracle sees it."""
    log = [(offset, key, value) for offset, (key, value) in enumerate(islice(records(1), 600))]
    return expect_partition(log, 0, lambda: storm_parts, ())


@pytest.fixture
def saved(expected: Expected) -> dict[bytes, bytes]:
    """Rows as a worker without a flaw would have saved them."""
    rows = {b"s" + name.encode(): packed(row) for name, row in expected.sessions.items()}
    return rows | {b"p": b"OB\x02" + json.dumps(expected.partition).encode() + bytes(4)}


def packed(row: dict, fields: int = 2, width: int = 6) -> bytes:  # type: ignore[type-arg]
    """A session row of format version 2."""
    times, tokens = [0] * width, [0] * width * fields
    for k, (time_ms, hashes) in enumerate(row["context"], row["events"] - len(row["context"])):
        times[k % width] = time_ms
        tokens[k % width * fields : (k % width + 1) * fields] = hashes
    head = struct.pack("<2sBBHHHH", b"OB", 2, fields, len(row["hidden"]) // 4, width, 0, 0)
    columns = struct.pack(
        "<qqqq4sqQ", row["events"], row["first_ms"], row["last_ms"], row["applied"], row["worst"], row["worst_offset"],
        row["bundle"],
    )  # fmt: skip
    body = head + columns + row["hidden"] + struct.pack(f"<{width}q", *times)
    body += struct.pack(f"<{width * fields}Q", *tokens)
    body += struct.pack("<IBI", 9, 5, 4) + row["tag"]  # a tail of one part
    return body + crc32(body).to_bytes(4, "little")


# --- rows --------------------------------------------------------------------------------------------------------


def test_rows_as_they_should_be_pass(saved: dict[bytes, bytes], expected: Expected) -> None:
    """Rows without a flaw bring no complaint, and there are enough of them to mean something."""
    assert len(expected.sessions) > 100
    assert check_rows("here", saved, expected) == []


@pytest.mark.parametrize("at", [12, 20, 28, 36, 44, 48, 56, 64, 94, 128, 176, -4])
def test_one_changed_bit_is_found(at: int, saved: dict[bytes, bytes], expected: Expected) -> None:
    """A bit of any column of any row that differs is named, even where the checksum is right."""
    key = next(k for k, v in saved.items() if k[:1] == b"s" and int.from_bytes(v[8:16], "little") >= 1)
    body = bytearray(saved[key][:-4])
    body[at] ^= 1
    saved[key] = bytes(body) + crc32(body).to_bytes(4, "little")
    (complaint,) = check_rows("here", saved, expected)
    assert f"the row of session {key[1:].decode()} differs" in complaint


def test_a_damaged_row_is_found(saved: dict[bytes, bytes], expected: Expected) -> None:
    """A row whose checksum is wrong is named."""
    key = next(k for k in saved if k[:1] == b"s")
    saved[key] = saved[key][:-1] + bytes([saved[key][-1] ^ 1])
    assert "is damaged" in check_rows("here", saved, expected)[0]


def test_a_session_too_few_or_too_many_is_found(saved: dict[bytes, bytes], expected: Expected) -> None:
    """A lost row and the row of a session that is over are named."""
    key = next(k for k in saved if k[:1] == b"s")
    saved[b"snobody"] = saved.pop(key)
    complaints = " ".join(check_rows("here", saved, expected))
    assert f"session {key[1:].decode()} is open, but has no row" in complaints
    assert "session nobody is over, but has a row" in complaints


@pytest.mark.parametrize("what", ["next_offset", "watermark_ms", "records"])
def test_a_wrong_partition_row_is_found(what: str, saved: dict[bytes, bytes], expected: Expected) -> None:
    """Each number of the partition row is compared."""
    saved[b"p"] = json.dumps(expected.partition | {what: expected.partition[what] - 1}).encode()
    assert "the partition row says" in check_rows("here", saved, expected)[0]


def test_a_missing_partition_row_is_found(saved: dict[bytes, bytes], expected: Expected) -> None:
    """No partition row is a flaw as well."""
    del saved[b"p"]
    assert "unreadable" in check_rows("here", saved, expected)[0]


def test_rows_read_by_hand_are_the_products() -> None:
    """The golden row of version 1, which the product holds itself to, reads the same here."""
    golden = json.loads(GOLDEN.read_text())
    row = read_session(bytes.fromhex(golden["hex"]))
    wanted = golden["row"]
    assert all(row[name] == wanted[name] for name in ("events", "first_ms", "last_ms", "applied", "worst_offset"))
    assert struct.unpack("<4f", row["hidden"]) == tuple(wanted["hidden"])


# --- messages ----------------------------------------------------------------------------------------------------


def test_messages_as_they_should_be_pass(expected: Expected) -> None:
    """All contents once, or some of them twice where that is allowed, bring no complaint."""
    values = [content.encode() for content in expected.messages.values()]
    assert check_messages(values, expected.messages, once=True).complaints == []
    again = check_messages([*values, *values[:60]], expected.messages, once=False)
    assert again.complaints == []
    assert again.doubled == 60 / len(values)


def test_a_message_that_came_twice_is_found(expected: Expected) -> None:
    """Under exactly_once a second delivery is a flaw."""
    values = [content.encode() for content in expected.messages.values()]
    assert "came 2 times" in check_messages([*values, values[7]], expected.messages, once=True).complaints[0]


def test_a_dropped_verdict_is_found(expected: Expected) -> None:
    """One missing message is named."""
    values = [content.encode() for content in expected.messages.values()]
    dropped = json.loads(values.pop(11))
    assert check_messages(values, expected.messages, once=False).complaints == [f"{dropped['id']} is missing"]


def test_a_message_on_nothing_is_found(expected: Expected) -> None:
    """An id that should not be is named."""
    values = [content.encode() for content in expected.messages.values()]
    stray = json.dumps(json.loads(values[0]) | {"id": "orders/t/9/9/record"}).encode()
    assert "is a message on nothing" in check_messages([*values, stray], expected.messages, once=False).complaints[0]


def test_a_second_content_is_found(expected: Expected) -> None:
    """A second delivery that differs in anything but the clock is named; by its clock it may differ."""
    values = [content.encode() for content in expected.messages.values()]
    content = json.loads(values[3])
    clock = [json.dumps(content | {"detected_ms": moment}).encode() for moment in (1, 2)]
    assert check_messages([*values[:3], *clock, *values[4:]], expected.messages, once=False).complaints == []
    other = json.dumps(content | {"remark": "new"}).encode()
    assert "has two contents" in check_messages([*values, other], expected.messages, once=False).complaints[0]


@pytest.mark.parametrize("what", ["score", "session", "reason"])
def test_a_wrong_content_is_found(what: str, expected: Expected) -> None:
    """A message that differs from the oracle's is named."""
    contents = [json.loads(content) for content in expected.messages.values()]
    changed = next(content for content in contents if what in content)
    changed[what] = 0.5 if what == "score" else "another"
    values = [json.dumps(content).encode() for content in contents]
    complaints = check_messages(values, expected.messages, once=False).complaints
    assert len(complaints) == 1
    assert f"{changed['id']} says" in complaints[0]


def test_anomalies_must_be_those_decided(expected: Expected) -> None:
    """A missing anomaly, one too many, one that came twice and one with two contents are named."""
    values = [json.dumps({"id": identity, "detected_ms": 1}).encode() for identity in sorted(expected.anomalies)]
    assert len(values) > 5
    assert check_anomalies(values, expected.anomalies, once=True).complaints == []
    assert "is missing" in check_anomalies(values[1:], expected.anomalies, once=False).complaints[0]
    assert "was not decided" in check_anomalies([*values, b'{"id": "x"}'], expected.anomalies, once=False).complaints[0]
    assert "came again" in check_anomalies([*values, values[0]], expected.anomalies, once=True).complaints[0]
    other = json.dumps(json.loads(values[0]) | {"score": 1}).encode()
    assert "two contents" in check_anomalies([*values, other], expected.anomalies, once=False).complaints[0]


# --- offsets -----------------------------------------------------------------------------------------------------


def test_an_offset_that_falls_is_found() -> None:
    """Offsets may stand, rise or be unknown for a while; one that falls is named, though it rises again."""
    watch = OffsetWatch()
    for look in ({0: 5, 1: 7}, {0: 5}, {}, {0: 6, 1: 9}):
        watch.see(look)
    assert watch.complaints == []
    watch.see({0: 6, 1: 8})
    watch.see({0: 6, 1: 10})
    assert watch.complaints == ["the group's offset of partition 1 fell from 9 to 8"]


def test_an_offset_that_is_not_x_plus_1_is_found(expected: Expected) -> None:
    """The group's offset at the end must be the one after the last record; none is a flaw as well."""
    right = expected.partition["next_offset"]
    assert check_committed({0: right}, [expected]) == []
    assert check_committed({0: right - 1}, [expected]) == [
        f"the group's offset of partition 0 is {right - 1}, not {right}"
    ]
    assert check_committed({}, [expected]) != []


# --- schedule and records ----------------------------------------------------------------------------------------


def test_a_schedule_is_its_seeds() -> None:
    """The same arguments give the same schedule, another seed another one."""
    assert make_schedule(1, 180, "at_least_once", POINTS) == make_schedule(1, 180, "at_least_once", POINTS)
    assert make_schedule(1, 180, "at_least_once", POINTS) != make_schedule(2, 180, "at_least_once", POINTS)


@pytest.mark.parametrize("seed", range(20))
def test_three_minutes_hold_every_fault(seed: int) -> None:
    """Whatever the seed, each kind and each point comes in 170 s, in order of time, and the end is calm."""
    faults = make_schedule(seed, 170, "at_least_once", POINTS, FAULTS)
    assert {fault.kind for fault in faults} == FAULTS.keys()
    assert {fault.point.partition(":")[0] for fault in faults} == {*POINTS, ""}
    assert all(a.at_s < b.at_s for a, b in pairwise(faults))
    assert max(fault.at_s for fault in faults) < 170 - SESSION_TIMEOUT_S
    assert all(fault.seconds > SESSION_TIMEOUT_S for fault in faults if fault.kind == "stop")
    assert all(0 <= fault.worker < WORKERS for fault in faults)


def test_faults_are_chosen_by_name() -> None:
    """A storm holds only the kinds it is asked for."""
    faults = make_schedule(1, 100, "at_least_once", POINTS, {"kill": 1, "slow": 1})
    assert {fault.kind for fault in faults} == {"kill", "slow"}


def test_records_meet_every_rule(storm_parts: Parts) -> None:
    """The stream is its seed's; its sessions end in every way, and some records are late, bad, or tombstones."""
    assert list(islice(records(3), 500)) == list(islice(records(3), 500))
    drawn = [record for record in islice(records(3), 25_000) if crc32(record[0] or b"") % 4 == 0]  # a partition's
    log = [(offset, key, value) for offset, (key, value) in enumerate(drawn)]
    seen = expect_partition(log, 0, lambda: storm_parts, ())
    contents = [json.loads(content) for content in seen.messages.values()]
    ends = Counter(content["ended"] for content in contents if content.get("type") == "session")
    assert min(ends[how] for how in ("event", "gap", "limit")) > 10
    reasons = {content["reason"] for content in contents if "reason" in content}
    assert reasons == {"not_json", "wrong_type", "missing_session", "key_is_not_session", "bad_time"}
    assert any(value is None for _, value in drawn)
    assert len(seen.messages) > len(drawn) - 100
