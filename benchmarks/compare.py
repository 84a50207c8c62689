"""`make bench BASE=REF`: the same benchmarks on a commit and on the tree as it stands, in turn, and their ratios.

The commit is checked out beside, and both run by the same interpreter, each benchmark in a process of its own that
finds its packages in its own tree. Base and head take turns, and so does which goes first: what else the machine does
meets both. Each figure is shown as both medians, their ratio, and the least and the most ratio of a round. Figures that
never differ, such as numbers of records, are left out.

Exit code 0, 1 where a run failed, 2 where there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Column, Table

from benchmarks.machine import machine

ROOT = Path(__file__).parents[1]
LEAST = 5  # rounds: with fewer a median is a matter of luck
_KNOWN = """
names = []
for module, name in (("speed", "SPEED"), ("quality", "SCENARIOS")):
    try:
        found = __import__(f"benchmarks.{module}.scenarios", fromlist=[name])
    except ModuleNotFoundError:
        continue
    names += getattr(found, name)
print(*names)
"""
Figures = dict[str, float]


class CompareError(Exception):
    """Nothing can be compared; the text says why. `exit_code` as the module says."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Ratio(NamedTuple):
    """Of one figure: what each round found on both sides, and how the two stand to each other."""

    base: list[float]
    head: list[float]

    def as_json(self) -> dict[str, Any]:
        """With medians; a ratio is None where the base is 0."""
        base, head = median(self.base), median(self.head)
        rounds = [b / a for a, b in zip(self.base, self.head, strict=True) if a]
        return {
            "base": self.base, "head": self.head, "base_median": base, "head_median": head,
            "ratio": head / base if base else None, "least": min(rounds, default=None),
            "most": max(rounds, default=None),
        }  # fmt: skip


