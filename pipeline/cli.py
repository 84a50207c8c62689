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
labels_app = typer.Typer(no_args_is_help=True, help="See what people said of anomalies, and what to look at next.")
app.add_typer(labels_app, name="labels")
models_app = typer.Typer(no_args_is_help=True, help="See, compare, verify and promote what training made.")
app.add_typer(models_app, name="models")
incidents_app = typer.Typer(no_args_is_help=True, help="See incidents: anomalies that belong together.")
app.add_typer(incidents_app, name="incidents")
mute_app = typer.Typer(no_args_is_help=True, help="Keep known anomalies from making incidents, for a time.")
app.add_typer(mute_app, name="mute")
alerts_app = typer.Typer(help="Tell people of incidents: webhooks, Alertmanager, chats, pagers.")
app.add_typer(alerts_app, name="alerts")

Config = Annotated[Path, typer.Option("--config", "-c", help="The config file.")]
Session = Annotated[str, typer.Argument(metavar="KEY", help="The session's name, which is its records' key.")]
Stream = Annotated[str, typer.Option("--stream", "-s", help="Name of the stream in the config.")]
Reference = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="The beginning of its digest, or `serving`, or `previous`.")
]
AnomalyName = Annotated[
    str, typer.Argument(metavar="ID", help="The anomaly's `id`, such as shop/shop.orders/0/57/record.")
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
def storefront(
    config: Config = CONFIG,
    seed: Annotated[int, typer.Option(help="Decides shoppers and faults.")] = 1,
    rate: Annotated[float, typer.Option(min=0.1, max=1_000, help="Visits that begin in a second.")] = 40.0,
) -> None:
    """Send a made-up storefront's events to the stream orders until stopped; SIGUSR1 breaks it for half a minute."""
    from pipeline.settings import load_settings
    from pipeline.storefront_feed import run_storefront

    run_storefront(load_settings(config), seed=seed, sessions_per_s=rate)


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
def trainer(
    config: Config = CONFIG,
    once: Annotated[bool, typer.Option("--once", help="Do what is asked for now, and end.")] = False,
) -> None:
    """Train what drift, age, labels or people ask for, and offer what is better: start as many as you like."""
    from pipeline.settings import load_settings
    from pipeline.trainer import run_trainer

    run_trainer(load_settings(config), config, once=once)


@app.command()
def retrain(
    stream: Stream,
    config: Config = CONFIG,
    since: Annotated[str | None, typer.Option(help="Records from then on: a time, or a duration before now.")] = None,
    until: Annotated[str | None, typer.Option(help="Likewise, records before.")] = None,
    reason: Reason = None,
    seed: Annotated[int, typer.Option(help="Decides start weights and order.")] = 0,
    list_: Annotated[bool, typer.Option("--list", help="Ask for nothing, list what was asked for.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask running trainers for a training, by hand: no guard is asked."""
    from pipeline.retrain_commands import list_jobs, request_training
    from pipeline.settings import load_settings

    settings = load_settings(config)
    if list_:
        list_jobs(settings, stream, as_json=as_json)
        return
    request_training(settings, stream, since=since, until=until, reason=reason, seed=seed, as_json=as_json)


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
def replay(
    anomaly: AnomalyName,
    config: Config = CONFIG,
    back: Annotated[int, typer.Option(min=1, help="Records of the partition to read before it.")] = 100_000,
    input_: Annotated[
        Path | None, typer.Option("--input", help="JSON lines instead of the topic, plain or .gz.")
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="As for `models`; absent: the one that judged it, of a file the one that serves.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge an anomaly once more from its records, and explain all there is to explain."""
    from pipeline.replay_command import replay_anomaly
    from pipeline.settings import load_settings

    replay_anomaly(load_settings(config), anomaly, back=back, source=input_, bundle=bundle, as_json=as_json)


@app.command()
def label(
    anomaly: AnomalyName,
    config: Config = CONFIG,
    normal: Annotated[bool, typer.Option("--normal", help="It is none: silence its pattern.")] = False,
    is_anomaly: Annotated[bool, typer.Option("--anomaly", help="It is one: its pattern is not silenced.")] = False,
    reason: Reason = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether an anomaly is one; workers go by it from their next checkpoint on."""
    from pipeline.label_command import label_anomaly
    from pipeline.settings import load_settings

    if normal == is_anomaly:
        message = "say what it is: either --normal or --anomaly"
        raise UsageError(message)
    settings = load_settings(config)
    label_anomaly(settings, anomaly, "normal" if normal else "anomaly", reason, yes=yes, as_json=as_json)


@labels_app.command("list")
def labels_list(
    config: Config = CONFIG,
    stream: Annotated[str | None, typer.Option("--stream", "-s", help="Of this stream; absent: of all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what people said of anomalies, and how many were some."""
    from pipeline.label_command import list_labels
    from pipeline.settings import load_settings

    list_labels(load_settings(config), stream, as_json=as_json)


@labels_app.command("queue")
def labels_queue(
    config: Config = CONFIG,
    stream: Annotated[str | None, typer.Option("--stream", "-s", help="Of this stream; absent: of all.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what is most worth a label: patterns without one, the least sure first."""
    from pipeline.label_command import show_queue
    from pipeline.settings import load_settings

    show_queue(load_settings(config), stream, as_json=as_json)


@app.command()
def plan(
    events_per_second: Annotated[float, typer.Option("--events-per-second", help="Records that come in a second.")],
    sessions: Annotated[int, typer.Option(help="Sessions that are live at once.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The config file; absent: offbeat.yaml, where there is one.")
    ] = None,
    stream: Annotated[
        str | None, typer.Option("--stream", "-s", help="Plan for this stream of the config; one need not be named.")
    ] = None,
    zipf: Annotated[
        bool, typer.Option("--zipf/--uniform", help="A few sessions have most records (s = 1.1), or all have alike.")
    ] = False,
    core: Annotated[str | None, typer.Option(help="Instead of the stream's; without a config gru.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Likewise; 64.")] = None,
    token_fields: Annotated[int | None, typer.Option(help="Likewise, how many; 1.")] = None,
    numbers: Annotated[int | None, typer.Option(help="Likewise, how many; 0.")] = None,
    session_events: Annotated[float, typer.Option(help="Records of a session until it ends.")] = 50.0,
    record_bytes: Annotated[float, typer.Option(help="Bytes of a record as the topic stores it.")] = 150.0,
    retention: Annotated[str, typer.Option(help="How long the source topic keeps records.")] = "1d",
    headroom: Annotated[float, typer.Option(help="Share of each worker's core that is left free.")] = 0.4,
    partitions_per_worker: Annotated[int, typer.Option(help="More leave room to grow.")] = 1,
    replication: Annotated[int, typer.Option(help="Copies of each partition of a topic.")] = 3,
    broker_mb_per_second: Annotated[float, typer.Option(help="MB/s one broker takes in; twice as much out.")] = 100.0,
    broker_tb: Annotated[float, typer.Option(help="TB one broker stores.")] = 10.0,
    costs: Annotated[
        Path | None, typer.Option(help="Unit costs of your machine, by `python -m benchmarks unit-costs`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a load takes in workers, brokers, memory and disk, from measured costs of records and sessions."""
    from pipeline.plan_command import Asked, print_plan

    asked = Asked(
        events_per_second, sessions, zipf, core, hidden, token_fields, numbers, session_events, record_bytes,
        retention, headroom, partitions_per_worker, replication, broker_mb_per_second, broker_tb,
    )  # fmt: skip
    here = CONFIG if stream is not None or CONFIG.exists() else None
    print_plan(asked, config or here, stream, costs, as_json=as_json)


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


@incidents_app.command("list")
def incidents_list(
    config: Config = CONFIG,
    only_open: Annotated[bool, typer.Option("--open", help="Only those that are open.")] = False,
    suppressed: Annotated[bool, typer.Option("--suppressed", help="What mutes and maintenance suppressed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List incidents as they were last told."""
    from pipeline.incident_commands import list_incidents, list_suppressed
    from pipeline.settings import load_settings

    settings = load_settings(config)
    if suppressed:
        list_suppressed(settings, as_json=as_json)
    else:
        list_incidents(settings, only_open=only_open, as_json=as_json)


@incidents_app.command("show")
def incidents_show(
    incident: Annotated[str, typer.Argument(metavar="ID", help="Its id, as `offbeat incidents list` prints it.")],
    config: Config = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Show one incident: how bad, since when, where it may have begun, and examples."""
    from pipeline.incident_commands import show_incident
    from pipeline.settings import load_settings

    show_incident(load_settings(config), incident, as_json=as_json)


@alerts_app.callback(invoke_without_command=True)
def alerts(context: typer.Context, config: Config = CONFIG) -> None:
    """Tell people of incidents: start as many as you like, they share the partitions."""
    from pipeline.alerts.process import run_alerts
    from pipeline.settings import load_settings

    if context.invoked_subcommand is None:
        run_alerts(load_settings(config))


@alerts_app.command("status")
def alerts_status(config: Config = CONFIG, as_json: AsJson = False) -> None:
    """Say what each receiver has not got yet, and which are disabled."""
    from pipeline.alerts.commands import show_status
    from pipeline.settings import load_settings

    show_status(load_settings(config), as_json=as_json)


@alerts_app.command("redeliver")
def alerts_redeliver(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Messages, changes or incidents; absent: all that options leave."),
    ] = None,
    config: Config = CONFIG,
    receiver: Annotated[str | None, typer.Option(help="Only what this receiver did not get.")] = None,
    since: Annotated[str | None, typer.Option(help="Given up since then: a time, or a duration before now.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send again what was given up; it has the same id, so who has it already drops it."""
    from pipeline.alerts.commands import redeliver
    from pipeline.settings import load_settings

    if not (ids or receiver or since):
        message = (
            "say what to send again: ids, --receiver or --since; `offbeat tail dead-letters --from-start` shows it"
        )
        raise UsageError(message)
    redeliver(load_settings(config), ids or [], receiver=receiver, since=since, as_json=as_json)


@alerts_app.command("enable")
def alerts_enable(
    receiver: Annotated[str, typer.Argument(metavar="RECEIVER", help="Its name in alerts.receivers.")],
    config: Config = CONFIG,
) -> None:
    """Give a receiver messages again that was disabled by its answer 410."""
    from pipeline.alerts.commands import enable
    from pipeline.settings import load_settings

    enable(load_settings(config), receiver)


@alerts_app.command("test")
def alerts_test(
    receiver: Annotated[str, typer.Argument(metavar="RECEIVER", help="Its name in alerts.receivers.")],
    config: Config = CONFIG,
    as_json: AsJson = False,
) -> None:
    """Send a receiver one message that is marked as a test, and say what came back."""
    from pipeline.alerts.trial import try_receiver
    from pipeline.settings import load_settings

    try_receiver(load_settings(config), receiver, as_json=as_json)


@mute_app.command("add")
def mute_add(
    lasts: Annotated[str, typer.Option("--for", help="How long, such as 2h, by event time from now on.")],
    reason: Annotated[str, typer.Option(help="Why, for others.")],
    config: Config = CONFIG,
    stream: Annotated[str | None, typer.Option("--stream", "-s", help="Anomalies of this stream.")] = None,
    segment: Annotated[str | None, typer.Option(help="Of this segment.")] = None,
    session: Annotated[str | None, typer.Option(help="Of this session, as anomalies name it.")] = None,
    field: Annotated[str | None, typer.Option(help="Of records that have this token field.")] = None,
    value: Annotated[str | None, typer.Option(help="And in it this value.")] = None,
    as_json: AsJson = False,
) -> None:
    """Mute anomalies: they stay anomalies, but count for no incident."""
    from pipeline.mute_commands import add_mute
    from pipeline.settings import load_settings

    add_mute(
        load_settings(config), lasts, reason, stream=stream, segment=segment, session=session, field=field,
        value=value, as_json=as_json,
    )  # fmt: skip


@mute_app.command("list")
def mute_list(config: Config = CONFIG, as_json: AsJson = False) -> None:
    """List mutes in force, and how much each kept from counting."""
    from pipeline.mute_commands import list_mutes
    from pipeline.settings import load_settings

    list_mutes(load_settings(config), as_json=as_json)


@mute_app.command("remove")
def mute_remove(
    mute: Annotated[str, typer.Argument(metavar="ID", help="Its name, as `offbeat mute list` prints it.")],
    config: Config = CONFIG,
) -> None:
    """Lift a mute."""
    from pipeline.mute_commands import remove_mute
    from pipeline.settings import load_settings

    remove_mute(load_settings(config), mute)


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
