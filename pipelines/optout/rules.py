"""Rules of opt-out requests: which rows they name, and how such a row is blanked.

A blanked row keeps its uid (a hash, so that tables still join by row and `explain` works), the status `dropped` and the
reason `recalled`. URL, caption, all columns of the image and the source's own columns become null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pairloom.pipelines.sources.source import SourceRow
from pairloom.pipelines.sources.urls import clean_url, host_name_of, origin_of
from pairloom.schemas.data_set.result_path import root_of
from pairloom.schemas.data_set.tables import STATUS_DROPPED
from pairloom.schemas.data_set.tombstones import KINDS, load_tombstones
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError, SampleError
from pairloom.schemas.images.columns import sha256_hex

MESSAGE = "an opt-out request names it"
_BLANKED = {"status": STATUS_DROPPED, "drop_reason": DropReason.RECALLED.value, "error_message": MESSAGE}

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """The values of tombstones; `urls` and `images` are sha256."""

    uids: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()

    @property
    def columns(self) -> list[str]:
        """The columns of a raw table that `mask` reads."""
        of_url = ["url"] if self.urls or self.domains else []
        return ["uid", *of_url, *(["sha256"] if self.images else []), "drop_reason"]

    def names(self, uid: str, url: str | None) -> bool:
        """Whether a row is recalled by its uid, its URL, or its host."""
        return uid in self.uids or ((bool(self.urls) or bool(self.domains)) and self._names_url(url))

    def _names_url(self, url: str | None) -> bool:
        cleaned = clean_url(url)
        if cleaned is None:
            return False
        if self.urls and url_hash(cleaned) in self.urls:
            return True
        host = host_name_of(origin_of(cleaned)).rstrip(".") if self.domains else ""
        while host and host not in self.domains:
            host = host.partition(".")[2]
        return bool(host)

    def mask(self, table: pa.Table) -> Mask:
        """The rows of a raw or curated table that are named and not recalled yet."""
        named = _are_in(table["uid"], self.uids)
        if self.urls or self.domains:
            named |= np.fromiter((self._names_url(url) for url in table["url"].to_pylist()), bool, table.num_rows)
        if self.images and "sha256" in table.column_names:
            named |= _are_in(table["sha256"], self.images)
        if "drop_reason" in table.column_names:
            recalled = pc.fill_null(pc.equal(table["drop_reason"], DropReason.RECALLED.value), False)
            named &= ~np.array(recalled, bool)
        return named


def _are_in(column: pa.ChunkedArray, values: frozenset[str]) -> Mask:
    """Whether each cell is among the values. Arrow's `is_in` would hash all values again for every table."""
    if not values:
        return np.zeros(len(column), bool)
    return np.fromiter((value in values for value in column.to_pylist()), bool, len(column))


def rules_of(folder: str, names: Sequence[str]) -> Rules:
    """The rules of tombstone lists of a raw folder's root; read once per process."""
    root = root_of(folder)
    return Rules(**load_tombstones(root, tuple(names))) if names and root is not None else Rules()


def url_hash(cleaned: str) -> str:
    """The form of a URL in a tombstone: sha256 of the clean URL."""
    return sha256_hex(cleaned.encode())


def parse_request(kind: str, lines: Iterable[str], where: str) -> Rules:
    """Rules of a file with one value per line; blank lines and lines that begin with # are ignored.

    Raises InputError for an invalid line, and for a file without values.
    """
    values = set()
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            value = _PARSERS[kind](text)
            if value is None:
                raise InputError(f"{where}, line {number}: {text[:80]!r} is not one of {kind}; correct or remove it")
            values.add(value)
    if not values:
        raise InputError(f"{where}: names no {kind}; write one per line")
    return Rules(**{kind: frozenset(values)})


def _parse_uid(text: str) -> str | None:
    is_uid = len(text) == 32 and set(text) <= set("0123456789abcdefABCDEF")
    return text.lower() if is_uid else None


def _parse_url(text: str) -> str | None:
    cleaned = clean_url(text)
    return None if cleaned is None else url_hash(cleaned)


def _parse_domain(text: str) -> str | None:
    """The host in the form of clean URLs."""
    cleaned = clean_url(f"http://{text.removeprefix('*').strip('.')}/")
    host = urlsplit(cleaned).hostname if cleaned else None
    return host if host is not None and cleaned == f"http://{host}/" else None


_PARSERS = {"uids": _parse_uid, "urls": _parse_url, "domains": _parse_domain}


def refusal() -> SampleError:
    """The drop reason of a recalled row, as a SampleError."""
    return SampleError(DropReason.RECALLED, MESSAGE)


def is_recalled(outcome: object) -> bool:
    """Whether an outcome is `refusal()`."""
    return isinstance(outcome, SampleError) and outcome.drop_reason == DropReason.RECALLED


def blank(row: SourceRow) -> SourceRow:
    """The source row without the values that a recalled row loses."""
    return replace(row, url=None, caption=None, image=None, kept={})


def blank_rows(table: pa.Table, rows: Mask) -> pa.Table:
    """The table with these rows blanked."""
    left = pa.array([None if gone else row for row, gone in enumerate(rows)], pa.int64())
    mask = pa.array(rows)
    for index, field in enumerate(table.schema):
        if field.name == "uid":
            continue
        if field.name in _BLANKED:
            column = pc.if_else(mask, pa.scalar(_BLANKED[field.name], field.type), table[field.name])
        else:
            column = table[field.name].combine_chunks().take(left)  # unlike if_else, take knows every type
            field = field.with_nullable(True)
        table = table.set_column(index, field, column)
    return table


def as_lists(rules: Rules) -> Mapping[str, frozenset[str]]:
    """The values by kind of tombstone."""
    return {kind: getattr(rules, kind) for kind in KINDS}
