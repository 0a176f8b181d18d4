"""With DataComp's metadata, the kept uids equal those of its baselines; its subset files are read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.select.datacomp_subset import DTYPE, read_subset, write_subset
from pairloom.pipelines.select.select import inputs_of, select
from pairloom.pipelines.signals.captions import measure_caption
from pairloom.pipelines.signals.measure import measure_signal
from pairloom.pipelines.signals.word_list import WordList, WordListSignals
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.dedupe_builder import uid_of
from tests.support.raw_builder import Pair, build_raw, encoded, photograph
from tests.support.selection_tables import BASIC, Tables, decisions_of

WORDS = ["a", "dog", "on", "the", "beach", "photo", "12", "red", "Berlin", "ein", "der", "Hund", "", "x"]


def metadata(num_rows: int) -> list[dict[str, Any]]:
    """Rows of DataComp's metadata, with ties in the scores and borderline sizes."""
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


# ---- text-based

DICTIONARY = {  # part -> lemma -> offsets of its synsets, the most frequent first
    "noun": {"dog": [2084071, 10114209], "beach": [9217230], "photo": [3925226], "man": [10287213], "red": [4962784]},
    "verb": {"dog": [2001858], "run": [1926311], "be": [2604760]},
    "adj": {"red": [381097], "big": [1382086]},
    "adv": {"fast": [85811]},
}
EXCEPTIONS = {"noun": {"men": ["man"]}, "verb": {"ran": ["run"], "is": ["be"]},
              "adj": {"bigger": ["big"]}, "adv": {}}  # fmt: skip
SYNSETS = {2084071, 9217230, 1926311, 1382086}
TEXTS = ["Two DOGS", "a dog.", "a doggy", "men", "he ran", "is", "bigger", "fast", "beaches!", "on beaches",
         "photo red", "runs fast", "running", "", "dog\u00a0park", "mans", "the man"]  # fmt: skip
CONTAINS = [
    "Two DOGS",
    "he ran",
    "bigger",
    "on beaches",
    "runs fast",
    "dog\u00a0park",
]


def write_wordnet(folder: Path) -> None:
    """The files of Princeton's WordNet: an indented licence, then lemma, part, counts, pointers, offsets."""
    folder.mkdir()
    for part, lemmas in DICTIONARY.items():
        lines = ["  1 This software and database is being provided to you\n"]
        for lemma, offsets in lemmas.items():
            numbers = " ".join(f"{offset:08d}" for offset in offsets)
            lines.append(f"{lemma} {part[0]} {len(offsets)} 2 @ ~ {len(offsets)} 1 {numbers}  \n")
        (folder / f"index.{part}").write_text("".join(lines))
        irregular = [f"{word} {' '.join(forms)}\n" for word, forms in EXCEPTIONS[part].items()]
        (folder / f"{part}.exc").write_text("".join(irregular))


def word_list(root: Path) -> WordListSignals:
    write_wordnet(root / "wordnet")
    (root / "in21k.txt").write_text("".join(f"n{synset:08d}\n" for synset in sorted(SYNSETS)))
    return WordListSignals(
        kind="word_list", name="in21k", entries=str(root / "in21k.txt"), wordnet=str(root / "wordnet")
    )


def test_word_senses_equal_wordnet(tmp_path: Path) -> None:
    words = WordList(word_list(tmp_path))
    assert [text for text in TEXTS if words.has_entry(text)] == CONTAINS


def test_words_without_wordnet_are_compared_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Dog\nbeach\n\n")
    words = WordList(WordListSignals(kind="word_list", name="words", entries=str(tmp_path / "words.txt")))
    assert [text for text in TEXTS if words.has_entry(text)] == ["dog\u00a0park"]


