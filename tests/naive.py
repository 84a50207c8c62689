"""Slow, obvious versions of what the product does fast. They share the kernel and nothing else of the fast path."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from detectors.calibration import Calibration
from detectors.parts import Learned, Parts
from features.tokens import stable_hash
from tests.naive_keeper import NaiveKeeper
from tests.naive_online import NaiveOnline, Session


@dataclass(frozen=True)
class Event:
    """One valid record."""

    offset: int
    session: str
    time_ms: int
    tokens: tuple[str | None, ...]
    is_end: bool
    id: str | None = None
    numbers: tuple[float, ...] = ()
    segment: str | None = None


@dataclass
class Row:
    """One session's state."""

    hidden: np.ndarray
    events: int = 0
    first_ms: int = 0
    last_ms: int = 0
    worst: float = -math.inf
    worst_offset: int = -1
    applied: int = -1
    context: list[tuple[int, tuple[int, ...], tuple[float, ...]]] = field(default_factory=list)
    counters: dict[str, tuple[float, int]] = field(default_factory=dict)  # last value of each, and when that was
    online: Session = field(default_factory=Session)
    segment: str | None = None  # its first event's
    profile: dict[int, int] = field(default_factory=dict)  # how often each token came, in order of first comings
    bad: np.float32 | float = 0.0  # how probably it is in a bad stretch
    in_stretch: bool = False


@dataclass
class Partition:
    """One partition's state."""

    watermark_ms: int = -1
    rows: dict[str, Row] = field(default_factory=dict)
    waiting: dict[str, list[Event]] = field(default_factory=dict)
    recent: list[str] = field(default_factory=list)  # ids of the last events
    online: NaiveOnline = field(default_factory=NaiveOnline)
    news: dict[str, Any] = field(default_factory=lambda: {"seen": 0, "tokens": {}})
    keeper: NaiveKeeper = field(default_factory=NaiveKeeper)
    none_due_before_ms: float = -math.inf  # nothing is due before that; spares looking at all sessions


Verdict = dict[str, Any]


def process_one(event: Event, partition: Partition, parts: Parts) -> list[Verdict]:
    """All verdicts that one event brings: whatever its time makes due, then its own, if it need not wait."""
    rules, verdicts = parts.rules, []
    if event.id is not None and parts.remembered:
        if event.id in partition.recent:
            return []
        partition.recent = [*partition.recent, event.id][-parts.remembered :]
    passed = partition.watermark_ms - rules.reorder_ms
    partition.watermark_ms = max(partition.watermark_ms, event.time_ms)
    watermark = partition.watermark_ms - rules.reorder_ms
    waiting = sorted([*partition.waiting.get(event.session, []), event], key=lambda e: (e.time_ms, e.offset))
    while waiting and (waiting[0].time_ms <= watermark or len(waiting) > rules.reorder_events):
        first = waiting.pop(0)
        verdicts += take(first, max(first.time_ms, passed), partition, parts)
    partition.waiting.pop(event.session, None)
    if waiting:
        partition.waiting[event.session] = waiting
        partition.none_due_before_ms = min(partition.none_due_before_ms, waiting[0].time_ms - 1)
    if partition.none_due_before_ms < watermark:
        for name in {**partition.rows, **partition.waiting}:
            verdicts += look_at(name, watermark, partition, parts)
        due = [over_ms(row, parts) for row in partition.rows.values()]
        due += [held[0].time_ms - 1 for held in partition.waiting.values()]
        partition.none_due_before_ms = min(due, default=math.inf)
    partition.keeper.count_record(parts, partition.watermark_ms)
    return verdicts


def look_at(name: str, watermark: float, partition: Partition, parts: Parts) -> list[Verdict]:
    """Release the events of a session that need not wait any more, and end it if it is over."""
    verdicts, waiting = [], partition.waiting.get(name, [])
    while waiting and waiting[0].time_ms <= watermark:
        event = waiting.pop(0)
        verdicts += take(event, event.time_ms, partition, parts)
    if not waiting:
        partition.waiting.pop(name, None)
    if name in partition.rows and over_ms(partition.rows[name], parts) < watermark:
        verdicts.append(end_over(name, partition, parts))
    return verdicts


def over_ms(row: Row, parts: Parts) -> int:
    """After which watermark a session is over."""
    return min(row.last_ms + parts.rules.gap_ms, row.first_ms + parts.rules.max_duration_ms)


def end_over(name: str, partition: Partition, parts: Parts) -> Verdict:
    """End a session that is over, by silence or by duration."""
    row, rules = partition.rows[name], parts.rules
    silent = row.last_ms + rules.gap_ms <= row.first_ms + rules.max_duration_ms
    return end_session(name, "gap" if silent else "limit", partition, parts)


