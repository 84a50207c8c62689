"""The decoder: what it reads, what it sets aside and why, and how slices are cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.decode import MAX_SESSION_CHARACTERS, Decoder
from features.errors import RecordError
from features.event_time import MAX_TIME_MS
from features.events import Events
from features.masking import NO_MASK, make_masker, parse_rules
from features.messages import ReadMessages
from features.text_lines import LineReader

DECODER = Decoder("session", "ts", ["action", "user.country"], {"action": "close", "final": True})


@dataclass(frozen=True)
class Given:
    """A record as any source gives it."""

    value: bytes | None
    key: bytes | None = b"a"
    offset: int = 0
    timestamp: int = 5


def decode(*records: Given, decoder: Decoder = DECODER, check_key: bool = False) -> Events:
    return decoder.decode(records, check_key=check_key)


def as_json(**event: Any) -> Given:
    return Given(json.dumps(event).encode())


def reason(record: Given, decoder: Decoder = DECODER, *, check_key: bool = False) -> str:
    """Why the record is set aside."""
    events = decode(record, decoder=decoder, check_key=check_key)
    assert len(events) == 0
    (reject,) = events.rejects
    assert str(reject.error)
    return reject.error.reason


def test_columns_hold_the_configured_fields() -> None:
    """Valid records become columns in order; bad ones and tombstones are set aside beside them."""
    events = DECODER.decode(
        [
            Given(b'{"session": "a", "ts": 7, "action": "view", "user": {"country": "DK"}, "more": [1]}', offset=10),
            Given(b"no json", offset=11),
            Given(None, offset=12),
            Given(b'{"session": 42, "action": "close", "final": true}', offset=15, timestamp=9),
            Given(b'{"session": "a", "user": null, "ts": null}', offset=16),
        ],
        check_key=False,
    )
    assert events.index.tolist() == [0, 3, 4]
    assert events.offsets.tolist() == [10, 15, 16]
    assert events.time_ms.tolist() == [7_000, 9, 5]
    assert events.sessions == ["a", "42"]
    assert events.session.tolist() == [0, 1, 0]
    assert events.tokens == [["view", "close", None], ["DK", None, None]]
    assert events.ends.tolist() == [False, True, False]
    assert [(r.index, r.error.reason) for r in events.rejects] == [(1, "not_json")]
    assert (events.tombstones, events.next_offset) == (1, 17)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "not_json"), (b"\xff\xfe", "not_json"), (b'{"session": "a"', "not_json"), (b"{}{}", "not_json"),
        (b'{"session": "a", "ts": NaN}', "not_json"), (b'{"session": "a", "action": "\\ud800"}', "not_json"),
        (b"[1]", "wrong_type"), (b'"text"', "wrong_type"), (b"null", "wrong_type"), (b"7", "wrong_type"),
        (b'{"session": "a", "action": 7.5}', "wrong_type"), (b'{"session": "a", "user": "x"}', "wrong_type"),
        (b'{"session": "a", "action": []}', "wrong_type"),
        (b'{"session": "a", "ts": true}', "wrong_type"), (b'{"session": 1.5}', "wrong_type"),
        (b'{"session": true}', "wrong_type"), (b'{"session": ' + b"9" * 5_000 + b"}", "wrong_type"),
        (b'{"session": "' + b"x" * (MAX_SESSION_CHARACTERS + 1) + b'"}', "wrong_type"),
        (b"{}", "missing_session"), (b'{"session": null}', "missing_session"), (b'{"session": ""}', "missing_session"),
        (b'{"session": "a", "ts": "soon"}', "bad_time"), (b'{"session": "a", "ts": -1}', "bad_time"),
    ],
)  # fmt: skip
def test_each_kind_of_bad_record_has_its_reason(value: bytes, expected: str) -> None:
    """What is wrong decides the reason; nothing is guessed."""
    assert reason(Given(value)) == expected


def test_the_key_must_be_the_session() -> None:
    """On a topic a key that is not the session is refused, and none is none; in files keys do not matter."""
    good = Given(b'{"session": "\xc3\xa9"}', key="é".encode())
    assert len(decode(good, check_key=True)) == 1
    for key in (b"other", None, b"\xff", b""):
        bad = Given(good.value, key=key)
        assert reason(bad, check_key=True) == "key_is_not_session"
        assert len(decode(bad)) == 1


def test_the_key_as_session() -> None:
    """With @key the record's key names the session, whether keys are checked or not."""
    decoder = Decoder("@key", None, ["action"], {})
    assert decode(Given(b"{}", key="é".encode()), decoder=decoder, check_key=True).sessions == ["é"]
    for key, expected in ((None, "missing_session"), (b"", "missing_session"), (b"\xff", "wrong_type")):
        assert reason(Given(b"{}", key=key), decoder) == expected
    assert reason(Given(b"{}", key=b"x" * (MAX_SESSION_CHARACTERS + 1)), decoder) == "wrong_type"


