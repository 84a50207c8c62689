from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise, takewhile
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console

from pipeline.broker import free_port
from pipeline.demo import (
    CONFIG,
    FAULT_SESSIONS,
    STREAM,
    Child,
    live_events,
    scored_records,
)
from pipeline.demo_screen import Screen, why_here
from pipeline.demo_truth import Alarm, FalseAlarms, Found, Report, Tally, chance_limit
from pipeline.errors import OffbeatError
from pipeline.settings import load_settings
from pipeline.storefront import BOT, FAULTS, LONGEST_THOUGHT_MS, REPEATED_CAPTURE, Event, FaultySessions

ROOT = Path(__file__).parents[2]
START_MS = 1_760_000_000_000
GAP_MS = 10_000


def event(at_ms: int, session: str, action: str = "view_item") -> Event:
    return Event(START_MS + at_ms, session, "web", action, "ok", {})


def alarm(session: str, at_ms: int, *, read_ms: int | None = None, kind: str = "record") -> Alarm:
    read_ms = at_ms if read_ms is None else read_ms
    return Alarm(f"{session}/{at_ms}/{kind}", kind, session, START_MS + at_ms, START_MS + read_ms, "why")


@pytest.fixture
def tally() -> Tally:
    """One healthy session that closes, one that falls silent, one still open, and two that a bot uses from 2 s on."""
    made = Tally(GAP_MS)
    wrong = {"bot-1": START_MS + 2_000, "bot-2": START_MS + 3_000}
    made.plan(FaultySessions(BOT, [], wrong))
    sent = [
        event(0, "closed"), event(10, "silent"), event(500, "bot-1"), event(1_000, "closed", "session_closed"),
        event(2_000, "bot-1"), event(2_100, "bot-1"), event(3_000, "bot-2"), event(20_000, "open"),
    ]  # fmt: skip
    for each in sent:
        made.send(each, each.ts_ms + 5)
    return made


# ---- matching alarms to faults, and counting the false ones


def test_fault_is_found_by_an_alarm_after_its_first_wrong_event(tally: Tally) -> None:
    """The time to find a fault runs from sending its first wrong event to reading the first alarm that is due."""
    tally.read(alarm("bot-1", 2_100, read_ms=2_405))
    tally.read(alarm("bot-2", 3_000, read_ms=3_100, kind="session"))
    assert tally.report(0.001).found == [Found(BOT, 2.005, 0.4, 2, 2)]


def test_fault_without_an_alarm_is_not_found(tally: Tally) -> None:
    """Alarms of other sessions, or of a faulty one before its fault, find nothing and are false."""
    tally.read(alarm("closed", 1_000))
    tally.read(alarm("bot-1", 500))
    report = tally.report(0.001)
    assert report.found == [Found(BOT, 2.005, None, 2, 0)]
    assert report.records.count == 2


def test_fault_that_was_never_sent_does_not_count(tally: Tally) -> None:
    """A stream cut before a fault is not judged by it."""
    tally.plan(FaultySessions(REPEATED_CAPTURE, [], {"late": START_MS + 60_000}))
    assert [found.kind for found in tally.report(0.001).found] == [BOT]


def test_false_alarms_are_counted_against_what_was_healthy(tally: Tally) -> None:
    """Healthy records are those before a fault too; healthy sessions those that ended, by their event or by silence."""
    tally.read(alarm("closed", 0))
    tally.read(alarm("silent", 10, kind="session"))
    tally.read(alarm("bot-1", 2_100))
    report = tally.report(0.25)
    assert report.records == FalseAlarms("records", 1, 5, 0.25)
    assert report.sessions == FalseAlarms("sessions", 1, 2, 0.25)


def test_repeated_delivery_counts_once(tally: Tally) -> None:
    """An anomaly that comes twice is one, and its latency that of the first time."""
    assert tally.read(alarm("closed", 0, read_ms=30))
    assert not tally.read(alarm("closed", 0, read_ms=900))
    assert tally.report(0.001).records.count == 1
    assert tally.latencies_ms() == [30]


