"""Columns of every Arrow type reach the JSON of raw and of curated tars, with equal values."""

from __future__ import annotations

import datetime
import decimal
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairloom.pipelines.curate import curate
from pairloom.schemas.data_set.manifest import resolve
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.raw_builder import encoded, photograph

DAY = datetime.date(2026, 2, 28)
TIME = datetime.datetime(2026, 2, 28, 12, 30, 1, 5)
NAN, INFINITY = float("nan"), float("inf")
COLUMNS: dict[str, tuple[pa.DataType, list[Any], list[Any]]] = {
    "null": (pa.null(), [None, None, None], [None, None, None]),
    "bool": (pa.bool_(), [True, False, None], [True, False, None]),
    "int8": (pa.int8(), [-1, 2, None], [-1, 2, None]),
    "uint64": (pa.uint64(), [2**64 - 1, 0, None], [2**64 - 1, 0, None]),
    "float16": (pa.float16(), [np.float16(0.5), np.float16(NAN), None], [0.5, None, None]),
    "float32": (pa.float32(), [0.25, NAN, INFINITY], [0.25, None, None]),
    "float64": (pa.float64(), [1e300, NAN, -INFINITY], [1e300, None, None]),
    "decimal": (pa.decimal128(9, 2), [decimal.Decimal("1.50"), None, decimal.Decimal(-3)], ["1.50", None, "-3.00"]),
    "string": (pa.string(), ["é", "b", None], ["é", "b", None]),
    "large_string": (pa.large_string(), ["a", "b", None], ["a", "b", None]),
    "binary": (pa.binary(), ["café".encode(), b"\xff", None], ["café", "�", None]),
    "fixed_binary": (pa.binary(2), [b"ab", b"cd", None], ["ab", "cd", None]),
    "date32": (pa.date32(), [DAY, None, DAY], ["2026-02-28", None, "2026-02-28"]),
    "time64": (pa.time64("us"), [TIME.time(), None, None], ["12:30:01.000005", None, None]),
    "timestamp": (pa.timestamp("us"), [TIME, None, None], ["2026-02-28 12:30:01.000005", None, None]),
    "duration": (pa.duration("s"), [datetime.timedelta(seconds=90), None, None], ["0:01:30", None, None]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["x", "y", "x"], ["x", "y", "x"]),
    "list_of_dates": (pa.list_(pa.date32()), [[DAY], [], None], [["2026-02-28"], [], None]),
    "list_of_decimals": (
        pa.list_(pa.decimal128(5, 1)), [[decimal.Decimal("2.5")], None, []], [["2.5"], None, []]
    ),
    "list_of_floats": (pa.list_(pa.float32()), [[1.0, NAN], None, []], [[1.0, None], None, []]),
    "fixed_list": (pa.list_(pa.int32(), 2), [[1, 2], [3, 4], None], [[1, 2], [3, 4], None]),
    "struct": (
        pa.struct([("raw", pa.binary()), ("score", pa.float64()), ("day", pa.date32())]),
        [{"raw": b"ab", "score": NAN, "day": DAY}, None, {"raw": None, "score": 1.5, "day": None}],
        [{"raw": "ab", "score": None, "day": "2026-02-28"}, None, {"raw": None, "score": 1.5, "day": None}],
    ),
    "map": (pa.map_(pa.string(), pa.int32()), [[("a", 1)], [], None], [[["a", 1]], [], None]),
}  # fmt: skip


def jsons(folder: Path) -> list[dict[str, Any]]:
    """The JSON of every sample of a data set's tars, by uid; `NaN` and `Infinity` are refused."""

    def refuse(text: str) -> None:
        raise ValueError(f"not JSON: {text}")

    found = []
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    data = tar.extractfile(member)
                    assert data is not None
                    found.append(json.loads(data.read(), parse_constant=refuse))
    return sorted(found, key=lambda fields: str(fields["caption"]))


@pytest.mark.parametrize("shuffle", ["block", "global"])
def test_every_type_reaches_both_kinds_of_tar(tmp_path: Path, ray_session: None, shuffle: str) -> None:
    columns = {name: pa.array(values, kind) for name, (kind, values, _) in COLUMNS.items()}
    images = [encoded(photograph(seed)) for seed in range(3)]
    table = pa.table({"image": pa.array(images, pa.binary()), "caption": ["a 0", "a 1", "a 2"], **columns})
    pq.write_table(table, tmp_path / "source.parquet")
    recipe = CurateRecipe.model_validate(
        {
            "root": str(tmp_path / "root"),
            "source": {
                "kind": "parquet_images",
                "path": str(tmp_path / "source.parquet"),
                "keep_columns": list(COLUMNS),
            },
            "reshard": {"shuffle": shuffle},
        }
    )
    curate(recipe, lambda: None)
    raw, curated = (jsons(Path(resolve(str(tmp_path / "root" / name)))) for name in ("raw/main", "curated/train"))
    assert len(raw) == len(curated) == 3
    for row in range(3):
        expected = {name: values[row] for name, (_, _, values) in COLUMNS.items()}
        assert {name: raw[row][name] for name in COLUMNS} == expected
        assert {name: curated[row][name] for name in COLUMNS} == expected
