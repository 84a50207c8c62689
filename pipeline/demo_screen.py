"""What the demo shows: lines, and in a terminal a status line below them that renews itself."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.demo_incidents import Told
from pipeline.demo_truth import FalseAlarms, Found, Report
from pipeline.sentences import why_of

_STATUS_S = 5.0  # between two status lines where nothing can renew itself
_SPEED_S = 3.0  # the speed shown is that of so long


def why_here(anomaly: dict[str, Any]) -> str:
    """Why an anomaly of the storefront is one, beginning with the service it happened in.

    The service follows from the action or the line here, so that one's surprise tells the story.

    >>> why_here({"type": "record", "observed": {"service": "billing", "action": "capture", "status": "ok"},
    ...     "contributions": {"service": 9.1, "action": 8.0, "status": 0.0},
    ...     "expected": {"action": [{"token": "authorise", "probability": 0.97}]},
    ...     "context": [{"time_ms": 1, "service": "shipping", "action": "quote", "status": "ok"}]})
    'billing: after quote came capture (0.03 %), expected authorise (97 %)'
    """
    if anomaly["type"] == "session":
        return why_of(anomaly)
    observed = anomaly["observed"]
    told = {field: nats for field, nats in anomaly["contributions"].items() if field != "service"}
    why, service = why_of({**anomaly, "contributions": told}), observed["service"]
    did = next((field for field in ("action", "message") if field in observed), None)
    if did is None:
        return f"{service}: {why}"
    if why.startswith(f"{did}: "):
        return f"{service}: {why.removeprefix(f'{did}: ')}"
    return f"{service}: {observed[did]}, {why}"


class Screen:
    """Notes, then each incident as it opens, then the outcome.

    In a terminal a status line renews itself below them, and goes when the screen is left; elsewhere it is printed
    every five seconds.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.monotonic()
        self._live: Live | None = None
        self._next_status_s = _STATUS_S
        self._recent: deque[tuple[float, int]] = deque([(0.0, 0)])
        self._sessions: set[str] = set()

    @property
    def is_terminal(self) -> bool:
        """Whether something can be shown that renews itself."""
        return self._console.is_terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Say what has been done, with the time it took so far."""
        self._console.print(f"[dim]{time.monotonic() - self._began_s:5.1f} s[/]  {escape(text)}", soft_wrap=True)

    def open(self, seconds: int, *, keep: bool) -> None:
        """Begin the streams."""
        until = "until Ctrl-C" if keep else f"for {seconds} s"
        self.note(
            f"The worker is ready. The shop is open {until}, and nine things will break: when and where is secret."
        )
        if self.is_terminal:
            self._live = Live("", console=self._console, refresh_per_second=8, transient=True)
            self._live.start()

    def close(self) -> None:
        """End the streams."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def alarm(self, session: str) -> None:
        """Count a session with an anomaly; which belong together, incidents say."""
        self._sessions.add(session)

    def incident(self, at_s: float, told: Told, why: str | None) -> None:
        """Show an incident that has opened, with what its first anomaly says."""
        line = Text.assemble((f"{f'+{at_s:.1f}s':>8}  ", "dim"), (f"incident in {_places(told)}  ", "cyan"), why or "")
        self._console.print(line, soft_wrap=True)

    def status(self, at_s: float, sent: int, scored: int | None, latencies_ms: Sequence[int]) -> None:
        """Show how far the streams are, how fast, and how long alarms take."""
        self._recent.append((at_s, sent))
        while len(self._recent) > 2 and self._recent[1][0] < at_s - _SPEED_S:
            self._recent.popleft()
        (before_s, before), speed = self._recent[0], 0.0
        if at_s > before_s:
            speed = (sent - before) / (at_s - before_s)
        parts = [f"{max(at_s, 0.0):6.0f} s", f"{speed:,.0f} records/s", f"{sent:,} sent"]
        parts += [] if scored is None else [f"{scored:,} scored"]
        parts.append(f"{len(self._sessions):,} alarmed")
        if latencies_ms:
            median, p99 = (latencies_ms[int(share * (len(latencies_ms) - 1))] for share in (0.5, 0.99))
            parts.append(f"record to alarm: {median} ms median, {p99} ms p99")
        line = Text("  ".join(parts), style="bold", no_wrap=self.is_terminal, overflow="ellipsis")
        if self._live is not None:
            self._live.update(line)
        elif at_s >= self._next_status_s:
            self._next_status_s += _STATUS_S
            self._console.print(line, soft_wrap=True)

    def report(self, report: Report) -> None:
        """Show the incidents, then the truth: each fault, found or not, and false alarms beside the promises."""
        self._incidents(report)
        numbers = {story.told.id: k for k, story in enumerate(report.incidents, 1)}
        faults = Table("fault", "stream", "began", "incident", "sessions", title="What broke, and where it showed")
        for fault in report.found:
            faults.add_row(
                fault.kind, fault.stream, f"+{fault.at_s:.1f} s", _told_of(fault, numbers),
                f"{fault.sessions_found} of {fault.sessions}", style="red" if fault.incident is None else None,
            )  # fmt: skip
        self._console.print(faults)
        self._promises(report)
        found_count = sum(fault.incident is not None for fault in report.found)
        outcome = "passed" if report.passed else "failed"
        self._console.print(
            f"{found_count} of {len(report.found)} faults found by incidents; the demo {outcome}. (It asks for "
            "three of four in each stream, and for false alarms at no more than twice the promise.)",
            style="bold green" if report.passed else "bold red", soft_wrap=True,
        )  # fmt: skip

    def _incidents(self, report: Report) -> None:
        """Say of each incident where it probably began, how bad it was, and what its most telling anomaly says."""
        self._console.print("Incidents, with the likeliest cause first:")
        for number, story in enumerate(report.incidents, 1):
            told, lasted_s = story.told, (story.told.last_ms - story.told.start_ms) / 1000
            what = f"{_places(told)}{'' if told.field is None else f', {told.field}'}"
            self._console.print(
                Text.assemble(
                    (f"{f'#{number}':>5} ", "bold"), (f"+{story.at_s:.1f} s  ", "dim"), (what, "cyan"),
                    f"  {told.severity}, {told.anomalies:,} anomalies in {told.session_count:,} sessions, "
                    f"{lasted_s:.1f} s{'' if told.change == 'closed' else ' and going on'}",
                ),
                soft_wrap=True,
            )  # fmt: skip
            if story.why is not None:
                self._console.print(Text(f"      {story.why}"), soft_wrap=True)

    def _promises(self, report: Report) -> None:
        alarms = Table("healthy", "of", "false alarms", "promised", "twice that", title="What was well")
        for kept in report.kept:
            share = _share(kept.count / max(kept.of, 1))
            alarms.add_row(
                f"{kept.stream} {kept.what}", f"{kept.of:,}", f"{kept.count:,} = {share}",
                f"{kept.rate * kept.of:.1f} = {_share(kept.rate)}", f"{kept.twice:.1f}",
                style=None if kept.kept else "red",
            )  # fmt: skip
        self._console.print(alarms)
        for kept in report.kept:
            if kept.count > kept.twice:
                self._console.print(_beyond(kept), soft_wrap=True)
        of = f"{report.false_incidents:,} of {len(report.incidents):,} incidents"
        self._console.print(f"{of} have no session in which anything was wrong.", soft_wrap=True)

    def farewell(self) -> None:
        """Say how to go on."""
        self._console.print(
            "All that the demo started is gone. How to go on:\n"
            "  offbeat demo --keep      the same, round after round, until Ctrl-C\n"
            "  a stream of your own     write offbeat.yaml as the README shows, then offbeat topics --create,\n"
            "                           offbeat train --stream NAME --from-topic, offbeat worker and offbeat tail",
            soft_wrap=True,
        )  # fmt: skip


def _places(told: Told) -> str:
    """Where it began, and where else it showed, each service with its stream."""
    return " and ".join(stream if service is None else f"{service} ({stream})" for stream, service in told.causes)


def _told_of(fault: Found, numbers: Mapping[str, int]) -> str:
    """Which incident tells of a fault, and how soon."""
    return "no" if fault.incident is None else f"#{numbers[fault.incident]}, {fault.after_s:.2f} s"


def _share(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def _beyond(kept: FalseAlarms) -> str:
    """Say what more than twice the promise means for so few."""
    verdict = "that can be chance" if kept.kept else "that is no chance"
    return (
        f"False alarms on {kept.what} of {kept.stream} are more than twice the promise ({kept.count}); {verdict}, for "
        f"a rate of just twice the promise gives up to {kept.limit} in 99 of 100 runs."
    )