def take(event: Event, watermark: int, partition: Partition, parts: Parts) -> list[Verdict]:
    """Score an event, and step its session unless it comes too late."""
    verdicts, rules, name = [], parts.rules, event.session
    if name in partition.rows and over_ms(partition.rows[name], parts) < watermark:
        verdicts.append(end_over(name, partition, parts))
    row = partition.rows.get(name)
    opens = row is None
    if row is None:
        row = Row(np.zeros(parts.shape.hidden, np.float32), first_ms=event.time_ms, segment=event.segment)
    late = False
    if rules.allowed_ms is not None:
        oldest = watermark - min(rules.gap_ms, rules.max_duration_ms) if opens else row.last_ms - rules.allowed_ms
        late = event.time_ms < oldest
    gap_ms = 0 if opens or late else max(0, event.time_ms - row.last_ms)
    measures = measures_of(event, {} if late else row.counters, parts)
    if parts.measures.gaps:
        measures = (*measures, math.nan if opens or late else float(np.float32(gap_ms / 1000)))
    news = look_for_news(event, partition.news, parts)
    score, hidden = score_of(event, measures, row.hidden, gap_ms, parts, opens=opens, news=news)
    decided = {"kind": "record", "offset": event.offset, "session": name, "late": late, "segment": event.segment}
    judged = judge(score, parts, "records", event.segment, partition.keeper, late=late)
    if "news" in news:
        p_value = min(judged["p_value"], parts.rate)
        judged |= {"p_value": p_value, "anomaly": p_value <= parts.rate}
    if parts.learns_online:
        judged = partition.online.score_one(event.tokens, measures, row.online, parts, learns=not late)
        score = math.nan if judged["score"] is None else np.float32(judged["score"])
        hidden = hidden.copy()
        hidden[:2] = row.online.smallest_p, row.online.confidence
    if late:
        return [*verdicts, decided | judged | {"anomaly": False, "tag": None, "tag_confidence": None}]
    judged |= tag_of(None if parts.learned is None else judged["p_value"], row, parts)
    partition.rows[name] = row
    row.hidden = hidden
    if score > row.worst:
        row.worst, row.worst_offset = score, event.offset
    row.events += 1
    row.last_ms = max(row.last_ms, event.time_ms)
    partition.none_due_before_ms = min(partition.none_due_before_ms, over_ms(row, parts))
    row.applied = event.offset
    row.context = [*row.context, (event.time_ms, tuple(map(stable_hash, event.tokens)), measures)]
    row.context = row.context[-parts.shape.context :]
    if parts.shape.profile:
        count_tokens(event, row.profile, parts.shape.profile)
    verdicts.append(decided | judged)
    if event.is_end:
        verdicts.append(end_session(name, "event", partition, parts))
    elif row.events >= rules.max_events:
        verdicts.append(end_session(name, "limit", partition, parts))
    return verdicts


def measures_of(event: Event, counters: dict[str, tuple[float, int]], parts: Parts) -> tuple[float, ...]:
    """Numbers as the model sees them: of counters the rate since the last value, as float32."""
    rules, out = parts.measures, []
    fields = parts.number_fields[: len(parts.number_fields) - parts.measures.gaps]
    for column, (field_name, value) in enumerate(zip(fields, event.numbers, strict=True)):
        by = name_column(column, parts)
        name = field_name if by is None else str(event.tokens[by])
        if column in rules.counters or (by is not None and name in rules.counter_names):
            out.append(float(np.float32(rate_of(name, value, event.time_ms, counters))))
        else:
            out.append(float(np.float32(value)))
    return tuple(out)


def name_column(column: int, parts: Parts) -> int | None:
    """Which token names the numbers of a column."""
    return parts.measures.named_by[column] if parts.measures.named_by else None


def rate_of(name: str, value: float, time_ms: int, counters: dict[str, tuple[float, int]]) -> float:
    """Growth per second since the counter's last value; one smaller than that began anew at 0."""
    if math.isnan(value):
        return math.nan
    before, before_ms = counters.get(name, (math.nan, -1))
    if not math.isnan(before) and time_ms <= before_ms:
        return math.nan
    counters[name] = (value, time_ms)
    grown = value - before if value >= before else value
    return math.nan if math.isnan(before) else grown / ((time_ms - before_ms) / 1000)


def number_nats(event: Event, measures: tuple[float, ...], learned: Learned, parts: Parts) -> list[tuple[int, float]]:
    """Id of each number, and what its tail adds."""
    out = []
    for column, value in enumerate(measures):
        by = name_column(column, parts)
        binning = learned.numbers.of(column, None if by is None else event.tokens[by])
        if math.isnan(value) or binning is None:
            out.append((1 if math.isnan(value) else 0, 0.0))
            continue
        ids = binning.ids(np.array([value]))
        out.append((int(ids[0]), binning.tail_surprise(np.array([value]), ids)[0]))
    return out


