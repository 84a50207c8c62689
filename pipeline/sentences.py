"""Messages as one line for people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from features.time_gaps import GAP
from pipeline.leading_fields import leading_fields
from pipeline.units import seconds_in_words

Json = dict[str, Any]
_NAMED = 5  # sessions named in a line
_WARMING_UP = "warming_up"
_MOST = 0.5  # of a score: an earlier event with so large a share is named
_LINE = 120  # characters of a log line
_DIFFERENCES = 2  # of a session to the most similar one


def sentence_of(what: str, message: Json) -> str:
    """One line for a message of an output topic, such as `anomalies`, or of `retrain`."""
    if what == "incidents":
        return f"{_moment(message['last_ms'])}  {message['severity']}  {message['type']}  {message['summary']}"
    if what == "dead-letters":
        source = message["source"]
        return f"{source['topic']}/{source['partition']}/{source['offset']}  {message['reason']}: {message['detail']}"
    if what == "labels":
        why = "" if message["reason"] is None else f": {message['reason']}"
        return f"{_moment(message['at_ms'])}  {message['id']}  {message['label']}, says {message['by']}{why}"
    if what == "retrain":
        when, said = message["asked_ms" if message["type"] == "job" else "at_ms"], _of_job(message)
    elif what == "drift":
        when, said = message["detected_ms"], _changed(message)
    elif message.get("type") == "rate":
        when, said = message["time_ms"], _counted(message)
    else:
        when, said = message["time_ms"], f"{message['session']}  {_of_session(what, message)}"
    return f"{_moment(when)}  {message['stream']}  {said}"


def _counted(anomaly: Json) -> str:
    """How many records came, and how many should have.

    >>> _counted({"segment": "cart", "direction": "too_few", "count": 0, "from_ms": 0, "until_ms": 60_000,
    ...     "expected": {"low": 31, "median": 52, "high": 78}})
    'cart  too few: no records in 60 s, expected 31 to 78'
    """
    where = "" if anomaly["segment"] is None else f"{anomaly['segment']}  "
    count, low, high = anomaly["count"], anomaly["expected"]["low"], anomaly["expected"]["high"]
    came = "no records" if not count else f"{count:,} record{'s' if count > 1 else ''}"
    width = seconds_in_words((anomaly["until_ms"] - anomaly["from_ms"]) / 1_000)
    return f"{where}{anomaly['direction'].replace('_', ' ')}: {came} in {width}, expected {low:,} to {high:,}"


def _of_session(what: str, message: Json) -> str:
    """What is said of a record or a session."""
    if what == "late":
        return f"{message['behind_ms'] / 1000:,.1f} s behind"
    if what == "rescores":
        judged = "confirms" if message["confirmed"] else "doubts"
        return f"{message['core']} {judged} the {message['type']} (p-value {message['p_value']:.2g})"
    return why_of(message) if what == "anomalies" else _judged(message)


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")[:-6]


def _changed(drift: Json) -> str:
    """What changed, where and how much; a type of a later version has its own words in `detail`."""
    source, amount = drift["source"], f"{drift['amount']:,}"
    place = f"{source['topic']}/{source['partition']}"
    if drift.get("phase") is not None:
        since = "" if drift["since_ms"] is None else f" since {_moment(drift['since_ms'])}"
        return f"{place}: {drift['type']} {drift['phase']},{since} {amount} {drift['amount_unit']}. {drift['detail']}"
    names = "".join(f" {name}" for name in drift["sessions"][:_NAMED])
    more = f" and {drift['amount'] - _NAMED:,} more" if drift["amount"] > _NAMED else ""
    said = {
        "topic_recreated": f"{place} was made anew, {amount} open sessions were closed",
        "records_lost": f"{place} lost {amount} records before they were read",
        "offset_reset": f"the offset of {place} was reset to {source['offset']}, {amount} open sessions were closed",
        "sessions_lost": f"{place} lost the states of {amount} sessions:{names}{more}",
    }.get(drift["type"], f"{place}: {drift['type']} ({amount} {drift['amount_unit']})")
    since = "" if drift["since_ms"] is None else f", since {_moment(drift['since_ms'])}"
    return f"{said}{since}. {drift['detail']}"


def _of_job(message: Json) -> str:
    """What is asked for, or became of it."""
    if message["type"] == "job":
        return f"{message['id']}: asked for. {message['detail']}"
    digest = "" if message["digest"] is None else f" bundle {message['digest'][:12]}"
    return f"{message['job']}: {message['type']}{digest}. {message['detail']}"


def why_of(anomaly: Json) -> str:
    """Why an anomaly is one, in the words of its largest contribution.

    >>> why_of({"type": "record", "observed": {"action": "ship"}, "contributions": {"action": 6.9},
    ...     "expected": {"action": [{"token": "pay", "probability": 0.97}]},
    ...     "context": [{"time_ms": 1, "action": "add"}]})
    'action: after add came ship (0.10 %), expected pay (97 %)'
    >>> why_of({"type": "record", "observed": {"message": "took 4200 ms", "message[0]": 4200.0}, "context": [],
    ...     "expected": {"message[0]": [{"low": 20.0, "median": 40.0, "high": 80.0}]},
    ...     "contributions": {"message": 0.1, "message[0]": 9.5}})
    "message[0]: in 'took 4200 ms' came 4,200 (<0.01 %), expected 20 to 80"
    >>> why_of({"type": "record", "observed": {"action": "pay", "@gap_s": 41.0}, "context": [{"action": "add"}],
    ...     "expected": {"@gap_s": [{"low": 0.4, "median": 1.1, "high": 6.0}]},
    ...     "contributions": {"action": 0.1, "@gap_s": 9.5}})
    'gap: after add came 41 s (<0.01 %), expected 0.4 to 6 s'
    >>> why_of({"type": "record", "observed": {"cpu": 99.0}, "context": [{"cpu": 41.0}], "unit": "score",
    ...     "expected": {"cpu": [{"low": 38.0, "median": 41.0, "high": 44.0}]}, "contributions": {"cpu": 3.2}})
    'cpu: after 41 came 99, expected 38 to 44'
    >>> why_of({"type": "record", "observed": {"action": "ship"}, "contributions": {"action": 6.9}, "score": 6.9,
    ...     "expected": {"action": [{"token": "pay", "probability": 0.97}]},
    ...     "context": [{"time_ms": 1, "action": "pay"}, {"time_ms": 2, "action": "add"}],
    ...     "earlier": [{"back": 2, "time_ms": 1, "share": 0.1}, {"back": 1, "time_ms": 2, "share": 6.0}],
    ...     "would_be_normal": {"field": "action", "value": "pay", "p_value": 0.4}})
    'action: after add came ship (0.10 %), expected pay (97 %); normal with action=pay; 87 % due to the event before'
    """
    return "; ".join([_why(anomaly), *_normal_with(anomaly), *_because_of(anomaly)])


def _why(anomaly: Json) -> str:
    if anomaly["type"] == "session":
        return _why_session(anomaly)
    field = leading_fields(anomaly)[0][0]
    line = anomaly["observed"].get(field.rpartition("[")[0])
    if isinstance(line, str):  # message[0] is a number in the text of message: the one before was of another text
        where = f"in {line if len(line) <= _LINE else line[:_LINE] + '...'!r}"
    else:
        where = f"after {_before(anomaly, field)}" if anomaly["context"] else "as the first event"
    name, came = "gap" if field == GAP else field, _told(anomaly["observed"][field], field)
    share = _percent(_probability(anomaly["contributions"][field]))
    if anomaly.get("unit") == "score":  # no logarithm of a probability
        return f"{name}: {where} came {came}, expected {_best(anomaly, field)}"
    if anomaly.get("status") == _WARMING_UP:
        return f"{name}: came {came} ({share}); warming up, confidence {anomaly['confidence']:.2f}"
    return f"{name}: {where} came {came} ({share}), expected {_best(anomaly, field)}"


def _normal_with(anomaly: Json) -> Iterator[str]:
    """What would have been normal instead."""
    change = anomaly.get("would_be_normal")
    if change is None:
        return
    field, value = change["field"], change["value"]
    if value is None:
        yield f"normal without {field}"
    elif isinstance(value, str):
        yield f"normal with {field}={value}"
    elif field == GAP:
        yield f"normal with a gap of {seconds_in_words(value['low'], value['high'])}"
    else:
        yield f"normal with {field} from {_shown(value['low'])} to {_shown(value['high'])}"


def _because_of(anomaly: Json) -> Iterator[str]:
    """The one earlier event that most of the score goes with, if there is one."""
    earlier = anomaly.get("earlier")
    if not earlier:
        return
    most = max(earlier, key=lambda event: event["share"])
    if most["share"] < _MOST * anomaly["score"]:
        return
    which = "the event before" if most["back"] == 1 else f"the event {most['back']} before"
    yield f"{100 * most['share'] / anomaly['score']:.0f} % due to {which}"


def _why_session(anomaly: Json) -> str:
    parts = anomaly["contributions"]
    head = f"session of {anomaly['events']} events, ended by {anomaly['ended']}"
    profile = anomaly.get("profile")
    if profile is not None and max(profile["nats"], key=profile["nats"].get) != "surprise":
        return f"{head}: {_why_profile(profile)}"
    field = next(iter(anomaly["expected"]))
    ended = parts["end"] is not None and (parts["worst_record"] is None or parts["end"] >= parts["worst_record"])
    if ended:
        last = f" after {_shown(anomaly['context'][-1][field])}" if anomaly["context"] else ""
        share = "" if anomaly.get("unit") == "score" else f" ({_percent(_probability(parts['end']))})"
        return f"{head}: it ended{last}{share}, expected {_best(anomaly, field)}"
    where = "" if anomaly["worst_offset"] is None else f", at offset {anomaly['worst_offset']}"
    return f"{head}: its strangest record had a score of {parts['worst_record']:.1f}{where}"


def _why_profile(profile: Json) -> str:
    """What the profile says, in the words of the detector that finds it strangest.

    >>> given, then = ({"field": "action", "token": t, "count": n} for t, n in (("add", 3), ("pay", 0)))
    >>> pair = {"given": given, "then": then, "probability": 0.0012}
    >>> _why_profile({"nats": {"nearest": 1.0, "pairs": 6.7}, "differences": [], "pair": pair})
    '0 x pay where 3 x add came (0.12 %)'
    >>> _why_profile({"nats": {"nearest": 9.0, "pairs": 6.7}, "differences": [then | {"usual": 1}], "pair": pair})
    'unlike any in training: 0 x pay, 1 in the most similar'
    """
    nats = profile["nats"]
    if nats["nearest"] >= nats["pairs"] and profile["differences"]:
        told = [f"{_times(d)}, {d['usual']} in the most similar" for d in profile["differences"][:_DIFFERENCES]]
        return f"unlike any in training: {'; '.join(told)}"
    pair = profile["pair"]
    return f"{_times(pair['then'])} where {_times(pair['given'])} came ({_percent(pair['probability'])})"


def _times(counted: Json) -> str:
    if counted["field"] == "@events":
        return f"{counted['count']} events"
    if counted["field"] == "@duration":
        return f"{seconds_in_words(counted['count'] / 1_000)} in all"
    return f"{counted['count']} x {_shown(counted['token'])}"


def _best(anomaly: Json, field: str) -> str:
    """What should have come: the likeliest token, or where nine of ten numbers lie."""
    if not anomaly["expected"][field]:
        return "nothing known"
    best = anomaly["expected"][field][0]
    if "median" in best:
        low, high = best["low"], best["high"]
        return seconds_in_words(low, high) if field == GAP else f"{_shown(low)} to {_shown(high)}"
    return f"{best['token']} ({_percent(best['probability'])})"


def _before(anomaly: Json, field: str) -> str:
    """What the event before had there; of a time gap what that event was."""
    last: Json = anomaly["context"][-1]
    if field != GAP:
        return _shown(last[field])
    return " ".join(token for token in last.values() if isinstance(token, str)) or "the event before"


def _told(value: str | float | None, field: str) -> str:
    return seconds_in_words(value) if field == GAP and isinstance(value, float | int) else _shown(value)


def _shown(value: str | float | None) -> str:
    """A token as it is, a number in four digits.

    >>> _shown("pay"), _shown(None), _shown(1234567.0), _shown(0.5)
    ('pay', '<missing>', '1,235,000', '0.5')
    """
    if isinstance(value, float | int):
        return f"{float(f'{value:.4g}'):,.10g}"
    return "<missing>" if value is None else value


def _probability(nats: float) -> float:
    return min(math.exp(-nats), 1.0)


def _percent(probability: float) -> str:
    """Two significant digits, and never a 0 that is none.

    >>> _percent(0.97), _percent(0.00123), _percent(1e-9)
    ('97 %', '0.12 %', '<0.01 %')
    """
    percent = 100 * probability
    if percent < 0.01:
        return "<0.01 %"
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2f} %"


def _judged(decision: Json) -> str:
    if decision["score"] is None:
        return f"{decision['type']}  {decision['status']}"
    mark = "ANOMALY" if decision["anomaly"] else "normal"
    sure = "" if decision.get("confidence") is None else f"  warming up, confidence {decision['confidence']:.2f}"
    return f"{decision['type']}  {mark}  score {decision['score']:.2f}  p {decision['p_value']:.2g}{sure}"
