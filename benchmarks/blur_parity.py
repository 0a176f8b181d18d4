"""Ingest's blurring beside img2dataset's own: the same boxes on the same images, at its sigma and at ours.

    python -m benchmarks.blur_parity                          # installs img2dataset into an environment of its own
    python -m benchmarks.blur_parity --peer-python PYTHON     # an interpreter that has it

Ours is the published sigma, a tenth of the longest side of a box. img2dataset 1.47 passes a kernel of that radius and
no sigma; OpenCV then takes 0.3 * (radius - 1) + 0.8, a third of it. With that kernel both must give the same pixels.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np

from benchmarks.image_peer import find_peer
from benchmarks.image_source import make_image
from pairloom.pipelines.images import blur as blur_module
from pairloom.pipelines.images.boxes import Box
from pairloom.schemas.images.decode import Pixels

SIDES = [(640, 480), (333, 511), (1200, 801)]  # px
BOXES: list[list[Box]] = [
    [(0.1, 0.1, 0.3, 0.4)],
    [(0.4, 0.2, 0.45, 0.3)],
    [(0.0, 0.0, 0.2, 0.2), (0.5, 0.5, 1.0, 0.9)],
    [(-0.1, 0.6, 0.2, 1.2)],
    [(0.2, 0.2, 0.25, 0.22), (0.22, 0.21, 0.8, 0.3), (0.9, 0.9, 0.99, 0.99)],
]
PEER_CODE = """
import sys
import numpy as np
from img2dataset.blurrer import BoundingBoxBlurrer
blur = BoundingBoxBlurrer()
jobs = np.load(sys.argv[1], allow_pickle=True)["jobs"]
results = np.empty(len(jobs), object)
for number, (image, boxes) in enumerate(jobs):
    results[number] = blur(image, boxes)
np.savez(sys.argv[2], results=results)
"""


def make_jobs() -> list[tuple[Pixels, list[Box]]]:
    """Every image with every list of boxes."""
    random = np.random.default_rng(0)
    return [(np.asarray(make_image(random, side)), boxes) for side in SIDES for boxes in BOXES]


def run_peer(python: str, folder: Path, jobs: list[tuple[Pixels, list[Box]]]) -> list[Pixels]:
    """img2dataset's results."""
    table = np.empty((len(jobs), 2), object)
    for number, job in enumerate(jobs):
        table[number, 0], table[number, 1] = job
    np.savez(folder / "jobs.npz", jobs=table)
    command = [python, "-W", "ignore", "-c", PEER_CODE, str(folder / "jobs.npz"), str(folder / "results.npz")]
    subprocess.run(command, check=True, cwd=folder)
    return list(np.load(folder / "results.npz", allow_pickle=True)["results"])


def blur_with_their_kernel(pixels: Pixels, boxes: list[Box]) -> Pixels:
    """`blur_boxes` with a kernel of the radius that img2dataset takes, and the sigma that OpenCV takes for it."""

    def blur(image: Any, _: object, sigma: float) -> Any:
        side = 2 * int(np.ceil(sigma)) + 1
        return cv2.GaussianBlur(image, (max(side, 3), max(side, 3)), 0)

    with patch.object(blur_module, "cv2", SimpleNamespace(GaussianBlur=blur)):
        return blur_module.blur_boxes(pixels, boxes)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter that has img2dataset; made when missing")
    args = parser.parse_args()
    jobs = make_jobs()
    with tempfile.TemporaryDirectory() as work:
        theirs = run_peer(find_peer(args.peer_python, Path(work)), Path(work), jobs)
    wrong = 0
    for name, blur in (
        ("their sigma", blur_with_their_kernel),
        ("the published sigma", blur_module.blur_boxes),
    ):
        gaps = [np.abs(blur(*job).astype(int) - result) for job, result in zip(jobs, theirs, strict=True)]
        mean, largest = np.mean([gap.mean() for gap in gaps]), max(int(gap.max()) for gap in gaps)
        print(f"{name:<20} {len(gaps)} cases, pixels differ by {mean:.3f} of 255, at most {largest}")
        wrong += blur is blur_with_their_kernel and largest > 1
    if wrong:
        raise SystemExit("at the same sigma pixels differ by more than rounding explains")


if __name__ == "__main__":
    main()
