"""Log templates: a line to the id of its template and to the texts of its wildcards. Nothing is learned here.

A template is a text of tokens with a blank between them. Its token `<*>` stands for any token, its other tokens for
themselves. A line matches a template of as many tokens if each stands for the line's masked token (features/shapes.py).
Of the templates that match, the one with the fewest tokens `<*>` is the line's; of several, the first by text. A
template of nothing but `<*>` would take every line of its length, so it takes only lines that are masked to just that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.quantities import Quantities, has_unit
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
    """The templates a bundle knows, in order of their texts; no two have the same id.

    Attributes
    ----------
    numbers
        By a template's text the positions, ascending, of its tokens that hold numbers (features/parameters.py).
    """

    templates: tuple[Template, ...]
    numbers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

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
    def from_json(cls, content: object, numbers: object = None) -> Templates:
        """What `to_json` gave, and `numbers` as JSON has them.

        Raises
        ------
        ValueError
            It is no list of distinct template texts, or numbers stand where none of them has a wildcard.
        """
        if isinstance(content, list) and all(isinstance(text, str) and _is_template(text) for text in content):
            read = cls.of(content)
            own = {} if numbers is None else numbers
            if len(read.templates) == len(content) and isinstance(own, dict) and all(map(_is_place, own, own.values())):
                return replace(read, numbers={text: tuple(places) for text, places in own.items()})
        message = "the bundle's templates cannot be read; train anew with `offbeat train`"
        raise ValueError(message)


def _is_template(text: str) -> bool:
    return text == " ".join(text.split())


def _is_place(text: str, places: object) -> bool:
    """Whether a template of this text has wildcards at these places."""
    tokens = dict(enumerate(text.split()))
    return isinstance(places, list) and all(WILDCARD in tokens.get(place, "") for place in places)


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
    """A template as the matcher uses it: where its values stand, and whether as a whole token or within one.

    `numbers` are the column and position of each of its numbers, and what reads it.
    """

    text: str
    id: str
    slots: tuple[tuple[int, bool], ...]
    numbers: tuple[tuple[int, int, Quantities], ...]


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
        readers = {given: Quantities(scaled=not given) for given in (False, True)}
        for template in templates.templates:
            shape = template.shape
            literals = tuple(i for i, token in enumerate(shape) if token != WILDCARD)
            place = (len(shape), *literals)
            if place not in found:
                found[place] = _Pattern(len(shape) - len(literals), _getter(literals), {})
                self._patterns.setdefault(len(shape), []).append(found[place])
            slots = tuple((i, token == WILDCARD) for i, token in enumerate(shape) if WILDCARD in token)
            places = enumerate(templates.numbers.get(template.text, ()))
            numbers = tuple((column, at, readers[has_unit(shape[at])]) for column, at in places)
            found[place].rules[found[place].literals(shape)] = _Rule(template.text, template.id, slots, numbers)
        for patterns in self._patterns.values():
            patterns.sort(key=lambda pattern: pattern.wildcards)
        self._masks = Masks()
        self._known: Memory[Shape, _Rule | None] = Memory()

    def match(self, lines: Iterable[str]) -> Matches:
        """Match each line by itself; whatever text it is, this does not fail."""
        ids: list[str | None] = []
        values: list[tuple[str, ...]] = []
        for rule, tokens in self._each(lines):
            if rule is None:
                ids.append(None)
                values.append(())
            else:
                ids.append(rule.id)
                values.append(self._values(rule, tokens))
        return Matches(ids, values)

    def read(self, lines: Iterable[str], columns: int = 0) -> tuple[list[str | None], NDArray[np.float64]]:
        """Texts of the n lines' templates, None where none matched, and the numbers of these.

        Parameters
        ----------
        columns
            At least as many as any template has numbers.

        Returns
        -------
        texts, numbers
            n texts; (n, columns) float64, NaN where a line has no number, never infinite.
        """
        texts: list[str | None] = []
        places: list[int] = []
        found: list[float] = []
        first = 0
        for rule, tokens in self._each(lines):
            if rule is None:
                texts.append(None)
            else:
                texts.append(rule.text)
                for column, position, read in rule.numbers:
                    places.append(first + column)
                    found.append(read[tokens[position]])
            first += columns
        numbers = np.full(first, np.nan)
        numbers[places] = found
        return texts, numbers.reshape(len(texts), columns)

    def tokens(self, lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
        """Text of the template and tokens of each line that matches."""
        return ((rule.text, tokens) for rule, tokens in self._each(lines) if rule is not None)

    def _each(self, lines: Iterable[str]) -> Iterator[tuple[_Rule | None, list[str]]]:
        masked, known = self._masks.__getitem__, self._known
        for line in lines:
            tokens = split_line(line)
            shape = tuple(map(masked, tokens))
            try:
                rule = known[shape]
            except KeyError:
                known.make_room(shape_characters(shape))
                rule = known[shape] = self._search(shape)
            yield rule, tokens

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
