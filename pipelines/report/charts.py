"""Charts of reports as inline SVG: no scripts, no files beside the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, MARGIN = 360, 170, 34  # px
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed")
NUM_BINS = 40


def line_chart(curves: Mapping[str, Sequence[tuple[float, float]]], x_label: str, marks: Sequence[float] = ()) -> str:
    """Curves over a common axis, with a dashed line at each mark."""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    low_x, high_x, high_y = min(xs), max(xs), max(ys) or 1.0
    low_y = min(0.0, min(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / ((high_x - low_x) or 1)
        up = (y - low_y) / ((high_y - low_y) or 1)
        return MARGIN + across * (WIDTH - MARGIN - 8), HEIGHT - MARGIN - up * (HEIGHT - MARGIN - 12)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 14 * len(curves)}" role="img">']
    left, bottom = place(low_x, low_y)
    right, top = place(high_x, high_y)
    parts.append(f'<path class="axis" d="M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}"/>')
    parts.append(f'<text x="{left - 4:.0f}" y="{top + 8:.0f}" text-anchor="end">{_short(high_y)}</text>')
    parts.append(f'<text x="{left - 4:.0f}" y="{bottom:.0f}" text-anchor="end">{_short(low_y)}</text>')
    parts.append(f'<text x="{left:.0f}" y="{bottom + 13:.0f}">{_short(low_x)}</text>')
    parts.append(f'<text x="{right:.0f}" y="{bottom + 13:.0f}" text-anchor="end">{_short(high_x)}</text>')
    parts.append(
        f'<text x="{(left + right) / 2:.0f}" y="{bottom + 13:.0f}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for index, (name, points) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        y = HEIGHT + 14 * index
        parts.append(f'<rect x="{left:.0f}" y="{y - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 15:.0f}" y="{y + 1}">{escape(name)}</text>')
    for mark in marks:
        at = place(mark, low_y)[0]
        parts.append(f'<path class="mark" d="M{at:.1f} {top:.1f}V{bottom:.1f}"/>')
    return "".join([*parts, "</svg>"])


def histogram_chart(
    groups: Mapping[str, npt.NDArray[np.float64]], x_label: str, marks: Sequence[float] = (), as_share: bool = False
) -> str:
    """Histograms of finite numbers over common bins, as counts or each as a share of itself."""
    values = np.concatenate(list(groups.values()))
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    curves = {}
    for name, group in groups.items():
        heights = np.histogram(group, edges)[0] / (max(1, len(group)) if as_share else 1)
        curves[f"{name} ({len(group):,})"] = list(zip(middles.tolist(), heights.tolist(), strict=True))
    shown = [mark for mark in marks if edges[0] <= mark <= edges[-1]]
    return line_chart(curves, x_label, shown)


def _short(value: float) -> str:
    """A number that fits beside an axis."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
