"""A bounded sample of lines that matched no template, by shape, with counts: what the next training should look at."""

from __future__ import annotations

from typing import Any, cast

from features.shapes import shape_of

MAX_SHAPES = 200
MAX_EXAMPLE_CHARACTERS = 1_000


class Unmatched:
    """Counts unmatched lines by shape, and keeps the first line of each shape that is often enough.

    Works when few shapes make up most lines: one that has more than 1 in `max_shapes` + 1 of them is always here.
    Fails, and says so by `uncounted`, in a flood of shapes that come once: it keeps the last few of these. Counts are
    exact until there are more shapes than room; from then on they may be too low by up to `uncounted`, never too high.

    The same lines in the same order give the same sample.

    Parameters
    ----------
    max_shapes
        How many shapes are kept; each takes at most about 20 KB.

    References
    ----------
    Misra and Gries 1982, "Finding repeated elements", Science of Computer Programming 2: when there is no room for a
    new shape, each count, and the new line with them, is lowered by one, and shapes at zero go.
    """

    def __init__(self, max_shapes: int = MAX_SHAPES) -> None:
        self.max_shapes = max_shapes
        self.lines = 0
        self.uncounted = 0
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def learn_one(self, line: str) -> None:
        """Count a line; its personal data must be masked already, for it may be kept."""
        shape = " ".join(shape_of(line))
        self.lines += 1
        if shape in self._counts:
            self._counts[shape] += 1
        elif len(self._counts) < self.max_shapes:
            self._counts[shape] = 1
            self._examples[shape] = _writable(line[:MAX_EXAMPLE_CHARACTERS])
        else:
            self.uncounted += 1
            self._counts = {known: count - 1 for known, count in self._counts.items() if count > 1}
            self._examples = {known: self._examples[known] for known in self._counts}

    def shapes(self) -> list[tuple[str, int, str]]:
        """Shape, count and example of each, the most frequent first, ties in order of shape."""
        rows = [(shape, count, self._examples[shape]) for shape, count in self._counts.items()]
        return sorted(rows, key=lambda row: (-row[1], row[0]))

    def snapshot(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        rows = [{"shape": shape, "count": count, "example": example} for shape, count, example in self.shapes()]
        return {"max_shapes": self.max_shapes, "lines": self.lines, "uncounted": self.uncounted, "shapes": rows}

    @classmethod
    def restore(cls, content: object) -> Unmatched:
        """What `snapshot` gave; it goes on as if it had never stopped.

        Raises
        ------
        ValueError
            It is something else.
        """
        try:
            state = cast("dict[str, Any]", content)
            restored = cls(int(state["max_shapes"]))
            restored.lines, restored.uncounted = int(state["lines"]), int(state["uncounted"])
            for row in state["shapes"]:
                restored._counts[str(row["shape"])] = int(row["count"])
                restored._examples[str(row["shape"])] = str(row["example"])
        except (TypeError, KeyError, ValueError) as error:
            message = "the sample of unmatched lines cannot be read; delete it, and it begins anew"
            raise ValueError(message) from error
        return restored


def _writable(text: str) -> str:
    """The text without lone surrogates, which not every JSON writer takes."""
    return text.encode("utf-8", "replace").decode()
