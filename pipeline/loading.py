"""A bundle made ready for the partitions of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from detectors.parts import Learned
from detectors.process import process_batch
from detectors.rows import PartitionState, SessionRows
from features.decode import Decoder
from features.unmatched import Unmatched
from pipeline.outputs import Place
from pipeline.score import Line
from pipeline.serving import load_bundle, make_live_decoder, make_parts
from pipeline.settings import Settings


@dataclass(frozen=True, eq=False)
class Served:
    """A bundle loaded for a stream, and the decoder with its templates; `learned` is None where none serves."""

    learned: Learned | None
    decoder: Decoder

    @property
    def runtime(self) -> str:
        """What serves it."""
        return "kernel" if self.learned is None else self.learned.runtime.name

    @property
    def digest(self) -> str | None:
        """Of the bundle."""
        return None if self.learned is None else self.learned.digest

    @property
    def trained_s(self) -> float | None:
        """When the bundle was trained, in seconds since 1970; None where its manifest does not say it."""
        try:
            return datetime.fromisoformat((self.learned and self.learned.created) or "").timestamp()
        except ValueError:
            return None


def load_served(settings: Settings, name: str, digest: str | None, unmatched: Unmatched | None = None) -> Served:
    """Read a stream's bundle, and score one made-up event with it, so that no slice waits for a compiler.

    Parameters
    ----------
    digest
        None: the stream without a bundle.
    unmatched
        Takes lines that match no template.

    Raises
    ------
    BundleError
        It is not there, damaged, or trained for another config.
    """
    learned = None if digest is None else load_bundle(settings, name, digest)
    return make_served(settings, name, learned, unmatched)


def make_served(settings: Settings, name: str, learned: Learned | None, unmatched: Unmatched | None = None) -> Served:
    """The same with a bundle that has been read."""
    _warm_up(settings, name, learned)
    return Served(learned, make_live_decoder(settings, name, learned, unmatched))


def _warm_up(settings: Settings, name: str, learned: Learned | None) -> None:
    parts, decoder = make_parts(settings, name, learned), make_live_decoder(settings, name, learned)
    place = Place(settings.streams[name].topic, 0)
    events = decoder.decode([Line(1, place, 0, 0, b"warm-up", b"{}")], check_key=False)
    rows = SessionRows.empty(len(events.sessions), parts.shape)
    process_batch(events, rows, PartitionState(0), parts, close_all=True)