@pytest.mark.parametrize("timestamp", [-1, MAX_TIME_MS + 1, 2**62])
def test_kafkas_own_time_must_be_one(timestamp: int) -> None:
    """A record without a time field and with a timestamp that is none is set aside: event times are never negative."""
    assert reason(Given(b'{"session": "a"}', timestamp=timestamp)) == "bad_time"
    assert len(decode(Given(b'{"session": "a", "ts": 1}', timestamp=timestamp))) == 1


def test_the_end_event_is_matched_by_value_and_type() -> None:
    """All fields of end_when must be equal, and JSON's true is not 1."""
    decoder = Decoder("session", None, ["action"], {"final": 1, "x.y": "z"})
    events = decode(
        as_json(session="a", final=1, x={"y": "z"}), as_json(session="a", final=1.0, x={"y": "z"}),
        as_json(session="a", final=True, x={"y": "z"}), as_json(session="a", final=1), as_json(session="a"),
        as_json(session="a", final=[1], x={"y": "z"}), decoder=decoder,
    )  # fmt: skip
    assert events.ends.tolist() == [True, True, False, False, False, False]


def test_numbers_and_truth_values_are_categories() -> None:
    """As the text that JSON has for them; they are often codes, such as an HTTP status."""
    events = decode(
        as_json(session="a", action=200), as_json(session="a", action=True), as_json(session="a", action="x")
    )
    assert events.tokens[0] == ["200", "true", "x"]


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "session": st.sampled_from(["a", "b", 1, 1.5, ""]), "action": st.sampled_from(["x", 1, True, None, []]),
                "ts": st.sampled_from([1, 2.5, 10**12, "2026-01-02T03:04:05Z", "soon", None, 2**70, True]),
                "final": st.sampled_from([True, 1]),
            },
        ),
        max_size=12,
    ),
    st.booleans(),
)  # fmt: skip
def test_a_record_is_read_alike_in_any_company(values: list[dict[str, Any]], check_key: bool) -> None:
    """A slice read at once gives what its records give one by one, events and rejects."""
    records = [Given(json.dumps(value).encode(), offset=i, key=b"a") for i, value in enumerate(values)]
    whole = decode(*records, check_key=check_key)
    alone = [decode(record, check_key=check_key) for record in records]
    good = [(i, one) for i, one in enumerate(alone) if len(one)]
    assert whole.index.tolist() == [i for i, _ in good]
    assert whole.time_ms.tolist() == [int(one.time_ms[0]) for _, one in good]
    assert [whole.sessions[s] for s in whole.session] == [one.sessions[0] for _, one in good]
    assert whole.tokens == [[one.tokens[f][0] for _, one in good] for f in range(2)]
    assert whole.ends.tolist() == [bool(one.ends[0]) for _, one in good]
    assert [(r.index, str(r.error)) for r in whole.rejects] == [
        (i, str(one.rejects[0].error)) for i, one in enumerate(alone) if not len(one)
    ]


def test_a_token_may_end_sessions_by_its_number() -> None:
    """`end_when` compares what the JSON has, before it becomes a category."""
    decoder = Decoder("session", None, ["status"], {"status": 200})
    events = decode(as_json(session="a", status=200), as_json(session="a", status="200"), decoder=decoder)
    assert events.ends.tolist() == [True, False]
    assert events.tokens == [["200", "200"]]


def test_a_message_is_read_once_beside_a_bad_record() -> None:
    """Bad records make a slice be looked at again; what counts messages must not see them twice."""
    said: list[str | None] = []

    def read(messages: Sequence[str | None]) -> ReadMessages:
        said.extend(messages)
        return ReadMessages(["a template"] * len(messages), np.full((len(messages), 1), 7.0))

    decoder = Decoder("session", None, ["action"], {}, "message", read_messages=read)
    good = [as_json(session="a", action="x", message=f"line {i}") for i in range(5)]
    events = decode(*good[:2], as_json(session="a", action=1.5, message="bad"), *good[2:], decoder=decoder)
    assert said == events.messages == [f"line {i}" for i in range(5)]
    assert events.tokens == [["x"] * 5, ["a template"] * 5]
    assert events.numbers.tolist() == [[7.0]] * 5


MEASURED = Decoder("session", None, ["action"], {}, numbers=["cpu", "disk.free", "load[1]"])


