"""`offbeat sessions show` and `delete`: what the state holds of one session, and how it forgets it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import typer
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Column, Table

from detectors.parts import Learned
from models.errors import ModelError
from pipeline.changelog import KeyReader, usual_partitions
from pipeline.clients import Clients
from pipeline.cold_rows import session_key
from pipeline.deletion import Trace, is_applied, send_control, traces
from pipeline.errors import SessionError, TopicError, UsageError
from pipeline.screen import progress_bar, screen
from pipeline.serving import load_serving, make_parts, record_name, saved_name
from pipeline.sessions import checked_name, describe, in_words, iso
from pipeline.settings import Settings
from pipeline.topics import changelog_topic, controls_topic, partition_counts
from pipeline.wire import DeleteSession

_POLL_S = 0.2


def show_session(settings: Settings, name: str, session: str, *, all_partitions: bool, as_json: bool) -> None:
    """Print what the changelog holds of a session.

    Raises
    ------
    SessionError
        The partitions that were read hold no open session of that name.
    """
    settings.stream(name)  # or a sentence
    session = checked_name(session)
    clients = Clients(settings)
    changelog, count = _changelog(settings, name, clients.admin())
    partitions = list(range(count)) if all_partitions else usual_partitions(record_name(settings, name, session), count)
    session = saved_name(settings, name, session)
    with KeyReader(clients, changelog, session_key(session), partitions) as reader, _reading(changelog) as progress:
        reader.read(progress)
    if reader.row is None:
        if as_json:
            print(json.dumps({"stream": name, "session": session, "open": False, "partitions": partitions}))
        raise _not_found(reader, session, partitions, count)
    parts = make_parts(settings, name, _serving_or_none(settings, name))
    described = describe(session, reader.row, changelog, parts, settings.bundles_dir / name)
    print(json.dumps(described) if as_json else "\n".join(in_words(described)))


def _not_found(reader: KeyReader, session: str, partitions: list[int], count: int) -> SessionError:
    """Where it was looked for, and where it was not."""
    where = (
        f"any of {count} partitions" if len(partitions) == count else f"partition {' or '.join(map(str, partitions))}"
    )
    ended = max((trail.last.time_ms for trail in reader.trails.values()), default=None)
    more = "" if ended is None else f"; one ended or was deleted at {iso(ended)}"
    if len(partitions) < count and ended is None:
        more = ", where producers usually place it; `--all-partitions` searches the others too"
    return SessionError(f"there is no open session {session!r} in {reader.topic}, {where}{more}")


def delete_session(
    settings: Settings, name: str, session: str, *, yes: bool, verify: bool, wait_s: float, as_json: bool
) -> int:
    """Ask the workers to forget a session, wait until they have, and list where traces of it are left.

    With `verify` and without `yes` nothing is deleted, only listed.

    Returns
    -------
    int
        Exit code: 0 if the state no longer returns the session, or if nobody wanted to know; else 1.

    Raises
    ------
    SessionError
        No worker has applied it within `wait_s`.
    """
    settings.stream(name)
    session = saved_name(settings, name, checked_name(session))
    control = DeleteSession(type="delete_session", stream=name, session=session, issued_ms=time.time_ns() // 1_000_000)
    sends, topic, clients = yes or not verify, controls_topic(settings), Clients(settings)
    if sends and not yes and not sys.stdin.isatty():
        message = "`offbeat sessions delete` asks before it deletes, and there is no terminal to ask at; add --yes"
        raise UsageError(message)
    admin = clients.admin()
    changelog, count = _changelog(settings, name, admin)
    if sends and not _is_wanted(admin, control, topic, yes=yes):
        screen.print("Nothing was deleted.")
        return 1
    with KeyReader(clients, changelog, session_key(session), range(count)) as reader:
        with _reading(changelog) as progress:
            reader.read(progress)
        marks = dict(reader.ends)
        if sends:
            send_control(clients, topic, control)
            _wait_until_applied(reader, marks, wait_s)
    listed: list[Trace] | None = None
    if verify:
        with _reading(topic) as progress:
            listed = list(traces(admin, clients, settings, control, reader.trails, progress))
    gone = is_applied(reader.trails, marks)
    _print_deletion(control, topic, listed, sent=sends, gone=gone, as_json=as_json)
    if sends and not gone and wait_s > 0:
        message = (
            f"session {session!r} is still in the state after {wait_s:g} s; is a worker running? The deletion is kept "
            f"in {topic}: a worker that opens the session's partition applies it, and `--verify` looks again"
        )
        raise SessionError(message)
    return 0 if gone or not verify else 1


def _is_wanted(admin: AdminClient, control: DeleteSession, topic: str, *, yes: bool) -> bool:
    """Make sure the deletion can be sent, and ask unless told not to."""
    if topic not in partition_counts(admin):
        message = f"topic {topic} does not exist; run `offbeat topics --create`, then start `offbeat worker`"
        raise TopicError(message)
    return yes or typer.confirm(f"Forget session {control.session!r} of stream {control.stream}?", err=True)


def _print_deletion(
    control: DeleteSession, topic: str, listed: list[Trace] | None, *, sent: bool, gone: bool, as_json: bool
) -> None:
    """What came of it, and the places as a table."""
    if as_json:
        places = {} if listed is None else {"places": [asdict(trace) for trace in listed]}
        print(json.dumps({"stream": control.stream, "session": control.session, "sent": sent, "gone": gone} | places))
        return
    if sent and gone:
        print(f"Session {control.session} is deleted: no read and no recovery returns it.")
    elif sent:
        print(f"The deletion of session {control.session} lies in {topic}; workers apply it at their next checkpoint.")
    if listed is not None:
        table = Table("place", Column("state", min_width=len("gone at compaction by")), "where and why")
        for trace in listed:
            table.add_row(trace.place, _state_in_words(trace), f"{trace.where}: {trace.note}")
        Console(highlight=False).print(table)


def _state_in_words(trace: Trace) -> str:
    if trace.until_ms is None:
        return trace.state.replace("_", " ")
    return f"{'kept until' if trace.state == 'kept' else 'gone at compaction by'} {iso(trace.until_ms)}"


def _wait_until_applied(reader: KeyReader, marks: dict[int, int], wait_s: float) -> None:
    began = time.monotonic()
    with progress_bar("waiting for a worker", wait_s) as update:
        while not is_applied(reader.trails, marks) and (waited := time.monotonic() - began) < wait_s:
            update(waited, "")
            time.sleep(_POLL_S)
            reader.read()


def _changelog(settings: Settings, stream: str, admin: AdminClient) -> tuple[str, int]:
    """A stream's changelog and how many partitions it has."""
    topic = changelog_topic(settings, stream)
    count = partition_counts(admin).get(topic)
    if count is None:
        message = f"topic {topic} does not exist: no worker has kept sessions of {stream} yet; start `offbeat worker`"
        raise TopicError(message)
    return topic, count


def _serving_or_none(settings: Settings, name: str) -> Learned | None:
    """The serving bundle, for its words; a session can be shown without."""
    try:
        return load_serving(settings, name)
    except ModelError as error:
        screen.print(f"warning: tokens show as <oov>, because {error}", style="yellow")
        return None


@contextmanager
def _reading(topic: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over a topic's offsets."""
    with progress_bar(f"reading {topic}", 1.0) as update:
        yield lambda done, total: update(done / max(1, total), f"{done:,} of {total:,} offsets")
