"""The edge: Kafka, Faust, RocksDB, HTTP, settings and commands."""

from pipeline.compiled import keep_by_sources

keep_by_sources()  # before anything here imports numba
