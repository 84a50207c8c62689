"""Parts of a stream from its config section and the bundle that serves it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import orjson

from detectors.parts import Learned, Parts, unpack
from detectors.rows import RowShape
from features.decode import Decoder
from features.sessions import SessionRules
from features.tokens import TokenEncoder
from models.bundle import read_bundle, serving_digest
from pipeline.settings import Settings, StreamSettings


def make_decoder(stream: StreamSettings) -> Decoder:
    """The decoder a stream's config describes."""
    return Decoder(stream.session.by, stream.time, stream.tokens, stream.session.end_when)


def make_parts(settings: Settings, name: str, learned: Learned | None) -> Parts:
    """Parts for a stream; each partition takes its own, for the token encoder remembers."""
    stream = settings.stream(name)
    return Parts(
        stream=name,
        topic=stream.topic,
        fields=tuple(stream.tokens),
        shape=RowShape(stream.model.hidden, stream.model.context, len(stream.tokens)),
        rules=SessionRules(_gap_ms(settings, stream), stream.session.max_events),
        rate=stream.promise.false_alarm_rate,
        encoder=TokenEncoder(len(stream.tokens), None if learned is None else learned.vocabulary),
        learned=learned,
    )


def load_serving(settings: Settings, name: str, bundle: Path | None = None) -> Learned | None:
    """The bundle in `bundle`, or the one that serves the stream; None while none does.

    Raises
    ------
    BundleError
        It is damaged, or trained for another config.
    """
    stream = settings.stream(name)
    directory = settings.bundles_dir / name
    if bundle is None:
        digest = serving_digest(directory)
        if digest is None:
            return None
        bundle = directory / digest
    return unpack(read_bundle(bundle), stream.tokens, stream.model.hidden)


def _gap_ms(settings: Settings, stream: StreamSettings) -> int:
    """However long the gap, no session is silent for longer than `state.ttl`."""
    return min(stream.session.gap, settings.state.ttl)


def state_fingerprint(settings: Settings, name: str) -> str:
    """Sixteen hex digits that change when the section changes in a way that alters saved rows."""
    stream = settings.stream(name)
    session = stream.session.model_dump(mode="json", exclude={"idle"}) | {"gap": _gap_ms(settings, stream)}
    parts = {
        "session": session, "tokens": stream.tokens, "time": stream.time,
        "core": stream.model.core, "hidden": stream.model.hidden, "context": stream.model.context,
    }  # fmt: skip
    return sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
