"""Profiles: how often each token has come in a session so far, as a fixed number of entries in the session's row.

An entry's key is 64 bits of the token's field and stable hash, so a profile outlives bundles. Once all entries but the
last are taken, that last one counts every other token, under the key `OTHERS`.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

ENTRIES = 32  # of a session's row, 320 bytes
FREE, OTHERS = 0, 1  # keys that are no token's
MOST = 65_535  # what an entry counts at most
_u8 = np.uint64
_GOLDEN = _u8(0x9E3779B97F4A7C15)


@njit(cache=True)
def token_key(field, token):
    """64 bits for a token's stable hash in a field, none of them `FREE` or `OTHERS`."""
    mixed = token + _GOLDEN * _u8(field + 1)
    mixed = (mixed ^ (mixed >> _u8(30))) * _u8(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> _u8(27))) * _u8(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> _u8(31))
    return mixed if mixed > _u8(OTHERS) else mixed + _u8(2)


def profile_hashes(keys: NDArray[np.uint64], counts: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """(S,) 64 bits for each of (S, P) profiles; the order of its entries does not matter."""
    mixed = keys + _GOLDEN * (counts.astype(np.uint64) + _u8(1))
    mixed = (mixed ^ (mixed >> _u8(30))) * _u8(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> _u8(27))) * _u8(0x94D049BB133111EB)
    hashes: NDArray[np.uint64] = np.where(keys == FREE, _u8(0), mixed ^ (mixed >> _u8(31))).sum(axis=1, dtype=np.uint64)
    return hashes


@njit(cache=True)
def count_token(keys, counts, key):
    """Count a token in a profile, (P,) uint64 keys and (P,) uint16 counts, which change."""
    last = len(keys) - 1
    for at in range(last):
        if keys[at] == _u8(FREE):
            keys[at] = key
        if keys[at] == key:
            break
    else:
        at, keys[last] = last, _u8(OTHERS)
    counts[at] = min(counts[at] + 1, MOST)


@njit(cache=True)
def _count_sessions(session, tokens, keys, counts):
    for i in range(len(session)):
        for field in range(tokens.shape[1]):
            count_token(keys[session[i]], counts[session[i]], token_key(field, tokens[i, field]))


def count_sessions(
    session: NDArray[np.int32], tokens: NDArray[np.uint64], sessions: int, entries: int = ENTRIES
) -> tuple[NDArray[np.uint64], NDArray[np.uint16]]:
    """Profiles of whole sessions, as a worker would have counted them.

    Parameters
    ----------
    session, tokens
        (n,) which of the sessions each event belongs to, in order, and (n, F) stable hashes of its tokens.

    Returns
    -------
    keys, counts
        (S, P) of the S sessions.
    """
    keys, counts = np.zeros((sessions, entries), np.uint64), np.zeros((sessions, entries), np.uint16)
    _count_sessions(session, tokens, keys, counts)
    return keys, counts