def test_chance_is_allowed_for_where_few_alarms_are_promised() -> None:
    """A count may pass twice the promise only as far as chance reaches in 99 of 100 runs, ever less far for many."""
    few, many = FalseAlarms("sessions", 9, 4_000, 0.001), FalseAlarms("records", 1_180, 500_000, 0.001)
    assert (few.twice, few.limit, few.kept) == (8.0, 15, True)
    assert not replace(few, count=16).kept
    assert many.limit < 1.08 * many.twice
    assert not many.kept
    assert FalseAlarms("sessions", 0, 0, 0.001).kept
    for expected in (0.3, 5.0, 90.0, 2_000.0):
        limit = chance_limit(expected)
        assert limit == pytest.approx(expected + 2.33 * expected**0.5, abs=2.0)


@pytest.mark.parametrize(
    ("found", "false_records", "false_sessions", "passed"),
    [(4, 40, 4, True), (3, 40, 4, True), (2, 40, 4, False), (4, 200, 4, False), (4, 40, 40, False)],
)
def test_outcome(found: int, false_records: int, false_sessions: int, passed: bool) -> None:
    """The demo passes with three of four faults found and both kinds of false alarms in bounds, and only then."""
    faults = [Found(kind, 10.0, 0.1 if k < found else None, 5, 5) for k, kind in enumerate(FAULTS)]
    report = Report(
        faults,
        FalseAlarms("records", false_records, 40_000, 0.001),
        FalseAlarms("sessions", false_sessions, 4_000, 0.001),
    )
    assert report.passed == passed
    assert not replace(report, found=[]).passed


# ---- the script


def test_script_has_each_fault_once_a_round() -> None:
    """Each round plans all four faults before their events come; the stream stays in order; a seed repeats it."""
    planned: list[FaultySessions] = []
    script = live_events(5, START_MS, 30_000, planned.append)
    events = list(takewhile(lambda e: e.ts_ms < START_MS + 60_000, script))
    assert all(a.ts_ms <= b.ts_ms for a, b in pairwise(events))
    assert len(planned) >= 8
    for number, in_round in enumerate((planned[:4], planned[4:8])):
        assert sorted(fault.kind for fault in in_round) == sorted(FAULTS)
        for fault in in_round:
            assert len(fault.wrong_from_ms) == FAULT_SESSIONS
            begins = [ms - START_MS - 30_000 * number for ms in fault.wrong_from_ms.values()]
            assert 0.25 * 30_000 <= min(begins) <= max(begins) < 0.9 * 30_000
    sent = {(e.session_id, e.ts_ms) for e in events}
    assert all(wrong in sent for fault in planned[:8] for wrong in fault.wrong_from_ms.items())
    again = live_events(5, START_MS, 30_000, lambda _: None)
    assert [e.value for e, _ in zip(again, range(500), strict=False)] == [e.value for e in events[:500]]
    other = live_events(6, START_MS, 30_000, lambda _: None)
    assert next(other).session_id != events[0].session_id


def test_config_says_what_the_storefront_does(tmp_path: Path) -> None:
    """The demo's config is valid, ends sessions by the storefront's end event, and its gap is longer than any pause."""
    path = tmp_path / "offbeat.yaml"
    path.write_text(CONFIG.format(broker="localhost:1", folder=tmp_path, port=1))
    stream = load_settings(path, {}).stream(STREAM)
    assert stream.session.end_when == {"action": "session_closed"}
    assert stream.session.gap == GAP_MS > LONGEST_THOUGHT_MS


# ---- the screen


def record(**changes: Any) -> dict[str, Any]:
    return {
        "type": "record",
        "observed": {"service": "billing", "action": "capture", "status": "ok"},
        "contributions": {"service": 9.0, "action": 8.0, "status": 0.1},
        "expected": {
            "service": [{"token": "payment", "probability": 0.99}],
            "action": [{"token": "authorise", "probability": 0.97}],
            "status": [{"token": "ok", "probability": 0.9}],
        },
        "context": [{"time_ms": 1, "service": "shipping", "action": "quote", "status": "ok"}],
        **changes,
    }


