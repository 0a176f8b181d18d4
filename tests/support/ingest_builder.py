"""Shared parts of ingest tests: recipes, tables, tars, and readers of results."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import webdataset
from PIL import Image

from pairloom.schemas.data_set.manifest import Manifest, load_manifest, tar_url
from pairloom.schemas.data_set.shard import ShardReader
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.http_server import TestServer
from tests.support.image_files import encoded, photo, png_header

NUM_IMAGES = 30


def make_pages() -> dict[str, bytes]:
    """Images by name, and files that are no images."""
    images = {f"{index}.jpg": encoded(photo(300 + index, 280, index)) for index in range(NUM_IMAGES)}
    return {**images, "page.jpg": b"<!DOCTYPE html><html>gone</html>", "half.jpg": images["3.jpg"][:5000],
            "dot.png": encoded(photo(1, 1), "PNG"), "bomb.png": png_header(20_000, 20_000)}  # fmt: skip


def make_recipe(root: Path, source: dict[str, Any], **ingest_settings: Any) -> CurateRecipe:
    fetch = {"allow_private_addresses": True, "timeout_s": 2, "retries": 1, **ingest_settings.pop("fetch", {})}
    settings = {"samples_per_shard": 8, "fetch": fetch, **ingest_settings}
    return CurateRecipe.model_validate({"root": str(root), "source": source, "ingest": settings})


def url_rows(server: TestServer, names: Sequence[str]) -> list[dict[str, str]]:
    return [{"url": f"{server.url}/files/{name}", "caption": f"picture {index}, {name}", "license": f"cc-{index}"}
            for index, name in enumerate(names)]  # fmt: skip


def write_csv(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def url_source(path: Path | list[str], **settings: Any) -> dict[str, Any]:
    return {"kind": "url_table", "path": path if isinstance(path, list) else str(path), **settings}


def read_rows(folder: str) -> list[dict[str, Any]]:
    manifest = load_manifest(folder)
    tables = [pq.read_table(f"{folder}/{shard.name}.parquet") for shard in manifest.shards]
    return [row for table in tables for row in table.to_pylist()]


def files_of(folder: str | Path) -> dict[str, bytes]:
    """Digests of all files that must be equal between runs: all except times and temporary files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*"))
            if path.is_file() and not path.name.endswith(("_stats.json", "metrics.jsonl"))
            and not path.name.startswith(".") and "segments" not in path.parts}  # fmt: skip


def changes(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def check_offsets(folder: str, manifest: Manifest, rows: Sequence[dict[str, Any]]) -> None:
    place = iter(rows)
    for shard in manifest.shards:
        reader = ShardReader(tar_url(folder, shard))
        for row in [next(place) for _ in range(shard.num_rows)]:
            if row["status"] == "success":
                data = reader.read(row["offset"], row["num_bytes"])
                assert Image.open(io.BytesIO(data)).size == (row["width"], row["height"])
        reader.close()


def check_webdataset(folder: str, manifest: Manifest, rows: Sequence[dict[str, Any]]) -> None:
    urls = [tar_url(folder, shard) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    kept = [row for row in rows if row["status"] == "success"]
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in kept]
    for sample, row in zip(samples, kept, strict=True):
        assert sample["txt"].decode() == row["caption"]
        fields = json.loads(sample["json"])
        assert (fields["uid"], fields["url"], fields["license"]) == (row["uid"], row["url"], row["license"])


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