def test_numbers_are_columns() -> None:
    """Whole numbers, fractions and texts; what is absent, null, empty or NaN is missing, what is infinite too."""
    beyond = [b"1e999", b"-1e999", b"9" * 400, b'"inf"', b'"-Infinity"', b'"1e400"']
    missing = [b"null", b'""', b'"nan"', b'"NaN"', b'"-nan"']
    good = {b"7": 7.0, b"-0.5": -0.5, b'"12.5"': 12.5, b'" 1e3 "': 1_000.0, b'"+4"': 4.0, b"9007199254740993": 2.0**53}
    values = [*beyond, *missing, *good]
    events = decode(
        *(Given(b'{"session": "a", "cpu": %b, "disk": {"free": %b}, "load": [[], %b]}' % (v, v, v)) for v in values),
        Given(b'{"session": "a", "disk": null, "load": [1]}'), decoder=MEASURED,
    )  # fmt: skip
    assert not events.rejects
    column = np.array([*[np.nan] * (len(beyond) + len(missing)), *good.values(), np.nan])
    assert events.numbers.dtype == np.float64
    np.testing.assert_array_equal(events.numbers, np.stack([column] * 3, axis=1))
    assert events.infinite == 3 * len(beyond)


@pytest.mark.parametrize(
    "value",
    [b"true", b"{}", b"[]", b"[1]", b'"abc"', b'"0x10"', b'"1_000"', b'"1,5"', b'"12ms"', b'"-"', b"9" * 5_000],
)  # fmt: skip
@pytest.mark.parametrize("more", [b"1", b"1e999"])
def test_what_is_no_number_is_named(value: bytes, more: bytes) -> None:
    """The record is set aside and the reason names the field; also beside a number that no float can hold."""
    record = Given(b'{"session": "a", "cpu": %b, "disk": {"free": %b}}' % (more, value))
    assert reason(record, MEASURED) == "wrong_type"
    assert "disk.free" in str(decode(record, decoder=MEASURED).rejects[0].error)


def test_a_number_beyond_floats_spoils_no_other_check() -> None:
    """The session, tokens and times of such a record are held to their kinds as ever."""
    decoder = Decoder("session", "ts", ["action"], {}, numbers=["cpu", "ts"])
    for bad in (b'"session": 1.5', b'"action": []', b'"ts": true', b'"ts": [1]', b'"ts": 1e999', b'"cpu": {}'):
        assert reason(Given(b'{"cpu": 1e999, "session": "a", %b}' % bad), decoder) in {"wrong_type", "bad_time"}


def test_one_sample_a_record() -> None:
    """A field names the number, and is a token; the value is the one number column."""
    decoder = Decoder("session", None, ["host", "metric"], {}, named=("metric", "value"))
    events = decode(
        as_json(session="a", host="h", metric="cpu", value="0.5"), as_json(session="a", metric="mem", value=7),
        as_json(session="a", value=None), decoder=decoder,
    )  # fmt: skip
    assert events.tokens == [["h", None, None], ["cpu", "mem", None]]
    np.testing.assert_array_equal(events.numbers, [[0.5], [7.0], [np.nan]])


def test_numbers_of_text() -> None:
    """Lines have texts only, so these are read as numbers."""
    decoder = Decoder("host", None, [], {}, text=LineReader(None), numbers=["cpu", "mem"])
    events = decode(
        Given(b"host=a cpu=0.25 mem=12"), Given(b"host=a cpu= mem=+Inf"), Given(b'{"host": "a", "cpu": 3}'),
        Given(b"host=a cpu=high"), decoder=decoder,
    )  # fmt: skip
    np.testing.assert_array_equal(events.numbers, [[0.25, 12.0], [np.nan, np.nan], [3.0, np.nan]])
    assert (events.infinite, [r.error.reason for r in events.rejects]) == (1, ["wrong_type"])


numbers = st.sampled_from(
    [1, 2.5, None, "", "nan", "3", "x", True, [], "inf", 10**400, float("inf"), float("nan"), -0.0]
) | st.floats()  # fmt: skip


@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional={"cpu": numbers, "disk": st.none() | st.fixed_dictionaries({"free": numbers})}
        )
    ),
    st.integers(1, 3),
)
def test_numbers_are_read_alike_in_any_company(values: list[dict[str, Any]], most: int) -> None:
    """A slice gives what its records give one by one, and its pieces hold the same."""
    records = [
        Given(json.dumps(v | {"session": f"{i % 3}"}).replace("Infinity", "1e999").encode(), offset=i)
        for i, v in enumerate(values)
    ]
    whole = decode(*records, decoder=MEASURED)
    alone = [decode(record, decoder=MEASURED) for record in records]
    for parts in (alone, list(whole.pieces(most))):
        together = np.concatenate([np.empty((0, 3)), *(part.numbers for part in parts)])
        np.testing.assert_array_equal(together.view(np.int64), whole.numbers.view(np.int64))
        assert sum(part.infinite for part in parts) == whole.infinite
    assert [str(r.error) for r in whole.rejects] == [str(r.error) for one in alone for r in one.rejects]
    assert not np.isinf(whole.numbers).any()


