"""Write data_set_0_1_0: `python -m tests.golden.make_data_set`.

It stands for what a release has left on disk. Run it only for a new release, in a folder of that name; a data set of
an earlier release is never written again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests.support.golden_data import DATA_SET, FROZEN_TIME, ROOT_MARK, segment_files
from tests.support.raw_builder import encoded

NUM_IMAGES = 20
COLOURS = ("red", "green", "blue", "white", "black")
RECIPE = """\
# Every step that needs no model.
root: root
source: {kind: folder, path: source/captions.jsonl, keep_columns: [licence]}
ingest: {samples_per_shard: 10}
signals:
  - kind: captions
  - kind: quality
  - kind: phash256
  - {kind: caption_duplicates, threshold: 0.9}
dedupe:
  hashes: phash256
  perceptual: {max_distance: 4, max_distance_256: 40}
  prefer: {column: licence, order: [cc0]}
select:
  min_words: 3
  scores:
    - {signal: quality, column: entropy, min: 0.1}
    - {signal: caption_duplicates, column: num_equal_captions, max: 3}
balance: {kind: metaclip, min_count: 2, t: 1000}
reshard: {samples_per_shard: 8}
"""


def write_source(folder: Path) -> None:
    """Blocks of colour in a format without loss, and rows that each step drops."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    rows = []
    for index in range(NUM_IMAGES):
        pixels = draw.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        (folder / f"{index:02d}.png").write_bytes(encoded(pixels, "PNG"))
        caption = f"a {COLOURS[index % 5]} picture of blocks number {index * 7 % 13}"
        rows.append({"file_name": f"{index:02d}.png", "caption": caption, "licence": "cc0" if index % 2 else "cc-by"})
    pixels[:2] += 1
    (folder / "copy.png").write_bytes(encoded(pixels, "PNG"))
    (folder / "broken.png").write_bytes(b"no image")
    rows += [
        {"file_name": "copy.png", "caption": "a copy of a picture", "licence": "cc0"},
        {"file_name": "00.png", "caption": "the same picture again", "licence": "cc-by"},
        {"file_name": "01.png", "caption": "short", "licence": "cc-by"},
        {"file_name": "broken.png", "caption": "a broken picture", "licence": "cc0"},
        {"file_name": "none.png", "caption": "a picture that is not there", "licence": "cc0"},
        rows[2],
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(folder / "captions.jsonl", (FROZEN_TIME, FROZEN_TIME))


def pairloom(folder: Path, *arguments: str) -> Any:
    """The result of a command."""
    command = [str(Path(sys.executable).parent / "pairloom"), *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, cwd=folder, stdout=subprocess.PIPE).stdout)


def results_of(folder: Path) -> dict[str, Any]:
    """What the commands tell about the data set."""
    results = {"curate": pairloom(folder, "curate", "recipe.yaml"), "inspect": {}, "explain": {}}
    for path in ("root", *(step["folder"] for step in results["curate"]["steps"])):
        results["inspect"][path] = pairloom(folder, "inspect", path)
    for uid in uids_to_explain(folder):
        results["explain"][uid] = pairloom(folder, "explain", "root", uid)
    return results


def uids_to_explain(folder: Path) -> list[str]:
    """The first row of each drop reason, and the first one that is kept."""
    selection = next(folder.glob("root/selections/default/*/0000/"))
    rows = [row for path in sorted(selection.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return list({row["drop_reason"]: row["uid"] for row in reversed(rows)}.values())


def main() -> None:
    """Curate in a scratch folder, then keep what lies there and what the commands tell about it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        write_source(folder / "source")
        (folder / "recipe.yaml").write_text(RECIPE)
        pairloom(folder, "curate", "recipe.yaml")
        (folder / "expected.json").write_text(json.dumps(results_of(folder), indent=1, sort_keys=True) + "\n")
        for path in segment_files(folder):
            path.write_text(path.read_text().replace(str(folder), ROOT_MARK))
        for path in folder.glob("root/**/*_stats.json"):
            path.unlink()  # times of this machine
        shutil.copytree(folder, DATA_SET)


if __name__ == "__main__":
    main()