def range_of(event: Event, column: int, number: int, parts: Parts) -> tuple[int, int]:
    """Among which ids the number of a parameter is: missing or one of its template's, where these were learned.

    A gap is missing, or one of all that are not.
    """
    assert parts.learned is not None
    by = name_column(column, parts)
    binning = parts.learned.numbers.of(column, None if by is None else event.tokens[by])
    if binning is None or binning.size == 2:
        return number, number + 1
    if parts.measures.gaps and column == len(parts.number_fields) - 1:
        return (1, 2) if number == 1 else (2, binning.size)
    return 1, binning.size


def seasons_of(time_ms: int, wanted: tuple[str, ...]) -> list[int]:
    """Hour of the day and day of the week, from 1."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return [{"hour": moment.hour, "weekday": moment.weekday()}[name] + 1 for name in wanted]


def look_for_news(event: Event, counted: dict[str, Any], parts: Parts) -> list[str | None]:
    """Of each token "news" while it is rare, "absorbed" once it is not, or None where it is known or not looked at."""
    watched, _ = parts.news
    if parts.learned is None or not watched.any():
        return [None] * len(event.tokens)
    found: list[str | None] = []
    block = counted["seen"] // 256
    for column, (words, text) in enumerate(zip(parts.learned.vocabulary.tokens, event.tokens, strict=True)):
        if not watched[column] or text is None or text in words:
            found.append(None)
            continue
        came, blocks = counted["tokens"].setdefault((column, text), (0, set()))
        earlier = len(blocks - {block})
        head = 10_000 + counted["seen"]
        found.append("news" if earlier < max(16, 0.03 * head / 256) and came < 0.01 * head else "absorbed")
        counted["tokens"][column, text] = came + 1, blocks | {block}
    counted["seen"] += 1
    return found


def score_of(
    event: Event, measures: tuple[float, ...], hidden: np.ndarray, gap_ms: int, parts: Parts, *, opens: bool,
    news: list[str | None],
) -> tuple[float, np.ndarray]:  # fmt: skip
    """Surprise of an event under a state, without tokens that are no news any more, and the state after it."""
    if parts.learned is None:
        return math.nan, hidden
    ids = [
        words.index(text) + 2 if text in words else (1 if text is None else 0)
        for words, text in zip(parts.learned.vocabulary.tokens, event.tokens, strict=True)
    ]
    numbers = [] if parts.model.values else number_nats(event, measures, parts.learned, parts)
    among = [range_of(event, column, number, parts) for column, (number, _) in enumerate(numbers)]
    among = among[len(among) - parts.measures.parameters - parts.measures.gaps :]
    ids += [number for number, _ in numbers] + seasons_of(event.time_ms, parts.learned.seasonal)
    scores = parts.learned.runtime.score_and_step(
        np.array([0], np.int8), np.array([0], np.int32), np.array([0], np.int32), np.array([opens]),
        np.array([ids], np.int32), np.array([math.log1p(gap_ms / 1000.0)], np.float32), hidden[None],
        np.array(among, np.int32).reshape(1, -1, 2), np.array([measures], np.float32),
        np.array([[nats for _, nats in numbers]], np.float32), np.array([event.time_ms]),
    )  # fmt: skip
    total = np.float32(0)
    for nats, found in zip(scores.surprise[0], [*news, *[None] * len(scores.surprise[0])], strict=False):
        total = np.float32(total + (np.float32(0) if found == "absorbed" else nats))
    return total, scores.hidden[0]


def end_session(name: str, how: str, partition: Partition, parts: Parts) -> Verdict:
    """Close a session and judge it by the largest surprise of its records and of its end."""
    row = partition.rows.pop(name)
    score = math.nan
    if parts.learned is not None:
        nothing = np.zeros(0, np.int32)
        scores = parts.learned.runtime.score_and_step(
            np.array([2], np.int8), np.array([0], np.int32), np.array([0], np.int32), np.zeros(0, np.bool_),
            nothing.reshape(0, parts.shape.fields), nothing.astype(np.float32), row.hidden[None],
        )  # fmt: skip
        score = max(row.worst, scores.end_surprise[0])
        if parts.learned.profiles is not None:
            score = with_profile(score, row, parts)
    judged = judge(score, parts, "sessions", row.segment, partition.keeper)
    if row.online.smallest_p:
        p_value = min(1.0, row.events * row.online.smallest_p)
        judged = {"score": float(row.worst), "p_value": p_value, "anomaly": p_value <= parts.rate}
        judged |= {"confidence": row.online.confidence}
    return {
        "kind": "session", "offset": row.applied, "session": name, "ended": how, "events": row.events,
        "first_ms": row.first_ms, "last_ms": row.last_ms, "worst_offset": row.worst_offset, "segment": row.segment,
        **judged, **told_of("I" if row.in_stretch else "O", row),
    }  # fmt: skip


def tag_of(p_value: float | None, row: Row, parts: Parts) -> Verdict:
    """One step of the filter (Bayes' rule): where in a bad stretch of its session a record lies."""
    if p_value is None or math.isnan(p_value):
        return {"tag": None, "tag_confidence": None}
    enter = parts.rate / (1 + parts.rate)
    bad = float(row.bad) * 0.9 + (1 - float(row.bad)) * enter
    likely = 0.2 * p_value**-0.8
    row.bad = np.float32(bad * likely / (bad * likely + 1 - bad))
    was_in_stretch = row.in_stretch
    row.in_stretch = bool(row.bad >= (0.1 if was_in_stretch else 0.5))
    return told_of("O" if not row.in_stretch else "I" if was_in_stretch else "B", row)


def told_of(tag: str, row: Row) -> Verdict:
    """A tag, and how probable it is."""
    if row.bad == 0:
        return {"tag": None, "tag_confidence": None}
    return {"tag": tag, "tag_confidence": 1 - float(row.bad) if tag == "O" else float(row.bad)}


def count_tokens(event: Event, profile: dict[int, int], entries: int) -> None:
    """Count an event's tokens; once all entries but one are taken, new tokens count together, under key 1."""
    for column, text in enumerate(event.tokens):
        key = key_of(column, text)
        if key not in profile and len(profile) >= entries - 1:
            key = 1
        profile[key] = min(profile.get(key, 0) + 1, 65_535)


def key_of(column: int, text: str | None) -> int:
    """The key of a token: its hash and its field, mixed (the last step of splitmix64)."""
    key = (stable_hash(text) + 0x9E3779B97F4A7C15 * (column + 1)) % 2**64
    key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ key >> 27) * 0x94D049BB133111EB % 2**64
    key ^= key >> 31
    return key if key > 1 else key + 2


