"""Manifest: the complete list of a data set's shards. Its existence means that the data set is done.

`<folder>/manifest.json` holds the totals and hashes, `<folder>/shards.parquet` one row per shard, and
`<folder>/sizes.json` the samples of each tar for readers that want it. `<root>/<step>/<name>/LATEST` names
the newest complete folder; recipes and commands resolve `<step>/<name>` through it.
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
SHARD_METADATA = b"shard"  # key of a raw table's metadata: its manifest entry and counts
SHARDS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # "0000/0000012", below the folder
        pa.field("url", pa.string()),  # of the tar, where it is adopted or has another name; may be below the folder
        pa.field("num_rows", pa.int64(), nullable=False),  # rows of the parquet
        pa.field("num_samples", pa.int64(), nullable=False),  # samples in the tar
        pa.field("num_bytes", pa.int64(), nullable=False),  # of the tar
        pa.field("sha256", pa.string()),  # of the tar; null where it was adopted
    ]
)


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a data set; `url` only where the tar is not `<folder>/<name>.tar`."""

    name: str
    num_rows: int
    num_samples: int
    num_bytes: int
    sha256: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a finished step wrote: its shards, totals, counts of drop reasons, and what it was made from."""

    name: str
    step: str
    recipe_hash: str
    parents: Sequence[str]
    shards: Sequence[ShardEntry]
    drop_counts: Mapping[str, int] = field(default_factory=dict)
    generation: int = 0
    details: Mapping[str, object] = field(default_factory=dict)  # of the step: thresholds, models
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
        """Hex sha256 of everything that identifies the content; children record it as their parent."""
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
    """A tar's path below its folder, where it lies there."""
    is_below = shard.url is not None and "://" not in shard.url and not shard.url.startswith("/")
    return str(shard.url) if is_below else f"{shard.name}.tar"


def load_manifest(folder: str) -> Manifest:
    """Read and verify the manifest of a complete folder. Raises InputError (missing, newer, corrupt)."""
    url = storage.join(folder, "manifest.json")
    try:
        head = json.loads(storage.read_text(url))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no manifest.json; the step that writes it has not finished") from error
    except ValueError as error:
        raise InputError(f"{url}: not JSON: {error}") from error
    if head["format_version"] > FORMAT_VERSION:
        raise InputError(f"{url}: written by a newer pairloom (format {head['format_version']})")
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
    """True when the step that writes `folder` has finished."""
    return storage.exists(storage.join(folder, "manifest.json"))


def set_latest(folder: str) -> None:
    """Make `folder` (`.../<name>/<hash8>`) what its `<step>/<name>` resolves to."""
    parent, _, name = folder.rstrip("/").rpartition("/")
    storage.put_bytes(storage.join(parent, "LATEST"), f"{name}\n".encode())


def resolve(path: str) -> str:
    """The complete folder that `path` names: itself, or through its LATEST. Raises InputError."""
    if is_complete(path):
        return path.rstrip("/")
    latest = storage.join(path, "LATEST")
    if storage.exists(latest):
        return storage.join(path, storage.read_text(latest).strip())
    raise InputError(f"{path}: no finished data set here (neither manifest.json nor LATEST)")


def tar_url(folder: str, shard: ShardEntry) -> str:
    """URL of a shard's tar; what is neither absolute nor a URL lies below the folder."""
    url = shard.url or f"{shard.name}.tar"
    return url if "://" in url or url.startswith("/") else storage.join(folder, url)


def entry_of_table(table: pa.Table, entry: ShardEntry) -> ShardEntry:
    """The entry that a raw table carries, else `entry`: while a shard is replaced, a table's offsets fit this tar."""
    text = (table.schema.metadata or {}).get(SHARD_METADATA)
    return entry if text is None else ShardEntry(**json.loads(text)["entry"])


def table_url(folder: str, shard_name: str) -> str:
    """URL of a shard's table."""
    return storage.join(folder, f"{shard_name}.parquet")


def count_reasons(reasons: pa.ChunkedArray | pa.Array) -> Counter[str]:
    """Counts of the drop reasons in a column, without the nulls."""
    counts = reasons.drop_null().value_counts()
    return Counter({row["values"]: row["counts"] for row in counts.to_pylist()})
