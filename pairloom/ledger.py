"""The folders that belong to one data set, and one SQL view over their tables: every raw row with its whole history.

Internal: use `pairloom.open`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pairloom.schemas.data_set.generations import folders_below, read_head
from pairloom.schemas.data_set.manifest import Manifest, load_manifest, table_url
from pairloom.schemas.data_set.result_path import root_of
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.errors import InputError

_SELECTED = ("kept", "drop_reason", "duplicate_of", "duplicate_group", "weight")
_FROM_DEDUPE = ("duplicate_of", "duplicate_group", "distance", "similarity", "evaluation_image")
_OF_TAR = ("key", "offset", "num_bytes")


@dataclass(frozen=True)
class Ledger:
    """The folders of one data set; None or missing where a step has not run."""

    raw: str
    signals: Mapping[str, str] = field(default_factory=dict)  # by name
    dedupe: str | None = None
    selection: str | None = None
    curated: str | None = None

    @property
    def folder(self) -> str:
        """The newest of them: what the data set is named by."""
        return self.curated or self.selection or self.raw


def find_ledger(folder: str) -> Ledger:
    """The ledger of a raw, selection or curated folder, by the hashes of its parents. Raises InputError."""
    manifest, root = load_manifest(folder), root_of(folder)
    if manifest.step not in ("raw", "selections", "curated"):
        raise InputError(f"{folder}: is a {manifest.step} folder; open raw/..., selections/... or curated/...")
    if manifest.step == "raw":
        return Ledger(folder, _signals(root, manifest), _newest(root, "dedupe", manifest.hash()))
    if root is None:
        raise InputError(f"{folder}: lies below no root (<root>/<step>/<name>/<hash8>); open it where it was made")
    selection, curated = folder, None
    if manifest.step == "curated":
        selection, curated = _with_hash(root, "selections", manifest.parents[1], folder), folder
    parents = load_manifest(selection).parents
    raw, dedupe = _with_hash(root, "raw", parents[0], folder), _with_hash(root, "dedupe", parents[1], folder)
    return Ledger(raw, _signals(root, load_manifest(raw), parents), dedupe, selection, curated)


def _signals(root: str | None, raw: Manifest, preferred: Iterable[str] = ()) -> dict[str, str]:
    """Signals of a raw generation by name: those that `preferred` hashes name, else the newest."""
    found: dict[str, str] = {}
    if root is None:
        return found
    wanted = set(preferred)
    for folder in folders_below(root, "signals"):
        head = read_head(folder)
        if head is not None and head["parents"][0] == raw.hash():
            is_chosen = head["hash"] in wanted or _is_latest(folder)
            if head["hash"] in wanted or (is_chosen and head["name"] not in found):
                found[head["name"]] = folder
    return found


def _is_latest(folder: str) -> bool:
    from pairloom.schemas.data_set.manifest import resolve

    try:
        return resolve(folder.rpartition("/")[0]) == folder
    except InputError:
        return False


def _newest(root: str | None, step: str, raw_hash: str) -> str | None:
    """The newest result of a step that was made from a raw generation."""
    folders = [] if root is None else list(folders_below(root, step))
    made = [folder for folder in folders if (read_head(folder) or {"parents": [""]})["parents"][0] == raw_hash]
    return next((folder for folder in made if _is_latest(folder)), made[-1] if made else None)


def _with_hash(root: str, step: str, manifest_hash: str, child: str) -> str:
    for folder in folders_below(root, step):
        head = read_head(folder)
        if head is not None and head["hash"] == manifest_hash:
            return folder
    raise InputError(
        f"{child}: was made from a {step} result that is no longer below {root}; run `pairloom curate` again"
    )


def tables_of(ledger: Ledger) -> Iterator[tuple[str, str]]:
    """View name and folder of each step's tables."""
    yield "raw", ledger.raw
    for name, folder in ledger.signals.items():
        yield f"signals_{name}", folder
    for name, step_folder in (("dedupe", ledger.dedupe), ("selection", ledger.selection), ("curated", ledger.curated)):
        if step_folder is not None:
            yield name, step_folder


def table_files(folder: str) -> list[str]:
    """The tables of all shards, in order."""
    return [table_url(folder, shard.name) for shard in load_manifest(folder).shards]


def column_names(folder: str) -> list[str]:
    """The columns of a step's tables, by its first shard."""
    return list(read_table(table_files(folder)[0]).column_names)


def samples_query(ledger: Ledger) -> str:
    """SQL of the view `samples`: one row per raw row (of a curated data set: per sample), in order.

    Columns: those of the raw table; `<signal>_<column>` of each signal (`<signal>` where both names are the same);
    `dedupe_*`; `kept`, `drop_reason`, `duplicate_of`, `duplicate_group`, `weight` of the selection, or of dedupe where
    there is none; `shard` and `row`.
    """
    raw = column_names(ledger.raw)
    columns = [f"raw.{_quoted(name)}" for name in raw if name not in ("drop_reason", *_OF_TAR)]
    columns.append("raw.drop_reason AS ingest_drop_reason")
    joins = ["raw"]
    for name, folder in ledger.signals.items():
        view = _quoted(f"signals_{name}")
        columns += [
            f"{view}.{_quoted(column)} AS {_quoted(name if column == name else f'{name}_{column}')}"
            for column in column_names(folder)
            if column != "uid"
        ]
        joins.append(f"LEFT JOIN {view} USING (shard, row)")
    columns += _decisions(ledger, joins)
    if ledger.curated is None:
        columns += [f"raw.{name}" for name in _OF_TAR] + ["shard", "row"]
        return f"SELECT {', '.join(columns)} FROM {' '.join(joins)} ORDER BY shard, row"
    columns += [f"curated.{name}" for name in _OF_TAR]
    columns += [f"raw.{name} AS raw_{name}" for name in _OF_TAR]
    columns += ["raw.shard AS raw_shard", "raw.row AS raw_row", "curated.shard AS shard", "curated.row AS row"]
    joins.append("JOIN curated ON curated.raw_shard = raw.shard AND curated.raw_row = raw.row")
    return f"SELECT {', '.join(columns)} FROM {' '.join(joins)} ORDER BY curated.shard, curated.row"


def _decisions(ledger: Ledger, joins: list[str]) -> list[str]:
    columns = []
    if ledger.dedupe is not None:
        joins.append("LEFT JOIN dedupe USING (shard, row)")
        there = set(column_names(ledger.dedupe))
        columns.append("dedupe.drop_reason AS dedupe_drop_reason")
        columns += [f"dedupe.{name} AS dedupe_{name}" for name in _FROM_DEDUPE if name in there]
    if ledger.selection is not None:
        joins.append("LEFT JOIN selection USING (shard, row)")
        return columns + [f"selection.{name}" for name in _SELECTED]
    reason = "raw.drop_reason" if ledger.dedupe is None else "coalesce(raw.drop_reason, dedupe.drop_reason)"
    columns += [f"{reason} AS drop_reason", f"({reason} IS NULL) AS kept"]
    if ledger.dedupe is not None:
        columns += ["dedupe.duplicate_of", "dedupe.duplicate_group"]
    return columns


def table_query(folder: str) -> str:
    """SQL of one step's tables with `shard` (the name) and `row` (its index in the table)."""
    files = ", ".join("'" + url.replace("'", "''") + "'" for url in table_files(folder))
    return (
        "SELECT * EXCLUDE (filename, file_row_number), "
        r"regexp_extract(filename, '([^/]+/[^/]+)\.parquet$', 1) AS shard, file_row_number AS row "
        f"FROM read_parquet([{files}], filename = true, file_row_number = true, union_by_name = true)"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
