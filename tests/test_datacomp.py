"""Given DataComp's metadata, the same uids as its baselines keep; and its subset files, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.signals.captions import measure_caption
from pipelines.subset import DTYPE, read_subset, write_subset
from schemas.errors import InputError
from tests.test_select import BASIC, Tables, decisions_of

WORDS = ["a", "dog", "on", "the", "beach", "photo", "12", "red", "Berlin", "ein", "der", "Hund", "", "x"]


def metadata(num_rows: int) -> list[dict[str, Any]]:
    """Rows as DataComp's metadata has them, with ties in the scores and borderline sizes."""
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(num_rows):
        caption = " ".join(draw.choice(WORDS, draw.integers(0, 6)))
        num_words, num_chars, language, *_ = measure_caption(caption)
        rows.append(
            {
                "uid": draw.bytes(16).hex(),
                "original_width": int(draw.choice([100, 199, 200, 201, 600, 601])),
                "original_height": int(draw.choice([100, 199, 200, 201, 600, 603])),
                "num_words": num_words,
                "num_chars": num_chars,
                "language": language,
                "clip_score": float(np.float32(round(draw.random(), 2))),
            }
        )
    return rows


def basic_filter(row: dict[str, Any]) -> bool:
    """`apply_filter.py`: caption_filter and image_filter."""
    short, long = sorted((row["original_width"], row["original_height"]))
    is_caption = row["num_words"] > 2 and row["num_chars"] > 5 and row["language"] == "en"
    return bool(is_caption and short >= 200 and long / short <= 3.0)


def kept(folder: str) -> set[str]:
    return {row["uid"] for row in decisions_of(folder) if row["kept"]}


def test_basic_filter(tmp_path: Path) -> None:
    rows = metadata(3000)
    expected = {row["uid"] for row in rows if basic_filter(row)}
    assert 50 < len(expected) < 1000
    assert kept(Tables(tmp_path, rows, rows_per_shard=700).select(**BASIC)) == expected


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.77])
def test_clip_score_fraction_and_its_threshold(tmp_path: Path, fraction: float) -> None:
    rows = metadata(2000)
    scores = np.array([row["clip_score"] for row in rows], np.float32)
    threshold = -np.sort(-scores)[int(len(scores) * fraction)]
    expected = {row["uid"] for row in rows if np.float32(row["clip_score"]) >= threshold}
    tables = Tables(tmp_path, rows, rows_per_shard=300)
    assert kept(tables.select(scores=[{"signal": "clip", "top_fraction": fraction}])) == expected
    assert kept(tables.select(name="again", scores=[{"signal": "clip", "min": float(threshold)}])) == expected


def test_a_subset_file_is_datacomps_and_intersects(tmp_path: Path) -> None:
    """Written as DataComp writes it; read back, it narrows another selection to what both keep."""
    rows = metadata(1000)
    tables = Tables(tmp_path, rows, rows_per_shard=300)
    best = tables.select(name="best", scores=[{"signal": "clip", "top_fraction": 0.3}])
    path = tmp_path / "best.npy"
    assert write_subset(best, str(path)) == len(kept(best))
    halves = sorted((int(uid[:16], 16), int(uid[16:], 16)) for uid in kept(best))
    written = np.load(path)
    assert written.dtype == DTYPE
    np.testing.assert_array_equal(written, np.array(halves, DTYPE))
    both = tables.select(**BASIC, subset=str(path))
    assert kept(both) == kept(best) & {row["uid"] for row in rows if basic_filter(row)}
    reasons = {row["drop_reason"] for row in decisions_of(both) if row["uid"] not in kept(best)}
    assert reasons == {"not_in_subset"}


def test_uids_that_share_a_half_are_told_apart(tmp_path: Path) -> None:
    rows = [{"uid": "0" * 16 + f"{place:016x}"} for place in range(6)]
    np.save(tmp_path / "s.npy", np.array([(0, 5), (0, 1), (7, 2)], DTYPE))  # not even sorted
    tables = Tables(tmp_path, rows)
    assert kept(tables.select(subset=str(tmp_path / "s.npy"))) == {rows[1]["uid"], rows[5]["uid"]}


@pytest.mark.parametrize("content", [b"no array", None])
def test_a_subset_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "subset.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"select\.subset: .*subset\.npy"):
        read_subset(str(path))
    np.save(path, np.zeros(3, np.int64))
    with pytest.raises(InputError, match="a subset is one list of u8,u8"):
        read_subset(str(path))
