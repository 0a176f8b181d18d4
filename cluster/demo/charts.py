"""Charts of the report as inline SVG: no scripts, no files beside the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, MARGIN = 360, 170, 34  # px
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed")
NUM_BINS = 40
SMOOTHING = 0.9  # of the loss curves, exponential


def loss_chart(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Smoothed losses over samples seen, without the first steep drop, which would flatten all that follows."""
    smoothed = {name: _smooth(points[len(points) // 30 :]) for name, points in curves.items() if points}
    return _lines(smoothed, x_label="samples seen")


def score_chart(groups: Mapping[str, npt.NDArray[np.float64]], threshold: float | None = None) -> str:
    """Histograms of scores, each group as a share of itself, with the threshold drawn in."""
    values = np.concatenate(list(groups.values()))
    edges = np.linspace(values.min(), values.max(), NUM_BINS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    shares = {name: np.histogram(group, edges)[0] / max(1, len(group)) for name, group in groups.items()}
    curves = {
        f"{name} ({len(groups[name]):,})": list(zip(middles.tolist(), share.tolist(), strict=True))
        for name, share in shares.items()
    }
    return _lines(curves, x_label="clip_score, out of fold", mark=threshold)


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    mean, smoothed = points[0][1], []
    for x, y in points:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * y
        smoothed.append((float(x), mean))
    return smoothed


def _lines(curves: Mapping[str, Sequence[tuple[float, float]]], x_label: str, mark: float | None = None) -> str:
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
    parts.append(f'<text x="{left - 4:.0f}" y="{top + 8:.0f}" text-anchor="end">{high_y:.3g}</text>')
    parts.append(f'<text x="{left - 4:.0f}" y="{bottom:.0f}" text-anchor="end">{low_y:.3g}</text>')
    parts.append(f'<text x="{left:.0f}" y="{bottom + 13:.0f}">{low_x:.3g}</text>')
    parts.append(f'<text x="{right:.0f}" y="{bottom + 13:.0f}" text-anchor="end">{high_x:,.5g}</text>')
    parts.append(f'<text x="{(left + right) / 2:.0f}" y="{bottom + 13:.0f}" text-anchor="middle">{x_label}</text>')
    for index, (name, points) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        y = HEIGHT + 14 * index
        parts.append(f'<rect x="{left:.0f}" y="{y - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 15:.0f}" y="{y + 1}">{name}</text>')
    if mark is not None:
        at = place(mark, low_y)[0]
        parts.append(f'<path class="mark" d="M{at:.1f} {top:.1f}V{bottom:.1f}"/>')
    return "".join([*parts, "</svg>"])