def with_profile(surprise: float, row: Row, parts: Parts) -> float:
    """What a session's surprise and its profile say together."""
    learned = parts.learned
    assert learned is not None
    assert learned.profiles is not None
    assert learned.combined is not None
    known = learned.profiles
    counts = [sum(count for key, count in row.profile.items() if key not in known.keys.tolist())]
    counts += [row.profile.get(key, 0) for key in known.keys.tolist()]
    nearest = min(
        sum(abs(math.log1p(c) - math.log1p(k)) for c, k in zip(counts, profile, strict=True))
        for profile in known.known.tolist()
    )
    levels = [min(count, 15) for count in counts[:32]]
    levels.append(min(15, int(2 * math.log2(1 + row.events) + 0.5)))
    levels.append(min(15, int(math.log2(1 + (row.last_ms - row.first_ms) / 100) + 0.5)))
    pairs = max(float(known.nats[a, b, x, y]) for a, x in enumerate(levels) for b, y in enumerate(levels) if a != b)
    nats = []
    for scale, said in zip(learned.combined.scales, (surprise, nearest, pairs), strict=True):
        score = np.float32(said)
        if score > scale.join:
            nats.append((float(score) - scale.join) / scale.mean - math.log(scale.mass))
        else:
            nats.append(-math.log(counted(score, scale.counted)))
    largest = max(nats)
    return np.float32(largest + math.log(sum(math.exp(n - largest) for n in nats) / len(nats)))


def judge(
    score: float, parts: Parts, which: str, segment: str | None, keeper: NaiveKeeper, *, late: bool = False
) -> Verdict:
    """Score to p-value to anomaly, by counting, and by the tail where counting ends; then as the promise asks."""
    if parts.learned is None:
        return {"score": None, "p_value": None, "anomaly": False}
    calibration = getattr(parts.learned, which)
    if segment is not None:
        calibration = getattr(parts.learned, f"segment_{which}").get(stable_hash(segment), calibration)
    p_value = counted(score, calibration)
    if which == "records":  # a part of the promise is for news
        p_value = min(p_value / (1 - parts.news[1]), 1.0)
    p_value = keeper.adapt(p_value, which, parts, late=late)
    return {"score": float(score), "p_value": p_value, "anomaly": p_value <= parts.rate}


def counted(score: float, calibration: Calibration) -> float:
    """How often held-back scores reach this one."""
    reach = calibration.reaching[calibration.levels == score]
    above = calibration.above[calibration.levels < score]
    reaching = reach[0] if len(reach) else (above[-1] if len(above) else calibration.count)
    tail = calibration.tail
    if tail is not None and score > tail.join:
        beyond = math.log1p(tail.shape * (float(score) - tail.join) / tail.scale) / tail.shape
        return max(1e-12, tail.mass * math.exp(-beyond))
    return (1.0 + reaching) / (1.0 + calibration.count)
