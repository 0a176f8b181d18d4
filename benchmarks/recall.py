"""`pairloom recall` over a large raw folder: time and memory of finding and rewriting, by kind of request.

    python -m benchmarks.recall --shards 1000 --rows 1000

The tables are as ingest writes them, with synthetic values. All shards share one small tar (hard links), which a recall
rewrites like any other.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from pairloom.pipelines.optout.recall import recall
from pairloom.pipelines.optout.rules import Rules, parse_request
from pairloom.pipelines.raw.row_uids import save_uids
from pairloom.pipelines.raw.table import put_table
from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, save_manifest, set_latest
from pairloom.schemas.data_set.shard import ShardWriter, make_key, shard_name
from pairloom.schemas.data_set.tables import SAMPLE, STATUS_SUCCESS

IMAGE_BYTES = 3_000
NUM_DOMAINS = 50_000


def uid_of(row: int) -> str:
    """The uid of a row of the whole data set."""
    return hashlib.sha256(b"%d" % row).hexdigest()[:32]


def url_of(row: int) -> str:
    """Its URL, on one of many hosts."""
    return f"https://images.host{row * 7919 % NUM_DOMAINS}.example.com/photographs/2021/{row:09d}/large.jpg?size=1024"


def build(root: Path, num_shards: int, num_rows: int) -> str:
    """A complete raw folder."""
    folder = root / "raw/main/00000000"
    tar = root / "one.tar"
    with ShardWriter(str(tar)) as writer:
        body = np.random.default_rng(0).bytes(IMAGE_BYTES)
        files = [writer.add(make_key(0, row), {"jpg": body, "txt": b"a", "json": b"{}"}) for row in range(num_rows)]
    digest = writer.close()
    entry = ShardEntry("", num_rows, num_rows, writer.num_bytes, digest)
    for shard in range(num_shards):
        name, rows = shard_name(shard), range(shard * num_rows, (shard + 1) * num_rows)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(tar, folder / f"{name}.tar")
        uids = [uid_of(row) for row in rows]
        values = {
            "uid": uids,
            "key": [make_key(0, row) for row in range(num_rows)],
            "url": [url_of(row) for row in rows],
            "caption": [f"a photograph of something, number {row}" for row in rows],
            "status": [STATUS_SUCCESS] * num_rows,
            "sha256": [uid * 2 for uid in uids],
            "image_sha256": [uid * 2 for uid in uids],
            "offset": [file["jpg"].offset for file in files],
            "num_bytes": [IMAGE_BYTES] * num_rows,
        }
        arrays = [pa.array(values.get(field.name, [None] * num_rows), field.type) for field in SAMPLE]
        put_table(str(folder), pa.Table.from_arrays(arrays, schema=SAMPLE), replace(entry, name=name))
        save_uids(str(folder), name, uids)
    save_manifest(str(folder), Manifest("main", "raw", "0" * 64, [], [replace(entry, name=shard_name(shard))
                                                                     for shard in range(num_shards)]))  # fmt: skip
    set_latest(str(folder))
    return str(folder)


def measure(name: str, root: Path, request: Rules, dry_run: bool) -> None:
    """One recall; prints a line."""
    process = psutil.Process()
    before_s, started_at = sum(process.cpu_times()[:2]), time.monotonic()
    result = recall(str(root), request, dry_run=dry_run)
    wall_s, cpu_s = time.monotonic() - started_at, sum(process.cpu_times()[:2]) - before_s
    what = "found" if dry_run else "recalled"
    peak_mb = process.memory_info().rss / 2**20
    print(f"{name:<30} {what:<9} {result['num_rows']:>8} rows in {result['num_shards']:>5} shards "
          f"{wall_s:>7.1f} s {cpu_s:>7.1f} CPU s {peak_mb:>7.0f} MB", flush=True)  # fmt: skip


def main() -> None:
    """Build, recall, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1000, help="per shard")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="recall-"))
    try:
        build(root, args.shards, args.rows)
        total = args.shards * args.rows
        draw = np.random.default_rng(1)
        few, many = (sorted({int(row) for row in draw.integers(0, total, num)}) for num in (10, total // 10))
        requests = {
            "10 uids": parse_request("uids", map(uid_of, few), "few"),
            f"{len(many)} uids": parse_request("uids", map(uid_of, many), "many"),
            "10 urls": parse_request("urls", map(url_of, few), "few"),
            f"{len(many)} urls": parse_request("urls", map(url_of, many), "many"),
            "10 domains": parse_request("domains", (f"host{row}.example.com" for row in range(10)), "domains"),
        }
        for name, request in requests.items():
            measure(name, root, request, dry_run=True)
        for name in ("10 uids", "10 domains"):
            measure(name, root, requests[name], dry_run=False)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
