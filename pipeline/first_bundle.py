"""A stream's first bundle, trained by a process of its own beside a worker: `python -m pipeline.first_bundle`.

It reads the topic, trains as `offbeat train --from-topic` does but for the end of the history, judges the bundle on
that end, and promotes it as `offbeat train --promote` does. It ends with the worker that started it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from features.events import Events
from models.errors import ModelError
from pipeline.child import yield_to_others
from pipeline.errors import OffbeatError, RefusedBundleError
from pipeline.settings import Settings, load_settings

HELD_BACK = 0.15  # of each partition's events, the last ones


def train_first(settings: Settings, name: str) -> dict[str, Any]:
    """Train, check and promote; says the digest and what the checks found.

    Raises
    ------
    RefusedBundleError
        The checks refuse it; it is kept, and nothing serves.
    OffbeatError, ModelError
        The topic cannot be read, or nothing can be learned from it.
    """
    from detectors.first_checks import check_first
    from pipeline.clients import Clients
    from pipeline.history import History, from_topic
    from pipeline.labelled_history import without_labelled
    from pipeline.model_commands import try_to_tell
    from pipeline.registry import Registry
    from pipeline.serving import load_bundle, make_decoder, make_live_decoder, make_parts
    from pipeline.train import learn_bundle, options_of

    def quietly(_done: int, _total: int) -> None:
        pass

    stream, registry, clients = settings.stream(name), Registry(settings, name), Clients(settings)
    options = options_of(stream.model)
    reason = "the first, by offbeat worker --auto-train"
    history = from_topic(clients, stream, make_decoder(settings, name), None, None, quietly)
    taught, cuts = zip(*map(without_end, history.events), strict=True)
    of_normal, _ = without_labelled(settings, clients, name, History(list(taught), {}, history.places))
    digest, fitted = learn_bundle(settings, registry, of_normal, options, source=f"topic {stream.topic}", why=reason)
    learned = load_bundle(settings, name, digest)  # or a sentence: its features are not the worker's
    arrived = from_topic(clients, stream, make_live_decoder(settings, name, learned), None, None, quietly)
    of_place = dict(zip(history.places, cuts, strict=True))  # a partition may have had its first record since
    checked = check_first(
        arrived.events, [of_place.get(place, 0) for place in arrived.places], make_parts(settings, name, learned),
        fitted.content["training"]["best_validation_loss"],
    )  # fmt: skip
    if checked.refusals:
        message = (
            f"bundle {digest[:12]} of stream {name} was trained but does not serve: {'; '.join(checked.refusals)}; "
            "look at it with `offbeat models show`, and promote it if you know better"
        )
        raise RefusedBundleError(message)
    promoted = registry.serving_if_known() is None  # somebody may have trained meanwhile
    if promoted:
        registry.promote(digest, reason)
        try_to_tell(settings, registry)
    return {"digest": digest, "promoted": promoted, **checked.figures}


def without_end(events: Events) -> tuple[Events, int]:
    """A partition's events but for those held back, and the offset of the first of these."""
    kept = int(len(events) * (1 - HELD_BACK))
    if kept == len(events):  # there are none
        return events, 0
    rejects = [reject for reject in events.rejects if reject.index < events.index[kept]]
    return replace(events.take(np.arange(kept)), rejects=rejects), int(events.offsets[kept])


def main(config: str, name: str) -> int:
    """Do it, and say in one line of JSON how it ended, or in one sentence on stderr why it did not."""
    yield_to_others()
    try:
        print(json.dumps(train_first(load_settings(Path(config)), name)))
    except (OffbeatError, ModelError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