def test_record_is_explained_in_one_line() -> None:
    """A line tells the service, what came after what, how probable it was, and what was expected."""
    assert why_here(record()) == "billing: after quote came capture (0.03 %), expected authorise (97 %)"
    assert why_here(record(context=[])) == (
        "billing: as the first event came capture (0.03 %), expected authorise (97 %)"
    )
    declined = record(
        observed={"service": "payment", "action": "authorise", "status": "declined"},
        contributions={"service": 9.0, "action": 0.1, "status": 5.0},
    )
    assert why_here(declined) == ("payment: authorise, status: after ok came declined (0.67 %), expected ok (90 %)")


def test_session_is_explained_in_one_line() -> None:
    """A session's line says how it ended, and what made it strange."""
    session = {
        **record(), "type": "session", "events": 9, "ended": "gap", "observed": {"end": "gap"},
        "contributions": {"worst_record": 1.0, "end": 7.0}, "worst_offset": 7,
        "expected": {"service": [{"token": "payment", "probability": 0.98}]},
    }  # fmt: skip
    assert why_here(session) == (
        "session of 9 events, ended by gap: it ended after shipping (0.09 %), expected payment (98 %)"
    )


def screen(*, terminal: bool) -> tuple[Screen, io.StringIO]:
    file = io.StringIO()
    return Screen(Console(file=file, force_terminal=terminal, width=200, highlight=False)), file


def test_one_line_for_each_alarmed_session() -> None:
    """A session's further alarms only count; outside a terminal the status comes as a line every five seconds."""
    shown, file = screen(terminal=False)
    with shown:
        shown.open(45, keep=False)
        for _ in range(60):
            shown.alarm(12.34, "s-1", "cart: after search came add_item")
        shown.alarm(12.5, "s-2", "[odd] text")
        for quarter in range(41):
            shown.status(quarter / 4, quarter * 250, quarter * 240, [10, 20, 30])
    lines = file.getvalue().splitlines()
    assert [" ".join(line.split()) for line in lines[1:3]] == [
        "+12.3s s-1 cart: after search came add_item", "+12.5s s-2 [odd] text",
    ]  # fmt: skip
    assert len(lines) == 5
    assert re.fullmatch(
        r" +10 s  1,000 events/s  10,000 sent  9,600 scored  2 alarmed  event to alarm: 20 ms median, .*", lines[4]
    )


def test_terminal_keeps_alarms_and_loses_the_status() -> None:
    """In a terminal the status line renews itself and is gone at the end."""
    shown, file = screen(terminal=True)
    with shown:
        shown.open(45, keep=True)
        shown.status(1.0, 10, None, [])
        shown.alarm(2.0, "s-1", "why")
    text = file.getvalue()
    assert "until Ctrl-C" in text
    assert "s-1" in text
    assert "10 sent" in text
    assert text.endswith("\x1b[2K")  # the last that was done is to clear the line
    shown.close()


def test_table_hides_nothing() -> None:
    """Faults not found, and more false alarms than twice the promise, stand in the outcome, chance or not."""
    shown, file = screen(terminal=False)
    found = [Found(kind, 10.0 + k, None if k == 3 else 0.25, 5, 4) for k, kind in enumerate(FAULTS)]
    report = Report(found, FalseAlarms("records", 200, 40_000, 0.001), FalseAlarms("sessions", 9, 4_000, 0.001))
    shown.report(report)
    text = file.getvalue()
    for kind in FAULTS[:3]:
        assert re.search(rf"{kind} .* yes .* 0.25 s .* 4 of 5", text)
    assert re.search(rf"{FAULTS[3]} .* no .* - ", text)
    assert re.search(r"records .* 40,000 .* 200 .* 0.50 % .* 0.10 % = 40.0 .* 80.0", text)
    assert "200 false alarms on records are more than twice the promise; that is no chance" in text
    assert "9 false alarms on sessions are more than twice the promise; that can be chance" in text
    assert "3 of 4 faults found; the demo failed" in text


