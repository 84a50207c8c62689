"""What can be wrong with a model.

ModelError
├── BundleError             a bundle is damaged, incomplete or of another format, or cannot be saved
│   └── StoreUnavailableError   where it lies gives nothing now; it may later
├── RuntimeUnavailableError what should serve a model is not on this machine
├── UnsuitableDataError     the sequences given cannot teach a model
├── ResumeError             a training that was interrupted cannot be continued
└── ScratchError            there is no room for what a training works on
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of all; the text says what to do next."""

    exit_code = 1
    retriable = False


class BundleError(ModelError):
    """A bundle cannot be used as it lies there, or cannot be written."""


class StoreUnavailableError(BundleError):
    """The disk or the store that holds bundles does not answer, or refuses."""

    retriable = True


class RuntimeUnavailableError(ModelError):
    """A model cannot be served as the config asks; the text says what is missing."""


class UnsuitableDataError(ModelError):
    """The data cannot teach a model; the text says what is missing."""


class ResumeError(ModelError):
    """What was saved of a training does not fit what is asked for now, or cannot be read."""


class ScratchError(ModelError):
    """The disk has no room for the sessions to learn from."""
