"""The worker's metrics, served on /metrics. No session is ever a label."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_BY_PARTITION = ("stream", "partition")
_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """All metrics of a worker; `docs/metrics.md` is made from their help texts."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
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
        self.verdicts = Counter(
            "offbeat_verdicts", "Decisions on records and sessions; anomaly is true or false.",
            ("stream", "type", "anomaly"), registry=registry,
        )  # fmt: skip
        self.rescored = Counter(
            "offbeat_rescored", "Anomalies that a second stage confirmed or doubted, or had no pass for (skipped).",
            ("stream", "outcome"), registry=registry,
        )  # fmt: skip
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
        self.restored = Counter(
            "offbeat_restored_rows", "Rows read from the changelog when partitions were opened.", ("stream",),
            registry=registry,
        )  # fmt: skip
        self.recovery_rows = Gauge(
            "offbeat_recovery_rows_per_second", "Rows replayed per second while a partition is being recovered.",
            _BY_PARTITION, registry=registry,
        )  # fmt: skip
        self.recovery_left = Gauge(
            "offbeat_recovery_seconds_left", "How long the recovery of a partition will take yet, at its pace so far.",
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
        self.bundle = Gauge(
            "offbeat_bundle_info", "1 for the bundle in use; the digest is a label, `none` while warming up.",
            ("stream", "digest"), registry=registry,
        )  # fmt: skip

        self.auto_trainings = Counter(
            "offbeat_auto_trainings", "First trainings beside the worker: promoted, failed, or superseded by another.",
            ("stream", "result"), registry=registry,
        )  # fmt: skip

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
        ):
            try:
                gauge.remove(stream, str(partition))
            except KeyError:  # it was never opened
                continue
        self.forget_fields(stream, partition)

    def forget_fields(self, stream: str, partition: int) -> None:
        """No field of a partition drifts any more: it is not ours, or begins anew."""
        self.field_drift.remove_by_labels({"stream": stream, "partition": str(partition)})
