"""Cost of the steps between ingest and reshard, one JSON line each.

    python -m benchmarks.curate select --rows 10000000 --out /tmp/select
    python -m benchmarks.curate draw --rows 10000000
    python -m benchmarks.curate metaclip --captions 200000 --entries 475000
    python -m benchmarks.curate words
    python -m benchmarks.curate minhash --captions 2000000

`select` writes tables of random rows once, then times the selection in a process of its own (no Ray) with its peak
memory; `draw` is the part that `balance: {kind: clusters}` adds. `metaclip` times matching alone and the whole balance
(captions in, table out), in captions/s per core; `words` a word_list signal with a WordNet; `minhash` signatures alone
and the whole caption_duplicates signal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.captions import time_minhash, time_word_list
from pairloom.pipelines.algorithms.seeded_hash import draws
from pairloom.pipelines.balance.balance import MATCHES
from pairloom.pipelines.balance.draw import count_entries, keep_probabilities
from pairloom.pipelines.balance.entries import Matcher
from pairloom.pipelines.balance.thinning import ClusterPlan
from pairloom.pipelines.select.select import inputs_of, select
from pairloom.pipelines.signals.clusters import Tree
from pairloom.schemas.data_set.manifest import (
    Manifest,
    ShardEntry,
    is_complete,
    load_manifest,
    save_manifest,
    table_url,
)
from pairloom.schemas.data_set.shard import shard_name
from pairloom.schemas.data_set.tables import DEDUPE, SAMPLE, table_bytes, write_table
from pairloom.schemas.recipes.balance import ClusterBalance
from pairloom.schemas.recipes.curate import CurateRecipe

ROWS_PER_SHARD = 10_000
NUM_CLUSTERS = (10_000, 100)  # the finest level first


def recipe_for(root: Path) -> CurateRecipe:
    """DataComp's basic filter and the best 30% by CLIP score."""
    return CurateRecipe.model_validate(
        {
            "root": str(root),
            "source": {"kind": "url_table", "path": "unused"},
            "signals": [{"kind": "captions"}, {"kind": "clip", "name": "clip", "model": "unused"}],
            "select": {"min_words": 3, "min_chars": 6, "languages": ["en"], "min_side": 200, "max_aspect_ratio": 3.0,
                       "scores": [{"signal": "clip", "top_fraction": 0.3}]},
        }
    )  # fmt: skip


def write_tables(root: Path, num_rows: int) -> dict[str, str]:
    """Raw, dedupe and signal folders of random rows; existing ones stay."""
    folders = {step: str(root / step) for step in ("raw", "dedupe", "captions", "clip")}
    num_shards = -(-num_rows // ROWS_PER_SHARD)
    for step, folder in folders.items():
        if is_complete(folder):
            continue
        for index in range(num_shards):
            write_table(table_url(folder, shard_name(index)), random_table(step, index))
        shards = [ShardEntry(shard_name(index), ROWS_PER_SHARD, ROWS_PER_SHARD, 0) for index in range(num_shards)]
        save_manifest(folder, Manifest(step, step, "0" * 64, [], shards))
    return folders


def random_table(step: str, index: int) -> pa.Table:
    """The table of one step for one shard."""
    draw = np.random.default_rng(index)
    uids = pa.array([draw.bytes(16).hex() for _ in range(ROWS_PER_SHARD)])
    if step == "captions":
        languages = pa.array(["en", "de", "fr", None]).take(pa.array(draw.integers(0, 4, ROWS_PER_SHARD)))
        words = pa.array(draw.integers(0, 20, ROWS_PER_SHARD), pa.int32())
        chars = pa.array(draw.integers(0, 100, ROWS_PER_SHARD), pa.int32())
        scores = pa.array(draw.random(ROWS_PER_SHARD), pa.float32())
        columns = {"uid": uids, "num_words": words, "num_chars": chars, "language": languages, "language_score": scores}
        return pa.table(columns)
    if step == "clip":
        return pa.table({"uid": uids, "clip_score": pa.array(draw.random(ROWS_PER_SHARD), pa.float32())})
    schema = SAMPLE if step == "raw" else DEDUPE
    filled = {field.name: pa.nulls(ROWS_PER_SHARD, field.type) for field in schema}
    filled["uid"] = uids
    if step == "raw":
        dropped = draw.random(ROWS_PER_SHARD) < 0.2
        filled["status"] = pa.array(np.where(dropped, "dropped", "success"))
        filled["drop_reason"] = reasons(dropped, "timeout")
        for side in ("width", "height", "original_width", "original_height"):
            filled[side] = pa.array(draw.integers(50, 2000, ROWS_PER_SHARD), schema.field(side).type)
    else:
        repeats = draw.random(ROWS_PER_SHARD) < 0.1
        filled["drop_reason"] = reasons(repeats, "perceptual_duplicate")
        filled["duplicate_group"] = uids
    return pa.table(filled, schema=schema)


def reasons(is_dropped: npt.NDArray[np.bool_], reason: str) -> pa.Array:
    """A drop reason where dropped, else null."""
    return pa.array([reason if dropped else None for dropped in is_dropped.tolist()], pa.string())


def time_select(root: Path) -> dict[str, float]:
    """Seconds and peak memory of one selection in this process."""
    recipe = recipe_for(root)
    folders = {step: str(root / step) for step in ("raw", "dedupe", "captions", "clip")}
    started_at = time.perf_counter()
    folder = select(recipe, inputs_of(recipe, folders["raw"], folders, folders["dedupe"]))
    seconds = time.perf_counter() - started_at
    manifest = load_manifest(folder)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "rows": manifest.num_rows,
        "kept": manifest.num_samples,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_gb": round(usage.ru_maxrss / 2**20, 2),
        "ray_started": "ray" in sys.modules and sys.modules["ray"].is_initialized(),
    }


