"""The command line. Each command is a few lines here; its work stands in a module of its own, imported late."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline.errors import OffbeatError, UsageError

app = typer.Typer(
    name="offbeat", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Streaming anomaly detection on Kafka: finds the record that should not have come next, and says why.",
)  # fmt: skip
config_app = typer.Typer(no_args_is_help=True, help="Show, check or describe the config.")
app.add_typer(config_app, name="config")
sessions_app = typer.Typer(no_args_is_help=True, help="Show or delete a session that the state holds.")
app.add_typer(sessions_app, name="sessions")
models_app = typer.Typer(no_args_is_help=True, help="See, compare, verify and promote what training made.")
app.add_typer(models_app, name="models")

Config = Annotated[Path, typer.Option("--config", "-c", help="The config file.")]
Session = Annotated[str, typer.Argument(metavar="KEY", help="The session's name, which is its records' key.")]
Stream = Annotated[str, typer.Option("--stream", "-s", help="Name of the stream in the config.")]
Reference = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="The beginning of its digest, or `serving`, or `previous`.")
]
Reason = Annotated[str | None, typer.Option(help="Why, for the record.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
CONFIG = Path("offbeat.yaml")
LEAST_SESSIONS = 150  # fewer leave a training less than the 100 it needs, for a part is held back


def main() -> NoReturn:
    """Run a command; an expected error becomes one sentence and its exit code, without a traceback."""
    code = _run()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        # Threads that a library left behind (Faust's consumer after a crash) must not keep a worker from ending.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    from models.errors import ModelError

    try:
        code = app(prog_name="offbeat", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (OffbeatError, ModelError) as error:
        print(f"offbeat: {error}", file=sys.stderr)
        return error.exit_code
    except typer.TyperException as error:  # wrong options
        command = getattr(getattr(error, "ctx", None), "command_path", "offbeat")
        if text := error.format_message().rstrip("."):  # none where the help was shown instead
            print(f"offbeat: {text}; see `{command} --help`", file=sys.stderr)
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("offbeat: interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:  # Faust's word for a crash it has logged
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except OSError as error:  # a full disk, a folder that may not be written
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"offbeat: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"offbeat {version('offbeat')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    seed: Annotated[int | None, typer.Option(help="Decides shoppers and faults; absent: drawn and printed.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Start a Kafka broker, train on live telemetry, break things, and watch them being found and explained."""
    from pipeline.demo import run_demo

    raise typer.Exit(run_demo(seed=seed, keep=keep))


@app.command()
def broker(
    port: Annotated[int, typer.Option(help="Port to listen on (127.0.0.1 only).")] = 9092,
    data: Annotated[Path, typer.Option(help="Where the broker keeps its data.")] = Path("offbeat-data/broker"),
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Remove the data at the end.")] = False,
) -> None:
    """Run a local single-node Apache Kafka in the foreground; no Docker needed."""
    from pipeline.broker import run_in_foreground

    run_in_foreground(data, port, ephemeral)


