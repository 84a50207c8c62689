"""Profiles of a history's sessions, learned from all of them and calibrated by cross-fitting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detectors.combined import Combined
from detectors.held_back import HeldBack
from detectors.history import Chosen, History
from detectors.parts import Parts
from detectors.profiles import F32, KnownProfiles, Profiles
from features.profiles import count_sessions
from features.sessions import END_INPUT

FOLDS = 10  # learning profiles takes moments, so each fold may miss little
LEAST_SESSIONS = 100  # that ended and are held back; of fewer no detector can be calibrated


@dataclass(frozen=True)
class FittedProfiles:
    """What serves, how its scores join a session's surprise, and what calibrates the whole."""

    known: KnownProfiles
    combined: Combined
    held_back: HeldBack


def fit_profiles(history: History, held_back: HeldBack, parts: Parts) -> FittedProfiles | None:
    """Learn profiles of a history, and combine them with what a model says of the sessions held back.

    Each session is compared with those of other blocks of time only, so that all may teach what serves.

    Returns
    -------
    fitted
        None where the stream keeps no profiles, or too few sessions ended.
    """
    if not parts.shape.profile or len(held_back.sessions) < LEAST_SESSIONS:
        return None
    profiles, ended = profiles_of(history, parts)
    known = KnownProfiles.learn(profiles.take(ended), parts.shape.fields)
    scores = _by_others(profiles, ended, history, parts.shape.fields)[held_back.of_session]
    columns = np.hstack([held_back.sessions[:, None], scores])
    combined = Combined.learn(columns)
    return FittedProfiles(known, combined, held_back.with_sessions(combined.score(columns)))


def profiles_of(history: History, parts: Parts) -> tuple[Profiles, Chosen]:
    """Profiles of the history's S sessions, as a worker would have counted them, and (S,) which were seen to end."""
    count = len(history.first_ms)
    shape = (count, parts.shape.profile)
    found = Profiles(np.zeros(shape, np.uint64), np.zeros(shape, np.uint16), *np.zeros((2, count), np.int64))
    ended = np.zeros(count, np.bool_)
    for partition in history.partitions:
        steps, walk = partition.walk.steps, partition.walk
        session, records = partition.session[steps], walk.record[steps]
        mine, place = np.unique(session, return_inverse=True)
        tokens = parts.encoder.hashes(partition.events.tokens, len(partition.events))
        keys, counts = count_sessions(place.astype(np.int32), tokens[records], len(mine), parts.shape.profile)
        found.keys[mine], found.counts[mine] = keys, counts
        found.events[mine] = np.bincount(place)
        last_ms = np.full(len(mine), -1, np.int64)
        np.maximum.at(last_ms, place, partition.events.time_ms[records])
        found.duration_ms[mine] = last_ms - history.first_ms[mine]
        ends = walk.of_ends
        ended[partition.session[ends[walk.kind[ends] != END_INPUT]]] = True
    return found, ended


def _by_others(profiles: Profiles, ended: Chosen, history: History, fields: int) -> F32:
    """(S, 2) scores of each session by profiles of other blocks of time; NaN of those that did not end."""
    scores = np.full((len(ended), 2), np.nan, np.float32)
    order = np.flatnonzero(ended)[np.argsort(history.first_ms[ended], kind="stable")]
    fold = np.arange(len(order)) * FOLDS // max(1, len(order))
    for which in range(FOLDS):
        others, mine = order[fold != which], order[fold == which]
        if len(others) and len(mine):
            scores[mine] = KnownProfiles.learn(profiles.take(others), fields).score(profiles.take(mine)).columns
    return scores
