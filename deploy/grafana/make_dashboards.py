"""The three dashboards: run it to write dashboards/, with --check to say whether they are up to date.

Grafana fills in `$stream`, `$__range` and `$__rate_interval`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from grafana_json import Panel, dashboard

HERE = Path(__file__).parent
OF = 'stream=~"$stream"'


def number(title: str, about: str, query: str, legend: str = "", **more: Any) -> Panel:
    """One number a series, as it is now."""
    return Panel(title, about, {legend: query}, kind="stat", width=6, height=5, **more)


def rate(metric: str, *labels: str, over: str = "$__rate_interval") -> str:
    """The rate of a counter of the chosen streams."""
    return f"rate({metric}{{{', '.join([OF, *labels])}}}[{over}])"


def per_second(metric: str, *by: str) -> str:
    """Its sum."""
    return f"sum by ({', '.join(by)}) ({rate(metric)})"


def grown(metric: str, over: str, *by: str) -> str:
    """By how much a counter has grown."""
    return f"sum by ({', '.join(by)}) (increase({metric}{{{OF}}}[{over}]))"


def share(of: str, whole: str) -> str:
    """A ratio of sums by stream; nothing where there is no traffic."""
    return f"sum by (stream) ({of}) / (sum by (stream) ({whole}) > 0)"


def quantile(q: float, histogram: str, *by: str) -> str:
    """A quantile of a histogram of the chosen streams."""
    return f"histogram_quantile({q}, sum by ({', '.join(['le', *by])}) ({rate(f'{histogram}_bucket')}))"


def total(metric: str, *by: str) -> str:
    """The sum of a gauge."""
    return f"sum by ({', '.join(by)}) ({metric}{{{OF}}})"


def largest(metric: str, *by: str) -> str:
    """The largest of a gauge."""
    return f"max by ({', '.join(by)}) ({metric}{{{OF}}})"


def mean(metric: str, *by: str) -> str:
    """The mean of a gauge."""
    return f"avg by ({', '.join(by)}) ({metric}{{{OF}}})"


RANGE = "$__range"
EXECUTIVE: dict[str, list[Panel]] = {
    "Objectives": [
        number(
            "Freshness", "Slices judged within a second after Kafka got their first record. Objective: 99 %.",
            share(rate("offbeat_record_age_seconds_bucket", 'le="1.0"', over=RANGE),
                  rate("offbeat_record_age_seconds_count", over=RANGE)),
            "{{stream}}", unit="percentunit", bad=0.0, good=0.99,
        ),
        number(
            "Scoring", "Partitions that are scored, of those that streams have. Objective: 99.9 %.",
            f"avg_over_time(offbeat:scoring:ratio{{{OF}}}[$__range])", "{{stream}}", unit="percentunit", bad=0.0,
            good=0.999,
        ),
        number(
            "Judging", "Records judged, not set aside as dead letters. Objective: 99.9 %.",
            "1 - " + share(rate("offbeat_dead_letters_total", over=RANGE), rate("offbeat_records_total", over=RANGE)),
            "{{stream}}", unit="percentunit", bad=0.0, good=0.999,
        ),
        number(
            "Delivery", "Alerts that their receiver had within a minute. Objective: 99 %.",
            "1 - offbeat:delivery_errors:ratio_rate6h", "six hours", unit="percentunit", bad=0.0, good=0.99,
        ),
        number(
            "Lost records and sessions", "Deleted by retention before they were read, or damaged. None may be.",
            f"sum(increase(offbeat_lost_records_total{{{OF}}}[$__range]))"
            f" + sum(increase(offbeat_lost_sessions_total{{{OF}}}[$__range]))",
            good=0.0, bad=0.5,
        ),
        number(
            "Alarms, of what was promised", "Over a day; 1 is as promised, 2 is too many. Real trouble counts as well.",
            f"offbeat:anomalies:ratio_rate1d{{{OF}}} / on (stream, type) group_left () offbeat:promised:ratio",
            "{{stream}} {{type}}s", good=0.0, bad=2.0,
        ),
        number(
            "Open incidents", "Now.", "sum(offbeat_incidents_open)",
        ),
        number(
            "Alerts on Offbeat itself", "Firing now.", 'count(ALERTS{alertstate="firing"}) or vector(0)', good=0.0,
            bad=1.0,
        ),
    ],
    "Budgets": [
        Panel(
            "How fast budgets burn", "1 spends the budget of 30 days in 30 days; 14.4 over an hour pages.",
            {
                "freshness {{stream}}": f"offbeat:freshness_errors:ratio_rate1h{{{OF}}} / 0.01",
                "scoring {{stream}}": f"offbeat:scoring_errors:ratio_rate1h{{{OF}}} / 0.001",
                "judging {{stream}}": f"offbeat:judging_errors:ratio_rate1h{{{OF}}} / 0.001",
                "delivery": "offbeat:delivery_errors:ratio_rate1h / 0.01",
            },
            width=12,
        ),
        Panel(
            "Promised and kept", "The share of decisions that may be alarms, and the share that was.",
            {
                "promised {{stream}} {{kind}}s": largest("offbeat_promise_promised", "stream", "kind"),
                "kept {{stream}} {{kind}}s": mean("offbeat_promise_kept", "stream", "kind"),
            },
            unit="percentunit", width=12,
        ),
    ],
    "Work and what it costs": [
        Panel("Records", "Taken in a second.", {"{{stream}}": f"offbeat:records:rate5m{{{OF}}}"}, unit="cps"),
        Panel("Incidents", "Opened an hour.",
              {"opened": 'sum(rate(offbeat_incident_changes_total{change="opened"}[$__rate_interval])) * 3600'}),
        Panel("Cost of a million records", "By the CPU time of all processes and costs.cpu_core_hour.",
              {"{{currency}}": "offbeat:cost_per_million_records:rate5m"}),
        number("Age of the model", "Since the bundle in use was trained.",
               f"time() - max by (stream) (offbeat_bundle_trained_timestamp_seconds{{{OF}}})", "{{stream}}", unit="s",
               good=0.0, bad=2_592_000.0),
        number("Cost of a day", "At the pace of now.",
               'max by (currency) (offbeat_cpu_second_price) * on () group_left () '
               'sum(rate(process_cpu_seconds_total{job="offbeat"}[$__rate_interval])) * 86400', "{{currency}}"),
        number("Processes", "That answer, by what they do.", 'sum by (component) (up{job="offbeat"})', "{{component}}"),
    ],
}  # fmt: skip

ON_CALL: dict[str, list[Panel]] = {
    "Now": [
        Panel("Alerts", "Pending and firing, with their runbooks in the annotations.",
              {"": 'max by (alertname, severity, alertstate, stream, receiver) (ALERTS{alertname=~"Offbeat.+"})'},
              kind="table", width=12),
        Panel("Models in force", "By worker; a stream should have one.",
              {"": largest("offbeat_bundle_info", "stream", "digest", "instance")}, kind="table", width=12),
        number("Processes that answer", "Of those that Prometheus knows.",
               'sum(up{job="offbeat"}) / count(up{job="offbeat"})',
               unit="percentunit", bad=0.0, good=1.0),
        number("Ready", "Processes that have opened all they were assigned.",
               "sum(offbeat_ready) / count(offbeat_ready)",
               unit="percentunit", bad=0.0, good=1.0),
        number("Open incidents", "Now.", "sum(offbeat_incidents_open)"),
        number("Oldest alert that waits", "For a receiver to take it.",
               "max by (receiver) (offbeat_alerts_oldest_pending_seconds)", "{{receiver}}", unit="s", good=0.0,
               bad=600.0),
    ],
    "Latency and lag": [
        Panel("From Kafka to verdict", "Age of a slice's first record once it is judged.",
              {"p99 {{stream}}": quantile(0.99, "offbeat_record_age_seconds", "stream"),
               "median {{stream}}": quantile(0.5, "offbeat_record_age_seconds", "stream")}, unit="s"),
        Panel("From fetch to verdict", "Latency of slices, p99.",
              {"{{stream}}": quantile(0.99, "offbeat_slice_latency_seconds", "stream")}, unit="s"),
        Panel("Lag", "Records not yet taken in, or not yet brought to the internal topic.",
              {"{{stream}}": 'sum by (stream) ({__name__=~"offbeat_lag_records|offbeat_repartition_lag_records", '
                             f"{OF}}})"}),
        Panel("Records", "Taken in a second.", {"{{stream}}": per_second("offbeat_records_total", "stream")},
              unit="cps"),
        Panel("Checkpoints", "How long one takes, p99, and how long the oldest record waits for one.",
              {"p99 {{stream}}": quantile(0.99, "offbeat_checkpoint_seconds", "stream"),
               "oldest {{stream}}": largest("offbeat_checkpoint_age_seconds", "stream")}, unit="s"),
        Panel("Scored partitions", "Of those that a stream has.", {"{{stream}}": f"offbeat:scoring:ratio{{{OF}}}"},
              unit="percentunit"),
    ],
    "Errors": [
        Panel("Dead letters", "By reason, a second.",
              {"{{stream}} {{reason}}": per_second("offbeat_dead_letters_total", "stream", "reason")}, unit="cps"),
        Panel("Failures", "Partitions opened anew, rows read anew, records and sessions lost; in five minutes.",
              {"failures {{stream}}": grown("offbeat_partition_failures_total", "5m", "stream"),
               "rebuilds {{stream}}": grown("offbeat_rebuilds_total", "5m", "stream"),
               "lost records {{stream}}": grown("offbeat_lost_records_total", "5m", "stream"),
               "lost sessions {{stream}}": grown("offbeat_lost_sessions_total", "5m", "stream")}),
        Panel("Drift that began", "By type, in an hour.",
              {"{{stream}} {{type}}": grown("offbeat_drift_total", "1h", "stream", "type")}),
    ],
    "Anomalies, incidents, alerts": [
        Panel("Alarms", "A second, by what they are about.",
              {"{{stream}} {{type}}s":
                   "sum by (stream, type) (" + rate("offbeat_verdicts_total", 'anomaly="true"') + ")"}, unit="cps"),
        Panel("Incidents", "Open, and changes in five minutes.",
              {"open": "sum(offbeat_incidents_open)",
               "{{change}}": "sum by (change) (increase(offbeat_incident_changes_total[5m]))"}),
        Panel("Deliveries", "Attempts by receiver and how they ended, a second.",
              {"{{receiver}} {{outcome}}":
                   "sum by (receiver, outcome) (rate(offbeat_alert_deliveries_total[$__rate_interval]))"}, unit="cps"),
        Panel("Alerts that wait", "By receiver; a disabled one takes none.",
              {"{{receiver}}": "max by (receiver) (offbeat_alerts_pending)",
               "{{receiver}} is disabled": "max by (receiver) (offbeat_alerts_disabled)"}),
        Panel("Time to deliver", "From the change of an incident to the receiver's answer.",
              {"p99": "histogram_quantile(0.99, sum by (le) (rate(offbeat_alert_delivery_seconds_bucket[5m])))"},
              unit="s"),
        Panel("Trainings that ended", "In a day, by outcome.",
              {"{{stream}} {{outcome}}": grown("offbeat_retrain_jobs_total", "1d", "stream", "outcome"),
               "first, {{stream}} {{result}}":
                   grown("offbeat_auto_trainings_total", "1d", "stream", "result")}),
    ],
}  # fmt: skip

DEBUG: dict[str, list[Panel]] = {
    "Stages": [
        Panel("Time by stage", "Seconds a second that slices spend in each: a worker has one to give.",
              {"{{stage}}": per_second("offbeat_stage_seconds_sum", "stage")}, unit="s", stacked=True),
        Panel("Slowest slices by stage", "p99.",
              {"{{stream}} {{stage}}": quantile(0.99, "offbeat_stage_seconds", "stream", "stage")}, unit="s"),
        Panel("Records in a slice", "Few when all is well, 1,000 under load.",
              {"{{stream}}": share(rate("offbeat_records_total"), rate("offbeat_slice_latency_seconds_count"))}),
        Panel("CPU", "Cores in use, by process.",
              {"{{component}} {{instance}}": 'rate(process_cpu_seconds_total{job="offbeat"}[$__rate_interval])'}),
        Panel("Memory", "Resident, by process.",
              {"{{component}} {{instance}}": 'process_resident_memory_bytes{job="offbeat"}'}, unit="bytes"),
        Panel("Event loops", "How long ago each last turned; the worker ends itself at 30 s.",
              {"{{component}} {{instance}}": "offbeat_beat_age_seconds"}, unit="s"),
    ],
    "Partitions": [
        Panel("Lag by partition", "Records not yet taken in.",
              {"{{stream}} {{partition}}": largest("offbeat_lag_records", "stream", "partition")}),
        Panel("Waiting for a checkpoint", "The oldest record of each partition.",
              {"{{stream}} {{partition}}": largest("offbeat_checkpoint_age_seconds", "stream", "partition")}, unit="s"),
        Panel("Open sessions", "By partition.",
              {"{{stream}} {{partition}}": largest("offbeat_open_sessions", "stream", "partition")}),
        Panel("Thresholds", "The calibrated p-value at which an alarm begins.",
              {"{{stream}} {{partition}} {{kind}}s": f"offbeat_threshold{{{OF}}}"}, unit="percentunit"),
        Panel("Recovery", "How much of the changelog is read back.",
              {"{{stream}} {{partition}}": f"offbeat_recovery_progress_ratio{{{OF}}}"}, unit="percentunit"),
        Panel("Recovery, seconds left", "At the pace so far.",
              {"{{stream}} {{partition}}": f"offbeat_recovery_seconds_left{{{OF}}}",
               "rows/s {{stream}} {{partition}}": f"offbeat_recovery_rows_per_second{{{OF}}}"}),
    ],
    "State": [
        Panel("Session rows", "In memory, and on disk alone.",
              {"hot {{stream}}": total("offbeat_hot_sessions", "stream"),
               "cold {{stream}}": f"offbeat:cold_sessions:sum{{{OF}}}"}, stacked=True),
        Panel("Rows by where they were found", "A second.",
              {"{{stream}} {{place}}": per_second("offbeat_row_lookups_total", "stream", "place")}, unit="cps",
              stacked=True),
        Panel("Hits", "Rows found in memory, of those that there were.",
              {"{{stream}}": f"offbeat:row_hits:ratio_rate5m{{{OF}}}"}, unit="percentunit"),
        Panel("Rows read back", "From changelogs, when partitions were opened; standbys follow others' partitions.",
              {"{{stream}}": total("offbeat_restored_rows_total", "stream"),
               "standbys": "sum(offbeat_standby_partitions)"}),
    ],
    "What comes in": [
        Panel("Unknown tokens", "Of a field's values, those that the model does not know; over half an hour.",
              {"{{stream}} {{field}}": f"offbeat:unknown_tokens:ratio_rate30m{{{OF}}}"}, unit="percentunit"),
        Panel("Rare tokens", "A second; training met them too seldom to know them.",
              {"{{stream}} {{field}}": per_second("offbeat_rare_tokens_total", "stream", "field")}, unit="cps"),
        Panel("Drift by field", "How far from training, as a share of what is drift: 1 is it.",
              {"{{stream}} {{field}} {{kind}}": largest("offbeat_drift_score", "stream", "field", "kind")}),
        Panel("Fields that changed", "1 while a field is missing, of another type or unknown.",
              {"{{stream}} {{field}} {{kind}}": largest("offbeat_field_drift", "stream", "field", "kind")}),
        Panel("Records out of the ordinary", "A second.",
              {f"{what} {{{{stream}}}}": per_second(f"offbeat_{what}_total", "stream")
               for what in ("late_records", "early_records", "duplicate_records", "tombstones", "infinite_numbers")},
              unit="cps"),
    ],
    "What is said": [
        Panel("Explained", "Anomalies whose earlier events are explained, over an hour.",
              {"{{stream}}": f"offbeat:explained:ratio_rate1h{{{OF}}}"}, unit="percentunit"),
        Panel("How they are explained", "In five minutes.",
              {"{{stream}} {{outcome}}": grown("offbeat_explained_total", "5m", "stream", "outcome")}),
        Panel("Warming up", "Records judged before a bundle serves, and how much scores say meanwhile.",
              {"share {{stream}}": f"offbeat:warming_up:ratio_rate5m{{{OF}}}",
               "confidence {{stream}}": mean("offbeat_warming_up_confidence", "stream")}, unit="percentunit"),
        Panel("Notices", "Anomalies that the incident stage took, in five minutes.",
              {"{{outcome}}": "sum by (outcome) (increase(offbeat_notices_total[5m]))"}),
        Panel("Trainings", "1 while the trainer trains a stream, or a guard says not yet.",
              {"trains {{stream}}": largest("offbeat_retraining", "stream"),
               "waits {{stream}}": largest("offbeat_retrain_waits", "stream")}),
        Panel("Messages out", "Acknowledged by the broker, a second.",
              {"{{topic}}": "sum by (topic) (rate(offbeat_outputs_total[$__rate_interval]))"}, unit="cps"),
    ],
}  # fmt: skip

# A series' value is when it happened, in milliseconds.
ANNOTATIONS = {
    "Deploys": (
        "blue",
        'max by (component, version) (process_start_time_seconds{job="offbeat"}'
        " * on (job, instance) group_left (version) offbeat_build_info) * 1000",
        "{{component}} {{version}} starts",
    ),
    "Model changes": (
        "purple",
        f"max by (stream, digest) (offbeat_bundle_promoted_timestamp_seconds{{{OF}}}"
        " * on (instance, stream) group_left (digest) offbeat_bundle_info) * 1000",
        "{{stream}}: bundle {{digest}}",
    ),
}


def made() -> dict[str, str]:
    """Each file's text by its name."""
    boards: dict[str, tuple[str, str, dict[str, list[Panel]]]] = {
        "executive": ("Offbeat: executive", "now-7d", EXECUTIVE),
        "on-call": ("Offbeat: on call", "now-6h", ON_CALL),
        "debug": ("Offbeat: debug", "now-1h", DEBUG),
    }
    return {
        f"{name}.json": json.dumps(dashboard(name, *board, ANNOTATIONS), indent=2, ensure_ascii=False) + "\n"
        for name, board in boards.items()
    }


def main(arguments: list[str], folder: Path = HERE / "dashboards") -> int:
    """Write, or check; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the dashboards.")
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    check = parser.parse_args(arguments).check
    files = made()
    there = {path.name: path.read_text("utf-8") for path in folder.glob("*.json")}
    if check and there != files:
        print(f"{folder}: not what make_dashboards.py makes; run it and commit", file=sys.stderr)
        return 1
    if not check:
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
