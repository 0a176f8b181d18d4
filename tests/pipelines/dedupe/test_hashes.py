"""Equal pixels, 256-bit hashes, and equality with the hashes of imagehash and imagededup."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.fft import dct

from pairloom.pipelines.dedupe.dedupe import dedupe
from pairloom.pipelines.dedupe.limits import DEFAULT_LIMITS, DedupeLimits
from pairloom.pipelines.engine.batches import BatchLimits
from pairloom.pipelines.images.hashes import COSINES as COSINES
from pairloom.pipelines.images.hashes import COSINES_256 as COSINES_256
from pairloom.pipelines.images.hashes import bits_of_grey, hash_pixels, phash256
from pairloom.pipelines.images.store_image import store_image
from pairloom.schemas.data_set.manifest import load_manifest, table_url
from pairloom.schemas.data_set.tables import read_table, write_table
from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.images.decode import decode_rgb
from pairloom.schemas.recipes.curate import CurateRecipe, ImageRecipe
from tests.support.dedupe_builder import decisions_of, uid_of
from tests.support.hash_builder import detailed, hashed, lossless, pictures, recipe_for
from tests.support.raw_builder import Pair, build_raw, encoded, photograph

# ---- equal pixels


def commented(jpeg: bytes) -> bytes:
    """The same JPEG with a comment: other bytes, the same pixels."""
    return jpeg[:2] + b"\xff\xfe\x00\x07hello" + jpeg[2:]


def test_the_same_pixels_in_other_bytes_are_one_image(tmp_path: Path, ray_session: None) -> None:
    picture, jpeg = photograph(3), encoded(photograph(4))
    pairs = [
        Pair(lossless(picture, 1), "a", "http://a.test/1.png"),
        Pair(lossless(picture, 9), "a", "http://b.test/1.png"),
        Pair(lossless(picture, 5), "another caption", "http://c.test/1.png"),
        Pair(jpeg, "b", "http://a.test/2.jpg"),
        Pair(commented(jpeg), "b", "http://b.test/2.jpg"),
        Pair(lossless(picture[:, ::-1].copy(), 1), "a", "http://d.test/1.png"),
    ]
    recipe = CurateRecipe.model_validate(
        {"root": str(tmp_path), "source": {"kind": "folder", "path": "unused"}, "dedupe": {"perceptual": None}}
    )
    decisions = decisions_of(dedupe(recipe, build_raw(tmp_path, pairs, 2), {}))
    rows = [decisions[uid_of(pair)] for pair in pairs]
    assert sorted(row["drop_reason"] or "" for row in rows[:2]) == ["", "exact_duplicate"]
    assert sorted(row["drop_reason"] or "" for row in rows[3:5]) == ["", "exact_duplicate"]
    assert [row["drop_reason"] for row in (rows[2], rows[5])] == [None, None]
    assert len({row["duplicate_group"] for row in rows[:3]}) == 1


def test_tables_of_before_there_were_pixel_hashes_still_serve(tmp_path: Path, ray_session: None) -> None:
    pairs = [Pair(encoded(photograph(seed % 2)), "a", f"http://a.test/{seed}") for seed in range(4)]
    raw = build_raw(tmp_path, pairs, 2)
    for shard in load_manifest(raw).shards:
        url = table_url(raw, shard.name)
        write_table(url, read_table(url).drop_columns(["pixel_hash"]))
    recipe = CurateRecipe.model_validate({"root": str(tmp_path), "source": {"kind": "folder", "path": "unused"}})
    decisions = decisions_of(dedupe(recipe, raw, {}))
    assert sorted(row["drop_reason"] or "" for row in decisions.values()) == ["", "", *["exact_duplicate"] * 2]


def test_ingest_hashes_the_pixels_upright_with_their_size() -> None:
    picture = photograph(3)
    recipe = ImageRecipe(resize="none")
    buffer = io.BytesIO()
    turned = Image.fromarray(np.rot90(picture).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by a quarter to the right
    turned.save(buffer, "PNG", exif=exif)
    upright = store_image(lossless(picture, 1), recipe).pixel_hash
    assert store_image(buffer.getvalue(), recipe).pixel_hash == upright
    assert len(upright) == 32
    blank = [store_image(lossless(np.zeros(size, np.uint8), 1), recipe) for size in ((40, 60, 3), (60, 40, 3))]
    assert blank[0].pixel_hash != blank[1].pixel_hash


# ---- the hashes of others


def bits(data: bytes) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(data, np.uint8)).astype(bool)


def imagededup_bits(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """PHash of imagededup 0.3 from its 32 x 32 image: its median excludes the mean coefficient."""
    low = dct(dct(grey.astype(np.float64), axis=0), axis=1)[:8, :8]
    return np.asarray(low >= np.median(low.ravel()[1:])).ravel()


def test_256_bits_tell_copies_from_other_photographs(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("dedup_triples")
    groups = [json.loads(line) for line in (folder / "groups.jsonl").read_text().splitlines()]
    kinds = ("original", "recompressed", "squashed224")
    hashes = np.array([[bits(phash256(decode_rgb((folder / group[kind]).read_bytes()))) for kind in kinds]
                       for group in groups])  # fmt: skip
    copies = (hashes[:, :1] != hashes[:, 1:]).sum(axis=2)
    others = (hashes[:, None, 0] != hashes[None, :, 0]).sum(axis=2)[np.triu_indices(len(groups), 1)]
    assert (len(groups), copies.max() <= 8, others.min() >= 100) == (110, True, True), (copies.max(), others.min())


def test_hashes_are_those_of_imagehash_and_imagededup(shared_data: Callable[[str], Path]) -> None:
    """Equal bits for the same small grey image (imagededup: one bit differs); for whole images the filters differ."""
    far: dict[int, list[int]] = {64: [], 256: []}
    for path in sorted(shared_data("dedup_triples").rglob("*.jpg")):
        pixels = decode_rgb(path.read_bytes())
        image = Image.fromarray(pixels)
        for side, low, cosines in ((32, 8, COSINES), (64, 16, COSINES_256)):
            small = image.convert("L").resize((side, side), Image.Resampling.LANCZOS)
            ours = bits(bits_of_grey(np.asarray(small), cosines))
            assert (ours == imagehash.phash(small, hash_size=low).hash.ravel()).all(), path
            if side == 32:
                assert (ours != imagededup_bits(np.asarray(small))).sum() <= 1, path
        own = {64: hash_pixels(pixels).phash.to_bytes(8, "big"), 256: phash256(pixels)}
        for width, low in ((64, 8), (256, 16)):
            far[width].append(int((bits(own[width]) != imagehash.phash(image, hash_size=low).hash.ravel()).sum()))
    assert len(far[64]) == 330
    assert (np.mean(far[64]) <= 1, max(far[64]) <= 4) == (True, True), far[64]
    assert (np.mean(far[256]) <= 2, max(far[256]) <= 8) == (True, True), far[256]


# ---- dedupe by them


@pytest.mark.parametrize(
    "perceptual", [{"bits": 256, "max_distance": 11}, {"max_distance": 8, "max_distance_256": 24}, {"bits": 64}]
)
def test_copies_are_found_by_256_bits_whatever_the_cut(
    tmp_path: Path, ray_session: None, perceptual: dict[str, Any]
) -> None:
    pairs, limits = pictures(12), DEFAULT_LIMITS
    pairs += [Pair(encoded(detailed(seed), quality=70), f"copy {seed}", f"http://b.test/{seed}") for seed in range(6)]
    old_pairs = [Pair(encoded(detailed(7), quality=80), "old", "http://old.test/7")]
    results = []
    for root in (tmp_path / "whole", tmp_path / "cut"):
        needs = "bits" not in perceptual or perceptual["bits"] == 256
        recipe = recipe_for(root, perceptual=perceptual, against=[str(root / "old/raw/main")]) if needs else (
            CurateRecipe.model_validate(
                {"root": str(root), "source": {"kind": "folder", "path": "unused"}, "signals": [{"kind": "phash256"}],
                 "dedupe": {"perceptual": perceptual, "against": [str(root / "old/raw/main")]}}
            )
        )  # fmt: skip
        old = build_raw(root / "old", old_pairs)
        raw = build_raw(root, pairs, 100 if root.name == "whole" else 3)
        if needs:
            with pytest.raises(InputError, match="has no signal phash256"):
                dedupe(recipe, raw, hashed(recipe, raw))
            hashed(recipe.model_copy(update={"root": str(root / "old")}), old)
        results.append(decisions_of(dedupe(recipe, raw, hashed(recipe, raw), limits=limits)))
        limits = DedupeLimits(BatchLimits(max_rows=4), rows_per_part=5, hashes_per_partition=4)
    assert results[0] == results[1]
    reasons = [results[0][uid_of(pair)]["drop_reason"] for pair in pairs]
    assert reasons.count("perceptual_duplicate") == 7
    assert reasons[7] == "perceptual_duplicate"
    assert results[0][uid_of(pairs[7])]["duplicate_of"] == uid_of(old_pairs[0])


def test_256_bits_without_a_signal_are_refused_at_once(tmp_path: Path) -> None:
    for wrong, match in (
        ({"hashes": None, "perceptual": {"bits": 256}}, "hashes"),
        ({"perceptual": {"max_distance": 4}}, "hashes"),
        ({"perceptual": {"bits": 256, "max_distance_256": 20}}, "max_distance alone"),
        ({"hashes": "other", "perceptual": {"bits": 256}}, "not a phash256 signal"),
    ):
        with pytest.raises(RecipeError, match=match):
            recipe_for(tmp_path, **wrong)


# ---- any number of workers

RUN = """
import sys, json, hashlib
from pathlib import Path
import ray
from tests.support.hash_builder import run_everything
ray.init("local", num_cpus=int(sys.argv[1]), include_dashboard=False, logging_level="ERROR", log_to_driver=False)
print(run_everything(Path(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.slow
def test_neither_workers_nor_shards_change_anything(tmp_path: Path) -> None:
    digests = []
    for num_workers, samples_per_shard in ((1, 50), (2, 4), (8, 7)):
        out = str(tmp_path / str(num_workers))
        command = [sys.executable, "-c", RUN, str(num_workers), out, str(samples_per_shard)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        digests.append(done.stdout.split()[-1])
    assert len(set(digests)) == 1
