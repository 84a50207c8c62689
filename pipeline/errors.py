"""What can go wrong at the edge, as one tree.

OffbeatError                    every error we raise on purpose; its text says what to do next
├── UsageError                  the command line or the config is wrong (exit code 2)
│   └── ConfigError             a key of offbeat.yaml, named with its value and what was expected
├── BrokerUnavailableError      nobody answers at the broker's address
├── TopicError                  a topic is missing, or is not as we need it
├── SessionError                the state does not hold a session, or still holds one that was deleted
├── PortTakenError              another process listens there
├── LocalBrokerError            `offbeat broker` cannot get, start or stop its Kafka
├── StalledError                a partition stands still while its source grows
├── RefusedBundleError          a first bundle was trained, and its checks refuse it
├── RepartitionError            records cannot be brought to a stream's internal topic
└── StateError                  rows on disk or in the changelog do not fit the config or each other
    ├── DamagedStateError       a saved row fails its check, or RocksDB its own; rebuilt from the changelog
    └── StaleStateError         rows in memory are no longer what is durable; the partition is opened anew

Bundles have errors of their own in `models/errors.py`, records in `features/errors.py`.
"""

from __future__ import annotations


class OffbeatError(Exception):
    """Base of all; the command line prints its text without a traceback and exits with `exit_code`."""

    exit_code = 1
    retriable = False


class UsageError(OffbeatError):
    """The user asked for something that cannot be; nothing was done."""

    exit_code = 2


class ConfigError(UsageError):
    """offbeat.yaml or an environment variable is wrong."""


class BrokerUnavailableError(OffbeatError):
    """No Kafka broker answers at the configured address."""

    retriable = True


class TopicError(OffbeatError):
    """A topic is missing or has settings we cannot work with."""


class SessionError(OffbeatError):
    """A session is not there, or is still there."""


class PortTakenError(OffbeatError):
    """The port we were told to listen on belongs to another process."""


class LocalBrokerError(OffbeatError):
    """The local Apache Kafka could not be fetched, started or stopped."""


class StalledError(OffbeatError):
    """A partition makes no progress; the worker ends so that a supervisor can start it anew."""


class RefusedBundleError(OffbeatError):
    """A bundle that nobody has looked at does not pass its checks, and serves nobody."""


class RepartitionError(OffbeatError):
    """Records cannot be brought to a stream's internal topic; the worker ends, for nothing would be scored."""


class StateError(OffbeatError):
    """Saved state does not fit the config, the source topic or itself."""


class DamagedStateError(StateError):
    """Bytes on disk are not what was written; the changelog has them."""

    retriable = True


class StaleStateError(StateError):
    """Rows in memory are no longer what is durable: another worker may have gone on from there."""

    retriable = True
