"""Log templates: a line to the id of its template and to the texts of its wildcards. Nothing is learned here.

A template is a text of tokens with a blank between them. Its token `<*>` stands for any token, its other tokens for
themselves. A line matches a template of as many tokens if each stands for the line's masked token (features/shapes.py).
Of the templates that match, the one with the fewest tokens `<*>` is the line's; of several, the first by text. A
template of nothing but `<*>` would take every line of its length, so it takes only lines that are masked to just that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from operator import itemgetter
from typing import Any, NamedTuple

from features.shapes import WILDCARD, Masks, Memory, Shape, shape_characters, split_line


@dataclass(frozen=True)
class Template:
    """One template: tokens parted by single blanks.

    Its id depends on nothing but its text, so it survives a new training.

    >>> Template("Took <*> s").id
    'e1bc4c78f0d7'
    """

    text: str

    def __post_init__(self) -> None:
        assert _is_template(self.text), f"{self.text[:60]!r} has more than single blanks between its tokens"

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits."""
        return blake2b(self.text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()

    @cached_property
    def shape(self) -> Shape:
        """Its tokens."""
        return tuple(self.text.split())

    @property
    def wildcards(self) -> int:
        """How many values a line of this template has: one for each `<*>`, within tokens too."""
        return self.text.count(WILDCARD)


@dataclass(frozen=True)
class Templates:
    """The templates a bundle knows, in order of their texts; no two have the same id."""

    templates: tuple[Template, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", tuple(sorted(self.templates, key=lambda t: t.text)))
        assert len(self.by_id) == len(self.templates), "two templates have the same id"

    @classmethod
    def of(cls, texts: Iterable[str]) -> Templates:
        """Templates of these texts; one that comes twice is kept once."""
        return cls(tuple(map(Template, set(texts))))

    @cached_property
    def by_id(self) -> dict[str, Template]:
        """For showing what an id stands for."""
        return {template.id: template for template in self.templates}

    def to_json(self) -> list[str]:
        """The texts; any JSON writer can write them, for no template holds a lone surrogate that was mined."""
        return [template.text for template in self.templates]

    @classmethod
    def from_json(cls, content: object) -> Templates:
        """What `to_json` gave.

        Raises
        ------
        ValueError
            It is no list of distinct template texts.
        """
        if isinstance(content, list) and all(isinstance(text, str) and _is_template(text) for text in content):
            read = cls.of(content)
            if len(read.templates) == len(content):
                return read
        message = "the bundle's templates cannot be read; train anew with `offbeat train`"
        raise ValueError(message)


def _is_template(text: str) -> bool:
    return text == " ".join(text.split())


@dataclass(frozen=True)
class Matches:
    """What n lines matched.

    Attributes
    ----------
    ids
        n ids of templates, None where none matched.
    values
        For each line the texts of its template's wildcards, in order; empty where none matched.
    """

    ids: list[str | None]
    values: list[tuple[str, ...]]


class _Rule(NamedTuple):
    """A template as the matcher uses it: where its values stand, and whether as a whole token or within one."""

    text: str
    id: str
    slots: tuple[tuple[int, bool], ...]


class _Pattern(NamedTuple):
    """Templates of one length whose tokens `<*>` stand at the same places: one look-up finds the one that matches."""

    wildcards: int
    literals: Callable[[Shape], Any]
    rules: dict[Any, _Rule]


class Matcher:
    """Matches lines by `templates`; belongs to one thread. What it remembers is bounded and changes no answer."""

    def __init__(self, templates: Templates) -> None:
        self._patterns: dict[int, list[_Pattern]] = {}
        found: dict[tuple[int, ...], _Pattern] = {}
        for template in templates.templates:
            shape = template.shape
            literals = tuple(i for i, token in enumerate(shape) if token != WILDCARD)
            place = (len(shape), *literals)
            if place not in found:
                found[place] = _Pattern(len(shape) - len(literals), _getter(literals), {})
                self._patterns.setdefault(len(shape), []).append(found[place])
            slots = tuple((i, token == WILDCARD) for i, token in enumerate(shape) if WILDCARD in token)
            found[place].rules[found[place].literals(shape)] = _Rule(template.text, template.id, slots)
        for patterns in self._patterns.values():
            patterns.sort(key=lambda pattern: pattern.wildcards)
        self._masks = Masks()
        self._known: Memory[Shape, _Rule | None] = Memory()

    def match(self, lines: Iterable[str]) -> Matches:
        """Match each line by itself; whatever text it is, this does not fail."""
        ids: list[str | None] = []
        values: list[tuple[str, ...]] = []
        masked, known = self._masks.__getitem__, self._known
        for line in lines:
            tokens = split_line(line)
            shape = tuple(map(masked, tokens))
            try:
                rule = known[shape]
            except KeyError:
                known.make_room(shape_characters(shape))
                rule = known[shape] = self._search(shape)
            if rule is None:
                ids.append(None)
                values.append(())
            else:
                ids.append(rule.id)
                values.append(self._values(rule, tokens))
        return Matches(ids, values)

    def _search(self, shape: Shape) -> _Rule | None:
        best: _Rule | None = None
        fewest = len(shape)
        for pattern in self._patterns.get(len(shape), ()):
            if best is not None and pattern.wildcards > fewest:
                break
            rule = pattern.rules.get(pattern.literals(shape))
            if rule is not None and (best is None or rule.text < best.text):
                best, fewest = rule, pattern.wildcards
        return best

    def _values(self, rule: _Rule, tokens: Sequence[str]) -> tuple[str, ...]:
        values: list[str] = []
        within = self._masks.values_of
        for position, whole in rule.slots:
            if whole:
                values.append(tokens[position])
            else:
                values += within[tokens[position]]
        return tuple(values)


def _getter(positions: tuple[int, ...]) -> Callable[[Shape], Any]:
    """Picks a shape's tokens at these positions; without any the shape itself, which only the same shape equals."""
    return itemgetter(*positions) if positions else tuple
