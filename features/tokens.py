"""Tokens: texts of categorical fields, to vocabulary ids for the model and stable hashes for what outlives it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b, sha256

import numpy as np
from numpy.typing import NDArray

# Ids that every field has: a token training never met, no token at all, and one it met too seldom to know it.
OOV, MISSING, RARE = 0, 1, 2
RESERVED = ("<oov>", "<missing>", "<rare>")
KNOWN_FROM = 3  # sightings from which on a token has an id of its own, while the vocabulary has room
MAX_RARE = 50_000  # hashes of rare tokens kept per field, the most frequent first: 400 kB
_CACHED_HASHES = 200_000  # texts whose hash we remember, per field; then the cache starts anew
_UNLISTED = -1


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


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens a bundle knows, per field: frozen, and named by its digest.

    Attributes
    ----------
    tokens
        Of each field, in order of their ids, which count from the number of reserved ones.
    rare
        Of each field the sorted uint64 hashes of tokens that are known to exist and no more, for `<rare>`. None in
        vocabularies of before there was that id; their tokens count from 2.
    buckets
        Of each field 0, or into how many buckets its tokens are hashed, which are its ids then; absent, all are 0.
    """

    fields: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    rare: tuple[NDArray[np.uint64], ...] | None = None
    buckets: tuple[int, ...] = ()

    @classmethod
    def learn(
        cls, fields: Sequence[str], columns: Sequence[Iterable[str | None]], max_size: int,
        buckets: Mapping[str, int] | None = None,
    ) -> tuple[Vocabulary, Vocabulary]:  # fmt: skip
        """Give the most frequent tokens an id of their own, ties in order of text, and remember that the others exist.

        Returns
        -------
        served, learning
            What a bundle holds, and what the model is to learn with. They differ in tokens seen once: served, such a
            token is `<rare>`; in the very record that holds it, it was new, so there the model learns `<oov>`. Tokens
            seen more often, and yet without an id, it learns as `<rare>`.

        References
        ----------
        Good 1953, doi:10.1093/biomet/40.3-4.237: the probability of what was never seen is about the share of
        tokens seen once, that of tokens seen once about the share of those seen twice. So the model learns how often
        to expect either id live: `<rare>` up to half too seldom, for what was seen KNOWN_FROM times counts towards it
        too, but must be learned under its own id. Where tokens come in bursts, both are expected too seldom.
        """
        wanted = buckets or {}
        counts = [
            Counter() if field in wanted else Counter(t for t in column if t is not None and t not in RESERVED)
            for field, column in zip(fields, columns, strict=True)
        ]
        listed = tuple(_most_frequent(count, max_size) for count in counts)
        others = [
            Counter({stable_hash(t): n for t, n in count.items() if t not in set_of})
            for count, set_of in zip(counts, map(frozenset, listed), strict=True)
        ]
        kept = [sorted(other.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_RARE] for other in others]
        served, again = (tuple(_sorted(h for h, n in rare if n >= least) for rare in kept) for least in (1, 2))
        sizes = tuple(wanted.get(field, 0) for field in fields)
        return cls(tuple(fields), listed, served, sizes), cls(tuple(fields), listed, again, sizes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all it knows."""
        rare = None if self.rare is None else [sha256(part.tobytes()).hexdigest() for part in self.rare]
        buckets = [self.bucket_count(field) for field in range(len(self.fields))]
        return sha256(json.dumps([self.fields, self.tokens, rare, buckets]).encode()).hexdigest()

    @property
    def reserved(self) -> int:
        """Number of ids before the tokens' own."""
        return len(RESERVED) - (self.rare is None)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of ids per field, the reserved ones included."""
        return tuple(self.reserved + (self.bucket_count(f) or len(tokens)) for f, tokens in enumerate(self.tokens))

    def bucket_count(self, field: int) -> int:
        """Into how many buckets a field is hashed; 0: its tokens have ids of their own."""
        return self.buckets[field] if self.buckets else 0

    def text(self, field: int, token_id: int) -> str:
        """The token an id stands for; of a hashed field its bucket."""
        at = token_id - self.reserved
        if at < 0:
            return RESERVED[token_id]
        return f"bucket {at}" if self.bucket_count(field) else self.tokens[field][at]

    def unlisted(self, field: int, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """(k,) ids of (k,) hashes of tokens that are not among the field's listed ones."""
        if buckets := self.bucket_count(field):
            # Hashes below 2 are no tokens.
            return np.where(hashes > MISSING, self.reserved + hashes % np.uint64(buckets), OOV).astype(np.int32)
        if self.rare is None or not len(self.rare[field]):
            return np.full(len(hashes), OOV, np.int32)
        rare = self.rare[field]
        at = np.minimum(np.searchsorted(rare, hashes), len(rare) - 1)
        return np.where(rare[at] == hashes, RARE, OOV).astype(np.int32)

    def count(self, ids: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(F,) numbers of `<oov>` and of `<rare>` among (n, F) ids."""
        rare = (ids == RARE) & (self.rare is not None)
        return (ids == OOV).sum(axis=0), rare.sum(axis=0)

    def summary(self) -> dict[str, dict[str, int]]:
        """By field how many tokens have ids of their own and how many are `<rare>`, or the number of buckets."""
        return {
            field: {"buckets": self.buckets[f]} if self.bucket_count(f)
            else {"tokens": len(self.tokens[f]), "rare": 0 if self.rare is None else len(self.rare[f])}
            for f, field in enumerate(self.fields)
        }  # fmt: skip


def _most_frequent(counts: Counter[str], most: int) -> tuple[str, ...]:
    common = sorted((t for t, n in counts.items() if n >= KNOWN_FROM), key=lambda t: (-counts[t], t))
    return tuple(common[:most])


def _sorted(hashes: Iterable[int]) -> NDArray[np.uint64]:
    return np.array(sorted(hashes), np.uint64)


class TokenEncoder:
    """Turns columns of texts into ids and hashes; remembers, so it belongs to one partition or one thread.

    Without a vocabulary (no bundle yet) every id is `<oov>`; the hashes are right all the same.
    """

    def __init__(self, fields: int, vocabulary: Vocabulary | None) -> None:
        empty = Vocabulary(("",) * fields, ((),) * fields)
        self._vocabulary = vocabulary = empty if vocabulary is None else vocabulary
        self._ids: list[dict[str | None, int]] = [
            {None: MISSING} | {t: i for i, t in enumerate(known, vocabulary.reserved)} for known in vocabulary.tokens
        ]
        self._hashes = [_Hashes() for _ in vocabulary.tokens]
        self._id_of_hash = [{stable_hash(t): i for t, i in ids.items()} for ids in self._ids]

    def ids(self, columns: Sequence[Sequence[str | None]], n: int | None = None) -> NDArray[np.int32]:
        """(n, F) int32 vocabulary ids of F columns of n texts; give n where there may be no column."""
        out = np.empty((len(columns[0]) if n is None else n, len(columns)), np.int32)
        for field, (known, column) in enumerate(zip(self._ids, columns, strict=True)):
            out[:, field] = [known.get(text, _UNLISTED) for text in column]
            unlisted = np.flatnonzero(out[:, field] == _UNLISTED)
            if len(unlisted):
                cache = self._hashes[field]
                hashes = np.array([cache[column[i]] for i in unlisted.tolist()], np.uint64)
                out[unlisted, field] = self._vocabulary.unlisted(field, hashes)
        return out

    def hashes(self, columns: Sequence[Sequence[str | None]], n: int | None = None) -> NDArray[np.uint64]:
        """(n, F) uint64 stable hashes of F columns of n texts; give n where there may be no column."""
        out = np.empty((len(columns[0]) if n is None else n, len(columns)), np.uint64)
        for field, (cache, column) in enumerate(zip(self._hashes, columns, strict=True)):
            out[:, field] = [cache[text] for text in column]
        return out

    def ids_of_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """(n, F) ids of (n, F) hashes: how a saved context is read under another vocabulary."""
        out = np.empty(hashes.shape, np.int32)
        for field, known in enumerate(self._id_of_hash):
            out[:, field] = [known.get(h, _UNLISTED) for h in hashes[:, field].tolist()]
            unlisted = np.flatnonzero(out[:, field] == _UNLISTED)
            out[unlisted, field] = self._vocabulary.unlisted(field, hashes[unlisted, field])
        return out
