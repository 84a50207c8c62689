"""`offbeat backtest`: the verdicts of `offbeat score`, held against labels by slow and obvious counting."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.backtest import count_unused, hold_records, hold_sessions
from pipeline.backtest_plot import plot
from pipeline.cli import main
from pipeline.judgement import Backtest, Held, judge
from pipeline.labels import Labels, Range
from pipeline.serving import serving_rate
from pipeline.settings import load_settings
from pipeline.verdict_columns import Verdicts, gather
from tests.docs.test_docs import has_entry
from tests.kafka import Stack, shop_events, write_untrained_bundle

Run = Callable[..., tuple[int, str, str]]
Verdict = dict[str, Any]


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A config, a bundle nobody trained and a file of 60 sessions, without a broker."""
    stack = Stack("127.0.0.1:1", tmp_path, name="t")
    stack.configure()
    write_untrained_bundle(stack)
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("".join(json.dumps(event) + "\n" for event in shop_events(1, 60)))
    return stack


@pytest.fixture
def offbeat(stack: Stack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `offbeat backtest` in this process; gives exit code, output and the last line of what went wrong."""

    def run(labels: str, *arguments: str) -> tuple[int, str, str]:
        Path("labels.csv").write_text(labels)
        words = ["offbeat", "backtest", "-s", "orders", "--input", "in.jsonl", "--labels", "labels.csv", *arguments]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return int(end.value.code or 0), out, (err.splitlines() or [""])[-1]

    return run


def read_verdicts(path: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [v for v in lines if v["type"] == "record"], [v for v in lines if v["type"] == "session"]


def matches(
    judged: dict[str, Any], verdicts: list[dict[str, Any]], anomalous: Callable[[dict[str, Any]], bool]
) -> None:
    """The judgement is what counting the verdicts gives."""
    right = sum(v["anomaly"] and anomalous(v) for v in verdicts)
    alarmed, wrong = sum(v["anomaly"] for v in verdicts), sum(map(anomalous, verdicts))
    assert (judged["judged"], judged["alarmed"], judged["anomalous"]) == (len(verdicts), alarmed, wrong)
    assert judged["precision"] == pytest.approx(right / alarmed)
    assert judged["recall"] == pytest.approx(right / wrong)
    assert judged["false_alarms"]["kept"] == pytest.approx((alarmed - right) / (len(verdicts) - wrong))
    assert judged["false_alarms"]["promised"] == 0.1


def test_the_verdicts_are_those_of_score(offbeat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--output` holds byte for byte what `offbeat score` writes."""
    assert offbeat("start,end\n", "--output", "judged.jsonl")[0] == 0
    monkeypatch.setattr(
        sys, "argv", ["offbeat", "score", "-s", "orders", "--input", "in.jsonl", "--output", "scored.jsonl"]
    )
    with pytest.raises(SystemExit):
        main()
    assert Path("judged.jsonl").read_bytes() == Path("scored.jsonl").read_bytes()


def test_labels_of_lines_judge_records_and_sessions(offbeat: Run) -> None:
    """A line's label is its record's, and makes the session anomalous that the record is in."""
    events = [json.loads(line) for line in Path("in.jsonl").read_text().splitlines()]
    wrong = set(range(5, len(events), 9))
    rows = "".join(f"{n},1\n" for n in wrong) + "2,0\n3,\n"
    code, out, _ = offbeat("line,label\n" + rows, "--json", "--output", "v.jsonl")
    found, (records, sessions) = json.loads(out), read_verdicts("v.jsonl")
    assert code == 0
    matches(found["records"], [v for v in records if v["line"] != 3], lambda v: v["line"] in wrong)
    assert found["records"]["not_judged"] == 1
    assert found["unused_labels"] == 0
    times = [(v["session"], v["time_ms"]) for v in records if v["line"] in wrong]
    matches(
        found["sessions"], sessions,
        lambda v: any(name == v["session"] and v["first_ms"] <= t <= v["time_ms"] for name, t in times),
    )  # fmt: skip
    assert found["records"]["time_to_detect"] is None


def test_labels_of_sessions_judge_names(offbeat: Run) -> None:
    """Sessions of one name count once, alarmed if any of them is; records are not judged."""
    events = [json.loads(line) for line in Path("in.jsonl").read_text().splitlines()]
    names = sorted({event["session"] for event in events})
    wrong = set(names[::4])
    code, out, _ = offbeat("session,label\nnobody,1\n" + "".join(f"{name},1\n" for name in wrong), "--json",
                           "--output", "v.jsonl")  # fmt: skip
    found, (_, sessions) = json.loads(out), read_verdicts("v.jsonl")
    assert code == 0
    assert found["records"] is None
    assert found["unused_labels"] == 1
    named = [
        {"session": name, "anomaly": any(v["anomaly"] for v in sessions if v["session"] == name)}
        for name in {v["session"] for v in sessions}
    ]
    matches(found["sessions"], named, lambda v: v["session"] in wrong)


def test_labels_name_sessions_as_records_do(offbeat: Run, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stream masks sessions, labels are written with the names that records have."""
    monkeypatch.setenv("OFFBEAT_MASK_SECRET", "sixteen bytes, or more")
    stack.configure({"mask": {"session": "hash"}})
    from pipeline.commands import train_stream
    from pipeline.settings import load_settings

    Path("history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in shop_events(2, 150)))
    train_stream(
        load_settings(stack.config_path), "orders", source=Path("history.jsonl"), since=None, until=None,
        promoted=True, seed=0, as_json=False,
    )  # fmt: skip
    name = json.loads(Path("in.jsonl").read_text().splitlines()[0])["session"]
    code, out, sentence = offbeat(f"session,label\n{name},1\n", "--json")
    assert code == 0, sentence
    found = json.loads(out.splitlines()[-1])  # what training said comes before
    assert (found["sessions"]["anomalous"], found["unused_labels"]) == (1, 0)


def test_labels_of_ranges_tell_the_time_to_detect(offbeat: Run) -> None:
    """Records in a range, and sessions that share a moment with one, are anomalous; the first alarm in it finds it."""
    offbeat("start,end\n", "--output", "v.jsonl")
    records, sessions = read_verdicts("v.jsonl")
    alarm = sorted(v["time_ms"] for v in records if v["anomaly"])[10]
    later = max(v["time_ms"] for v in records) + 10**9
    ranges = [(alarm - 700, alarm - 1, None), (alarm - 2, alarm + 30, None), (alarm, alarm, records[0]["session"])]
    text = "".join(f"{b / 1000:.3f},{e / 1000:.3f},{s or ''}\n" for b, e, s in [*ranges, (later, later, None)])
    _, out, _ = offbeat(f"start,end,session\n{text}", "--json")
    found = json.loads(out)

    def inside(verdict: dict[str, Any]) -> list[int]:
        first = verdict.get("first_ms", verdict["time_ms"])
        return [i for i, (b, e, s) in enumerate(ranges)
                if first <= e and verdict["time_ms"] >= b and s in {None, verdict["session"]}]  # fmt: skip

    for kind, verdicts in (("records", records), ("sessions", sessions)):
        matches(found[kind], verdicts, lambda v: bool(inside(v)))
        waits = sorted(
            min(times)
            for i, (b, _, _) in enumerate(ranges)
            if (times := [v["time_ms"] - b for v in verdicts if v["anomaly"] and i in inside(v)])
        )
        detect = found[kind]["time_to_detect"]
        assert (detect["ranges"], detect["found"]) == (4, len(waits))
        assert detect["p90_ms"] == waits[-1]  # of so few
        assert detect["median_ms"] == pytest.approx((waits[len(waits) // 2] + waits[(len(waits) - 1) // 2]) / 2)
    assert found["unused_labels"] >= 1


def test_the_json_is_of_the_schema_and_the_table_says_the_same(offbeat: Run) -> None:
    """What `--json` prints is the model whose schema is under docs/; the table has its figures."""
    labels = "line,label\n4,1\n9,1\n"
    backtest = Backtest.model_validate_json(offbeat(labels, "--json")[1])
    assert backtest.records is not None
    assert set(json.loads(offbeat(labels, "--json")[1])) == set(Backtest.model_fields)
    out = offbeat(labels + "99999,1\n")[1]
    for words in ("records", "sessions", "AUC-PR", f"{backtest.records.auc_pr:.3f}", f"{backtest.records.alarmed:,}"):
        assert words in out
    assert "1 of 3 labels are about nothing in in.jsonl" in out


def test_without_anomalies_only_false_alarms_are_measured(offbeat: Run) -> None:
    """Where all is normal there is no recall and no curve, but the kept rate."""
    found = json.loads(offbeat("start,end\n", "--json", "--plot", "p.svg")[1])["records"]
    assert found["recall"] is found["f1"] is found["auc_pr"] is None
    assert found["precision"] == 0
    assert found["false_alarms"]["low"] < found["false_alarms"]["kept"] < found["false_alarms"]["high"]
    assert "nothing anomalous" in Path("p.svg").read_text()


def test_the_plot_is_svg(offbeat: Run) -> None:
    """The plot is well-formed XML with two panels for records and two for sessions, all inside its frame."""
    assert offbeat("line,label\n4,1\n9,1\n", "--plot", "p.svg")[0] == 0
    root = ElementTree.fromstring(Path("p.svg").read_text())
    text = " ".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("text"))
    for words in ("records: precision over recall", "records: scores", "sessions: scores", "AUC-PR", "in.jsonl"):
        assert words in text
    assert "nan" not in Path("p.svg").read_text()


@pytest.mark.parametrize(
    ("labels", "arguments", "words"),
    [
        (
            "session,label\nnobody,1\n",
            [],
            "none of the 1 labels fits in.jsonl: no session of it has one of",
        ),
        ("line,label\n99999,1\n", [], "it has no such lines; they count from 1"),
        ("start,end\n5,6\n", [], "none of its records lies in one; compare the times"),
        ("line,label\n1,2\n", [], "row 2 of labels.csv is no label"),
        ("start,end\n", ["--plot", "p.png"], "--plot p.png is no .svg file"),
        ("start,end\n", ["--output", "in.jsonl"], "--input and --output are the same file"),
        ("start,end\n", ["--output", "none/v.jsonl"], "cannot be written: No such file"),
        ("start,end\n", ["--plot", "none/p.svg"], "cannot be written: No such file"),
        ("start,end\n", ["--labels", "none.csv"], "none.csv cannot be read: No such file"),
        ("start,end\n", ["--input", "none.jsonl"], "none.jsonl cannot be read: No such file"),
    ],
)
def test_what_cannot_be_is_one_sentence(offbeat: Run, labels: str, arguments: list[str], words: str) -> None:
    """Each mistake ends with exit code 2 and a sentence that troubleshooting.md has."""
    code, out, sentence = offbeat(labels, *arguments)
    assert code == 2
    assert out == ""
    assert words in sentence
    assert has_entry(sentence)


def test_without_a_bundle_nothing_is_judged(offbeat: Run, stack: Stack) -> None:
    """Scores that are all null would look like a model that finds nothing."""
    stack.configure(models_dir=str(stack.folder / "none"))
    assert "no bundle serves orders, so there is nothing to judge" in offbeat("start,end\n")[2]


def test_lines_of_windows_are_refused(offbeat: Run, stack: Stack) -> None:
    """A window's verdict is about many lines, so a label of one fits none."""
    stack.configure({
        "kind": "metrics", "tokens": [], "numbers": ["n"], "window": {"size": "1s"}, "session": {"by": "session"},
    })  # fmt: skip
    Path("in.jsonl").write_text("".join(
        json.dumps({"ts": f"2026-01-01T00:{i // 60:02}:{i % 60:02}Z", "session": "a", "n": i % 7}) + "\n"
        for i in range(3_400)
    ))  # fmt: skip
    from pipeline.commands import train_stream
    from pipeline.settings import load_settings

    train_stream(
        load_settings(stack.config_path), "orders", source=Path("in.jsonl"), since=None, until=None, promoted=True,
        seed=0, as_json=False,
    )  # fmt: skip
    assert "verdicts of stream orders are about windows" in offbeat("line,label\n1,1\n")[2]
    found = json.loads(offbeat("start,end\n2026-01-01T00:00:00Z,2026-01-01T00:01:00Z\n", "--json")[1])
    assert 55 <= found["records"]["anomalous"] <= 65


TIMES = st.integers(0, 20)
SPOKEN = st.lists(
    st.tuples(st.sampled_from(["a", "b", None]), TIMES, st.booleans(), st.floats(0, 5) | st.none()), max_size=15
)
RANGES = st.lists(st.tuples(TIMES, st.integers(0, 5), st.sampled_from(["a", "b", "c", None])), max_size=6)


def gathered(spoken: list[tuple[str | None, int, bool, float | None]]) -> Verdicts:
    return gather(
        {"type": "record", "line": n, "session": session, "time_ms": at, "score": score, "p_value": None, "anomaly": a}
        for n, (session, at, a, score) in enumerate(spoken, 1)
    )[0]


@given(SPOKEN, RANGES)
def test_ranges_are_held_as_the_naive_version_holds_them(
    spoken: list[tuple[str | None, int, bool, float | None]], of: list[tuple[int, int, str | None]]
) -> None:
    """A range of one session is about its records alone, one without a session about all."""
    ranges = [Range(begin, begin + length, session) for begin, length, session in of]
    labels, verdicts = Labels("ranges", ranges=ranges), gathered(spoken)

    def inside(session: str | None, at: int, r: Range) -> bool:
        return r.begin_ms <= at <= r.end_ms and r.session in {None, session}

    held = hold_records(verdicts, labels)
    assert held is not None
    assert held.anomalous.tolist() == [any(inside(s, at, r) for r in ranges) for s, at, _, _ in spoken]
    assert count_unused(labels, verdicts) == sum(not any(inside(s, at, r) for s, at, _, _ in spoken) for r in ranges)
    assert hold_sessions(gathered([]), verdicts, labels) is None


def test_records_without_a_score_are_judged_as_not_alarmed() -> None:
    """What could not be scored cannot be found, and counts as missed."""
    verdicts = gathered([("a", 1, True, 3.0), ("a", 2, False, None), ("b", 3, False, 1.0)])
    held = hold_records(verdicts, Labels("lines", lines={1: True, 2: True}))
    assert held is not None
    judged = judge(held, 0.01)
    assert (judged.recall, judged.unscored) == (0.5, 1)
    assert judged.auc_pr == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert isinstance(held, Held)
    assert "records" in plot("t", [("records", judged, held)])


def test_a_budget_stands_beside_the_alarms_a_day(stack: Stack, offbeat: Run) -> None:
    """All alarms and the false ones, by the event time between the first record and the last; else there is none."""
    labels = "line,label\n" + "".join(f"{n},1\n" for n in range(5, 200, 9))
    assert json.loads(offbeat(labels, "--json")[1])["budget"] is None
    stack.configure({"promise": {"alert_budget": "20/day"}})
    write_untrained_bundle(stack, data={"records": 150, "sessions": 50, "first_ms": 0, "last_ms": 86_400_000})
    code, out, _ = offbeat(labels, "--json", "--output", "v.jsonl")
    records, sessions = read_verdicts("v.jsonl")
    times = [v["time_ms"] for v in records if v["time_ms"]]
    days = (max(times) - min(times)) / 86_400_000
    alarms = sum(v["anomaly"] for v in records + sessions)
    assert alarms > 0
    told = json.loads(out)
    budget = told["budget"]
    assert (code, budget["promised"]) == (0, 20.0)
    assert told["records"]["false_alarms"]["promised"] == told["sessions"]["false_alarms"]["promised"] == 0.1
    assert budget["alarms"] == pytest.approx(alarms / days)
    right = sum(part["alarmed"] * (part["precision"] or 0.0) for part in (told["records"], told["sessions"]))
    assert budget["false_alarms"] == pytest.approx((alarms - right) / days)
    assert serving_rate(load_settings(stack.config_path), "orders") == 0.1
    assert "20 in the budget" in " ".join(offbeat(labels)[1].split())
