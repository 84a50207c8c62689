"""Tokens: ids of a vocabulary, and hashes that outlive it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import tokens
from features.tokens import KNOWN_FROM, MISSING, OOV, RARE, TokenEncoder, Vocabulary, stable_hash

texts = st.none() | st.text(max_size=6)


@given(st.text())
def test_a_hash_names_a_text_for_ever(text: str) -> None:
    """Hashes are 64 bits, keep clear of the reserved numbers, and do not change between versions."""
    assert 2 <= stable_hash(text) < 2**64
    assert stable_hash("pay") == 15791930681712350039
    assert stable_hash(None) == MISSING


@given(st.lists(texts, max_size=60), st.integers(0, 5))
def test_a_vocabulary_holds_what_came_often(column: list[str | None], most: int) -> None:
    """The most frequent tokens are kept, at most that many; the others are known to exist, but for those seen once."""
    served, learning = Vocabulary.learn(["f"], [column], most)
    (kept,) = served.tokens
    counts = {text: column.count(text) for text in column if text is not None}
    often = [text for text in counts if counts[text] >= KNOWN_FROM]
    assert len(kept) == min(most, len(often))
    assert set(kept) <= set(often)
    assert [counts[text] for text in kept] == sorted((counts[text] for text in kept), reverse=True)
    left_out = [counts[text] for text in often if text not in kept]
    assert not left_out or not kept or min(counts[text] for text in kept) >= max(left_out)
    assert served.rare is not None
    assert learning.rare is not None
    others = {text: count for text, count in counts.items() if text not in kept}
    assert served.rare[0].tolist() == sorted(map(stable_hash, others))
    assert learning.rare[0].tolist() == sorted(stable_hash(text) for text, count in others.items() if count > 1)
    assert learning.tokens == served.tokens
    assert Vocabulary.learn(["f"], [column[::-1]], most) == (served, learning)  # whatever the order
    assert served.sizes == (len(kept) + 3,)


def naive_id(text: str | None, field: int, vocabulary: Vocabulary) -> int:
    """An id, by asking one thing after the other."""
    first = 2 if vocabulary.rare is None else 3
    if text is None:
        return MISSING
    if vocabulary.bucket_count(field):
        return first + stable_hash(text) % vocabulary.bucket_count(field)
    if text in vocabulary.tokens[field]:
        return first + vocabulary.tokens[field].index(text)
    return RARE if vocabulary.rare is not None and stable_hash(text) in vocabulary.rare[field].tolist() else OOV


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Of three fields: frequent and rare tokens, none at all, and one that is hashed; or as bundles once had them."""
    known = draw(st.lists(st.text(max_size=3), unique=True, max_size=6))
    listed = (tuple(known[::2]), (), ())
    if draw(st.booleans()):
        return Vocabulary(("f", "g", "h"), listed)
    rare = np.array(sorted(map(stable_hash, known[1::2])), np.uint64)
    return Vocabulary(("f", "g", "h"), listed, (rare, rare[:0], rare[:0]), (0, 0, draw(st.integers(2, 40))))


@given(vocabularies(), st.data())
def test_ids_and_hashes_say_the_same(vocabulary: Vocabulary, data: st.DataObject) -> None:
    """Ids are those of the naive look-up, and an id read back from a hash is the id of the text."""
    some = texts | st.sampled_from(vocabulary.tokens[0] or ("a",)) | st.text(max_size=3)
    rows = data.draw(st.lists(st.tuples(some, some, some), min_size=1, max_size=20))
    columns = [list(column) for column in zip(*rows, strict=True)]
    encoder = TokenEncoder(3, vocabulary)
    ids = encoder.ids(columns)
    assert encoder.ids_of_hashes(encoder.hashes(columns)).tolist() == ids.tolist()
    assert ids.tolist() == [[naive_id(text, f, vocabulary) for f, text in enumerate(row)] for row in rows]
    assert (ids >= 0).all()
    assert (ids < np.array(vocabulary.sizes)).all()
    unknown, rare = vocabulary.count(ids)
    assert unknown.tolist() == [sum(v == OOV for v in column) for column in ids.T.tolist()]
    has_rare = vocabulary.rare is not None
    assert rare.tolist() == [sum(v == RARE for v in column) * has_rare for column in ids.T.tolist()]