def test_text_based_from_captions_to_uids(tmp_path: Path, ray_session: None) -> None:
    """With signals measured by pairloom: German captions, and captions without a listed word, are dropped."""
    words = {"dogs": True, "ran": True, "bigger": True, "beach": True, "photo": False, "men": False, "dog.": False}
    texts = {f"This is a nice picture of {word} in the warm summer": found for word, found in words.items()}
    texts |= {f"Das ist ein schönes Bild von {word} im warmen Sommer": False for word in words}
    pairs = [Pair(encoded(photograph(place)), text, f"http://a.test/{place}") for place, text in enumerate(texts)]
    raw = build_raw(tmp_path, pairs, samples_per_shard=4)
    recipe = CurateRecipe.model_validate(
        {
            "root": str(tmp_path),
            "source": {"kind": "folder", "path": "unused"},
            "signals": [{"kind": "captions"}, word_list(tmp_path).model_dump()],
            "dedupe": {"exact": False, "perceptual": None},
            "select": {"languages": ["en"], "scores": [{"signal": "in21k", "min": 1}]},
        }
    )
    signals = {signal.name: measure_signal(recipe, signal, raw, None) for signal in recipe.signals}
    folder = select(recipe, inputs_of(recipe, raw, signals, dedupe(recipe, raw, {})))
    assert kept(folder) == {uid_of(pair) for pair in pairs if texts[pair.caption]}


# ---- all baselines on one pool


def pool(num_rows: int) -> list[dict[str, Any]]:
    """Metadata with the columns of the other signals."""
    draw = np.random.default_rng(5)
    rows = metadata(num_rows)
    for row in rows:
        row["near_target"] = float(draw.random() < 0.3)
        row["in_list"] = float(draw.random() < 0.4)
    return rows


def caption_filter(row: dict[str, Any]) -> bool:
    """`apply_filter.py`: the caption rules of the image-based filter."""
    return bool(row["num_words"] > 1 and row["num_chars"] > 5 and row["language"] == "en")


def best(rows: list[dict[str, Any]], fraction: float) -> set[str]:
    """`apply_filter.py`: get_threshold over the whole pool, then `>=`."""
    scores = np.array([row["clip_score"] for row in rows], np.float32)
    threshold = -np.sort(-scores)[int(len(scores) * fraction)]
    return {row["uid"] for row in rows if np.float32(row["clip_score"]) >= threshold}


ENGLISH_CAPTIONS = {"min_words": 2, "min_chars": 6, "languages": ["en"]}
TOP_30 = {"signal": "clip", "top_fraction": 0.3, "among": "all"}
NEAR = {"signal": "tree", "min": 1}


def test_every_baseline_keeps_datacomps_uids(tmp_path: Path) -> None:
    rows = pool(2000)
    tables = Tables(tmp_path, rows, rows_per_shard=300)
    of = {row["uid"]: row for row in rows}
    expected: dict[str, tuple[set[str], dict[str, Any]]] = {
        "no_filter": (set(of), {}),
        "basic_filter": ({uid for uid in of if basic_filter(of[uid])}, BASIC),
        "clip_score_30_percent": (best(rows, 0.3), {"scores": [TOP_30]}),
        "clip_score_threshold": (
            {uid for uid, row in of.items() if np.float32(row["clip_score"]) >= 0.3},
            {"scores": [{"signal": "clip", "min": 0.3}]},
        ),
        "text_based": (
            {uid for uid, row in of.items() if row["language"] == "en" and row["in_list"]},
            {"languages": ["en"], "scores": [{"signal": "words", "min": 1}]},
        ),
        "image_based": (
            {uid for uid, row in of.items() if caption_filter(row) and row["near_target"]},
            {**ENGLISH_CAPTIONS, "scores": [NEAR]},
        ),
        "image_based_intersect_clip_score": (
            {uid for uid in best(rows, 0.3) if caption_filter(of[uid]) and of[uid]["near_target"]},
            {**ENGLISH_CAPTIONS, "scores": [TOP_30, NEAR]},
        ),
        "laion2b": (
            {uid for uid, row in of.items() if row["language"] == "en" and np.float32(row["clip_score"]) >= 0.28},
            {"languages": ["en"], "scores": [{"signal": "clip", "min": 0.28}]},
        ),
    }
    for name, (uids, rules) in expected.items():
        assert len(uids) > 20, name
        folder = tables.select(name=name, **rules)
        assert kept(folder) == uids, name
        path = tmp_path / f"{name}.npy"
        write_subset(folder, str(path))
        halves = sorted((int(uid[:16], 16), int(uid[16:], 16)) for uid in uids)
        np.testing.assert_array_equal(np.load(path), np.array(halves, DTYPE))


# ---- subset files


def test_a_subset_file_is_datacomps_and_intersects(tmp_path: Path) -> None:
    """Written as DataComp does; as a rule, it limits another selection to the uids that both keep."""
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


def test_uids_with_an_equal_half_differ(tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match="save one list of u8,u8"):
        read_subset(str(path))