def main(arguments: Sequence[str], root: Path = ROOT, screen: Console | None = None) -> int:
    """Compare, print, write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("base", metavar="BASE", help="a commit, branch or tag")
    parser.add_argument("names", nargs="*", metavar="NAME", help="as of `python -m benchmarks`; absent: the quick ones")
    parser.add_argument("--times", type=int, default=LEAST, help=f"rounds, at least {LEAST}")
    parser.add_argument("--smoke", action="store_true", help="small loads, figures without meaning; one round will do")
    parser.add_argument("--out", type=Path, help="where the JSON goes (default: benchmarks/results/)")
    options = parser.parse_intermixed_args(arguments)  # names may follow options
    if options.times < (1 if options.smoke else LEAST):
        parser.error(f"--times {options.times} is too few for a median; take {LEAST} or more")
    screen = screen or Console(highlight=False)
    out = options.out or root / "benchmarks" / "results" / f"compare-{time.strftime('%Y%m%d-%H%M%S')}.json"
    try:
        found = compare(root, options.base, options.names, options.times, screen, smoke=options.smoke)
    except CompareError as error:
        print(f"compare: {error}", file=sys.stderr)
        return error.exit_code
    _show(found, screen)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": machine(), **found}, indent=1))
    screen.print(f"written to {out}")
    return 0


def compare(
    root: Path, base: str, names: Sequence[str], times: int, screen: Console, *, smoke: bool = False
) -> dict[str, Any]:
    """Run both sides in turn.

    Raises
    ------
    CompareError
        There is no such commit, a name is known to neither side, or a run failed.
    """
    commit = _git(root, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    found: dict[str, dict[str, list[float]]] = {"base": defaultdict(list), "head": defaultdict(list)}
    with _checked_out(root, commit) as beside:
        trees = {"base": beside, "head": root}
        wanted = _wanted(names, {side: _known(tree) for side, tree in trees.items()})
        for i in range(times):
            for name, sides in wanted.items():
                for side in sides if i % 2 == 0 else sides[::-1]:
                    screen.print(f"round {i + 1} of {times}, {name}, {side}")
                    for figure, value in _run(trees[side], name, smoke=smoke).items():
                        found[side][f"{name}: {figure}"].append(value)
    return {"base": commit, "head": _described(root), "times": times, **held_together(found["base"], found["head"])}


def held_together(base: Mapping[str, list[float]], head: Mapping[str, list[float]]) -> dict[str, Any]:
    """Figures of both, and the names of those that only one has, or not in each round."""
    both = [name for name in head if len(base.get(name, [])) == len(head[name])]
    ratios = {name: Ratio(base[name], head[name]) for name in both}
    changing = {name: r.as_json() for name, r in ratios.items() if len({*r.base, *r.head}) > 1}
    return {
        "figures": changing, "only_base": sorted(base.keys() - set(both)), "only_head": sorted(head.keys() - set(both))
    }  # fmt: skip


def figures_of(results: Sequence[Any]) -> Figures:
    """Numbers of results by the keys that lead to them; runs told one by one are left out.

    >>> figures_of([{"benchmark": "b", "rate": 2.0, "runs": [1, 2], "of": {"x": 1}, "ok": True}])
    {'b.rate': 2.0, 'b.of.x': 1.0}
    """
    found: Figures = {}
    for place, result in enumerate(results):
        name = next((str(result[key]) for key in ("benchmark", "scenario", "name") if key in result), str(place))
        setup = result.get("setup")
        core = f"/{setup['core']}" if isinstance(setup, dict) and "core" in setup else ""
        found.update(_numbers({k: v for k, v in result.items() if k != "setup"}, f"{name}{core}"))
    return found


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}.{key}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


def _wanted(names: Sequence[str], known: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]]:
    """Each name, and which sides know it.

    Raises
    ------
    CompareError
        One is known to neither, or none to both.
    """
    from benchmarks.speed.scenarios import QUICK

    wanted = {
        name: tuple(side for side in ("base", "head") if name in known[side]) for name in dict.fromkeys(names or QUICK)
    }
    nowhere = [name for name, sides in wanted.items() if not sides]
    if nowhere:
        message = f"there is no {nowhere[0]}; there are {', '.join(sorted(known['head']))}"
        raise CompareError(message, 2)
    if not any(len(sides) == 2 for sides in wanted.values()):
        side = next(iter(wanted.values()))[0]
        message = f"only the {side} knows {', '.join(wanted)}: name benchmarks that both know"
        raise CompareError(message, 2)
    return wanted


def _known(tree: Path) -> set[str]:
    """Names that a tree's benchmarks answer to."""
    done = _python(tree, "-c", _KNOWN)
    if done.returncode != 0:
        message = f"the benchmarks of {tree} cannot be loaded: {_last(done.stderr)}"
        raise CompareError(message, 1)
    return set(done.stdout.split())


def _run(tree: Path, name: str, *, smoke: bool) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        done = _python(tree, "-m", "benchmarks", name, "--out", str(out), *(["--smoke"] if smoke else []))
        if done.returncode != 0 or not out.exists():
            message = f"{name} failed in {tree}: {_last(done.stderr) or _last(done.stdout)}"
            raise CompareError(message, 1)
        return figures_of(json.loads(out.read_text())["results"])


def _python(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def _last(text: str) -> str:
    return " ".join(text.strip().splitlines()[-3:])


@contextmanager
def _checked_out(root: Path, commit: str) -> Iterator[Path]:
    """A worktree of a commit, gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base"
        _git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            yield tree
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))


def _described(root: Path) -> str:
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return _git(root, "rev-parse", "HEAD") + (" with changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = f"git {' '.join(arguments)} failed: {_last(done.stderr) or 'there is no such commit'}"
        raise CompareError(message, 2)
    return done.stdout.strip()


def _show(found: Mapping[str, Any], screen: Console) -> None:
    table = Table("", *(Column(name, justify="right") for name in ("base", "head", "head/base", "rounds")))
    for name, of in found["figures"].items():
        told = "" if of["ratio"] is None else f"{of['ratio']:.3f}"
        rounds = "" if of["least"] is None else f"{of['least']:.3f} to {of['most']:.3f}"
        table.add_row(name, f"{of['base_median']:,.4g}", f"{of['head_median']:,.4g}", told, rounds)
    screen.print(table)
    for side in ("base", "head"):
        if only := found[f"only_{side}"]:
            screen.print(f"only the {side} has: {', '.join(only)}", markup=False)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree goes too
    sys.exit(main(sys.argv[1:]))
