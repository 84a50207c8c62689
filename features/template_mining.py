"""Templates from the lines of a training: Drain3 groups them, then each group says which of its words to keep.

Drain3 makes one template of a group, a wildcard wherever two of its lines differ. That hides words a model wants: `VM
<*>` for "VM Started" and "VM Stopped". So a group keeps the words of each place as long as they are few, and its
templates are the combinations that came. Places with many texts, or with texts that are no words, are wildcards.

Only training imports this module; the worker matches (features/templates.py) and never needs Drain3.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from drain3.drain import Drain  # type: ignore[import-untyped]

from features.shapes import WILDCARD, Masks, Memory, Shape, shape_characters, split_line
from features.templates import Templates

# Chosen by the grouping accuracy averaged over seven systems (docs/adr/0017-templates.md), one setting for all of them.
SIMILARITY = 0.6  # share of equal tokens with which Drain3 puts a line into a group
MAX_WORDS = 5  # of one place in a group's lines; a place that took more is a wildcard

MAX_COMBINATIONS = 32  # of a group's words: so many templates it may give
_DEPTH = 3  # Drain3 parts lines by their number of tokens alone: first tokens may vary as well as others
_PARAMETER = " "  # Drain3's own wildcard, never a token: ours must count as an equal token where two lines have it
_LETTER = re.compile(r"[^\W\d_]")
_ONE_RUN = re.compile(r"[\W\d]*[^\W\d]+[\W\d]*")


def mine(
    lines: Iterable[str], *, similarity: float = SIMILARITY, max_words: int = MAX_WORDS, max_groups: int = 1_000,
    max_templates: int = 5_000,
) -> Templates:  # fmt: skip
    """Mine the templates of lines, read once and in order; the same lines give the same templates.

    Each line matches the template it came from, or by the rule of features/templates.py a more specific one that
    another line left. Memory is bounded: of more than `max_groups` groups the one that was not met for longest goes
    with its templates, of more than `max_templates` templates the rarest go, and of lines that have nothing but numbers
    in common 32 wordings stay. Lines of the others may match none.

    Parameters
    ----------
    lines
        Texts of messages, personal data masked; any text will do.
    similarity
        0 to 1: share of equal tokens, masked ones included, that a line needs to join a group.
    max_words
        How many words a place may take before it is a wildcard.

    References
    ----------
    He, Zhu, Zheng and Lyu 2017, "Drain: an online log parsing approach with fixed depth tree", ICWS. We depart in that
    a shape met again goes to its group without a search, and in the words that are kept.
    """
    miner = _Miner(similarity, max_words, max_groups)
    for line in lines:
        miner.learn_one(line)
    found = miner.templates()
    common = sorted(found, key=lambda text: (-found[text], text))
    return Templates.of(common[:max_templates])


class _Miner:
    def __init__(self, similarity: float, max_words: int, max_groups: int) -> None:
        self._drain = Drain(
            depth=_DEPTH, sim_th=similarity, max_clusters=max_groups, param_str=_PARAMETER,
            parametrize_numeric_tokens=False,
        )  # fmt: skip
        self._max_words, self._max_groups = max_words, max_groups
        self._masks = Masks()
        self._group_of: Memory[Shape, int] = Memory()
        self._groups: dict[int, _Group] = {}

    def learn_one(self, line: str) -> None:
        shape = tuple(map(self._masks.__getitem__, split_line(line)))
        number = self._group_number(shape)
        if number not in self._groups:
            if len(self._groups) >= 2 * self._max_groups:
                self._drop_groups()
            self._groups[number] = _Group(len(shape), self._max_words)
        self._groups[number].learn_one(shape)

    def _group_number(self, shape: Shape) -> int:
        known = self._group_of.get(shape)
        if known is not None and known in self._drain.id_to_cluster:
            self._drain.id_to_cluster[known]  # tells Drain3 that the group is in use
            return known
        number: int = self._drain.add_log_message(" ".join(shape))[0].cluster_id
        self._group_of.make_room(shape_characters(shape))
        self._group_of[shape] = number
        return number

    def templates(self) -> Counter[str]:
        """Texts and how many lines each came from."""
        self._drop_groups()
        found: Counter[str] = Counter()
        for group in self._groups.values():
            for shape, count in group.combinations.items():
                found[" ".join(shape)] += count
        return found

    def _drop_groups(self) -> None:
        self._groups = {number: group for number, group in self._groups.items() if number in self._drain.id_to_cluster}


class _Group:
    """Lines that Drain3 put together: the words of each place, and the combinations of these that came.

    A combination of nothing but wildcards would take every line of its length, so a line that would give one keeps its
    own shape. That can be many; those that find no room are left out.
    """

    def __init__(self, length: int, max_words: int) -> None:
        self._max_words = max_words
        self._words: list[set[str] | None] = [set() for _ in range(length)]  # None: the place is a wildcard
        self.combinations: Counter[Shape] = Counter()

    def learn_one(self, shape: Shape) -> None:
        combination = self._project(shape)
        if combination not in self.combinations:
            self._learn_words(shape)
            combination = self._project(shape)
        self.combinations[combination] += 1
        while len(self.combinations) > MAX_COMBINATIONS:
            places = [place for place, words in enumerate(self._words) if words is not None and len(words) > 1]
            if not places:
                self.combinations.popitem()  # the newest is this line's, else there would not be too many
                break
            self._words[max(places, key=lambda place: len(self._words[place] or ()))] = None
            self._project_all()

    def _learn_words(self, shape: Shape) -> None:
        for place, (token, words) in enumerate(zip(shape, self._words, strict=True)):
            if words is not None:
                words.add(token)
                if len(words) > 1 and (len(words) > self._max_words or not all(map(is_word, words))):
                    self._words[place] = None
        self._project_all()

    def _project(self, shape: Shape) -> Shape:
        projected = tuple([t if words is not None else WILDCARD for t, words in zip(shape, self._words, strict=True)])
        return shape if projected.count(WILDCARD) == len(projected) else projected

    def _project_all(self) -> None:
        projected: Counter[Shape] = Counter()
        for shape, count in self.combinations.items():
            projected[self._project(shape)] += count
        self.combinations = projected


def is_word(token: str) -> bool:
    """Whether a masked token can be a word of a language or a program, rather than a parameter.

    It has letters, and nothing in it was masked, or what was masked stands before or after one run of letters.

    >>> [is_word(t) for t in ("Started", "(org.apache.Filter)", "core.<*>,", "blk<*>a<*>", "<*>")]
    [True, True, True, False, False]
    """
    if _LETTER.search(token) is None:
        return False
    return WILDCARD not in token or _ONE_RUN.fullmatch(token) is not None
