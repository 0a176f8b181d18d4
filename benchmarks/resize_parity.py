"""Ingest's resizing beside img2dataset's own Resizer: sizes and pixels over all modes, formats and qualities.

    python -m benchmarks.resize_parity                          # installs img2dataset into an environment of its own
    python -m benchmarks.resize_parity --peer-python PYTHON     # an interpreter that has it

The images have the sizes of img2dataset's own resize tests (and some more), and pass through the modes, target sizes
and options of those tests. Both results are decoded and compared. Ends with an error where sizes differ, where pixels
differ by more than encoders and rounding explain, or where bytes that both should keep are not the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.image_peer import find_peer
from benchmarks.image_source import make_image
from pairloom.pipelines.images.store_image import store_image
from pairloom.schemas.images.decode import decode_rgb
from pairloom.schemas.recipes.curate import ImageRecipe

SIDES = [(123, 456), (208, 495), (321, 421), (389, 535), (416, 264), (456, 123), (524, 316),  # img2dataset's tests
         (256, 256), (300, 257), (1200, 801), (1732, 1155)]  # fmt: skip
MODES = ["keep_ratio", "keep_ratio_largest", "center_crop", "border", "none"]
ENCODINGS = [("png", 95), ("jpg", 95), ("jpg", 80), ("webp", 95)]
LIMITS = {"png": (0.05, 1), "jpg": (2.5, 40), "webp": (1.0, 20)}  # of 255: the mean and the largest per image
FRACTION_LIMITS = {"png": (1.0, 12), "jpg": (4.0, 40), "webp": (2.5, 20)}  # of what was decoded at a fraction

PEER_CODE = """
import io, json, sys
from pathlib import Path
from img2dataset.resizer import Resizer
folder = Path(sys.argv[1])
for number, job in enumerate(json.loads((folder / "jobs.json").read_text())):
    quality = 6 if job["format"] == "png" else job["quality"]
    mode = "no" if job["mode"] == "none" else job["mode"]
    resizer = Resizer(job["size"], mode, job["only_if_bigger"], encode_quality=quality, encode_format=job["format"],
                      skip_reencode=job["keeps_bytes"])
    data, width, height, _, _, error = resizer(io.BytesIO((folder / job["image"]).read_bytes()))
    assert error is None, (job, error)
    (folder / f"{number}.out").write_bytes(data)
"""


@dataclass(frozen=True)
class Job:
    """One image, one recipe."""

    image: str
    mode: str
    size: int
    only_if_bigger: bool
    format: str
    quality: int
    keeps_bytes: bool  # where nothing is resized: img2dataset's skip_reencode, which ingest always does


@dataclass(frozen=True)
class Difference:
    """Of the two results of a job."""

    is_kept: bool  # ingest stores the very bytes that it was given
    same_size: bool
    same_bytes: bool
    mean: float  # of 255
    largest: int


def write_images(folder: Path) -> list[str]:
    """Coloured JPEGs of all sizes, and one PNG with alpha, one grey."""
    random, names = np.random.default_rng(0), []
    for width, height in SIDES:
        names.append(f"{width}_{height}.jpg")
        make_image(random, (width, height)).save(folder / names[-1], quality=92)
    image = make_image(random, (640, 480))
    image.putalpha(Image.linear_gradient("L").resize((640, 480)))
    image.save(folder / "alpha.png")
    image.convert("L").save(folder / "grey.jpg")
    return [*names, "alpha.png", "grey.jpg"]


def make_jobs(names: list[str]) -> list[Job]:
    """Every mode, size and option; only lossless and default encoding for what keeps its bytes."""
    jobs = [
        Job(name, mode, size, bigger, encoding, quality, False)
        for name, mode, size, bigger, (encoding, quality) in itertools.product(
            names, MODES, (256, 512), (True, False), ENCODINGS
        )
    ]
    kept = itertools.product((name for name in names if name.endswith(".jpg")), MODES, (256, 512), (True, False))
    return jobs + [Job(name, mode, size, bigger, "jpg", 95, True) for name, mode, size, bigger in kept]


def run_peer(python: str, folder: Path, jobs: list[Job]) -> None:
    """img2dataset's results, `<number>.out` in the folder."""
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    subprocess.run([python, "-W", "ignore", "-c", PEER_CODE, str(folder)], check=True)


