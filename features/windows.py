"""Windows: the samples of a session, window by window of event time, as one event for each window.

Windows begin at whole multiples of `every_ms` since the epoch and hold `[start_ms, start_ms + size_ms)`. A session's
mark is the largest watermark it has seen; it says how far everything must have come. Every window that ends at or
before it has closed, so the open ones are those that hold the mark, and a sample older than the first of these is too
late. An end event closes the windows there are; what comes after it belongs to a session, and to windows, of its own.

When somebody looks changes nothing: a look at the release watermark closes what the mark of the session's next sample
would close too, for that is never smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.aggregates import AGGREGATES, LARGEST, Groups, aggregate
from features.event_order import Ordered
from features.growth import grow
from features.open_windows import BEFORE, NO_MS, NO_WINDOWS, Ints, Memory, Samples, next_close_ms
from features.runs import begins, finishes, running_max

__all__ = ["NO_WINDOWS", "WindowRules", "Windowed", "close_windows", "next_close_ms", "window_columns"]
MAX_OVERLAP = 60  # windows that a sample may be in, as of an hour's, one every minute
SAMPLES = "samples"  # the column that says how many there were


@dataclass(frozen=True)
class WindowRules:
    """Which windows there are, and what is told of each.

    Attributes
    ----------
    size_ms, every_ms
        How long a window is, and how far apart they begin: as far (tumbling), or a whole fraction of it (sliding).
    aggregates
        Of each number, in this order.
    counters
        Columns that only grow: their aggregates are of the growth from sample to sample.
    max_samples
        As many of a session are kept; of each `every_ms` its share, the first ones.
    keep_ms
        A counter is forgotten when so much has passed since the last window with a sample: the session's gap.

    Raises
    ------
    ValueError
        They do not fit together; the sentence says what would.
    """

    size_ms: int
    every_ms: int
    aggregates: tuple[str, ...]
    counters: tuple[int, ...] = ()
    max_samples: int = 1024
    keep_ms: int = 900_000

    def __post_init__(self) -> None:
        if self.every_ms < 1 or self.size_ms < 1 or self.size_ms % self.every_ms:
            message = "a window's size must be `every`, or a whole multiple of it"
            raise ValueError(message)
        if self.overlap > MAX_OVERLAP:
            message = f"each sample would be in {self.overlap} windows; make `every` at least 1/{MAX_OVERLAP} of size"
            raise ValueError(message)
        if not self.aggregates or len(set(self.aggregates)) != len(self.aggregates):
            message = "a window needs an aggregate, each at most once"
            raise ValueError(message)
        for name in self.aggregates:
            if name not in AGGREGATES:
                message = f"{name!r} is no aggregate; there are {', '.join(AGGREGATES)}"
                raise ValueError(message)
        if self.counters and "last" in self.aggregates:
            message = (
                "last of a counter would tell what it grew between two of its samples, of which a window has many; "
                "write rate, or sum for all of its growth"
            )
            raise ValueError(message)
        assert self.max_samples >= self.overlap, "no sample would be taken in"

    @property
    def overlap(self) -> int:
        """How many windows a sample is in."""
        return self.size_ms // self.every_ms

    def first_end(self, mark_ms: Any) -> Any:
        """End of the earliest window that is open at a mark."""
        return (mark_ms // self.every_ms + 1) * self.every_ms

    def last_end(self, time_ms: Any) -> Any:
        """End of the last window with that time."""
        return time_ms // self.every_ms * self.every_ms + self.size_ms

    def forget_ms(self, newest_ms: Any) -> Any:
        """After which mark counters are forgotten whose newest sample was then: when its session is over by its gap."""
        return self.last_end(newest_ms) - 1 + self.keep_ms


@dataclass(frozen=True)
class Windowed:
    """What a slice closes.

    Attributes
    ----------
    ordered
        One event for each window that closed with a sample in it, each session's in the order of their ends. An event's
        time is the window's last moment; offset and tokens are those of the window's last sample; the last window that
        an end event closed has `ends`. `watermarks` are the events' own times: until its window has closed no look can
        have been later, and no window that the session closes later is older. `seen_at` and `index` are those of the
        sample by which the window was seen to have closed, or of the slice's last.
    open_windows
        (S,) packed samples of windows that are open, and counters, by row.
    too_late
        Positions among the samples given of those that came when their windows had closed.
    dropped
        How many more samples were not taken in because their session had too many.
    """

    ordered: Ordered
    open_windows: NDArray[Any]
    too_late: NDArray[np.intp]
    dropped: int


def window_columns(number_names: tuple[str, ...], rules: WindowRules) -> tuple[str, ...]:
    """Names of the number columns of windows.

    >>> window_columns(("cpu",), WindowRules(60_000, 60_000, ("mean", "max")))
    ('cpu.mean', 'cpu.max', 'samples')
    """
    return (*(f"{number}.{name}" for number in number_names for name in rules.aggregates), SAMPLES)


def close_windows(
    ordered: Ordered, open_windows: NDArray[Any], rules: WindowRules, *, close_all: bool = False
) -> Windowed:
    """Take samples in and close the windows that are due.

    Parameters
    ----------
    ordered
        Samples, each session's in order; none at all is allowed.
    open_windows
        (S,) object: packed windows of each row. Left untouched.
    close_all
        Close all windows: the input is over.
    """
    return _Closing(ordered, open_windows, rules, close_all=close_all).run()


@dataclass(frozen=True)
class _Groups:
    """Samples by the windows that they are in, those of a window by their times.

    Attributes
    ----------
    sample
        (m,) position of each; one that is in several windows is there several times.
    first
        (G,) where each window's begin.
    end_ms
        (G,) int64.
    """

    sample: NDArray[np.intp]
    first: NDArray[np.intp]
    end_ms: Ints

    @property
    def sizes(self) -> NDArray[np.intp]:
        """(G,) samples in each window."""
        return np.diff(np.append(self.first, len(self.sample)))

    def take(self, chosen: NDArray[np.bool_]) -> _Groups:
        """Some of the windows."""
        sizes = self.sizes[chosen]
        return _Groups(self.sample[np.repeat(chosen, self.sizes)], np.cumsum(sizes) - sizes, self.end_ms[chosen])


class _Closing:
    """One slice on its way through the sessions' windows.

    An episode is what of a session lies between two ends, by an end event or by silence. `_episode` (m,) numbers those
    of the samples that are not late; `_goes_on` (S,) is the episode that goes on from an earlier slice, and `_open`
    (S,) the one that is open after this one (-1: none).
    """

    def __init__(self, ordered: Ordered, packed: NDArray[Any], rules: WindowRules, *, close_all: bool) -> None:
        self._ordered, self._packed, self._rules, self._close_all = ordered, packed, rules, close_all
        self._memory = Memory.unpack(ordered, packed, rules, look_at_all=close_all)
        self._arrived = self._line_up()
        late = self._arrived.time_ms < rules.first_end(self._arrived.mark_ms) - rules.size_ms
        self._too_late = np.sort(self._arrived.position[late])
        self._samples = self._arrived.take(np.flatnonzero(~late))
        self._number_episodes()
        self._fits = self._share_out()

    def run(self) -> Windowed:
        """All of it."""
        memory, samples, rules = self._memory, self._samples, self._rules
        for column, counter in enumerate(rules.counters):
            self._grow(column, counter)
        self._advance()
        windows = self._group()
        of = windows.sample[windows.first]
        is_over = self._open[samples.session[of]] != self._episode[of]
        windows = windows.take(is_over | (windows.end_ms <= memory.mark_ms[samples.session[of]]) | self._close_all)
        given = self._given(windows)
        stays = self._fits & (self._open[samples.session] == self._episode)
        stays &= rules.last_end(samples.time_ms) > memory.mark_ms[samples.session]
        packed = self._packed.copy()
        if self._close_all:
            packed.fill(NO_WINDOWS)
        else:
            memory.pack(packed, samples.take(np.flatnonzero(stays)), self._ordered.release_ms, rules)
        return Windowed(given, packed, self._too_late, int(np.sum(~self._fits)))

    def _line_up(self) -> Samples:
        """Kept samples and the slice's, session by session."""
        events, kept, n = self._ordered.events, self._memory.kept, len(self._ordered.events)
        session = np.concatenate([kept.session, events.session])
        order = np.argsort(session, kind="stable")
        session = session[order]
        mark_ms = np.concatenate([kept.mark_ms, self._ordered.watermarks])[order]
        mark_ms = running_max(np.maximum(mark_ms, self._memory.mark_ms[session]), begins(session))
        return Samples(
            session, np.concatenate([kept.position, np.arange(n)])[order],
            np.concatenate([kept.time_ms, events.time_ms])[order], mark_ms,
            np.concatenate([kept.is_end, events.ends])[order], np.concatenate([kept.offset, events.offsets])[order],
            np.concatenate([kept.said, np.arange(n)])[order],
            np.concatenate([kept.numbers, np.clip(events.numbers, -LARGEST, LARGEST)])[order],
        )  # fmt: skip

    def _number_episodes(self) -> None:
        """Part what comes after an end event, or so late that its session is over by its gap."""
        s, memory, rules = self._samples, self._memory, self._rules
        opens = begins(s.session)
        after_end = np.zeros(len(s), np.bool_)
        after_end[1:] = s.is_end[:-1] & ~opens[1:]
        before = memory.newest_ms[s.session]
        newest = running_max(np.where(opens, np.maximum(s.time_ms, before), s.time_ms), opens | after_end)
        before[1:] = np.where(opens[1:], before[1:], newest[:-1])
        silent = ~after_end & (before != NO_MS) & (rules.first_end(s.mark_ms) - 1 > rules.forget_ms(before))
        begun = after_end | silent
        self._episode = np.cumsum(opens.astype(np.int64) + begun)
        self._goes_on = np.full(len(memory.mark_ms), -1)
        self._goes_on[s.session[opens]] = self._episode[opens] - begun[opens]
        last = np.flatnonzero(finishes(s.session))
        self._open = np.full(len(memory.mark_ms), -1)
        self._open[s.session[last]] = np.where(s.is_end[last], -1, self._episode[last])
        memory.newest_ms[s.session[last]] = np.where(s.is_end[last], NO_MS, newest[last])

    def _share_out(self) -> NDArray[np.bool_]:
        """Which samples are taken in: of each `every_ms` of an episode its share of `max_samples`."""
        panes = self._samples.time_ms // self._rules.every_ms
        order = np.lexsort((panes, self._episode))
        first = np.flatnonzero(begins(self._episode[order], panes[order]))
        sizes = np.diff(np.append(first, len(order)))
        fits = np.empty(len(order), np.bool_)
        share = self._rules.max_samples // self._rules.overlap
        fits[order] = np.arange(len(order)) - np.repeat(first, sizes) < share
        return fits

    def _grow(self, column: int, counter: int) -> None:
        """Turn the slice's values of a counter into growth, and remember the last ones."""
        s, memory = self._samples, self._memory
        taken = np.flatnonzero(self._fits & (s.position != BEFORE))
        rows = np.flatnonzero((self._goes_on >= 0) & ~np.isnan(memory.counters[:, column]))
        rows = rows[np.argsort(self._goes_on[rows])]
        values, time_ms, episode = s.numbers[taken, counter], s.time_ms[taken], self._episode[taken]
        growth, counted = grow(
            values, time_ms, episode,
            memory.counters[rows, column], memory.counters_ms[rows, column], self._goes_on[rows],
        )  # fmt: skip
        s.numbers[taken, counter] = growth
        ended = np.unique(s.session[self._open[s.session] != self._goes_on[s.session]])
        memory.counters[ended, column] = np.nan
        session = s.session[taken]
        latest = counted[episode[counted] == self._open[session[counted]]]
        memory.counters[session[latest], column] = values[latest]  # of several of a session the last stands
        memory.counters_ms[session[latest], column] = time_ms[latest]

    def _advance(self) -> None:
        """Move the marks to where the slice leaves them."""
        arrived, memory = self._arrived, self._memory
        last = np.flatnonzero(finishes(arrived.session))
        memory.mark_ms[arrived.session[last]] = arrived.mark_ms[last]
        np.maximum(memory.mark_ms, self._ordered.release_ms, out=memory.mark_ms)

    def _group(self) -> _Groups:
        """Put each sample into those of its windows that were open when it was taken in."""
        rules, taken = self._rules, np.flatnonzero(self._fits)
        time_ms, episode = self._samples.time_ms[taken], self._episode[taken]
        first_end = rules.first_end(self._samples.mark_ms[taken])
        windows = (rules.last_end(time_ms) - first_end) // rules.every_ms + 1
        which = np.repeat(np.arange(len(taken)), windows)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(windows) - windows, windows)
        end_ms = first_end[which] + nth * rules.every_ms
        order = np.lexsort((time_ms[which], end_ms, episode[which]))
        which, end_ms = which[order], end_ms[order]
        first = np.flatnonzero(begins(episode[which], end_ms))
        return _Groups(taken[which], first, end_ms[first])

    def _seen(self, windows: _Groups) -> NDArray[np.int64]:
        """(G,) by which of the slice's n samples each window was seen to have closed; n: none.

        That is its session's first that came with such a mark, or before it the first sample of any session where the
        release watermark had come so far, or the end event.
        """
        arrived, rules, n = self._arrived, self._rules, len(self._ordered.events)
        first, last = windows.sample[windows.first], windows.first + windows.sizes - 1
        session, episode = self._samples.session[first], self._episode[first]
        latest = np.maximum.reduceat(self._samples.position[windows.sample], windows.first) if len(last) else last
        position = np.maximum(np.searchsorted(self._ordered.seen_at, windows.end_ms), latest)

        marks = arrived.mark_ms // rules.every_ms
        known = np.unique(marks)
        place = arrived.session * (len(known) + 1) + np.searchsorted(known, marks)
        wanted = session * (len(known) + 1) + np.searchsorted(known, windows.end_ms // rules.every_ms)
        at = np.minimum(np.searchsorted(place, wanted), len(place) - 1)
        passes = (arrived.session[at] == session) & (arrived.mark_ms[at] >= windows.end_ms)
        position = np.minimum(position, np.where(passes, arrived.position[at], n))

        of_end = self._samples.is_end
        ended_at = np.full(int(self._episode[-1]) + 1 if len(self._episode) else 0, n)
        ended_at[self._episode[of_end]] = self._samples.position[of_end]
        return running_max(np.minimum(position, ended_at[episode]), begins(session))

    def _given(self, windows: _Groups) -> Ordered:
        """Windows that closed, as events."""
        ordered, s = self._ordered, self._samples
        seen = self._seen(windows)
        order = np.argsort(seen, kind="stable")  # each session's stay in order
        last = windows.sample[windows.first + windows.sizes - 1]
        episode = self._episode[last]
        is_end = np.zeros(int(self._episode[-1]) + 1 if len(self._episode) else 0, np.bool_)
        is_end[self._episode[s.is_end]] = True
        said = [self._memory.tokens_of(i) for i in s.said[last[order]].tolist()]
        time_ms = windows.end_ms[order] - 1
        index = ordered.events.index
        events = replace(
            ordered.events, index=np.append(index, index[-1:] if len(index) else np.int32(-1))[seen[order]],
            offsets=s.offset[last[order]], time_ms=time_ms, session=s.session[last[order]].astype(np.int32),
            **ordered.events.columns_of([[texts[f] for texts in said] for f in range(len(ordered.events.texts))]),
            ends=(finishes(episode) & is_end[episode])[order], numbers=self._numbers(windows)[order],
            messages=None, ids=None, windows=windows.end_ms[order],
        )  # fmt: skip
        seen_at = np.append(ordered.seen_at, ordered.release_ms)[seen[order]]
        return replace(ordered, events=events, watermarks=time_ms, seen_at=seen_at)

    def _numbers(self, windows: _Groups) -> NDArray[np.float64]:
        """(G, N * A + 1): of each number each aggregate, then how many samples there were."""
        rules, sizes = self._rules, windows.sizes
        group = np.repeat(np.arange(len(sizes)), sizes)
        time_ms, numbers = self._samples.time_ms[windows.sample], self._samples.numbers[windows.sample]
        columns = [
            aggregate(
                Groups.of(numbers[:, column], time_ms, group, len(sizes)), rules.aggregates,
                rules.size_ms if column in rules.counters else None,
            )
            for column in range(numbers.shape[1])
        ]  # fmt: skip
        return np.hstack([*columns, sizes[:, None].astype(np.float64)])
