"""The similarity at each step, drawn."""

import itertools
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

_WIDTH, _HEIGHT = 440, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 28, 42
#: Width of a letter, about, and marks along an axis.
_LETTER = 6.2
_MARKS = 5


def similarity_curve(history: Mapping[str, Any]) -> str:
    """Return an SVG of the similarity, a line a stage: those of two stages do not compare.

    Args:
        history: of a `kreg.Registration`.
    """
    values = np.asarray(history.get("similarity", []), "float64").ravel()
    stages = [str(stage) for stage in history.get("stage", [])]
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "<p>No step was taken.</p>"
    low, high = float(finite.min()), float(finite.max())
    spare = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - spare, high + spare
    count = len(values)

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - 0.5) / count

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * (value - low) / (high - low)

    starts = [i for i in range(count) if i == 0 or stages[i] != stages[i - 1]]
    base = _HEIGHT - _BOTTOM
    parts = []
    for value in _marks(low, high):
        parts.append(f'<path class="mark" d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="left" x="{_LEFT - 6}" y="{y(value) + 4:.1f}">{value:g}</text>')
    for step in sorted({max(1, round(mark)) for mark in _marks(1, count)}):
        parts.append(f'<text class="below" x="{x(step):.1f}" y="{base + 17}">{step}</text>')
    named, family = -np.inf, ""
    for start, stop in itertools.pairwise([*starts, count]):
        edge = x(start + 0.5)
        parts.append(f'<path class="edge" d="M{edge:.1f} {_TOP}V{base}"/>')
        # After "level 2" no more than "1": names must not run into one another, nor out.
        first, _, last = stages[start].rpartition(" ")
        name, family = (last if first == family else stages[start]), first
        end = edge + 3 + _LETTER * len(name)
        if edge > named and end < _WIDTH:
            parts.append(f'<text x="{edge + 3:.1f}" y="{_TOP - 8}">{escape(name)}</text>')
            named = end
        steps = [i for i in range(start, stop) if np.isfinite(values[i])]
        line = " ".join(f"{x(i + 1):.1f},{y(values[i]):.1f}" for i in steps)
        parts.append(f'<polyline class="line" points="{line}"/>')
        if len(steps) < 3:
            parts += [
                f'<circle class="dot" cx="{x(i + 1):.1f}" cy="{y(values[i]):.1f}" r="2.5"/>'
                for i in steps
            ]
    middle = (_TOP + base) / 2
    label = f"Similarity at each of {count} steps, from {values[0]:.3g} to {values[-1]:.3g}"
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        f'<path class="axis" d="M{_LEFT} {_TOP}V{base}H{_WIDTH - _RIGHT}"/>'
        f"{''.join(parts)}"
        f'<text class="below" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}">step</text>'
        f'<text class="below" transform="translate(14 {middle}) rotate(-90)">similarity</text>'
        "</svg>"
    )


def _marks(low: float, high: float) -> list[float]:
    """Return round numbers between two values, some of them."""
    rough = (high - low) / _MARKS or 1.0
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * one for one in (1, 2, 5, 10) if power * one >= rough)
    marks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
    return [float(f"{mark:.6g}") for mark in marks]
