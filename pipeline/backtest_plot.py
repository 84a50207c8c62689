"""The plot of a backtest, as SVG: precision over recall, and how scores of normal and of anomalous lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.judgement import Held, Judgement

_WIDTH, _HEIGHT = 320, 220  # of a panel's axes, in pixels
_LEFT, _TOP, _ACROSS, _DOWN = 60, 74, 420, 310  # where the first panel's axes begin, and how far the next is
_NORMAL, _ANOMALOUS, _LINE = "#4477aa", "#cc3311", "#333333"  # told apart by colour-blind readers too
_BINS = 40
Panel = Iterator[str]


def plot(title: str, parts: Sequence[tuple[str, Judgement, Held]]) -> str:
    """Two panels a part, records or sessions, one part below the other."""
    width, height = _LEFT + 2 * _ACROSS - 20, _TOP + _DOWN * len(parts)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(_LEFT, 22, title, size=15),
    ]
    for row, (name, judgement, held) in enumerate(parts):
        y = _TOP + row * _DOWN
        lines += [f'<g transform="translate({_LEFT} {y})">', *_curve(name, judgement, held), "</g>"]
        lines += [f'<g transform="translate({_LEFT + _ACROSS} {y})">', *_histogram(name, held), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def _curve(name: str, judgement: Judgement, held: Held) -> Panel:
    """Precision over recall as steps, with a dot where the calibrated threshold lies."""
    yield from _axes(f"{name}: precision over recall", "recall", (0.0, 1.0), (0.0, 1.0))
    curve = held.curve
    if curve is None:
        yield _text(_WIDTH / 2, _HEIGHT / 2, "the labels call nothing anomalous", anchor="middle")
        return
    # A point a pixel will do: of those with one recall, nearly, the first, which has the highest precision.
    shown = np.unique((curve.recall * 2 * _WIDTH).astype(np.int64), return_index=True)[1]
    # A step keeps its precision back to the recall before it, as the area counts it.
    recall, precision = np.repeat(curve.recall[shown], 2), np.repeat(curve.precision[shown], 2)
    yield _path(np.concatenate([[0.0], recall[:-1]]), 1 - precision, _NORMAL)
    if judgement.precision is not None and judgement.recall is not None:
        x, y = judgement.recall * _WIDTH, (1 - judgement.precision) * _HEIGHT
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_ANOMALOUS}"/>'
    found = f"AUC-PR {judgement.auc_pr:.3f}; dot: the calibrated threshold, F1 {judgement.f1:.3f}"
    yield _text(0, -9, found)


def _histogram(name: str, held: Held) -> Panel:
    """Shares of normal and of anomalous verdicts by score, each adding up to 1."""
    scored = held.known & ~np.isnan(held.score)
    score, anomalous = held.score[scored], held.anomalous[scored]
    if not len(score):
        yield from _axes(f"{name}: scores", "score", (0.0, 1.0), (0.0, 1.0))
        return
    low, high = float(score.min()), float(score.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    groups = {_NORMAL: score[~anomalous], _ANOMALOUS: score[anomalous]}
    shares = {colour: np.histogram(of, edges)[0] / max(1, len(of)) for colour, of in groups.items()}
    top = max(float(share.max()) for share in shares.values())
    yield from _axes(f"{name}: scores", "score", (float(edges[0]), float(edges[-1])), (0.0, top))
    for colour, share in shares.items():
        x = np.repeat(np.linspace(0, 1, _BINS + 1), 2)[1:-1]
        yield _path(x, 1 - np.repeat(share / top, 2), colour, filled=True)
    for place, (colour, what) in enumerate(((_NORMAL, "normal"), (_ANOMALOUS, "anomalous"))):
        yield _text(place * 130, -9, f"{what}, {len(groups[colour]):,}", colour=colour)
    alarmed = held.score[scored & held.alarmed]
    if len(alarmed):
        at = (float(alarmed.min()) - edges[0]) / (edges[-1] - edges[0]) * _WIDTH
        yield f'<path d="M{at:.1f} 0V{_HEIGHT}" stroke="{_LINE}" stroke-dasharray="4 3"/>'
        yield _text(260, -9, "- - least alarmed")


def _axes(title: str, across: str, x: tuple[float, float], y: tuple[float, float]) -> Panel:
    yield _text(0, -26, title, size=13)
    yield f'<path d="M0 0V{_HEIGHT}H{_WIDTH}" fill="none" stroke="{_LINE}"/>'
    for share in (0.0, 0.5, 1.0):
        yield _text(share * _WIDTH, _HEIGHT + 16, f"{x[0] + share * (x[1] - x[0]):.3g}", anchor="middle")
        yield _text(-6, (1 - share) * _HEIGHT + 4, f"{y[0] + share * (y[1] - y[0]):.3g}", anchor="end")
    yield _text(_WIDTH / 2, _HEIGHT + 32, across, anchor="middle")


def _path(x: NDArray[np.float64], y: NDArray[np.float64], colour: str, *, filled: bool = False) -> str:
    points = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip((x * _WIDTH).tolist(), (y * _HEIGHT).tolist(), strict=True))
    if filled:
        return f'<path d="M0 {_HEIGHT}L{points}L{_WIDTH} {_HEIGHT}Z" fill="{colour}" fill-opacity="0.45"/>'
    return f'<path d="M{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, colour: str = _LINE) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escaped}</text>'
