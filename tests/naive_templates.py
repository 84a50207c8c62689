"""Slow, obvious matching of templates. It shares the pattern of what is masked with the fast one, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from features.shapes import _VARIABLE


def match_one(texts: Iterable[str], line: str) -> tuple[str, tuple[str, ...]] | None:
    """The text of the template that a line matches, and its values."""
    tokens = line[:4096].split()
    masked = [_VARIABLE.sub("<*>", token) for token in tokens]
    found = [text for text in texts if matches(text.split(), masked)]
    if not found:
        return None
    best = min(found, key=lambda text: (text.split().count("<*>"), text))
    values: list[str] = []
    for place, token in zip(best.split(), tokens, strict=True):
        if place == "<*>":
            values.append(token)
        elif "<*>" in place:
            values.extend(_VARIABLE.findall(token))
    return best, tuple(values)


def matches(template: list[str], masked: list[str]) -> bool:
    """Whether each token of the template stands for the masked token at its place."""
    if all(token == "<*>" for token in template):
        return template == masked
    return len(template) == len(masked) and all(t in ("<*>", m) for t, m in zip(template, masked, strict=True))
