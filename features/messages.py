"""Messages of log lines: a text becomes the text of its template, which is a token like any other, and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.templates import Matcher, Templates
from features.tokens import RESERVED
from features.unmatched import Unmatched

UNMATCHED = RESERVED[0]  # `<oov>`, in vocabularies and in what people read


class ReadMessages(NamedTuple):
    """What n messages are to a model.

    Attributes
    ----------
    texts
        n texts of templates, `<oov>` where none matched, None where there is no message.
    numbers
        (n, P) float64: the first numbers among the lines' parameters, NaN where there are fewer.
    """

    texts: list[str | None]
    numbers: NDArray[np.float64]


Messages = Sequence[str | None]


def as_they_came(parameters: int = 0) -> Callable[[Messages], ReadMessages]:
    """Reads messages as long as there are no templates: for training, which mines them."""
    return lambda messages: ReadMessages(list(messages), np.full((len(messages), parameters), np.nan))


class MessageReader:
    """Reads messages by the templates of a bundle; belongs to one thread.

    Parameters
    ----------
    templates
        None while no bundle serves: then nothing matches.
    unmatched
        Counts what matched nothing, for the next training.
    parameters
        How many columns of numbers there are; templates have no more numbers.
    """

    def __init__(self, templates: Templates | None, unmatched: Unmatched | None = None, *, parameters: int = 0) -> None:
        self._matcher = None if templates is None else Matcher(templates)
        self.parameters = parameters
        self.unmatched = unmatched

    def read(self, messages: Messages) -> ReadMessages:
        """Templates and numbers of messages, each by itself."""
        if self._matcher is None:
            texts = [None if message is None else UNMATCHED for message in messages]
            return ReadMessages(list(texts), np.full((len(texts), self.parameters), np.nan))
        lines = ("" if message is None else message for message in messages)
        texts, numbers = self._matcher.read(lines, self.parameters)
        if None in texts or None in messages:
            texts = [self._known(m, text) for m, text in zip(messages, texts, strict=True)]
        return ReadMessages(texts, numbers)

    def _known(self, message: str | None, text: str | None) -> str | None:
        if message is None or text is not None:
            return None if message is None else text
        if self.unmatched is not None:
            self.unmatched.learn_one(message)
        return UNMATCHED
