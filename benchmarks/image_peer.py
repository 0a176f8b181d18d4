"""img2dataset, the peer of the ingest benchmark: its installation, its arguments and its settings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEER = "img2dataset==1.47.0"
PEER_CODE = """
import json, sys
from img2dataset import download
if __name__ == "__main__":
    download(**json.loads(sys.argv[1]))
"""


@dataclass(frozen=True)
class PeerSetting:
    """The settings that determine its speed."""

    processes: int
    threads: int  # per process

    @classmethod
    def parse(cls, text: str) -> PeerSetting:
        """`2x32`: two processes of 32 threads."""
        processes, _, threads = text.partition("x")
        return cls(int(processes), int(threads))

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads} threads"


def find_peer(python: str | None, folder: Path) -> str:
    """The interpreter that has img2dataset; an environment is made where none is given."""
    if python:
        return python
    subprocess.run([sys.executable, "-m", "venv", str(folder / "peer")], check=True)
    subprocess.run([str(folder / "peer/bin/pip"), "install", "--quiet", PEER], check=True)
    return str(folder / "peer/bin/python")


def run_peer(
    python: str, root: Path, table: Path, options: dict[str, Any], setting: PeerSetting, shard_rows: int
) -> int:
    """One call in a process of its own, hashes and encoder settings as ours; returns the images that it stored."""
    arguments: dict[str, Any] = {
        "url_list": str(table), "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "output_folder": str(root), "output_format": "webdataset", "image_size": 256, "resize_only_if_bigger": True,
        "encode_quality": 95, "skip_reencode": True, "compute_hash": "sha256", "extract_exif": False,
        "enable_wandb": False, "timeout": 60, "processes_count": setting.processes, "thread_count": setting.threads,
        "number_sample_per_shard": shard_rows, **options,
    }  # fmt: skip
    script = root.with_suffix(".py")
    script.write_text(PEER_CODE)
    subprocess.run([python, str(script), json.dumps(arguments)], check=True, capture_output=True)
    return sum(json.loads(path.read_text())["successes"] for path in root.glob("*_stats.json"))


def parse_settings(texts: Sequence[str]) -> list[PeerSetting]:
    """All of `2x8 2x32`."""
    return [PeerSetting.parse(text) for text in texts]
