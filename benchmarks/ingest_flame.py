"""A flame graph of one worker and its decoder while they make a shard: py-spy's, without the paths of this machine.

python -m benchmarks.ingest_flame --data FOLDER_OF_PHOTOGRAPHS --out docs/explanation/ingest_flame.svg  # needs py-spy
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pairloom.pipelines.images import decoder_child

KINDS = {
    decoder_child.__name__: "decoder",
    "image_server": "server",
    "ingest_parts": "worker",
    ":&quot;&quot;": "worker",  # py-spy may read the command line of its own child before it is set
}
RATE = 50  # samples per second


def record(data: Path | None, path: Path) -> str:
    """py-spy's SVG of `benchmarks.ingest_parts --shard-only`."""
    command = [sys.executable, "-m", "benchmarks.ingest_parts", "--case", "640x480", "--shard-only"]
    if data:
        command += ["--data", str(data)]
    subprocess.run(
        ["py-spy", "record", "--rate", str(RATE), "--subprocesses", "--function", "-o", str(path), "--", *command],
        check=True,
    )
    return path.read_text()


def without_paths(svg: str) -> str:
    """Name processes by their kind, and remove the command line from the title."""

    def kind(found: re.Match[str]) -> str:
        return next((name for mark, name in KINDS.items() if mark in found[0]), "process")

    svg = re.sub(r"process \d+:&quot;.*?(?=\s\([\d,]+ samples|</text>)", kind, svg, flags=re.DOTALL)
    svg = re.sub(r"py-spy record [^<]*", "ingest of 640x480 px, stored at 256", svg)
    svg = re.sub(r"<g><title>[^<]*, 0\.[0-3]\d%\)</title>.*?</g>", "", svg)  # too narrow to see
    return re.sub(r"(\d+\.\d\d)\d+", r"\1", svg)


def main() -> None:
    """Record and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photographs; without it images are synthetic")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        args.out.write_text(without_paths(record(args.data, Path(work) / "flame.svg")))


if __name__ == "__main__":
    main()
