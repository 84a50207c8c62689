"""Messages as one line for people."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from features.time_gaps import GAP
from pipeline.units import seconds_in_words

Json = dict[str, Any]
_NAMED = 5  # sessions named in a line
_WARMING_UP = "warming_up"
_LINE = 120  # characters of a log line


def sentence_of(what: str, message: Json) -> str:
    """One line for a message of the topic `anomalies`, `rescores`, `decisions`, `dead-letters`, `late` or `drift`."""
    if what == "dead-letters":
        source = message["source"]
        return f"{source['topic']}/{source['partition']}/{source['offset']}  {message['reason']}: {message['detail']}"
    if what == "drift":
        return f"{_moment(message['detected_ms'])}  {message['stream']}  {_changed(message)}"
    when = _moment(message["time_ms"])
    if what == "late":
        return f"{when}  {message['stream']}  {message['session']}  {message['behind_ms'] / 1000:,.1f} s behind"
    if what == "rescores":
        judged = "confirms" if message["confirmed"] else "doubts"
        said = f"{message['core']} {judged} the {message['type']} (p-value {message['p_value']:.2g})"
        return f"{when}  {message['stream']}  {message['session']}  {said}"
    why = why_of(message) if what == "anomalies" else _judged(message)
    return f"{when}  {message['stream']}  {message['session']}  {why}"


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")[:-6]


def _changed(drift: Json) -> str:
    """What changed, where and how much; a type of a later version has its own words in `detail`."""
    source, amount = drift["source"], f"{drift['amount']:,}"
    place = f"{source['topic']}/{source['partition']}"
    if drift.get("field") is not None:
        since = "" if drift["since_ms"] is None else f" since {_moment(drift['since_ms'])}"
        return f"{place}: {drift['type']} {drift['phase']},{since} {amount} records. {drift['detail']}"
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
    """
    if anomaly["type"] == "session":
        return _why_session(anomaly)
    field = max(anomaly["contributions"], key=anomaly["contributions"].get)
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


def _why_session(anomaly: Json) -> str:
    parts = anomaly["contributions"]
    head = f"session of {anomaly['events']} events, ended by {anomaly['ended']}"
    field = next(iter(anomaly["expected"]))
    ended = parts["end"] is not None and (parts["worst_record"] is None or parts["end"] >= parts["worst_record"])
    if ended:
        last = f" after {_shown(anomaly['context'][-1][field])}" if anomaly["context"] else ""
        share = "" if anomaly.get("unit") == "score" else f" ({_percent(_probability(parts['end']))})"
        return f"{head}: it ended{last}{share}, expected {_best(anomaly, field)}"
    where = "" if anomaly["worst_offset"] is None else f", at offset {anomaly['worst_offset']}"
    return f"{head}: its strangest record had a score of {parts['worst_record']:.1f}{where}"


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
