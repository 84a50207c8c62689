"""A bundle's files: from what was learned, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from detectors.alert_budget import Volume
from detectors.calibration import Calibration
from detectors.combined import Combined
from detectors.cores import make_ensemble, make_runtime, row_width
from detectors.drift_watch import UsualDrift
from detectors.novelty import Novelty
from detectors.parts import BINS, FORECAST, NO_NUMBERS, NO_TEMPLATES, Learned, Parts, SecondStage, input_sizes
from detectors.profiles import KnownProfiles
from detectors.segments import BySegment, segment_arrays, segments_of
from detectors.usual_rates import UsualRates
from features.numbers import NumberBins
from features.templates import Templates
from features.tokens import Vocabulary
from models.bundle import Bundle
from models.errors import BundleError
from models.runtime import Runtime, load_runtime, widened
from models.spec import ModelSpec

CLASSES = "classes"  # of ids, in the softmax of large vocabularies; bundles of before there were any do not say it
VOCABULARY_VERSION = 2  # the first had no version in its file, and no `<rare>`
NO_WINDOW = 0  # of a core whose weights are for any
_PROFILES, _COMBINED = "profiles.safetensors", ("detector.surprise", "detector.nearest", "detector.pairs")
_SECOND, _SECOND_WEIGHTS = ("second.records", "second.sessions"), "second."


def pack(
    vocabulary: Vocabulary,
    weights: dict[str, Any],
    records: Calibration,
    sessions: Calibration,
    templates: Templates = NO_TEMPLATES,
    numbers: NumberBins = NO_NUMBERS,
    segments: tuple[BySegment, BySegment] = ({}, {}),
    members: Sequence[Calibration] = (),
    second: tuple[Calibration, Calibration] | None = None,
    profiles: tuple[KnownProfiles, Combined] | None = None,
    novelty: Novelty | None = None,
) -> dict[str, bytes]:
    """A bundle's files, from what was learned; of segments and of a second stage those of records and of sessions."""
    calibration = records.to_arrays("records") | sessions.to_arrays("sessions") | segment_arrays(*segments)
    calibration |= {} if novelty is None else novelty.to_arrays()
    for k, member in enumerate(members):
        calibration |= member.to_arrays(_member(k))
    for name, own in zip(_SECOND, second or (), strict=False):
        calibration |= own.to_arrays(name)
    files = {}
    if profiles is not None:
        known, combined = profiles
        files[_PROFILES] = save(known.to_arrays())
        calibration |= combined.to_arrays(_COMBINED)
    return files | {
        "weights.safetensors": save(dict(sorted(weights.items()))),
        "calibration.safetensors": save(calibration),
    } | _vocabulary_files(vocabulary) | _templates_file(templates) | _numbers_file(numbers)  # fmt: skip


def _vocabulary_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    words: dict[str, Any] = {"fields": vocabulary.fields, "tokens": vocabulary.tokens}
    if vocabulary.rare is None:
        return {"vocabulary.json": json.dumps(words, ensure_ascii=False).encode()}
    words |= {"version": VOCABULARY_VERSION, "buckets": vocabulary.buckets}
    rare = {str(field): hashes for field, hashes in enumerate(vocabulary.rare)}
    return {"vocabulary.json": json.dumps(words, ensure_ascii=False).encode(), "rare.safetensors": save(rare)}


def _vocabulary_of(files: dict[str, bytes]) -> Vocabulary:
    """What `_vocabulary_files` wrote, and what was written before it: without a version, and without `<rare>`."""
    words = json.loads(files["vocabulary.json"])
    fields, tokens = tuple(words["fields"]), tuple(map(tuple, words["tokens"]))
    if "version" not in words:
        return Vocabulary(fields, tokens)
    if words["version"] != VOCABULARY_VERSION:
        message = f"its vocabulary has version {words['version']}, and this release reads {VOCABULARY_VERSION}"
        raise ValueError(message)
    rare = load(files["rare.safetensors"])
    return Vocabulary(fields, tokens, tuple(rare[str(f)] for f in range(len(fields))), tuple(words["buckets"]))


def _templates_file(templates: Templates) -> dict[str, bytes]:
    """None where the stream has no messages; a second one where these have numbers."""
    if not templates.templates:
        return {}
    files = {"templates.json": templates.to_json(), "parameters.json": templates.numbers}
    return {name: json.dumps(of, ensure_ascii=False, indent=1).encode() for name, of in files.items() if of}


def _numbers_file(numbers: NumberBins) -> dict[str, bytes]:
    """None where the stream has no numbers."""
    if not numbers.binnings:
        return {}
    return {"numbers.json": json.dumps(numbers.to_json(), ensure_ascii=False).encode()}