def time_metaclip(num_captions: int, num_entries: int) -> dict[str, float]:
    """Captions per second of matching alone, and of matching, counting, drawing and writing the table."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = ["".join(draw.choice(letters, draw.integers(3, 9))) for _ in range(num_entries // 2)]
    pairs = [f"{first} {second}" for first, second in itertools.pairwise(words)]
    entries = list(dict.fromkeys([*words, *pairs]))[:num_entries]
    unknown = ["zz" + word for word in words]  # no entry: about half of the words match, five hits per caption
    captions = []
    for _ in range(num_captions):
        known, other = draw.integers(0, len(words), 5), draw.integers(0, len(words), 4)
        captions.append(" ".join([*(words[index] for index in known), *(unknown[index] for index in other)]))
    matcher = Matcher(entries)
    started_at = time.process_time()
    rows, matches = matcher.match(captions)
    alone = time.process_time() - started_at
    uids = draw.integers(0, 2**63, (num_captions, 2)).astype(np.uint64)
    started_at = time.process_time()
    rows, matches = matcher.match(captions)
    offsets = np.searchsorted(rows, np.arange(num_captions + 1))
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(matches, pa.int32()))
    counts = count_entries(lists, np.ones(num_captions, bool), len(entries))
    kept = draws(uids, 0) < keep_probabilities(lists, counts, 20)
    table_bytes(pa.table([pa.array([f"{row:032x}" for row in range(num_captions)]), lists], schema=MATCHES))
    whole = time.process_time() - started_at
    return {
        "captions": num_captions,
        "characters_per_caption": round(float(np.mean([len(caption) for caption in captions])), 1),
        "entries": len(entries),
        "hits_per_caption": round(len(matches) / num_captions, 2),
        "kept": int(kept.sum()),
        "matching_captions_per_s_core": round(num_captions / alone),
        "end_to_end_captions_per_s_core": round(num_captions / whole),
    }


def cluster_table(index: int) -> pa.Table:
    """Uids and clusters of one shard; sizes of clusters fall by Zipf's law."""
    draw = np.random.default_rng(index)
    clusters = (draw.zipf(1.1, ROWS_PER_SHARD) % NUM_CLUSTERS[0]).astype(np.int32)
    uids = pa.array([draw.bytes(16).hex() for _ in range(ROWS_PER_SHARD)])
    return pa.table({"uid": uids, "cluster": pa.array(clusters)})


def time_draw(num_rows: int) -> dict[str, float]:
    """CPU time of a cluster draw: scanning every shard, computing quotas and last draws, deciding every row."""
    num_shards = -(-num_rows // ROWS_PER_SHARD)
    parents = (np.random.default_rng(0).integers(0, NUM_CLUSTERS[1], NUM_CLUSTERS[0]).astype(np.int32),)
    rules = ClusterBalance(kind="clusters", clusters="tree", num_samples=num_rows // 10)
    plan, spent, parts = ClusterPlan(rules, Tree(NUM_CLUSTERS[0], parents)), [0.0, 0.0, 0.0], []
    for index in range(num_shards):
        table = cluster_table(index)
        started_at = time.process_time()
        parts.append(plan.scan(table, np.ones(table.num_rows, bool)))
        spent[0] += time.process_time() - started_at
    started_at = time.process_time()
    thinning = plan.finish(parts)
    spent[1] = time.process_time() - started_at
    kept = 0
    for index in range(num_shards):
        table = cluster_table(index)
        started_at = time.process_time()
        kept += int(thinning.keeps(table)[0].sum())
        spent[2] += time.process_time() - started_at
    return {
        "rows": num_shards * ROWS_PER_SHARD,
        "kept": kept,
        **{f"{step}_cpu_s": round(cpu_s, 2) for step, cpu_s in zip(("scan", "quotas", "decide"), spent, strict=True)},
        "cpu_s": round(sum(spent), 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Measure one step and print its JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["select", "select-once", "draw", "metaclip", "words", "minhash"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("out/benchmark-select"))
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--entries", type=int, default=475_000)
    options = parser.parse_args()
    match options.what:
        case "metaclip":
            print(json.dumps(time_metaclip(options.captions, options.entries)))
        case "words":
            print(json.dumps(time_word_list(options.captions)))
        case "minhash":
            with tempfile.TemporaryDirectory() as scratch:
                print(json.dumps(time_minhash(options.captions, Path(scratch))))
        case "draw":
            print(json.dumps(time_draw(options.rows)))
        case "select-once":
            print(json.dumps(time_select(options.out)))
        case _:
            write_tables(options.out, options.rows)
            shutil.rmtree(options.out / "selections", ignore_errors=True)
            subprocess.run(
                [sys.executable, "-m", "benchmarks.curate", "select-once", "--out", str(options.out)], check=True
            )


if __name__ == "__main__":
    main()