@app.command()
def worker(
    config: Config = CONFIG,
    accept_reset: Annotated[
        bool,
        typer.Option("--accept-reset", help="The group's offset was moved on purpose: close all sessions and follow."),
    ] = False,
    auto_train: Annotated[
        int | None,
        typer.Option(
            "--auto-train", min=LEAST_SESSIONS, metavar="N",
            help="Where a stream has no bundle yet, train one after N healthy sessions; it serves if it is sound.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Score streams: start as many as you like, they share the partitions."""
    from pipeline.settings import load_settings
    from pipeline.worker import run_worker

    run_worker(load_settings(config), accepts_reset=accept_reset, auto_train=auto_train, config=config)


@app.command()
def train(
    stream: Stream,
    config: Config = CONFIG,
    input_: Annotated[Path | None, typer.Option("--input", help="JSON lines to learn from, plain or .gz.")] = None,
    from_topic: Annotated[bool, typer.Option("--from-topic", help="Learn from the stream's topic.")] = False,
    since: Annotated[str | None, typer.Option(help="With --from-topic: a time, or a duration before now.")] = None,
    until: Annotated[str | None, typer.Option(help="With --from-topic: likewise.")] = None,
    promote: Annotated[bool, typer.Option("--promote", help="Let the new bundle serve.")] = False,
    seed: Annotated[int, typer.Option(help="Decides start weights and order.")] = 0,
    reason: Reason = None,
    contamination: Annotated[
        float | None,
        typer.Option(min=0, max=0.4, help="Share of the sessions taken for bad; absent: model.contamination."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was interrupted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Learn a stream's grammar from its history into a bundle."""
    from pipeline.commands import train_stream
    from pipeline.settings import load_settings

    if (input_ is None) != from_topic or ((since or until) and not from_topic):
        message = "say where to learn from: either --input FILE, or --from-topic with --since and --until if you like"
        raise UsageError(message)
    train_stream(
        load_settings(config), stream, source=input_, since=since, until=until, promoted=promote, seed=seed,
        contamination=contamination, resumes=resume, as_json=as_json, why=reason,
    )  # fmt: skip


@app.command()
def score(
    stream: Stream,
    input_: Annotated[Path, typer.Option("--input", help="JSON lines to score, plain or .gz.")],
    output: Annotated[Path, typer.Option("--output", help="Verdicts, as JSON lines.")],
    config: Config = CONFIG,
    bundle: Annotated[Path | None, typer.Option(help="A bundle's folder; absent: the one that serves.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a file as the worker would score the topic."""
    from pipeline.commands import score_stream
    from pipeline.settings import load_settings

    score_stream(load_settings(config), stream, input_, output, bundle, as_json=as_json)


@app.command()
def backtest(
    stream: Stream,
    input_: Annotated[Path, typer.Option("--input", help="JSON lines to score, plain or .gz.")],
    labels: Annotated[Path, typer.Option(help="CSV: session,label or line,label or start,end[,session].")],
    config: Config = CONFIG,
    bundle: Annotated[Path | None, typer.Option(help="A bundle's folder; absent: the one that serves.")] = None,
    output: Annotated[Path | None, typer.Option(help="Verdicts too, as JSON lines.")] = None,
    plot: Annotated[Path | None, typer.Option(help="An .svg file for precision, recall and scores.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a file and judge the verdicts by labels: precision, recall, false alarms, time to detect."""
    from pipeline.commands import backtest_stream
    from pipeline.settings import load_settings

    backtest_stream(
        load_settings(config), stream, input_, labels, bundle=bundle, output=output, plot_to=plot, as_json=as_json
    )


@app.command()
def produce(
    file: Annotated[Path, typer.Argument(help="JSON lines, plain or .gz.")],
    stream: Stream,
    config: Config = CONFIG,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Records per second; absent: full speed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a file's lines to the stream's topic, keyed by session."""
    from pipeline.commands import produce_file
    from pipeline.settings import load_settings

    produce_file(load_settings(config), stream, file, rate, as_json=as_json)


@app.command()
def tail(
    what: Annotated[str, typer.Argument(help="An output topic, such as anomalies.")] = "anomalies",
    config: Config = CONFIG,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with what the topic holds.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many.")] = None,
    as_json: AsJson = False,
) -> None:
    """Follow an output topic, one line a message."""
    from pipeline.commands import tail_topic
    from pipeline.settings import load_settings

    tail_topic(load_settings(config), what, from_start=from_start, limit=limit, as_json=as_json)


@app.command()
def topics(
    config: Config = CONFIG,
    create: Annotated[bool, typer.Option("--create", help="Create missing topics, sources too.")] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete output topics and changelogs; never sources.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the topics of a config, or create or delete them."""
    from pipeline.commands import manage_topics
    from pipeline.settings import load_settings

    if create and delete:
        message = "say either --create or --delete"
        raise UsageError(message)
    manage_topics(load_settings(config), create=create, delete=delete, as_json=as_json)


@sessions_app.command("show")
def sessions_show(
    key: Session,
    stream: Stream,
    config: Config = CONFIG,
    all_partitions: Annotated[
        bool, typer.Option("--all-partitions", help="Search all, for producers that place keys in their own way.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the state holds of a session."""
    from pipeline.session_commands import show_session
    from pipeline.settings import load_settings

    show_session(load_settings(config), stream, key, all_partitions=all_partitions, as_json=as_json)


@sessions_app.command("delete")
def sessions_delete(
    key: Session,
    stream: Stream,
    config: Config = CONFIG,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="List where it is gone and until when it is kept; without --yes only that."),
    ] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until a worker has applied it.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Forget a session: workers apply it at their next checkpoint."""
    from pipeline.session_commands import delete_session
    from pipeline.settings import load_settings

    settings = load_settings(config)
    raise typer.Exit(delete_session(settings, stream, key, yes=yes, verify=verify, wait_s=wait, as_json=as_json))


@models_app.command("list")
def models_list(
    config: Config = CONFIG,
    stream: Annotated[str | None, typer.Option("--stream", "-s", help="Of this stream; absent: of all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List bundles: which serve, which served before, and who promoted them."""
    from pipeline.model_commands import list_bundles
    from pipeline.settings import load_settings

    list_bundles(load_settings(config), stream, as_json=as_json)


@models_app.command("show")
def models_show(
    stream: Stream, bundle: Reference = "serving", config: Config = CONFIG, as_json: AsJson = False
) -> None:
    """Say all that a bundle's manifest holds."""
    from pipeline.model_commands import show_bundle
    from pipeline.settings import load_settings

    show_bundle(load_settings(config), stream, bundle, as_json=as_json)


@models_app.command("compare")
def models_compare(
    a: Reference, b: Reference, stream: Stream, config: Config = CONFIG, as_json: AsJson = False
) -> None:
    """Lay two bundles side by side: what differs."""
    from pipeline.model_commands import compare_bundles
    from pipeline.settings import load_settings

    compare_bundles(load_settings(config), stream, a, b, as_json=as_json)


@models_app.command("promote")
def models_promote(
    bundle: Reference, stream: Stream, config: Config = CONFIG, reason: Reason = None, as_json: AsJson = False
) -> None:
    """Let a bundle serve, and tell running workers; `serving` tells them again."""
    from pipeline.model_commands import promote_bundle
    from pipeline.settings import load_settings

    promote_bundle(load_settings(config), stream, bundle, reason, as_json=as_json)


@models_app.command("rollback")
def models_rollback(stream: Stream, config: Config = CONFIG, reason: Reason = None, as_json: AsJson = False) -> None:
    """Let the bundle serve that served before; once more goes one further back."""
    from pipeline.model_commands import roll_back
    from pipeline.settings import load_settings

    roll_back(load_settings(config), stream, reason, as_json=as_json)


@models_app.command("verify")
def models_verify(
    stream: Stream,
    bundles: Annotated[
        list[str] | None,
        typer.Argument(metavar="[BUNDLE]...", help="As for the others; absent: each one of the stream."),
    ] = None,
    config: Config = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Check every byte of bundles, where they lie, and that their weights are whole."""
    from pipeline.model_commands import verify_bundles
    from pipeline.settings import load_settings

    raise typer.Exit(verify_bundles(load_settings(config), stream, bundles or [], as_json=as_json))


@config_app.command("show")
def config_show(config: Config = CONFIG, as_json: AsJson = False) -> None:
    """Print the config as it is in force: file, environment and defaults."""
    from pipeline.commands import show_config
    from pipeline.settings import load_settings

    show_config(load_settings(config), as_json=as_json)


@config_app.command("check")
def config_check(config: Config = CONFIG) -> None:
    """Say whether the config is right; nothing is started."""
    from pipeline.settings import load_settings

    settings = load_settings(config)
    print(f"{config} is right: {len(settings.streams)} stream(s), {', '.join(settings.streams)}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the config's JSON Schema, for editors."""
    import json

    from pipeline.settings import Settings

    print(json.dumps(Settings.model_json_schema(), indent=2))


if __name__ == "__main__":
    main()
