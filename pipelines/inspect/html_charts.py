"""Charts of reports as inline SVG, without scripts or further files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, MARGIN = 360, 170, 34  # px
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed")
NUM_BINS = 40


@dataclass(frozen=True)
class Frame:
    """The axes of a chart: maps numbers to pixels."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def to_pixels(self, x: float, y: float) -> tuple[float, float]:
        """Position of a point in px."""
        across = (x - self.low_x) / ((self.high_x - self.low_x) or 1)
        up = (y - self.low_y) / ((self.high_y - self.low_y) or 1)
        return MARGIN + across * (WIDTH - MARGIN - 8), HEIGHT - MARGIN - up * (HEIGHT - MARGIN - 12)

    def drawn(self, x_label: str) -> list[str]:
        """SVG elements of the axes and their labels."""
        left, bottom = self.to_pixels(self.low_x, self.low_y)
        right, top = self.to_pixels(self.high_x, self.high_y)
        y = f"{bottom + 13:.0f}"
        return [
            f'<path class="axis" d="M{left:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}"/>',
            f'<text x="{left - 4:.0f}" y="{top + 8:.0f}" text-anchor="end">{_short(self.high_y)}</text>',
            f'<text x="{left - 4:.0f}" y="{bottom:.0f}" text-anchor="end">{_short(self.low_y)}</text>',
            f'<text x="{left:.0f}" y="{y}">{_short(self.low_x)}</text>',
            f'<text x="{right:.0f}" y="{y}" text-anchor="end">{_short(self.high_x)}</text>',
            f'<text x="{(left + right) / 2:.0f}" y="{y}" text-anchor="middle">{escape(x_label)}</text>',
        ]


def line_chart(curves: Mapping[str, Sequence[tuple[float, float]]], x_label: str) -> str:
    """SVG of curves over a common axis."""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    frame = Frame(min(xs), max(xs), min(0.0, min(ys)), max(ys) or 1.0)
    elements = frame.drawn(x_label)
    for colour, points in zip(_colours(), curves.values(), strict=False):
        path = " ".join("{:.1f},{:.1f}".format(*frame.to_pixels(x, y)) for x, y in points)
        elements.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    return _svg(elements, list(curves))


def histogram_chart(
    groups: Mapping[str, npt.NDArray[np.float64]], x_label: str, marks: Sequence[float] = (), as_share: bool = False
) -> str:
    """SVG of histograms over common bins, as counts or shares; dashed lines at `marks`. Values are finite."""
    edges = _edges(np.concatenate(list(groups.values())))
    heights = [np.histogram(group, edges)[0] / (max(1, len(group)) if as_share else 1) for group in groups.values()]
    frame = Frame(edges[0], edges[-1], 0.0, max(float(bars.max()) for bars in heights) or 1.0)
    elements = frame.drawn(x_label)
    for colour, bars in zip(_colours(), heights, strict=False):
        ends = [
            frame.to_pixels(edge, bar)
            for bar, *of_bar in zip(bars, edges[:-1], edges[1:], strict=True)
            for edge in of_bar
        ]
        steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in ends)
        (left, bottom), (right, _) = frame.to_pixels(edges[0], 0), frame.to_pixels(edges[-1], 0)
        elements.append(
            f'<path d="M{left:.1f} {bottom:.1f}L{steps}L{right:.1f} {bottom:.1f}" '
            f'fill="{colour}" fill-opacity="0.15" stroke="{colour}" stroke-width="1.3"/>'
        )
    for mark in marks:
        if edges[0] <= mark <= edges[-1]:
            (x, bottom), (_, top) = frame.to_pixels(mark, 0), frame.to_pixels(mark, frame.high_y)
            elements.append(f'<path class="mark" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
    return _svg(elements, [f"{name} ({len(group):,})" for name, group in groups.items()])


def _edges(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Bin edges; bins of integers contain the same number of integers each, to avoid gaps."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if len(values) and np.all(values == np.round(values)):
        width = max(1.0, np.ceil((high - low + 1) / NUM_BINS))
        return np.arange(low, high + width + 0.5, width)
    return np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)


def _colours() -> Iterator[str]:
    return cycle(COLOURS)


def _svg(elements: Sequence[str], names: Sequence[str]) -> str:
    """The SVG with its legend below."""
    legend = []
    for index, (colour, name) in enumerate(zip(_colours(), names, strict=False)):
        y = HEIGHT + 14 * index
        legend.append(f'<rect x="{MARGIN}" y="{y - 8}" width="10" height="10" fill="{colour}"/>')
        legend.append(f'<text x="{MARGIN + 15}" y="{y + 1}">{escape(name)}</text>')
    view = f'viewBox="0 0 {WIDTH} {HEIGHT + 14 * len(names)}"'
    return "".join([f'<svg {view} role="img">', *elements, *legend, "</svg>"])


def _short(value: float) -> str:
    """A short text of a number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
