"""The worker's metrics, served on /metrics. No session is ever a label."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_BY_PARTITION = ("stream", "partition")
_AGE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3_600.0)
_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_DELIVERY_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0)


class Metrics:
    """All metrics of a worker; `docs/metrics.md` is made from their help texts."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        self._add_records(registry)
        self._add_fields(registry)
        self._add_verdicts(registry)
        self._add_partitions(registry)
        self._add_stages(registry)
        self._add_losses(registry)
        self._add_traces(registry)
        self._add_models(registry)
        self._add_alerts(registry)

    def _add_records(self, registry: CollectorRegistry) -> None:
        """Records, and what became of them before anything was scored."""
        self.records = Counter(
            "offbeat_records", "Records taken in, dead letters and tombstones included.", ("stream",), registry=registry
        )
        self.tombstones = Counter(
            "offbeat_tombstones", "Records without a value, skipped.", ("stream",), registry=registry
        )
        self.dead_letters = Counter(
            "offbeat_dead_letters", "Records that could not be scored, by reason.", ("stream", "reason"),
            registry=registry,
        )  # fmt: skip
        self.unknown_tokens = Counter(
            "offbeat_unknown_tokens",
            "Tokens the bundle does not know, by field; for `message` lines that match no template.",
            ("stream", "field"), registry=registry,
        )  # fmt: skip
        self.rare_tokens = Counter(
            "offbeat_rare_tokens",
            "Tokens that training met, but too seldom to know them, by field.",
            ("stream", "field"), registry=registry,
        )  # fmt: skip
        self.late_records = Counter(
            "offbeat_late_records", "Records too late to step their session.", ("stream",), registry=registry
        )
        self.early_records = Counter(
            "offbeat_early_records", "Records scored before those they should have waited for: too many waited.",
            ("stream",), registry=registry,
        )  # fmt: skip
        self.dropped_samples = Counter(
            "offbeat_dropped_samples", "Samples that no window took in, because their session had too many.",
            ("stream",), registry=registry,
        )  # fmt: skip
        self.duplicates = Counter(
            "offbeat_duplicate_records", "Records dropped because their event id was seen before.", ("stream",),
            registry=registry,
        )  # fmt: skip
        self.time_fallbacks = Counter(
            "offbeat_time_fallbacks",
            "Records given Kafka's timestamp, by reason: their time field is missing, or too far ahead of it.",
            ("stream", "reason"), registry=registry,
        )  # fmt: skip
        self.infinite_numbers = Counter(
            "offbeat_infinite_numbers", "Numbers that were infinite, and so count as missing.", ("stream",),
            registry=registry,
        )  # fmt: skip

    def _add_fields(self, registry: CollectorRegistry) -> None:
        """Fields that changed, and drift."""
        self.field_missing = Counter(
            "offbeat_field_missing", "Records without a field; those without a session are dead letters, too.",
            ("stream", "field"), registry=registry,
        )  # fmt: skip
        self.field_wrong_type = Counter(
            "offbeat_field_wrong_type", "Records with a field of a type or length that the config does not allow.",
            ("stream", "field"), registry=registry,
        )  # fmt: skip
        self.field_drift = Gauge(
            "offbeat_field_drift",
            "1 while a field differs from training; kind is missing, type or unknown. See the drift topic.",
            (*_BY_PARTITION, "field", "kind"), registry=registry,
        )  # fmt: skip
        self.drift_score = Gauge(
            "offbeat_drift_score",
            "How far the latest interval is from training, as a share of what is drift: 1 or more in six of eight "
            "intervals begins it. kind is distribution, unknown or surprise; field is p_value of scores.",
            (*_BY_PARTITION, "field", "kind"), registry=registry,
        )  # fmt: skip
        self.drifts = Counter(
            "offbeat_drift", "Changes of inputs, scores or labels that last, as they begin; see the drift topic.",
            ("stream", "type"), registry=registry,
        )  # fmt: skip

    def _add_verdicts(self, registry: CollectorRegistry) -> None:
        """Verdicts, and what is said of them."""
        self.verdicts = Counter(
            "offbeat_verdicts", "Decisions on records, sessions and rates, by type; anomaly is true or false.",
            ("stream", "type", "anomaly"), registry=registry,
        )  # fmt: skip
        self.promised = Gauge(
            "offbeat_promise_promised", "The share of decisions that may be alarms; kind is record or session.",
            ("stream", "kind"), registry=registry,
        )  # fmt: skip
        self.kept = Gauge(
            "offbeat_promise_kept",
            "The share that was alarmed over about the last hundred alarms due, true ones included, if promise.adapt.",
            (*_BY_PARTITION, "kind"), registry=registry,
        )  # fmt: skip
        self.threshold = Gauge(
            "offbeat_threshold",
            "The calibrated p-value at and below which there is an alarm: the promise at first, then as adapted.",
            (*_BY_PARTITION, "kind"), registry=registry,
        )  # fmt: skip
        self.rescored = Counter(
            "offbeat_rescored", "Anomalies that a second stage confirmed or doubted, or had no pass for (skipped).",
            ("stream", "outcome"), registry=registry,
        )  # fmt: skip
        self.explained = Counter(
            "offbeat_explained",
            "Anomalies by how their earlier events are explained: full, window, budget or none, as the message says.",
            ("stream", "outcome"), registry=registry,
        )  # fmt: skip
        self.absolved = Counter(
            "offbeat_absolved", "Verdicts that would have been anomalies, had their pattern not been labelled normal.",
            ("stream",), registry=registry,
        )  # fmt: skip
        self.forgotten_labels = Counter(
            "offbeat_forgotten_labels", "Patterns labelled normal that were forgotten: the latest 1,000 are kept.",
            ("stream",), registry=registry,
        )  # fmt: skip
        self.labelled = Gauge(
            "offbeat_labelled", "Anomalies that have a label, by the latest of each: normal or anomaly.",
            ("stream", "label"), registry=registry,
        )  # fmt: skip
        self.precision = Gauge(
            "offbeat_precision", "Share of labelled anomalies that are none of the normal ones; absent without labels.",
            ("stream",), registry=registry,
        )  # fmt: skip

    def _add_partitions(self, registry: CollectorRegistry) -> None:
        """Outputs, latency, and what a partition holds."""
        self.outputs = Counter(
            "offbeat_outputs", "Messages acknowledged by the broker, by output topic.", ("topic",), registry=registry
        )
        self.latency = Histogram(
            "offbeat_slice_latency_seconds", "From the fetch of a slice to its last verdict.", ("stream",),
            buckets=_LATENCY_S, registry=registry,
        )  # fmt: skip
        self.lag = Gauge(
            "offbeat_lag_records", "Records in the source partition not yet taken in.", _BY_PARTITION, registry=registry
        )
        self.repartitioned = Counter(
            "offbeat_repartitioned_records", "Records brought to the internal topic of a repartitioned stream.",
            ("stream",), registry=registry,
        )  # fmt: skip
        self.repartition_lag = Gauge(
            "offbeat_repartition_lag_records",
            "Records in a partition of a repartitioned stream's source not yet brought to its internal topic.",
            _BY_PARTITION, registry=registry,
        )  # fmt: skip
        self.checkpoint_age = Gauge(
            "offbeat_checkpoint_age_seconds", "How long the oldest record not yet covered by a checkpoint has waited.",
            _BY_PARTITION, registry=registry,
        )  # fmt: skip
        self.checkpoints = Histogram(
            "offbeat_checkpoint_seconds", "Duration of a checkpoint, steps 1 to 4.", ("stream",),
            buckets=_LATENCY_S, registry=registry,
        )  # fmt: skip
        self.sessions = Gauge(
            "offbeat_open_sessions", "Sessions that have not ended, hot and cold.", _BY_PARTITION, registry=registry
        )
        self.confidence = Gauge(
            "offbeat_warming_up_confidence",
            "How much scores say before a bundle serves, from 0 for no score yet towards 1; 1 under a bundle.",
            _BY_PARTITION, registry=registry,
        )  # fmt: skip
        self.hot = Gauge("offbeat_hot_sessions", "Session rows in memory.", _BY_PARTITION, registry=registry)

    def _add_stages(self, registry: CollectorRegistry) -> None:
        """Where time goes, where rows are found, and whether the worker itself is well; each told once a slice."""
        self.stages = Histogram(
            "offbeat_stage_seconds",
            "Parts of a slice's latency: wait (to be scored, also for room), decode, score, and emit (messages made "
            "and handed over). What follows is offbeat_checkpoint_seconds.",
            ("stream", "stage"), buckets=_LATENCY_S, registry=registry,
        )  # fmt: skip
        self.record_age = Histogram(
            "offbeat_record_age_seconds",
            "Age of a slice's first record by its Kafka timestamp, once the slice is judged; one observation a slice.",
            ("stream",), buckets=_AGE_S, registry=registry,
        )  # fmt: skip
        self.row_lookups = Counter(
            "offbeat_row_lookups", "Session rows asked for, by place: hot (memory), cold (RocksDB) or new (nowhere).",
            ("stream", "place"), registry=registry,
        )  # fmt: skip
        self.source_partitions = Gauge(
            "offbeat_source_partitions", "Partitions that a stream is read from, by all workers together.", ("stream",),
            registry=registry,
        )  # fmt: skip
        self.ready = Gauge("offbeat_ready", "1 while /ready says so: all that was assigned is open.", registry=registry)
        self.beat_age = Gauge(
            "offbeat_beat_age_seconds", "How long ago the event loop last turned; /healthz fails at 30.",
            registry=registry,
        )  # fmt: skip
        self.build = Gauge("offbeat_build_info", "1; the version is a label.", ("version",), registry=registry)
        self.cpu_price = Gauge(
            "offbeat_cpu_second_price", "What a second of one core costs, by costs.cpu_core_hour of the config.",
            ("currency",), registry=registry,
        )  # fmt: skip

    def _add_losses(self, registry: CollectorRegistry) -> None:
        """What was read back, lost or failed."""
        self.restored = Counter(
            "offbeat_restored_rows", "Rows read from the changelog when partitions were opened.", ("stream",),
            registry=registry,
        )  # fmt: skip
        self.recovery_rows = Gauge(
            "offbeat_recovery_rows_per_second", "Rows replayed per second while a partition is recovered, else 0.",
            _BY_PARTITION, registry=registry,
        )  # fmt: skip
        self.recovery_left = Gauge(
            "offbeat_recovery_seconds_left", "How long the recovery of a partition will take yet, at its pace so far.",
            _BY_PARTITION, registry=registry,
        )  # fmt: skip
        self.recovery_progress = Gauge(
            "offbeat_recovery_progress_ratio", "How much of a partition's changelog has been read back; 1 once open.",
            _BY_PARTITION, registry=registry,
        )  # fmt: skip
        self.rebuilds = Counter(
            "offbeat_rebuilds", "Partitions whose rows were found damaged on disk and read anew from the changelog.",
            ("stream",), registry=registry,
        )  # fmt: skip
        self.changes = Counter(
            "offbeat_stream_changes", "Topics made anew, offsets reset, records or sessions lost; see the drift topic.",
            ("stream", "type"), registry=registry,
        )  # fmt: skip
        self.lost_records = Counter(
            "offbeat_lost_records", "Records that retention deleted before they were read.", ("stream",),
            registry=registry,
        )  # fmt: skip
        self.lost_sessions = Counter(
            "offbeat_lost_sessions", "Sessions that began anew because their rows were damaged everywhere.",
            ("stream",), registry=registry,
        )  # fmt: skip
        self.standbys = Gauge(
            "offbeat_standby_partitions", "Partitions of other workers whose changelog this one follows.",
            registry=registry,
        )  # fmt: skip
        self.failures = Counter(
            "offbeat_partition_failures", "Partitions thrown out of memory and opened anew.", ("stream",),
            registry=registry,
        )  # fmt: skip

    def _add_traces(self, registry: CollectorRegistry) -> None:
        """Spans."""
        self.spans = Counter(
            "offbeat_spans",
            "Spans of traces: exported, dropped because too many waited, or failed because the collector took none.",
            ("outcome",), registry=registry,
        )  # fmt: skip

    def _add_models(self, registry: CollectorRegistry) -> None:
        """Bundles, incidents and trainings."""
        self.bundle = Gauge(
            "offbeat_bundle_info", "1 for the bundle in use; the digest is a label, `none` while warming up.",
            ("stream", "digest"), registry=registry,
        )  # fmt: skip
        self.bundle_trained = Gauge(
            "offbeat_bundle_trained_timestamp_seconds", "When the bundle in use was trained, by its manifest.",
            ("stream",), registry=registry,
        )  # fmt: skip
        self.bundle_promoted = Gauge(
            "offbeat_bundle_promoted_timestamp_seconds", "When the bundle in use was promoted, by whoever did.",
            ("stream",), registry=registry,
        )  # fmt: skip
        self.warming_up = Counter(
            "offbeat_warming_up_records", "Records judged before any bundle serves.", ("stream",), registry=registry
        )
        self.incidents_open = Gauge(
            "offbeat_incidents_open", "Incidents that are open, of those this worker looks after.", registry=registry
        )
        self.incident_changes = Counter(
            "offbeat_incident_changes", "Incidents opened, updated, merged and closed.", ("change",), registry=registry
        )
        self.notices = Counter(
            "offbeat_notices",
            "Anomalies that the incident stage took: counted, suppressed by mutes or maintenance, seen before "
            "(doubled), or unreadable.",
            ("outcome",), registry=registry,
        )  # fmt: skip

        self.auto_trainings = Counter(
            "offbeat_auto_trainings", "First trainings beside the worker: promoted, failed, or superseded by another.",
            ("stream", "result"), registry=registry,
        )  # fmt: skip
        self.retrain_jobs = Counter(
            "offbeat_retrain_jobs", "Trainings this trainer ended: offered, promoted, kept, refused or failed.",
            ("stream", "outcome"), registry=registry,
        )  # fmt: skip
        self.retraining = Gauge(
            "offbeat_retraining", "1 while this trainer trains the stream.", ("stream",), registry=registry
        )
        self.retrain_waits = Gauge(
            "offbeat_retrain_waits", "1 while a training is wanted and a guard says not yet; the log says why.",
            ("stream",), registry=registry,
        )  # fmt: skip

    def _add_alerts(self, registry: CollectorRegistry) -> None:
        """What `offbeat alerts` is given, and what became of it."""
        self.alert_changes = Counter(
            "offbeat_alert_changes",
            "Changes of incidents, or anomalies, that alerts took: routed, unrouted (no route matches) or unreadable.",
            ("outcome",), registry=registry,
        )  # fmt: skip
        self.alert_deliveries = Counter(
            "offbeat_alert_deliveries",
            "Attempts to deliver a message: delivered, retry (it failed), throttled, rejected or gone.",
            ("receiver", "outcome"), registry=registry,
        )  # fmt: skip
        self.alert_seconds = Histogram(
            "offbeat_alert_delivery_seconds",
            "From when a change may leave (its group has waited, quiet hours are over) to its delivery.",
            ("receiver",), buckets=_DELIVERY_S, registry=registry,
        )  # fmt: skip
        self.alerts_given_up = Counter(
            "offbeat_alerts_given_up",
            "Changes that went to the dead letters: exhausted, rejected, gone, disabled or no_receiver.",
            ("receiver", "reason"), registry=registry,
        )  # fmt: skip
        self.alerts_pending = Gauge(
            "offbeat_alerts_pending", "Changes that a receiver has not got yet.", ("receiver",), registry=registry
        )
        self.alerts_oldest = Gauge(
            "offbeat_alerts_oldest_pending_seconds", "For how long the first of these may leave by now; 0: none may.",
            ("receiver",), registry=registry,
        )  # fmt: skip
        self.alerts_disabled = Gauge(
            "offbeat_alerts_disabled", "1 while a receiver is given nothing, because it answered 410.",
            ("receiver",), registry=registry,
        )  # fmt: skip
        self.alerts_throttled = Gauge(
            "offbeat_alerts_throttled", "1 while a receiver rests, because it asked for that or fails again and again.",
            ("receiver",), registry=registry,
        )  # fmt: skip

    def tell_labels(self, stream: str, normal: int, anomaly: int) -> None:
        """What people say of a stream's anomalies."""
        self.labelled.labels(stream, "normal").set(normal)
        self.labelled.labels(stream, "anomaly").set(anomaly)
        if normal + anomaly:
            self.precision.labels(stream).set(anomaly / (normal + anomaly))

    def forget(self, stream: str, partition: int) -> None:
        """Drop the series of a partition that is no longer ours."""
        for gauge in (
            self.lag,
            self.checkpoint_age,
            self.sessions,
            self.hot,
            self.confidence,
            self.recovery_rows,
            self.recovery_left,
            self.recovery_progress,
        ):
            try:
                gauge.remove(stream, str(partition))
            except KeyError:  # it was never opened
                continue
        for by_kind in (self.kept, self.threshold):
            by_kind.remove_by_labels({"stream": stream, "partition": str(partition)})
        self.forget_fields(stream, partition)

    def forget_fields(self, stream: str, partition: int) -> None:
        """No field of a partition drifts any more: it is not ours, or begins anew."""
        self.field_drift.remove_by_labels({"stream": stream, "partition": str(partition)})
        self.drift_score.remove_by_labels({"stream": stream, "partition": str(partition)})
