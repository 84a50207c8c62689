"""What reads foreign bytes, and what must hold of each whatever comes.

Each row of `TARGETS` is run by `make test` and by `python -m tests.fuzz`. A row needs a strategy of inputs, and a check
that raises where something does not hold: a result has the promised shape, or the one promised error is raised.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

from features.decode import Decoder
from features.errors import BadTimeError, RecordError, WrongTypeError
from features.event_time import MAX_TIME_MS, parse_time_ms
from features.number_columns import read_numbers
from features.numbers import MISSING, NumberBins
from features.otlp import flatten
from features.parameters import with_parameters
from features.redact import redact
from features.shapes import WILDCARD, shape_of
from features.template_mining import mine
from features.templates import Matcher, Template
from features.text_lines import LineReader
from tests.fuzz import inputs

MAX_SECONDS = 2.0  # of processor time for one input, many times what the slowest takes


@dataclass(frozen=True)
class Target:
    """Something to fuzz: what it is called, what it is given, and what must hold."""

    name: str
    given: SearchStrategy[Any]
    check: Callable[[Any], None]


@dataclass(frozen=True)
class Line:
    """A record of one partition."""

    value: bytes
    key: bytes | None = b"a"
    offset: int = 7
    timestamp: int = 5


DECODERS = (
    Decoder("session", "ts", ["action", "user.country"], {"action": "close", "final": True}),
    Decoder("@key", None, ["session", "n"], {}),
    Decoder("@key", None, [], {}, numbers=["ts", "n[1]", "user.age"]),
    Decoder("@key", None, ["lvl"], {}, text=LineReader(None), numbers=["items", "n", "status"]),
)
READERS = (LineReader(None), LineReader(r"(?P<time>\S+ \S+) (?:\[(?P<thread>[^\]]*)\] )?(?P<message>.*)"))


def check_time(value: str | int | float) -> None:
    """A time is a moment from 1970 to 9999, or a BadTimeError."""
    try:
        found = parse_time_ms(value)
    except BadTimeError:
        return
    assert isinstance(found, int)
    assert 0 <= found <= MAX_TIME_MS


def check_decoder(value: bytes) -> None:
    """A record is an event or a reject with a reason; in each case the offset moves on."""
    for decoder in DECODERS:
        events = decoder.decode([Line(value)], check_key=True)
        assert len(events) + len(events.rejects) == 1
        assert all(isinstance(reject.error, RecordError) and str(reject.error) for reject in events.rejects)
        assert all(isinstance(text, str | None) for column in events.tokens for text in column)
        assert events.next_offset == 8
        assert not np.isinf(events.numbers).any()
        assert 0 <= events.infinite <= events.numbers.size - np.count_nonzero(~np.isnan(events.numbers))


def check_numbers(values: list[Any]) -> None:
    """A number is read or refused; those read have ids, finite surprise in the tails, and an interval."""
    good = []
    for value in values:
        try:
            found, infinite = read_numbers([("n", [value])], 1)
        except WrongTypeError:
            continue
        assert infinite <= np.isnan(found).sum()
        good.append(found)
    numbers = np.concatenate([np.empty((0, 1)), *good])
    learned = NumberBins.learn(numbers[::2], bins=4)
    assert repr(NumberBins.from_json(learned.to_json())) == repr(learned)
    ids = learned.encoder().ids(numbers, None)
    assert ((ids == MISSING) == np.isnan(numbers)).all()
    assert (ids < learned.sizes[0]).all()
    tails = learned.encoder().tails(numbers, ids, None)
    assert np.isfinite(tails).all()
    assert (tails >= 0).all()
    interval = learned.binnings[0].interval(np.bincount(ids[:, 0], minlength=learned.sizes[0]).astype(np.float64))
    assert interval is None or (np.isfinite(interval).all() and list(interval) == sorted(interval))


def check_exports(value: bytes) -> None:
    """Samples are JSON with all their keys, the same each time; or a RecordError says why there are none."""
    try:
        found = flatten(value)
    except RecordError:
        return
    assert flatten(value) == found
    keys = ["time", "metric", "value", "type", "unit", "scope", "resource"]
    assert all(list(json.loads(sample)) == keys for sample in found)


def check_lines(value: bytes) -> None:
    """A line gives fields with names, the same each time, or a RecordError."""
    for reader in READERS:
        try:
            fields = reader.read(value)
        except RecordError:
            continue
        assert all(isinstance(name, str) for name in fields)  # an empty JSON object has none
        assert repr(fields) == repr(reader.read(value))


def check_redaction(text: str) -> None:
    """Redacting twice changes nothing."""
    once = redact(text)
    assert redact(once) == once


def check_templates(text: str) -> None:
    """Mined lines match one of their templates; any line has an answer, the same each time, and finite numbers."""
    lines = [text, "Query 7 took 3 ms"]
    templates = with_parameters(mine(lines), lines * 20, 4)
    found = [Matcher(templates).match([text, f"{text} more"]) for _ in range(2)]
    assert found[0] == found[1]
    texts, numbers = Matcher(templates).read([text, f"{text} more"], 4)
    assert [None if t is None else Template(t).id for t in texts] == found[0].ids
    assert not np.isinf(numbers).any()
    assert found[0].ids[0] is not None or not set(shape_of(text)) - {WILDCARD}


TARGETS = (
    Target("event time", inputs.times, check_time),
    Target("JSON decoder", inputs.lines, check_decoder),
    Target("numbers", inputs.measures, check_numbers),
    Target("exports of metrics", inputs.exports, check_exports),
    Target("text lines", inputs.lines, check_lines),
    Target("masker", inputs.texts, check_redaction),
    Target("templates", inputs.texts, check_templates),
)


def fuzz(target: Target, examples: int, number: int, told: Callable[[int], None] = lambda _: None) -> int:
    """Check so many inputs, drawn from a seed; returns how many, or raises with the smallest input that fails."""
    done = 0

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.given)
    def one(value: Any) -> None:
        nonlocal done
        began = time.process_time()
        target.check(value)
        assert time.process_time() - began < MAX_SECONDS
        done += 1
        told(done)

    one()
    return done