def compare(job: Job, given: bytes, theirs: bytes, fast_decode: bool) -> Difference:
    """Our result of a job beside theirs."""
    settings = {"resize": job.mode, "size": job.size, "only_if_bigger": job.only_if_bigger, "format": job.format,
                "quality": job.quality, "fast_decode": fast_decode}  # fmt: skip
    recipe = ImageRecipe.model_validate(settings)
    ours = store_image(given, recipe).data
    left, right = (decode_rgb(data).astype(int) for data in (ours, theirs))
    if left.shape != right.shape:
        return Difference(ours == given, False, False, float("inf"), 255)
    gap = np.abs(left - right)
    return Difference(ours == given, True, ours == theirs, float(gap.mean()), int(gap.max()))


def kind_of(job: Job, found: Difference) -> str:
    """How an image is stored: encoded by both, kept by both, or kept by ingest alone."""
    if not found.is_kept:
        return f"{job.format} {job.quality}"
    asks_for_nothing = job.mode == "none" or job.only_if_bigger  # else they encode what has the right size already
    return "kept" if job.keeps_bytes and asks_for_nothing else f"kept/{job.format} {job.quality}"


def problems(kind: str, job: Job, found: Difference, fast_decode: bool) -> Iterator[str]:
    """Unexpected differences; where ingest alone keeps the bytes, they differ by img2dataset's encoding."""
    mean, largest = (FRACTION_LIMITS if fast_decode else LIMITS)[job.format]
    if not found.same_size:
        yield "another size"
    elif kind.startswith("kept/") and job.format != "png":
        return
    elif found.mean > mean or found.largest > largest:
        yield f"pixels differ by {found.mean:.2f}, at most {found.largest}"
    if kind == "kept" and not found.same_bytes:
        yield "both keep bytes, but not the same"


def parity(python: str, folder: Path, fast_decode: bool = False) -> list[str]:
    """Compare all jobs, print a table by mode and format; returns the differences."""
    cv2.setNumThreads(1)
    jobs = make_jobs(write_images(folder))
    run_peer(python, folder, jobs)
    table: dict[tuple[str, str], list[Difference]] = defaultdict(list)
    wrong = []
    for number, job in enumerate(jobs):
        given = (folder / job.image).read_bytes()
        found = compare(job, given, (folder / f"{number}.out").read_bytes(), fast_decode)
        kind = kind_of(job, found)
        wrong += [f"{job}: {text}" for text in problems(kind, job, found, fast_decode)]
        table[job.mode, kind].append(found)
    print(
        f"{'mode':<20} {'stored as':<12} {'cases':>6} {'same size':>10} {'same bytes':>11} {'mean':>6} {'largest':>8}"
    )
    for (mode, kind), of_kind in sorted(table.items()):
        same = [sum(one.same_size for one in of_kind), sum(one.same_bytes for one in of_kind)]
        mean, largest = np.mean([one.mean for one in of_kind]), max(one.largest for one in of_kind)
        print(f"{mode:<20} {kind:<12} {len(of_kind):>6} {same[0]:>10} {same[1]:>11} {mean:>6.2f} {largest:>8}")
    print(f"{len(jobs)} cases, {len(wrong)} of them differ")
    return wrong


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter that has img2dataset; made when missing")
    parser.add_argument("--fast-decode", action="store_true", help="decode large JPEGs at a fraction, as ingest does")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        wrong = parity(find_peer(args.peer_python, Path(work)), Path(work), args.fast_decode)
    if wrong:
        raise SystemExit("\n".join(wrong[:20]))


if __name__ == "__main__":
    main()
