"""How fast a receiver is given messages: its rate limit, and rests when it says or shows that it wants fewer. Pure."""

from __future__ import annotations

from collections import deque

from pipeline.alerts.schedule import rest_ms

# Failures in a row from which on a receiver counts as down: it is asked by one message at a time, and rarely, instead
# of by all that wait. One that fails four in ten at random comes to that once in 10,000.
DOWN_AFTER = 10


class Pace:
    """What a receiver may be given when.

    Parameters
    ----------
    name
        The receiver's; decides the jitter of its rests.
    rate
        Requests, and the milliseconds in which at most so many leave.
    """

    def __init__(self, name: str, rate: tuple[int, int], now_ms: int) -> None:
        self._name, (self._most, self._per_ms) = name, rate
        self._sent: deque[int] = deque(maxlen=self._most)  # when the last so many left
        self._rests_until_ms = now_ms
        self._throttles = self._failures = 0

    @property
    def is_down(self) -> bool:
        """Whether it fails again and again; then one message at a time is enough to find out."""
        return self._failures >= DOWN_AFTER

    def rests(self, now_ms: int) -> bool:
        """Whether it is given nothing now because of what it answered, or did not."""
        return now_ms < self._rests_until_ms

    def wait_ms(self, now_ms: int) -> int:
        """For how long nothing may leave."""
        free_ms = self._sent[0] + self._per_ms if len(self._sent) == self._most else now_ms
        return max(0, self._rests_until_ms - now_ms, free_ms - now_ms)

    def spend(self, now_ms: int) -> None:
        """Something leaves."""
        self._sent.append(now_ms)

    def succeeded(self) -> None:
        """It took something."""
        self._throttles = self._failures = 0

    def failed(self, now_ms: int) -> None:
        """It did not answer, or with an error that may pass."""
        self._failures += 1
        if self.is_down:
            self._rest(now_ms, rest_ms(self._failures - DOWN_AFTER + 1, self._name))

    def throttled(self, now_ms: int, retry_after_ms: int | None) -> int:
        """It asked for fewer requests; returns for how long it rests."""
        if not self.rests(now_ms):  # else answers to what was under way together count once
            self._throttles += 1
        rest = rest_ms(max(1, self._throttles), self._name, retry_after_ms)
        self._rest(now_ms, rest)
        return rest

    def _rest(self, now_ms: int, rest: int) -> None:
        self._rests_until_ms = max(self._rests_until_ms, now_ms + rest)
