"""One job of `offbeat trainer`, in a process of its own: `python -m pipeline.retrain_job CONFIG JOB PARENT`.

It reads the job's span, trains on all but its newest part, without what people had called anomalies when the job was
asked for, and holds the new bundle and the one that serves to that part, which taught neither. The same job over the
same records comes to the same bundle, whoever does it and however often it was interrupted, as long as nobody says
otherwise of the same anomalies meanwhile. It lets nothing serve and says nothing to Kafka: whoever started it does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from detectors.comparison import Judged, Labels, Seen, compare, look
from detectors.parts import Learned
from features.events import Events
from models.bundle import read_manifest
from models.errors import BundleError, ModelError, ResumeError
from pipeline.child import yield_to_others
from pipeline.clients import Clients
from pipeline.errors import OffbeatError, RetrainError
from pipeline.first_bundle import without_end
from pipeline.history import History, from_topic
from pipeline.labelled_history import without_labelled
from pipeline.registry import Registry
from pipeline.retraining import labels_of
from pipeline.serving import load_bundle, make_decoder, make_live_decoder, make_parts
from pipeline.settings import Settings, load_settings
from pipeline.train import OF_JOBS, learn_bundle, options_of, states_of
from pipeline.wire import RetrainJob

_NOTHING = 2**62  # an offset from which on nothing is: of a partition without records of the new world


@dataclass(frozen=True)
class _Span:
    """The records of a job: what teaches, and from which offsets on nothing does."""

    taught: History
    cuts: dict[Any, int]


def train_and_compare(settings: Settings, job: RetrainJob) -> dict[str, Any]:
    """Do a job, all but its last step; says the digests, whether the new bundle is better, why, and the figures.

    Raises
    ------
    RetrainError
        Nothing in the span is new to the bundle that serves, or too little is.
    OffbeatError, ModelError
        The topic cannot be read, or nothing can be learned from it.
    """
    registry, clients = Registry(settings, job.stream), Clients(settings)
    span = _read(settings, clients, job)
    serving = registry.serving_if_known()
    digest = _made_before(registry, job) or _train(settings, registry, span.taught, job)
    if serving == digest:  # it was promoted, and whoever did so could not say it any more
        return {"digest": digest, "serving": digest, "better": True, "why": "it serves", "figures": None}
    judged = _compare(settings, clients, registry, span, job, (digest, serving))
    return {
        "digest": digest, "serving": serving, "better": judged.better, "why": judged.why, "figures": judged.to_json(),
    }  # fmt: skip


def _quietly(_done: int, _total: int) -> None:
    pass


def _read(settings: Settings, clients: Clients, job: RetrainJob) -> _Span:
    stream = settings.stream(job.stream)
    decoder = make_decoder(settings, job.stream)
    history = from_topic(clients, stream, decoder, job.since_ms, job.until_ms, _quietly)
    pieces = [_of_new_world(events, job.world_ms) for events in history.events]
    if sum(map(len, pieces)) < job.least_records:  # Kafka's timestamps promised more than there is
        pieces = history.events
    kept = [without_end(events) if len(events) else (events, _NOTHING) for events in pieces]
    taught = History([taught for taught, _ in kept], {}, history.places)
    return _Span(
        without_labelled(settings, clients, job.stream, taught, job.asked_ms)[0],
        {place: cut for place, (_, cut) in zip(history.places, kept, strict=True)},
    )


def _of_new_world(events: Events, world_ms: int | None) -> Events:
    if world_ms is None:
        return events
    return replace(events.take(np.flatnonzero(events.time_ms >= world_ms)), rejects=[])


def _made_before(registry: Registry, job: RetrainJob) -> str | None:
    """The job's bundle, where a trainer wrote it and came no further."""
    for digest in registry.digests():
        try:
            if read_manifest(registry.folder / digest).lineage.get("job") == job.id:
                return digest
        except BundleError:  # damaged; not of ours to mend
            continue
    return None


