"""`pairloom.open`: rows, samples, loaders and history of a data set. Only public names are used."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import pairloom
from tests.api.conftest import NUM_IMAGES

NUM_KEPT = sum(1 + index % 8 + 1 >= 4 for index in range(NUM_IMAGES))
NUM_STRICT = sum(1 + index % 8 + 1 >= 7 for index in range(NUM_IMAGES))


def test_root_opens_its_last_result_and_names_the_others(root: Path) -> None:
    curated = pairloom.open(str(root))
    assert (curated.step, len(curated)) == ("curated", NUM_KEPT)
    assert pairloom.open(str(root), "raw/main").step == "raw"
    assert len(pairloom.open(str(root / "selections" / "strict"))) == NUM_STRICT
    assert str(NUM_KEPT) in repr(curated)
    with pytest.raises(pairloom.InputError, match="no complete data set here"):
        pairloom.open(str(root / "nothing"))
    with pytest.raises(pairloom.InputError, match="is a signals folder"):
        pairloom.open(str(root / "signals" / "quality"))


def test_every_row_has_its_history_in_one_view(root: Path) -> None:
    selection = pairloom.open(str(root), "selections/default")
    counts = dict(selection.sql("SELECT drop_reason, count(*) FROM samples GROUP BY 1").fetchall())
    assert counts == {None: NUM_KEPT, "few_words": NUM_IMAGES - NUM_KEPT, "not_an_image": 1}
    frame = selection.to_pandas(["caption", "captions_num_words", "quality_sharpness", "kept"], where="kept")
    assert (len(frame), frame["kept"].all(), frame["quality_sharpness"].notna().all()) == (NUM_KEPT, True, True)
    assert [len(caption.split()) for caption in frame["caption"]] == frame["captions_num_words"].tolist()
    table = selection.to_arrow()
    assert table.num_rows == NUM_IMAGES + 1
    assert table["uid"].to_pylist() == pairloom.open(str(root), "raw/main").to_arrow(["uid"])["uid"].to_pylist()
    assert set(table.column_names) == set(selection.columns)
    steps = selection.sql("SELECT count(*) FROM signals_quality JOIN dedupe USING (shard, row)").fetchall()
    assert steps == [(NUM_IMAGES + 1,)]


def test_a_query_that_is_wrong_is_one_line(root: Path) -> None:
    with pytest.raises(pairloom.InputError, match="num_wrods") as caught:
        pairloom.open(str(root)).sql("SELECT num_wrods FROM samples")
    assert "\n" not in str(caught.value)


def test_samples_carry_their_images_in_order(root: Path) -> None:
    curated = pairloom.open(str(root))
    samples = list(curated.samples())
    assert [sample.uid for sample in samples] == curated.to_arrow(["uid"])["uid"].to_pylist()
    for sample in samples:
        assert Image.open(io.BytesIO(sample.image)).size == (sample.row["width"], sample.row["height"])
        assert sample.extension == "png"
    sharp = curated.sql("SELECT median(quality_sharpness) FROM samples").fetchall()[0][0]
    chosen = list(curated.samples(f"quality_sharpness > {sharp}", columns=["quality_sharpness"]))
    assert 0 < len(chosen) < len(samples)
    assert all(sample.row["quality_sharpness"] > sharp for sample in chosen)
    selected = {sample.uid: sample.image for sample in pairloom.open(str(root), "selections/default").samples()}
    assert selected == {sample.uid: sample.image for sample in samples}


def test_a_webdataset_pipeline_has_the_same_samples(root: Path) -> None:
    curated = pairloom.open(str(root))
    pairs = list(curated.webdataset().decode("pil").to_tuple("png", "txt", "json"))
    assert [text for _, text, _ in pairs] == [sample.caption for sample in curated.samples()]
    assert pairs[0][0].size == (80, 64)
    assert pairs[0][2]["captions_num_words"] == len(pairs[0][1].split())


def test_torch_batches_resume_and_do_not_depend_on_ranks(root: Path) -> None:
    curated = pairloom.open(str(root))

    def uids(num: int, **settings: int) -> list[list[str]]:
        batches = iter(curated.torch(image_size=32, seed=5, **settings))
        return [next(batches)["uids"] for _ in range(num)]

    whole = uids(6, batch_size=8)
    assert uids(3, batch_size=8, samples_seen=24) == whole[3:]
    halves = [uids(6, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    assert [sorted(left + right) for left, right in zip(*halves, strict=True)] == [sorted(step) for step in whole]
    four_epochs = Counter(uid for step in uids(4 * NUM_KEPT // 8, batch_size=8) for uid in step)
    assert four_epochs == dict.fromkeys(curated.to_arrow(["uid"])["uid"].to_pylist(), 4)
    batch = next(iter(curated.torch(batch_size=8, image_size=32)))
    assert (batch["pixels"].shape, batch["samples_seen"]) == ((8, 32, 32, 3), 8)
    with pytest.raises(pairloom.InputError, match="no multiple of batch_size"):
        curated.torch(batch_size=8, samples_seen=5)


def test_differences_and_explanations(root: Path) -> None:
    default, strict = (pairloom.open(str(root), f"selections/{name}") for name in ("default", "strict"))
    found = default.diff(strict)
    assert (found.num_both, found.only_first.num_rows, found.only_second.num_rows) == (
        NUM_STRICT,
        NUM_KEPT - NUM_STRICT,
        0,
    )
    assert set(found.only_first["drop_reason"].to_pylist()) == {"few_words"}
    uid = found.only_first["uid"][0].as_py()
    assert "dropped by selections/strict: few_words" in default.explain(uid)["verdict"]
    with pytest.raises(pairloom.InputError, match="no sample has the uid"):
        default.explain("0" * 32)