def test_ids_in_words() -> None:
    """Reserved ids have their words, a hashed field its buckets; a vocabulary of before has no `<rare>`."""
    none = np.empty(0, np.uint64)
    vocabulary = Vocabulary(("f", "g"), (("a",), ()), (none, none), (0, 4))
    assert [vocabulary.text(0, i) for i in range(4)] == ["<oov>", "<missing>", "<rare>", "a"]
    assert vocabulary.text(1, 3 + 2) == "bucket 2"
    assert vocabulary.summary() == {"f": {"tokens": 1, "rare": 0}, "g": {"buckets": 4}}
    assert [Vocabulary(("f",), (("a",),)).text(0, i) for i in range(3)] == ["<oov>", "<missing>", "a"]


def test_a_vocabulary_is_named_by_what_it_knows() -> None:
    """The digest is the same for the same content, and another for one more rare token, other buckets or an old one."""
    hashes = np.array([7, 8], np.uint64)
    some = Vocabulary(("f",), (("a",),), (hashes,), (0,))
    assert some == Vocabulary(("f",), (("a",),), (hashes.copy(),), (0,))
    others = [
        Vocabulary(("f",), (("a",),), (hashes[:1],), (0,)), Vocabulary(("f",), (("a",),), (hashes,), (9,)),
        Vocabulary(("f",), (("a",),)), Vocabulary(("f",), (("b",),), (hashes,), (0,)),
    ]  # fmt: skip
    assert len({some.digest, *(other.digest for other in others)}) == 5


def test_rare_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a flood of distinct tokens the most frequent are remembered to exist; the others are as never seen."""
    monkeypatch.setattr(tokens, "MAX_RARE", 3)
    column: list[str | None] = [*(str(i) for i in range(100)), "x", "x", "y", "y"]
    served, _ = Vocabulary.learn(["f"], [column], 10)
    assert served.rare is not None
    assert len(served.rare[0]) == 3
    assert {stable_hash("x"), stable_hash("y")} <= set(served.rare[0].tolist())
    ids = TokenEncoder(1, served).ids([["x", "y", *(str(i) for i in range(100))]])[:, 0]
    assert (ids == RARE).sum() == 3
    assert (ids == OOV).sum() == 99


def test_a_flood_changes_no_memory_of_an_encoder() -> None:
    """However many distinct tokens come, listed, rare or hashed, an encoder remembers a bounded number."""
    rare = np.array([stable_hash("r")], np.uint64)
    encoder = TokenEncoder(2, Vocabulary(("f", "g"), (("a",), ()), (rare, rare[:0]), (0, 8)))
    flood = [str(i) for i in range(tokens._CACHED_HASHES + 10)]
    assert set(np.unique(encoder.ids([flood, flood])[:, 1]).tolist()) == set(range(3, 11))
    assert all(len(cache) <= tokens._CACHED_HASHES for cache in encoder._hashes)
    assert [len(known) for known in encoder._ids] == [2, 1]
    assert encoder.ids([["a", "r", "z"], ["a", "a", None]]).tolist()[1] == [RARE, 3 + stable_hash("a") % 8]


def test_without_a_vocabulary_hashes_are_right() -> None:
    """Before any bundle every id is <oov> (or <missing>), and hashes are what they will be under one."""
    columns = [["a", None, "b"]]
    early, later = TokenEncoder(1, None), TokenEncoder(1, Vocabulary(("f",), (("a",),)))
    assert early.ids(columns).tolist() == [[OOV], [MISSING], [OOV]]
    assert early.hashes(columns).tolist() == later.hashes(columns).tolist()


def test_remembered_hashes_are_bounded() -> None:
    """A flood of distinct texts does not fill memory, and the hashes stay right."""
    encoder = TokenEncoder(1, None)
    flood = [str(i) for i in range(tokens._CACHED_HASHES + 10)]
    assert encoder.hashes([flood])[-1, 0] == stable_hash(flood[-1])
    assert len(encoder._hashes[0]) <= tokens._CACHED_HASHES
    assert encoder.hashes([["0"]])[0, 0] == stable_hash("0")


def test_reserved_words_are_never_learned() -> None:
    """However often `<oov>` came, as it does where lines match no template, it stays unknown."""
    column = ["<oov>"] * 9 + ["<missing>"] * 3 + ["<rare>"] * 3 + ["a"] * 3
    vocabulary, _ = Vocabulary.learn(["message"], [column], 10)
    assert vocabulary.tokens == (("a",),)
    assert TokenEncoder(1, vocabulary).ids([["<oov>", "a", None, "<rare>"]]).tolist() == [[0], [3], [1], [0]]
