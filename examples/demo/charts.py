"""The charts of the demo's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pairloom.pipelines.inspect.html_charts import histogram_chart, line_chart

SMOOTHING = 0.9  # of the loss curves, exponential


def loss_chart(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Smoothed losses over samples seen, without the first steep drop, which would flatten the rest of the curve."""
    smoothed = {name: _smooth(points[len(points) // 30 :]) for name, points in curves.items() if points}
    return line_chart(smoothed, x_label="samples seen")


def score_chart(groups: Mapping[str, npt.NDArray[np.float64]], threshold: float | None = None) -> str:
    """Histograms of scores, each group as a share of itself, with the threshold drawn in."""
    marks = [] if threshold is None else [threshold]
    return histogram_chart(groups, "clip_score, out of fold", marks, as_share=True)


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    mean, smoothed = points[0][1], []
    for x, y in points:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * y
        smoothed.append((float(x), mean))
    return smoothed