# ---- children


def test_child_is_ours_whatever_lies_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child runs our code and our config: neither a folder called pipeline nor OFFBEAT_* variables reach it."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "offbeat.yaml").write_text(CONFIG.format(broker="localhost:1", folder=tmp_path, port=1))
    monkeypatch.setenv("OFFBEAT_NONSENSE", "1")
    with Child("config", "check", folder=tmp_path) as child:
        assert "is right: 1 stream(s), storefront" in child.finish()


def test_child_that_fails_says_why(tmp_path: Path) -> None:
    """A child that ends badly becomes one error with its own last words."""
    with (
        Child("config", "check", "-c", "missing.yaml", folder=tmp_path) as child,
        pytest.raises(OffbeatError, match=r"(?s)`offbeat config` ended with exit code 2.*no config file missing.yaml"),
    ):
        child.finish()


def test_child_is_gone_when_left(tmp_path: Path) -> None:
    """Leaving ends a child that would go on for ever; one that serves and ended by itself is noticed."""
    with Child("broker", "--port", str(free_port()), folder=tmp_path) as child:
        child.launch()
        child.check()
    with pytest.raises(OffbeatError, match="`offbeat broker` ended"):
        child.check()


@pytest.fixture
def metrics_page() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer as a worker does."""
            self.send_response(200)
            self.end_headers()
            self.wfile.write(
                b"# TYPE offbeat_records_total counter\n"
                b'offbeat_records_total{stream="a"} 1200.0\noffbeat_records_total{stream="b"} 34.0\n'
                b'offbeat_records_created{stream="a"} 1.7e+09\n'
            )

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()


def test_scored_records_come_from_the_workers_metrics(metrics_page: str) -> None:
    """The records a worker has taken in are summed over streams; None while nobody answers."""
    assert scored_records(metrics_page) == 1234
    assert scored_records("http://127.0.0.1:1/metrics") is None


# ---- the real thing


class Demo:
    """`offbeat demo` as a child, in a temporary folder of its own, whose every process bears a mark."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._mark = uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.cli", "demo", "--seed", str(seed)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "TMPDIR": str(folder), "DEMO_UNDER_TEST": self._mark},
        )  # fmt: skip

    def left(self) -> list[str]:
        """What it started and still runs, and what lies in its temporary folder."""
        found = [str(path) for path in self._folder.iterdir()]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it has just ended, or is not ours
                continue
        return found


def commit_seed() -> int:
    """A seed that changes with each commit, so that the demo is proved on ever new shoppers and faults."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 20_260
    return int(commit.stdout.strip()[:6], 16)


def test_demo_finds_the_faults_and_leaves_nothing(
    kafka: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole demo exits 0 with its four faults in the table, and all that it started is gone."""
    seed = commit_seed()
    with capsys.disabled():
        print(f"\noffbeat demo --seed {seed}")
    demo = Demo(tmp_path, seed)
    text, _ = demo.process.communicate(timeout=400)
    assert demo.process.returncode == 0, text
    assert demo.left() == []
    for kind in FAULTS:
        assert len(re.findall(rf"{kind} .* (yes|no) ", text)) == 1, text
    assert re.search(r"records +│ +[\d,]+ │ [\d,]+ +│", text), text


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(kafka: None, tmp_path: Path, stop: signal.Signals) -> None:
    """Ctrl-C in mid-stream, and SIGTERM while it trains, end the demo soon and leave no process and no file."""
    demo = Demo(tmp_path, 1)
    assert demo.process.stdout is not None
    until = " events/s " if stop == signal.SIGINT else "Training on them"
    said = list(takewhile(lambda line: until not in line, demo.process.stdout))
    assert len(demo.left()) >= 3, said  # its folder, Kafka and a child, beside itself
    demo.process.send_signal(stop)
    text, _ = demo.process.communicate(timeout=30)
    assert demo.process.returncode == 130, text
    assert "all that the demo started is gone" in text
    assert demo.left() == []
