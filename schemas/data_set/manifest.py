"""Manifest: the complete list of a data set's shards. If it exists, the data set is complete.

`<folder>/manifest.json` has totals and hashes, `<folder>/shards.parquet` one row per shard, and `<folder>/sizes.json`
the number of samples per tar for other readers. `<root>/<step>/<name>/LATEST` names the newest complete folder; recipes
and commands resolve `<step>/<name>` through it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from pairloom.schemas.data_set.tables import read_table, table_bytes
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

FORMAT_VERSION = 1
SHARD_METADATA = b"shard"  # metadata key of a raw table, for its manifest entry and counts
SHARDS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # "0000/0000012", below the folder
        pa.field("url", pa.string()),  # of the tar, if it is adopted or has another name; may be relative
        pa.field("num_rows", pa.int64(), nullable=False),  # rows of the parquet
        pa.field("num_samples", pa.int64(), nullable=False),  # samples in the tar
        pa.field("num_bytes", pa.int64(), nullable=False),  # of the tar
        pa.field("sha256", pa.string()),  # of the tar; null: adopted
    ]
)


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a data set; `url` is None if the tar is `<folder>/<name>.tar`."""

    name: str
    num_rows: int
    num_samples: int
    num_bytes: int
    sha256: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The result of a finished step: shards, totals, drop counts and hashes of its parents."""

    name: str
    step: str
    recipe_hash: str
    parents: Sequence[str]
    shards: Sequence[ShardEntry]
    drop_counts: Mapping[str, int] = field(default_factory=dict)
    generation: int = 0
    details: Mapping[str, object] = field(default_factory=dict)  # details of the step: thresholds, models
    format_version: int = FORMAT_VERSION

    @property
    def num_rows(self) -> int:
        """Rows over all shards."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def num_samples(self) -> int:
        """Samples over all shards."""
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tars."""
        return sum(shard.num_bytes for shard in self.shards)

    def hash(self) -> str:
        """sha256 of all that identifies the content, as hex; results made from it record it as their parent."""
        text = json.dumps({**self._head(), "shards": [asdict(shard) for shard in self.shards]}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _head(self) -> dict[str, object]:
        return {
            "format_version": self.format_version,
            "name": self.name,
            "step": self.step,
            "recipe_hash": self.recipe_hash,
            "parents": list(self.parents),
            "generation": self.generation,
            "drop_counts": dict(sorted(self.drop_counts.items())),
            "details": dict(self.details),
            "num_shards": len(self.shards),
            "num_rows": self.num_rows,
            "num_samples": self.num_samples,
            "num_bytes": self.num_bytes,
        }


def save_manifest(folder: str, manifest: Manifest) -> None:
    """Write shards.parquet and sizes.json, then manifest.json last."""
    rows = [asdict(shard) for shard in manifest.shards]
    storage.put_bytes(storage.join(folder, "shards.parquet"), table_bytes(pa.Table.from_pylist(rows, schema=SHARDS)))
    sizes = {_file_of(shard): shard.num_samples for shard in manifest.shards if shard.num_samples}
    storage.put_bytes(storage.join(folder, "sizes.json"), json.dumps(sizes, sort_keys=True).encode())
    head = {**manifest._head(), "hash": manifest.hash()}
    storage.put_bytes(storage.join(folder, "manifest.json"), json.dumps(head, sort_keys=True, indent=1).encode())


def _file_of(shard: ShardEntry) -> str:
    """The path of a tar relative to the folder."""
    is_below = shard.url is not None and "://" not in shard.url and not shard.url.startswith("/")
    return str(shard.url) if is_below else f"{shard.name}.tar"


def load_manifest(folder: str) -> Manifest:
    """Read and verify the manifest of a complete folder. Raises InputError (missing, too new, corrupt)."""
    url = storage.join(folder, "manifest.json")
    try:
        head = json.loads(storage.read_text(url))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no manifest.json; the step is not complete, run it first") from error
    except ValueError as error:
        raise InputError(f"{url}: not JSON: {error}; restore it") from error
    if head["format_version"] > FORMAT_VERSION:
        raise InputError(f"{url}: written by a newer pairloom (format {head['format_version']}); upgrade")
    rows = read_table(storage.join(folder, "shards.parquet")).to_pylist()
    manifest = Manifest(
        name=head["name"],
        step=head["step"],
        recipe_hash=head["recipe_hash"],
        parents=head["parents"],
        shards=[ShardEntry(**row) for row in rows],
        drop_counts=head["drop_counts"],
        generation=head["generation"],
        details=head["details"],
        format_version=head["format_version"],
    )
    if manifest.hash() != head["hash"]:
        raise InputError(
            f"{url}: does not match its shards.parquet; run the command that writes it again, or restore both"
        )
    return manifest


def is_complete(folder: str) -> bool:
    """Whether the folder has a manifest."""
    return storage.exists(storage.join(folder, "manifest.json"))


def set_latest(folder: str) -> None:
    """Let `<step>/<name>` resolve to `folder` (`.../<name>/<hash8>`)."""
    parent, _, name = folder.rstrip("/").rpartition("/")
    storage.put_bytes(storage.join(parent, "LATEST"), f"{name}\n".encode())


def resolve(path: str) -> str:
    """The complete folder of `path`: itself, or the one that its LATEST names. Raises InputError."""
    if is_complete(path):
        return path.rstrip("/")
    latest = storage.join(path, "LATEST")
    if storage.exists(latest):
        return storage.join(path, storage.read_text(latest).strip())
    raise InputError(f"{path}: no complete data set here (neither manifest.json nor LATEST); check the path")


def tar_url(folder: str, shard: ShardEntry) -> str:
    """URL of a shard's tar; a relative path is relative to the folder."""
    url = shard.url or f"{shard.name}.tar"
    return url if "://" in url or url.startswith("/") else storage.join(folder, url)


def entry_of_table(table: pa.Table, entry: ShardEntry) -> ShardEntry:
    """The entry in a raw table's metadata, else `entry`. It names the tar that fits the table's offsets."""
    text = (table.schema.metadata or {}).get(SHARD_METADATA)
    return entry if text is None else ShardEntry(**json.loads(text)["entry"])


def table_url(folder: str, shard_name: str) -> str:
    """URL of a shard's table."""
    return storage.join(folder, f"{shard_name}.parquet")


def count_reasons(reasons: pa.ChunkedArray | pa.Array) -> Counter[str]:
    """Counts per drop reason of a column, without nulls."""
    counts = reasons.drop_null().value_counts()
    return Counter({row["values"]: row["counts"] for row in counts.to_pylist()})
