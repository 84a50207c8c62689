"""Tokens: ids of a vocabulary, and hashes that outlive it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from features import tokens
from features.tokens import MISSING, OOV, TokenEncoder, Vocabulary, stable_hash

texts = st.none() | st.text(max_size=6)


@given(st.text())
def test_a_hash_names_a_text_for_ever(text: str) -> None:
    """Hashes are 64 bits, keep clear of the reserved numbers, and do not change between versions."""
    assert 2 <= stable_hash(text) < 2**64
    assert stable_hash("pay") == 15791930681712350039
    assert stable_hash(None) == MISSING


@given(st.lists(texts, max_size=60), st.integers(0, 5))
def test_a_vocabulary_holds_what_came_twice(column: list[str | None], most: int) -> None:
    """The most frequent tokens are kept, at most that many; a token seen once stays unknown."""
    vocabulary = Vocabulary.learn(["f"], [column], most)
    (kept,) = vocabulary.tokens
    counts = {text: column.count(text) for text in column if text is not None}
    assert len(kept) == min(most, sum(count > 1 for count in counts.values()))
    assert all(counts[text] > 1 for text in kept)
    assert [counts[text] for text in kept] == sorted((counts[text] for text in kept), reverse=True)
    left_out = [counts[text] for text in counts if text not in kept and counts[text] > 1]
    assert not left_out or not kept or min(counts[text] for text in kept) >= max(left_out)
    assert Vocabulary.learn(["f"], [column[::-1]], most) == vocabulary  # whatever the order
    assert vocabulary.sizes == (len(kept) + 2,)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=20))
def test_ids_and_hashes_say_the_same(rows: list[tuple[str | None, str | None]]) -> None:
    """An id read back from a hash is the id of the text; unknown ones are <oov>, absent ones <missing>."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    vocabulary = Vocabulary(("f", "g"), (tuple({t for t in columns[0][::2] if t is not None}), ("<oov>", "x")))
    encoder = TokenEncoder(2, vocabulary)
    ids = encoder.ids(columns)
    assert encoder.ids_of_hashes(encoder.hashes(columns)).tolist() == ids.tolist()
    for f, column in enumerate(columns):
        for text, token in zip(column, ids[:, f].tolist(), strict=True):
            known = text in vocabulary.tokens[f]
            assert token == (MISSING if text is None else token if known else OOV)
            assert vocabulary.text(f, token) == ("<missing>" if text is None else text if known else "<oov>")


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
    vocabulary = Vocabulary.learn(["message"], [["<oov>"] * 9 + ["<missing>", "<missing>", "a", "a"]], 10)
    assert vocabulary.tokens == (("a",),)
    assert TokenEncoder(1, vocabulary).ids([["<oov>", "a", None]]).tolist() == [[0], [2], [1]]
