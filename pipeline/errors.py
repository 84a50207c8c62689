"""What can go wrong at the edge, as one tree.

OffbeatError                    every error we raise on purpose; its text says what to do next
├── UsageError                  the command line or the config is wrong (exit code 2)
│   ├── ConfigError             a key of offbeat.yaml, named with its value and what was expected
│   └── TrainingRunsError       another process is training the same stream
├── BrokerUnavailableError      nobody answers at the broker's address
├── BrokerRefusedError          a broker answers, and does not take us as we come
├── TopicError                  a topic is missing, or is not as we need it
├── SessionError                the state does not hold a session, or still holds one that was deleted
├── PortTakenError              another process listens there
├── LocalBrokerError            `offbeat broker` cannot get, start or stop its Kafka
├── StalledError                a partition stands still while its source grows
├── RefusedBundleError          a first bundle was trained, and its checks refuse it
├── RetrainError                a training that was asked for cannot be judged
├── RepartitionError            records cannot be brought to a stream's internal topic
├── AlertError                  alerts cannot be delivered, or one that was asked for is not there
├── DeliveryError               a receiver did not take a message that was sent by hand
├── TemplateBodyError           a receiver's template fails on a message, or makes what cannot be sent
├── IncidentError               incidents cannot be made, or one that was asked for is not there
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


class TrainingRunsError(UsageError):
    """Another process trains the stream; two would overwrite what each saves."""

    retriable = True


class BrokerUnavailableError(OffbeatError):
    """No Kafka broker answers at the configured address."""

    retriable = True


class BrokerRefusedError(OffbeatError):
    """A broker does not take our protocol, certificate or login, or we not its certificate."""


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


class RetrainError(OffbeatError):
    """A training that was asked for ended, and there is too little to judge its bundle by."""


class RepartitionError(OffbeatError):
    """Records cannot be brought to a stream's internal topic; the worker ends, for nothing would be scored."""


class IncidentError(OffbeatError):
    """Incidents cannot be made or found; a worker ends, for nobody would be told."""


class AlertError(OffbeatError):
    """Alerts cannot be delivered, and the process ends, for nobody would be told; or one is not there."""


class DeliveryError(OffbeatError):
    """A receiver did not take a message that somebody waits for."""


class TemplateBodyError(OffbeatError):
    """A receiver's template makes no body of a message; it goes to the dead letters."""


class StateError(OffbeatError):
    """Saved state does not fit the config, the source topic or itself."""


class DamagedStateError(StateError):
    """Bytes on disk are not what was written; the changelog has them."""

    retriable = True


class StaleStateError(StateError):
    """Rows in memory are no longer what is durable: another worker may have gone on from there."""

    retriable = True
