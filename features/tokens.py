"""Tokens: texts of categorical fields, to vocabulary ids for the model and stable hashes for what outlives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

OOV, MISSING = 0, 1  # ids that every field has: a token unseen in training, and no token at all
RESERVED = ("<oov>", "<missing>")
_CACHED_HASHES = 200_000  # texts whose hash we remember, per field; then the cache starts anew


def stable_hash(text: str | None) -> int:
    """64 bits that name a token for ever, whatever the vocabulary; 0 is kept for "nothing here".

    >>> stable_hash("pay") == stable_hash("pay"), stable_hash(None)
    (True, 1)
    """
    if text is None:
        return MISSING
    return max(2, int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))


class _Hashes(dict[str | None, int]):
    """Remembers hashes, bounded, because a flood of distinct texts must not fill memory."""

    def __missing__(self, text: str | None) -> int:
        if len(self) >= _CACHED_HASHES:
            self.clear()
        value = self[text] = stable_hash(text)
        return value


@dataclass(frozen=True)
class Vocabulary:
    """The tokens a bundle knows, per field. Ids count from 2; 0 is `<oov>`, 1 is `<missing>`."""

    fields: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]

    @classmethod
    def learn(cls, fields: Sequence[str], columns: Sequence[Iterable[str | None]], max_size: int) -> Vocabulary:
        """Keep each field's most frequent tokens, ties in order of text; a token seen once stays `<oov>`.

        One sighting is no grammar, and without such tokens the model would never train its `<oov>`.
        """
        kept = []
        for column in columns:
            counts = Counter(text for text in column if text is not None and text not in RESERVED)
            common = sorted((text for text, count in counts.items() if count > 1), key=lambda t: (-counts[t], t))
            kept.append(tuple(common[:max_size]))
        return cls(tuple(fields), tuple(kept))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of ids per field, the reserved two included."""
        return tuple(len(tokens) + len(RESERVED) for tokens in self.tokens)

    def text(self, field: int, token_id: int) -> str:
        """The token an id stands for."""
        return RESERVED[token_id] if token_id < len(RESERVED) else self.tokens[field][token_id - len(RESERVED)]


class TokenEncoder:
    """Turns columns of texts into ids and hashes; remembers, so it belongs to one partition or one thread.

    Without a vocabulary (no bundle yet) every id is `<oov>`; the hashes are right all the same.
    """

    def __init__(self, fields: int, vocabulary: Vocabulary | None) -> None:
        tokens = ((),) * fields if vocabulary is None else vocabulary.tokens
        self._ids: list[dict[str | None, int]] = [
            {None: MISSING} | {t: i for i, t in enumerate(known, len(RESERVED))} for known in tokens
        ]
        self._hashes = [_Hashes() for _ in tokens]
        self._id_of_hash = [{stable_hash(t): i for t, i in ids.items()} for ids in self._ids]

    def ids(self, columns: Sequence[Sequence[str | None]]) -> NDArray[np.int32]:
        """(n, F) int32 vocabulary ids of F columns of n texts."""
        out = np.empty((len(columns[0]), len(columns)), np.int32)
        for field, (known, column) in enumerate(zip(self._ids, columns, strict=True)):
            out[:, field] = [known.get(text, OOV) for text in column]
        return out

    def hashes(self, columns: Sequence[Sequence[str | None]]) -> NDArray[np.uint64]:
        """(n, F) uint64 stable hashes of F columns of n texts."""
        out = np.empty((len(columns[0]), len(columns)), np.uint64)
        for field, (cache, column) in enumerate(zip(self._hashes, columns, strict=True)):
            out[:, field] = [cache[text] for text in column]
        return out

    def ids_of_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """(n, F) ids of (n, F) hashes: how a saved context is read under another vocabulary."""
        out = np.empty(hashes.shape, np.int32)
        for field, known in enumerate(self._id_of_hash):
            out[:, field] = [known.get(h, OOV) for h in hashes[:, field].tolist()]
        return out
