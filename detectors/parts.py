"""Parts: all that scoring needs and does not change, put together from the config and a bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from detectors.calibration import Calibration
from detectors.rows import RowShape
from features.sessions import SessionRules
from features.templates import Templates
from features.tokens import TokenEncoder, Vocabulary
from models.bundle import Bundle
from models.errors import BundleError
from models.runtime import GruKernel

NO_TEMPLATES = Templates(())
VOCABULARY_VERSION = 2  # the first had no version in its file, and no `<rare>`


@dataclass(frozen=True)
class Learned:
    """What a bundle holds, ready to use.

    Attributes
    ----------
    templates
        Of log messages; none for other streams.
    certificate
        Of the features it was trained with (features/certificate.py); None where the bundle has none.
    number
        64 bits of the digest, the mark in each session row this bundle wrote.
    """

    digest: str
    vocabulary: Vocabulary
    model: GruKernel
    records: Calibration
    sessions: Calibration
    templates: Templates = NO_TEMPLATES
    certificate: dict[str, str] | None = None

    @property
    def number(self) -> int:
        """The bundle's mark in session rows; never 0."""
        return max(1, int(self.digest[:16], 16))


@dataclass(frozen=True)
class Parts:
    """Arguments of `process_batch` that stay the same from slice to slice.

    Attributes
    ----------
    learned
        None until a bundle serves.
    remembered
        How many event ids a partition remembers, to know duplicates; 0 where events have none.
    sends_late
        Late records are sent to a topic of their own instead of being judged.
    """

    stream: str
    topic: str
    fields: tuple[str, ...]
    shape: RowShape
    rules: SessionRules
    rate: float
    encoder: TokenEncoder
    learned: Learned | None
    remembered: int = 0
    sends_late: bool = False


def pack(
    vocabulary: Vocabulary,
    weights: dict[str, Any],
    records: Calibration,
    sessions: Calibration,
    templates: Templates = NO_TEMPLATES,
) -> dict[str, bytes]:
    """A bundle's files, from what was learned."""
    calibration: dict[str, NDArray[Any]] = {}
    for name, part in (("records", records), ("sessions", sessions)):
        calibration |= {
            f"{name}.levels": part.levels, f"{name}.reaching": part.reaching, f"{name}.above": part.above,
            f"{name}.count": np.array([part.count], np.int64),
        }  # fmt: skip
    return {
        "weights.safetensors": save(dict(sorted(weights.items()))),
        "calibration.safetensors": save(calibration),
    } | _vocabulary_files(vocabulary) | _templates_file(templates)  # fmt: skip


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
    """None where the stream has no messages."""
    if not templates.templates:
        return {}
    return {"templates.json": json.dumps(templates.to_json(), ensure_ascii=False, indent=1).encode()}


def unpack(bundle: Bundle, fields: Sequence[str], hidden: int) -> Learned:
    """What `pack` wrote, checked against the stream's config.

    Raises
    ------
    BundleError
        The bundle was trained for other fields or another hidden size, or a file does not hold what it should.
    """
    schema = bundle.content.get("schema", {})
    trained = (tuple(schema.get("tokens", ())), schema.get("hidden"))
    if trained != (tuple(fields), hidden):
        message = (
            f"bundle {bundle.digest[:12]} was trained with tokens {list(trained[0])} and hidden {trained[1]}, but the "
            f"config says tokens {list(fields)} and hidden {hidden}; run `offbeat train --promote`"
        )
        raise BundleError(message)
    try:
        vocabulary = _vocabulary_of(bundle.files)
        templates = Templates.from_json(json.loads(bundle.files.get("templates.json", b"[]")))
        certificate = json.loads(bundle.files.get("certificate.json", b"null"))
        weights = load(bundle.files["weights.safetensors"])
        found = load(bundle.files["calibration.safetensors"])
        records, sessions = (
            Calibration(found[f"{n}.levels"], found[f"{n}.reaching"], found[f"{n}.above"], int(found[f"{n}.count"][0]))
            for n in ("records", "sessions")
        )
    except (KeyError, ValueError, SafetensorError) as error:
        message = f"bundle {bundle.digest[:12]} lacks a part ({error}); run `offbeat train --promote`"
        raise BundleError(message) from None
    return Learned(
        bundle.digest, vocabulary, GruKernel(weights, vocabulary.sizes), records, sessions, templates, certificate
    )
