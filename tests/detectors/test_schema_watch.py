"""Fields that vanish, change their type or fill with unknown values: found where they do, however the stream is cut."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from math import comb
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.schema_watch import BLOCK, FIRST, WINDOW, FieldDrift, SchemaState, SchemaWatch, drifts_from
from features.decode import Decoder
from features.events import Events
from features.masking import make_masker, parse_rules
from features.tokens import TokenEncoder, Vocabulary
from pipeline.outputs import Place
from pipeline.partition_row import PartitionRow, decode_partition_row
from pipeline.score import Line

FIELDS = ("action", "user.plan")
WORDS = Vocabulary(FIELDS, (("view", "pay"), ("free", "pro")))
USUAL = {
    "missing/action": 0.0, "missing/user.plan": 0.2, "missing/id": 0.0, "missing/ts": 0.0, "type/action": 0.0,
    "type/user.plan": 0.0, "type/id": 0.0, "type/ts": 0.01, "unknown/action": 0.0, "unknown/user.plan": 0.05,
}  # fmt: skip
WATCH = SchemaWatch(FIELDS, (), ("id",), "ts", USUAL)
DECODER = Decoder("id", "ts", FIELDS, {})
PLACE = Place("t", 0)
Json = dict[str, Any]


def record(**changed: Any) -> Json:
    """A record as training had them; None leaves a key out."""
    whole = {"id": "s", "ts": 1_700_000_000, "action": "view", "user": {"plan": "pro"}} | changed
    return {key: value for key, value in whole.items() if value is not None}


def lines(records: list[Json]) -> list[Line]:
    """Records one second and three offsets apart."""
    made = []
    for i, r in enumerate(records):
        timed = r | {"ts": r["ts"] + i} if isinstance(r["ts"], int) else r
        made.append(Line(i, PLACE, 10 + 3 * i, 0, None, json.dumps(timed).encode()))
    return made


def watched(
    records: list[Json], cuts: list[int], watch: SchemaWatch = WATCH, *, saved: bool = False, decoder: Decoder = DECODER
) -> tuple[SchemaState | None, list[FieldDrift], dict[str, int], dict[str, int]]:
    """State, drifts and counts, of the records in slices, perhaps saved and read back between them."""
    encoder = TokenEncoder(2, WORDS if watch.usual is not None else None)
    state, drifts, missing, wrong = None, list[FieldDrift](), dict[str, int](), dict[str, int]()
    made, bounds = lines(records), sorted({0, len(records), *(c for c in cuts if c < len(records))})
    for low, high in pairwise(bounds):
        events: Events = decoder.decode(made[low:high], check_key=False)
        state, found = watch.update_many(state, events, encoder.ids(events.tokens))
        drifts += found.drifts
        for total, more in ((missing, found.missing), (wrong, found.wrong_type)):
            for name, count in more.items():
                total[name] = total.get(name, 0) + count
        if saved:
            row = PartitionRow(0, -1, 0, 0, "", None, "", "", 0, 0, schema=state)
            state = decode_partition_row(row.encode()).schema
    return state, drifts, missing, wrong


def naive(records: list[Json]) -> list[tuple[str, str, bool, int, int]]:
    """Kind, field, begun, offset and affected of each drift, record by record."""
    blocks: list[dict[str, int]] = [{}]
    is_open, found = set[str](), []
    for i, r in enumerate(records):
        plan = r.get("user", {}).get("plan") if isinstance(r.get("user", {}), dict) else 0
        wrong = [] if isinstance(r["id"], str) else ["type/id"]
        wrong += ["type/action"] if not isinstance(r.get("action", ""), str | bool) else []
        wrong += ["type/user.plan"] if plan is not None and not isinstance(plan, str) else []
        keys = [] if not wrong else [wrong[0]]
        if not wrong and r["id"] == "":
            keys = ["missing/id"]
        elif not wrong and r["ts"] == "never":
            keys = ["type/ts"]
        elif not wrong:
            for name, value in (("action", r.get("action")), ("user.plan", plan)):
                if value is None:
                    keys.append(f"missing/{name}")
                elif value not in WORDS.tokens[FIELDS.index(name)]:
                    keys.append(f"unknown/{name}")
        for key in keys:
            blocks[-1][key] = blocks[-1].get(key, 0) + 1
        if i % BLOCK == BLOCK - 1:
            for key, usual in USUAL.items():
                affected, limit = sum(b.get(key, 0) for b in blocks[-WINDOW:]), drifts_from(usual)
                back = affected <= (usual * BLOCK * WINDOW + limit) / 2
                if (key not in is_open and affected >= limit) or (key in is_open and back):
                    is_open ^= {key}
                    found.append((*key.split("/"), key in is_open, 10 + 3 * i, affected))
            blocks.append({})
    return found


@st.composite
def streams(draw: st.DrawFn) -> list[Json]:
    """Runs of records that are all alike or mixed, long enough to begin and to end drifts."""
    odd: st.SearchStrategy[Json] = st.sampled_from([
        record(), record(action=None), record(action=[1]), record(action="new"), record(action=True),
        record(user=None), record(user=7), record(user={"plan": "gold"}), record(id=""), record(ts="never"),
    ])  # fmt: skip
    out: list[Json] = []
    for _ in range(draw(st.integers(1, 5))):
        kinds = draw(st.lists(odd, min_size=1, max_size=3))
        out += [kinds[i % len(kinds)] for i in range(draw(st.integers(1, 900)))]
    return out


@settings(max_examples=60, deadline=None)
@given(streams(), st.lists(st.integers(1, 3_000), max_size=12), st.booleans())
def test_any_slicing_finds_what_one_look_at_a_time_finds(records: list[Json], cuts: list[int], saved: bool) -> None:
    """Cut anywhere, saved and restored between the slices: the same drifts at the same offsets, and the same state."""
    whole = watched(records, [])
    assert watched(records, cuts, saved=saved) == whole
    assert [(d.kind, d.field, d.has_begun, d.offset, d.affected) for d in whole[1]] == naive(records)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.2, 0.5, 0.9])
def test_chance_begins_no_drift(share: float) -> None:
    """If each record were affected with the highest share of training, a judgement would err once in 1e9 at most."""
    n = BLOCK * WINDOW
    limit = drifts_from(share)
    assert limit > (share + 0.05) * n
    tail = sum(comb(n, c) * share**c * (1 - share) ** (n - c) for c in range(limit, n + 1))
    assert tail <= 1e-9


def began(drifts: list[FieldDrift]) -> list[tuple[str, str, bool]]:
    return [(d.kind, d.field, d.has_begun) for d in drifts]


@pytest.mark.parametrize(
    ("odd", "kind", "name"),
    [
        (record(action=None), "missing", "action"), (record(action={"a": 1}), "type", "action"),
        (record(action="teleport"), "unknown", "action"), (record(user="pro"), "type", "user.plan"),
        (record(user=None), "missing", "user.plan"), (record(ts="soon"), "type", "ts"),
        (record(id=None), "missing", "id"),
    ],
)  # fmt: skip
def test_a_field_that_changes_is_one_drift(odd: Json, kind: str, name: str) -> None:
    """It begins within two blocks, lasts as long as the records do, and ends within five blocks after them."""
    state, drifts, missing, wrong = watched([record()] * 600 + [odd] * 1_000 + [record()] * 1_400, [])
    assert began(drifts) == [(kind, name, True), (kind, name, False)]
    assert 600 < (drifts[0].offset - 10) / 3 <= 600 + 3 * BLOCK
    assert 1_600 < (drifts[1].offset - 10) / 3 <= 1_600 + (WINDOW + 1) * BLOCK
    assert drifts[1].records >= 600
    assert drifts[0].since_ms == drifts[1].since_ms
    assert (missing, wrong) == (
        ({name: 1_000}, {}) if kind == "missing" else ({}, {name: 1_000} if kind == "type" else {})
    )
    assert state is not None
    assert state.drifts == {}


def test_the_value_that_floods_is_named() -> None:
    """Where most unknown values are one; not where they differ, nor in a masked stream, which keeps none."""
    flood = [record(action=f"x{i}" if i % 8 == 0 else "teleport") for i in range(BLOCK)]
    state, (drift,), _, _ = watched(flood, [100])
    assert (drift.kind, drift.value, drift.affected, drift.of) == ("unknown", "teleport", BLOCK, BLOCK)
    assert watched([record(action=f"x{i}") for i in range(BLOCK)], [])[1][0].value is None
    masked = replace(WATCH, tells_values=False)
    state, (drift,), _, _ = watched([*flood, record(action="secret")], [], masked)
    assert drift.value is None
    assert "teleport" not in repr(state)
    assert "secret" not in repr(state)


def test_masked_records_that_are_set_aside_still_name_the_field() -> None:
    """The error of a masked stream says nothing of the record, but the field of a wrong type is counted."""
    decoder = Decoder("id", "ts", FIELDS, {}, masker=make_masker(parse_rules({"action": "hash"}), b"0" * 16))
    _, _, _, wrong = watched([record(user={"plan": [1]}), record(action="x" * 2_000)], [], decoder=decoder)
    assert wrong == {"user.plan": 1, "action": 1}


def test_what_training_had_is_usual() -> None:
    """The highest share of any window counts; unknown values only among records that taught the model nothing."""
    records = [record()] * 1_024 + [record(action=None), record()] * 512 + [record(action="new"), record(user=1)] * 512
    events = DECODER.decode(lines(records), check_key=False)
    ids = TokenEncoder(2, WORDS).ids(events.tokens)
    held_back = np.zeros(len(events), np.bool_)
    usual = WATCH.learn([(events, ids, held_back)])
    assert usual["missing/action"] == 0.5
    assert usual["type/user.plan"] == 0.5
    assert usual["unknown/action"] == 0.0
    assert WATCH.learn([(events, ids, ~held_back)])["unknown/action"] == 0.5
    assert set(usual) == set(USUAL)
    assert watched(records, [], replace(WATCH, usual=usual | {"unknown/action": 0.5}))[1] == []


def test_before_training_only_a_path_that_nothing_has_is_found() -> None:
    """After a thousand records without a single one that has the field, once; with one it is only seldom."""
    watch = SchemaWatch(FIELDS, (), ("id",), "ts")
    state, (drift,), missing, _ = watched([record(action=None)] * 2_500, [700], watch)
    assert (drift.field, drift.kind, drift.usual, drift.offset) == ("action", "missing", None, 10 + 3 * (FIRST - 1))
    assert missing == {"action": 2_500}
    assert watched([*[record(action=None)] * (FIRST - 1), record()] * 2, [], watch)[1] == []
    assert began(watched([record(id=None)] * FIRST, [], watch)[1]) == [("missing", "id", True)]
    # What the first thousand lacked is judged once a bundle says what is usual.
    assert state is not None
    events = DECODER.decode(lines([record()] * BLOCK), check_key=False)
    state, found = WATCH.update_many(state, events, TokenEncoder(2, WORDS).ids(events.tokens))
    assert began(list(found.drifts)) == [("missing", "action", False)]


def test_what_is_remembered_is_bounded() -> None:
    """A flood of long distinct values leaves a few hundred bytes a field."""
    state, *_ = watched([record(action="x" * 900 + str(i)) for i in range(3_000)], [500, 900])
    row = PartitionRow(0, -1, 0, 0, "", None, "", "", 0, 0, schema=state)
    assert len(row.encode()) < 3_000