def _train(settings: Settings, registry: Registry, taught: History, job: RetrainJob) -> str:
    stream = settings.stream(job.stream)
    options = options_of(stream.model, seed=job.seed)

    def learn(*, resumes: bool) -> str:
        return learn_bundle(
            settings, registry, taught, options, source=f"topic {stream.topic}", why=job.detail, resumes=resumes,
            job=job.id,
        )[0]  # fmt: skip

    try:
        return learn(resumes=(states_of(settings, job.stream) / OF_JOBS).exists())
    except ResumeError:  # what is saved is another job's
        return learn(resumes=False)


def _compare(
    settings: Settings, clients: Clients, registry: Registry, span: _Span, job: RetrainJob,
    digests: tuple[str, str | None],
) -> Judged:  # fmt: skip
    """Both on the part of the span that taught neither."""
    name, serving = job.stream, digests[1]
    learned = [None if digest is None else load_bundle(settings, name, digest) for digest in digests]
    learned_until = -1 if serving is None else _learned_until(registry, serving)
    history = [_as_served(settings, clients, job, of, span.cuts) for of in learned if of is not None]
    rate = make_parts(settings, name, learned[0]).rate  # of a budget, as the newer history has it; one for both
    seen: list[Seen] = [
        look(events, cuts, replace(make_parts(settings, name, of), rate=rate), learned_until)
        for (events, cuts, _), of in zip(history, [of for of in learned if of is not None], strict=True)
    ]
    labels: Labels = labels_of(settings, clients, name, history[0][0], history[0][2])
    comparable = [] if learned[0] is None or learned[1] is None else _comparable(settings, name, *learned)  # type: ignore[arg-type]
    judged = compare(seen[0], seen[1] if len(seen) > 1 else None, rate, labels, comparable)
    if judged is None:
        of = "" if serving is None else f" and is newer than what bundle {serving[:12]}, which serves, learned from"
        message = (
            f"only {len(seen[0].offset)} records of the span taught nothing{of}, which is too few to compare bundles; "
            "ask again when more have come"
        )
        raise RetrainError(message)
    return judged


def _learned_until(registry: Registry, digest: str) -> int:
    """Event time of the last record that a bundle learned from; -1 where it does not say."""
    data = read_manifest(registry.folder / digest).content.get("data") or {}
    return int(data.get("last_ms", -1))


def _as_served(
    settings: Settings, clients: Clients, job: RetrainJob, learned: Learned, cuts: dict[Any, int]
) -> tuple[list[Events], list[int], Sequence[Any]]:  # fmt: skip
    """The span as a worker with the bundle reads it, and the cut of each partition."""
    decoder = make_live_decoder(settings, job.stream, learned)
    history = from_topic(clients, settings.stream(job.stream), decoder, job.since_ms, job.until_ms, _quietly)
    return history.events, [cuts.get(place, _NOTHING) for place in history.places], history.places


def _comparable(settings: Settings, name: str, new: Learned, serving: Learned) -> list[bool]:
    """Of which token fields both surprises are in nats, and of the same outcomes."""
    stream = settings.stream(name)
    if stream.model.ensemble or stream.model.numbers == "forecast" or "linear" in stream.model.cores:
        return []
    same_lines = new.templates.templates == serving.templates.templates
    words = stream.fields[: len(stream.fields) - len(stream.number_fields)]
    return [field != stream.message or same_lines for field in words]


def main(config: str, job: str, parent: str) -> int:
    """Do it; the last line of stdout says in JSON how it ended, whatever that was, unless the process breaks off."""
    yield_to_others(int(parent))
    try:
        done = train_and_compare(load_settings(Path(config)), RetrainJob.model_validate_json(job))
    except (OffbeatError, ModelError) as error:  # a broker that is away refuses no job
        done = {"again" if error.retriable else "refused": str(error)}
    print(json.dumps(done))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
