"""Image-to-text and text-to-image retrieval, with one or more captions per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pairloom.schemas.data_set.manifest import load_manifest, resolve, table_url, tar_url
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.data_set.tombstones import recalled_uids
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage
from pairloom.trainers.evaluate.load import DualEncoder, ImageSource
from pairloom.trainers.evaluate.samples import Sample, read_samples

DEPTHS = (1, 5, 10)
CAPTION_FIELDS = ("captions", "txt", "caption", "text")
ROWS_PER_BLOCK = 1024  # rows of the score matrix in memory at a time


@dataclass(frozen=True)
class CaptionedImages:
    """N images and M captions; each caption belongs to one image."""

    images: Sequence[ImageSource]
    captions: Sequence[str]
    owners: torch.Tensor  # [M] int64, index of the caption's image


def retrieval(encoder: DualEncoder, data: str) -> dict[str, Any]:
    """Recall at 1, 5 and 10 (0..1), mean rank and median rank in both directions. Raises InputError."""
    pairs = load_captioned_images(data)
    images_ND = encoder.image_features(pairs.images)
    texts_MD = encoder.text_features(pairs.captions)
    return {
        "num_images": len(pairs.images),
        "num_captions": len(pairs.captions),
        **recalls(images_ND, texts_MD, pairs.owners),
    }


def recalls(images_ND: torch.Tensor, texts_MD: torch.Tensor, owners_M: torch.Tensor) -> dict[str, float]:
    """Recall and ranks (1 is best) in both directions, by the rules of open_clip and big_vision.

    Image-to-text recall at k counts an image if any of its captions is among the k best. Ties count against the model:
    identical features for all samples give a recall of 0, whereas sorting would rank them in file order.
    """
    to_text = _ranks_of_texts(images_ND, texts_MD, owners_M)
    to_image = _ranks_of_images(images_ND, texts_MD, owners_M)
    result = {}
    for name, ranks in (("image_to_text", to_text), ("text_to_image", to_image)):
        for depth in DEPTHS:
            result[f"{name}_recall_at_{depth}"] = float((ranks < depth).double().mean())
        result[f"{name}_mean_rank"] = float(ranks.double().mean()) + 1
        result[f"{name}_median_rank"] = float(ranks.double().quantile(0.5).floor()) + 1
    return result


def _ranks_of_texts(images_ND: torch.Tensor, texts_MD: torch.Tensor, owners_M: torch.Tensor) -> torch.Tensor:
    """Per image [N], the number of other images' captions that score at least as high as its own best caption."""
    ranks = []
    for start in range(0, len(images_ND), ROWS_PER_BLOCK):
        scores = images_ND[start : start + ROWS_PER_BLOCK] @ texts_MD.T
        is_own = owners_M[None] == torch.arange(start, start + len(scores))[:, None]
        best = scores.masked_fill(~is_own, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(((scores >= best) & ~is_own).sum(dim=1))
    return torch.cat(ranks)


def _ranks_of_images(images_ND: torch.Tensor, texts_MD: torch.Tensor, owners_M: torch.Tensor) -> torch.Tensor:
    """Per caption [M], the number of other images that score at least as high as its own image."""
    ranks = []
    for start in range(0, len(texts_MD), ROWS_PER_BLOCK):
        scores = texts_MD[start : start + ROWS_PER_BLOCK] @ images_ND.T
        owners = owners_M[start : start + ROWS_PER_BLOCK]
        own = scores.gather(1, owners[:, None])
        ranks.append((scores >= own).sum(dim=1) - 1)
    return torch.cat(ranks)


def load_captioned_images(data: str) -> CaptionedImages:
    """Load a jsonl of {image, captions | caption[, split]}, a folder with pairs.jsonl, a curated data set, WebDataset
    tars or parquet files.

    Of a table with splits only `test` is loaded. Raises InputError when `data` is none of these, is empty, or an image
    has no captions.
    """
    table = storage.join(data, "pairs.jsonl")
    if not data.endswith(".jsonl") and storage.exists(table):
        data = table
    try:
        folder = None if data.endswith(".jsonl") else resolve(data)
    except InputError as error:
        folder, not_curated = None, error
    if folder is not None:
        return _from_curated(folder)
    samples = read_samples(data)
    if not samples:
        raise InputError(f"{not_curated}, nor pairs.jsonl, tars or parquet files")
    return _from_samples(samples)


def _from_samples(samples: Sequence[Sample]) -> CaptionedImages:
    captions: list[str] = []
    owners: list[int] = []
    for index, sample in enumerate(samples):
        own = _captions_of(sample)
        owners += [index] * len(own)
        captions += own
    return CaptionedImages([sample.image for sample in samples], captions, torch.tensor(owners))


def _captions_of(sample: Sample) -> list[str]:
    """Captions from `captions` or `caption`, or in a tar one per line of `.txt` (the format of CLIP benchmark)."""
    own = next((sample.fields[name] for name in CAPTION_FIELDS if sample.fields.get(name)), None)
    if isinstance(own, str):
        own = [line for line in own.splitlines() if line.strip()] if "txt" in sample.fields else [own]
    if not isinstance(own, list) or not own or not all(isinstance(caption, str) and caption for caption in own):
        raise InputError(f"{sample.image.url}: an image needs captions: [text, ...] or caption: text")
    return own


def _from_curated(folder: str) -> CaptionedImages:
    """All samples of a curated data set; samples with identical image bytes become one image with several captions."""
    images: list[ImageSource] = []
    captions: list[str] = []
    owners: list[int] = []
    index_of: dict[str, int] = {}
    recalled = recalled_uids(folder)
    for shard in load_manifest(folder).shards:
        table = read_table(table_url(folder, shard.name), ["uid", "caption", "image_sha256", "offset", "num_bytes"])
        for row in table.to_pylist():
            if row["uid"] in recalled:
                continue
            identity = row["image_sha256"] or row["uid"]
            if identity not in index_of:
                index_of[identity] = len(images)
                images.append(ImageSource(tar_url(folder, shard), row["offset"], row["num_bytes"]))
            captions.append(row["caption"])
            owners.append(index_of[identity])
    if not images:
        raise InputError(f"{folder}: holds no samples")
    return CaptionedImages(images, captions, torch.tensor(owners))