def unpack(bundle: Bundle, parts: Parts, runtime: str = "auto", device: str = "cpu") -> Learned:
    """What `pack` wrote, checked against the stream's config; `runtime` and `device` as `load_runtime` has them.

    Raises
    ------
    BundleError
        The bundle was trained for other fields or another hidden size, or a file does not hold what it should.
    """
    wanted = {"profile": False} | parts.schema
    # As before there were any.
    before = {"core": "gru", "numbers": [], "counters": [], "gaps": False, "model.numbers": BINS, "profile": False}
    schema: dict[str, Any] = before | bundle.content.get("schema", {})
    if _PROFILES not in bundle.files:  # sessions are judged without, as they were before there were any
        wanted["profile"] = schema["profile"]
    differs = [part for part, value in wanted.items() if schema.get(part) != value]
    if differs:
        message = (
            f"bundle {bundle.digest[:12]} was trained with {_in_words(schema, differs)}, but the config says "
            f"{_in_words(wanted, differs)}; run `offbeat train --promote`"
        )
        raise BundleError(message)
    return learned_of(bundle, runtime, device, second=parts.second is not None)


def learned_of(bundle: Bundle, runtime: str = "auto", device: str = "cpu", *, second: bool = True) -> Learned:
    """What `pack` wrote, whatever the stream's config says now: to look at, to verify, to compare.

    Raises
    ------
    BundleError
        A file does not hold what it should, or the weights do not fit each other.
    """
    schema: dict[str, Any] = {"core": "gru", "hidden": 0, "seasonal": []} | bundle.content.get("schema", {})
    seasonal = tuple(schema["seasonal"])
    try:
        vocabulary = _vocabulary_of(bundle.files)
        texts, places = (bundle.files.get(name) for name in ("templates.json", "parameters.json"))
        templates = Templates.from_json(json.loads(texts or b"[]"), json.loads(places or b"{}"))
        bins = NumberBins.from_json(json.loads(bundle.files.get("numbers.json", b'{"names":null,"binnings":[]}')))
        certificate = json.loads(bundle.files.get("certificate.json", b"null"))
        usual = json.loads(bundle.files.get("schema.json", b"null"))
        drift = UsualDrift.from_json(json.loads(of)) if (of := bundle.files.get("drift.json")) else None
        rates = UsualRates.from_json(json.loads(of)) if (of := bundle.files.get("rates.json")) else None
        weights = widened(load(bundle.files["weights.safetensors"]))
        found = load(bundle.files["calibration.safetensors"])
        records, sessions = (Calibration.from_arrays(found, name) for name in ("records", "sessions"))
        segments = segments_of(found)
        cores = schema["core"] if isinstance(schema["core"], list) else []
        members = [Calibration.from_arrays(found, _member(k)) for k in range(len(cores))]
        known, combined = None, None
        if _PROFILES in bundle.files:
            known = KnownProfiles.from_arrays(load(bundle.files[_PROFILES]))
            combined = Combined.from_arrays(found, _COMBINED)
        again = schema.get("second_stage")
        of_second = () if again is None else tuple(Calibration.from_arrays(found, name) for name in _SECOND)
    except (KeyError, ValueError, SafetensorError) as error:
        message = f"bundle {bundle.digest[:12]} lacks a part ({error}); run `offbeat train --promote`"
        raise BundleError(message) from None
    sizes, inputs = (*vocabulary.sizes, *bins.sizes), input_sizes(seasonal)
    spec = ModelSpec(
        cores[0] if cores else schema["core"], schema["hidden"], sizes, inputs, schema.get("context", NO_WINDOW),
        flat=schema.get("softmax") != CLASSES,
        values=len(schema["numbers"]) if schema.get("model.numbers") == FORECAST else 0,
    )  # fmt: skip
    stage, fields = None, len(vocabulary.sizes)
    if again is not None:
        if second:
            its = replace(spec, core=again)
            anything = (
                "torch" if runtime == "torch" else "auto"
            )  # a transformer has no kernel, whatever serves the first
            mine = load_runtime(its, _below(weights, _SECOND_WEIGHTS), anything, device)
            stage = SecondStage(again, mine, row_width(its, fields), *of_second)
        weights = {name: w for name, w in weights.items() if not name.startswith(_SECOND_WEIGHTS)}
    if cores:
        specs, of_members = (
            [replace(spec, core=core) for core in cores],
            [_below(weights, f"{k}.") for k in range(len(cores))],
        )
        runtimes = [
            make_runtime(s, w, fields, runtime, device) for s, w in zip(specs, of_members, strict=True)
        ]  # fmt: skip
        model: Runtime = make_ensemble(specs, runtimes, members, fields)
    else:
        model = make_runtime(spec, weights, fields, runtime, device)
    return Learned(
        bundle.digest, vocabulary, model, records, sessions, templates, certificate, bins, seasonal, usual, *segments,
        stage, known, combined, Novelty.from_arrays(found), drift, Volume.of(bundle.content.get("data")), rates,
        bundle.created,
    )  # fmt: skip


def joined(
    weights: Sequence[Mapping[str, NDArray[Any]]], second: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, NDArray[Any]]:
    """Weights of an ensemble's members and of a second stage under names of their own; a single model's as they are."""
    again = {f"{_SECOND_WEIGHTS}{name}": w for name, w in (second or {}).items()}
    if len(weights) == 1:
        return {**weights[0], **again}
    return {f"{k}.{name}": w for k, of_member in enumerate(weights) for name, w in of_member.items()} | again


def _below(weights: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def _member(k: int) -> str:
    return f"member.{k}.records"


def _in_words(schema: dict[str, Any], parts: Sequence[str]) -> str:
    return " and ".join(f"{part} {schema.get(part)}" for part in parts)
