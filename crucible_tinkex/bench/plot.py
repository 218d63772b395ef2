"""A series as a small SVG image: a line, its ends' figures, marks at outliers."""

from __future__ import annotations

from collections.abc import Collection
from html import escape

import numpy as np

from crucible_tinkex.bench.intervals import Floats

WIDTH, HEIGHT = 480, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 24, 24
MOST_POINTS = 1000


def svg(name: str, steps: Floats, values: Floats, *, marked: Collection[float] = ()) -> str:
    """A whole document of some tens of KB: long series are thinned. `marked` steps get a ring."""
    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).astype(int))
    is_marked = np.isin(steps, list(marked))
    kept = np.union1d(kept, np.flatnonzero(is_marked)).astype(int)
    x = _LEFT + _share(steps)[kept] * (WIDTH - _LEFT - _RIGHT)
    y = HEIGHT - _BOTTOM - _share(values)[kept] * (HEIGHT - _TOP - _BOTTOM)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    rings = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="none" stroke="#d55e00"/>'
        for a, b in zip(x[is_marked[kept]], y[is_marked[kept]], strict=True)
    )
    low, high = float(values.min()), float(values.max())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="11" fill="#666"><title>{escape(name)}</title>'
        f'<text x="{_LEFT}" y="14" font-weight="bold">{escape(name)}</text>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{high:.4g}</text>'
        f'<text x="{_LEFT - 6}" y="{HEIGHT - _BOTTOM}" text-anchor="end">{low:.4g}</text>'
        f'<text x="{_LEFT}" y="{HEIGHT - 8}">{float(steps.min()):g}</text>'
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 8}" text-anchor="end">'
        f"{float(steps.max()):g}</text>"
        f'<polyline points="{line}" fill="none" stroke="#0072b2" stroke-width="1.5"/>'
        f"{rings}</svg>"
    )


def _share(values: Floats) -> Floats:
    """From 0 at the least to 1 at the largest; the middle where all are the same."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
