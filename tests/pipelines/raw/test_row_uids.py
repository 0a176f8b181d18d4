"""Duplicate rows are the same for any number of parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pairloom.pipelines.raw.row_uids import find_duplicate_rows, save_uids


def test_duplicates_do_not_depend_on_the_parts(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    uids = [[f"{int(number) << 114 | 7:032x}" for number in random.integers(0, 500, 300)] for _ in range(5)]
    names = [f"0000/{index:07d}" for index in range(5)]
    for name, of_shard in zip(names, uids, strict=True):
        save_uids(str(tmp_path), name, of_shard)
    seen: set[str] = set()
    expected = []
    for name, of_shard in zip(names, uids, strict=True):
        for row, uid in enumerate(of_shard):
            if uid in seen:
                expected.append((name, row))
            seen.add(uid)
    for max_part_rows in (10**6, 400, 50):
        found = find_duplicate_rows(str(tmp_path), names, max_part_rows)
        assert [(name, int(row)) for name in found for row in found[name]] == expected