def test_without_number_fields_there_are_no_columns() -> None:
    """The array is there all the same, with a row for each event."""
    assert decode(as_json(session="a"), as_json(session="b")).numbers.shape == (2, 0)


def test_a_field_inside_another_is_refused() -> None:
    """`user` and `user.id` cannot both be read."""
    with pytest.raises(ValueError, match="the field user is used as a value and, in another place, as an object"):
        Decoder("user", None, ["user.id"], {})


@given(st.lists(st.binary(max_size=60) | st.none(), max_size=8))
def test_any_bytes_are_read_or_set_aside(values: list[bytes | None]) -> None:
    """Whatever bytes come, each record is an event, a reject or a tombstone, and nothing is raised."""
    check_each_is_accounted_for([Given(value, offset=i) for i, value in enumerate(values)])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["session", "ts", "action", "user", "country", "final", "x"]), inner)
    ),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=5), st.booleans())
def test_any_json_is_read_or_set_aside(values: list[Any], check_key: bool) -> None:
    """Whatever JSON comes, each record is an event, a reject or a tombstone, and nothing is raised."""
    records = [Given(json.dumps(value).encode(), offset=i) for i, value in enumerate(values)]
    check_each_is_accounted_for(records, check_key=check_key)


def check_each_is_accounted_for(records: list[Given], *, check_key: bool = False) -> None:
    for decoder in (DECODER, Decoder("@key", None, ["session", "x"], {})):
        events = decode(*records, decoder=decoder, check_key=check_key)
        assert len(events) + len(events.rejects) + events.tombstones == len(records)
        assert events.next_offset == (records[-1].offset + 1 if records else None)
        assert all(isinstance(reject.error, RecordError) for reject in events.rejects)
        assert [len(column) for column in events.tokens] == [len(events)] * 2
        assert all(isinstance(text, str | None) for column in events.tokens for text in column)
        assert all(events.time_ms >= 0)


@given(st.lists(st.sampled_from("abcdef!"), max_size=30), st.integers(1, 7))
def test_pieces_are_the_same_events(names: list[str], most: int) -> None:
    """Pieces hold at most that many sessions, concatenate to the same events, and cover just their own rejects."""
    records = [
        Given(
            b"bad" if name == "!" else json.dumps({"session": name, "action": f"{i}", "ts": i}).encode(), offset=2 * i
        )
        for i, name in enumerate(names)
    ]
    whole = decode(*records)
    pieces = list(whole.pieces(most))
    assert all(len(piece.sessions) <= most for piece in pieces)
    for column in ("index", "offsets", "time_ms", "ends"):
        assert np.concatenate([getattr(p, column) for p in pieces]).tolist() == getattr(whole, column).tolist()
    assert [p.sessions[s] for p in pieces for s in p.session.tolist()] == [whole.sessions[s] for s in whole.session]
    assert [text for p in pieces for text in p.tokens[0]] == whole.tokens[0]
    assert [r for p in pieces for r in p.rejects] == whole.rejects
    assert sum(p.tombstones for p in pieces) == whole.tombstones
    assert pieces[-1].next_offset == whole.next_offset
    for piece, after in pairwise(pieces):
        assert piece.next_offset == after.offsets[0]
        assert all(records[r.index].offset < after.offsets[0] for r in piece.rejects)
        assert all(records[r.index].offset > after.offsets[0] for r in after.rejects)


def test_segments() -> None:
    """Segments are read as tokens are, and masked; an absent or empty one is none, a wrong one no record."""
    rules = parse_rules({"user": "hash"})
    for masker in (NO_MASK, make_masker(rules, b"a secret of this test")):
        decoder = Decoder("session", None, ["action"], {}, segment="user.country", masker=masker)
        given_ = [b'{"session": "a", "user": {"country": %s}}' % c for c in (b'"DK"', b"7", b"true", b'""', b"null")]
        records = [Given(value, offset=i) for i, value in enumerate([*given_, b'{"session": "a"}'])]
        events = decoder.decode(records, check_key=False)
        plain = ["DK", "7", "true"]
        shown = plain if masker is NO_MASK else [masker.value("user", text) for text in plain]
        assert events.segments is not None
        assert events.segments[:3] == shown
        assert events.segments[4:] == [None, None]
        assert masker is not NO_MASK or events.segments[3] is None
        assert len(events.tokens) == 1
        wrong = decoder.decode([Given(b'{"session": "a", "user": {"country": []}}')], check_key=False)
        assert [reject.error.reason for reject in wrong.rejects] == ["wrong_type"]
        assert decoder.decode([], check_key=False).segments == []
    assert decode(Given(b'{"session": "a"}')).segments is None
