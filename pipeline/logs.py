"""Structured logs: key and value pairs for people at a terminal, JSON elsewhere. Faust's own go the same way."""

from __future__ import annotations

import logging
import sys

import structlog
from aiokafka.errors import KafkaError


def configure_logs() -> None:
    """Send every log line of the process to stderr, one format."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if sys.stderr.isatty():
        render: list[structlog.typing.Processor] = [structlog.dev.ConsoleRenderer()]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("offbeat").setLevel(logging.INFO)
    # aiokafka reports each retry of a rebalance as an error; what needs a person is logged by us.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out Kafka errors of futures nobody awaited.

    aiokafka gives one failure to several futures of its own; we await one of them and log it as a failed partition.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, KafkaError) and "never retrieved" in record.getMessage())


def get_logger() -> structlog.stdlib.BoundLogger:
    """Our logger."""
    return structlog.stdlib.get_logger("offbeat")
