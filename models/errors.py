"""What can be wrong with a model.

ModelError
├── BundleError             a bundle on disk is damaged, incomplete or of another format
└── UnsuitableDataError     the sequences given cannot teach a model
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of all; the text says what to do next."""

    exit_code = 1
    retriable = False


class BundleError(ModelError):
    """A bundle cannot be used as it lies on disk."""


class UnsuitableDataError(ModelError):
    """The data cannot teach a model; the text says what is missing."""
