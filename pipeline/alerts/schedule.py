"""When an attempt that failed is made again. Pure: the same message waits the same times after a restart.

References
----------
Standard Webhooks 1.0.0, "Deliverability and reliability": ten attempts over 75 hours, with jitter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_S, _H = 1_000, 3_600_000
# Between one attempt and the next; ten attempts in all.
DELAYS_MS = (5 * _S, 300 * _S, 1_800 * _S, 2 * _H, 5 * _H, 10 * _H, 14 * _H, 20 * _H, 24 * _H)
_JITTER = 0.2  # a wait is longer by up to this share, so that what failed together does not come back together
_LONGEST_ASKED_MS = 24 * _H  # whoever asks for more waits no longer than our own schedule's longest
_FIRST_REST_MS, _LONGEST_REST_MS = 5 * _S, 300 * _S


def delay_ms(
    attempts: int, seed: str, retry_after_ms: int | None = None, delays_ms: Sequence[int] = DELAYS_MS
) -> int | None:
    """Wait after a message's attempt number `attempts`, from 1, has failed; None after the last.

    Parameters
    ----------
    seed
        The message's id.
    retry_after_ms
        What the receiver asked for; never sooner than that, up to a day.
    delays_ms
        Between attempts.

    Examples
    --------
    >>> [delay_ms(n, "m") for n in (1, 2, 10)], delay_ms(1, "m", 60_000)
    ([5153, 332104, None], 61839)
    """
    if attempts > len(delays_ms):
        return None
    asked = min(retry_after_ms or 0, _LONGEST_ASKED_MS)
    return _with_jitter(max(delays_ms[attempts - 1], asked), f"{seed}/{attempts}")


def rest_ms(rests: int, seed: str, retry_after_ms: int | None = None) -> int:
    """Rest of a whole receiver after `rests` answers in a row, from 1, that asked for fewer requests.

    What it asks for counts, from 1 s to a day; without that 5 s, twice as long each time, up to 5 min.

    Parameters
    ----------
    seed
        The receiver's name.
    """
    if retry_after_ms is not None:
        return _with_jitter(max(_S, min(retry_after_ms, _LONGEST_ASKED_MS)), f"{seed}/{rests}")
    return _with_jitter(min(_FIRST_REST_MS << min(rests - 1, 16), _LONGEST_REST_MS), f"{seed}/{rests}")


def _with_jitter(ms: int, seed: str) -> int:
    share = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=4).digest(), "big") / 2**32
    return round(ms * (1 + _JITTER * share))
