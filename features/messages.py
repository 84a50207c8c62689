"""Messages of log lines: a text becomes the text of its template, which is a token like any other."""

from __future__ import annotations

from collections.abc import Sequence

from features.templates import Matcher, Templates
from features.tokens import RESERVED
from features.unmatched import Unmatched

UNMATCHED = RESERVED[0]  # `<oov>`, in vocabularies and in what people read


class MessageReader:
    """Reads messages by the templates of a bundle; belongs to one thread.

    Parameters
    ----------
    templates
        None while no bundle serves: then nothing matches.
    unmatched
        Counts what matched nothing, for the next training.
    """

    def __init__(self, templates: Templates | None, unmatched: Unmatched | None = None) -> None:
        self._matcher = None if templates is None else Matcher(templates)
        self._texts = {} if templates is None else {key: t.text for key, t in templates.by_id.items()}
        self.unmatched = unmatched

    def read(self, messages: Sequence[str | None]) -> list[str | None]:
        """Texts of templates, `<oov>` where none matched, None where there is no message."""
        if self._matcher is None:
            return [None if message is None else UNMATCHED for message in messages]
        ids = self._matcher.match("" if message is None else message for message in messages).ids
        texts, unmatched = self._texts, self.unmatched
        found: list[str | None] = []
        for message, number in zip(messages, ids, strict=True):
            if message is None:
                found.append(None)
            elif number is None:
                found.append(UNMATCHED)
                if unmatched is not None:
                    unmatched.learn_one(message)
            else:
                found.append(texts[number])
        return found
