"""Load a model folder for evaluation: the transformers model, its tokenizer and its image preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    CLIPModel,
    LlavaForConditionalGeneration,
    Siglip2Model,
    SiglipModel,
    VisionTextDualEncoderModel,
)

from pairloom.schemas.errors import InputError, SampleError
from pairloom.schemas.images.decode import Pixels, decode_rgb
from pairloom.schemas.images.naflex import AnyPreprocess, NaflexPreprocess, load_any_preprocess
from pairloom.schemas.images.preprocess import load_preprocess
from pairloom.schemas.storage import storage
from pairloom.trainers.models.hf_folder import local_folder, model_type_of
from pairloom.trainers.models.towers import max_text_tokens, pads_to_end, pool_texts

IMAGES_PER_BATCH = 64
TEXTS_PER_BATCH = 256
NUM_DECODE_THREADS = 4  # Pillow and simplejpeg release the GIL
DUAL_CLASSES = {
    "siglip": SiglipModel,
    "siglip2": Siglip2Model,
    "clip": CLIPModel,
    "vision-text-dual-encoder": VisionTextDualEncoderModel,
}


@dataclass(frozen=True)
class ImageSource:
    """The location of one image: a file, or a byte range of a tar."""

    url: str
    offset: int | None = None  # None: the whole file
    num_bytes: int = 0

    def read(self) -> bytes:
        """Read the encoded image. Raises InputError when the file is missing."""
        try:
            if self.offset is None:
                return storage.read_bytes(self.url)
            return storage.read_range(self.url, self.offset, self.num_bytes)
        except FileNotFoundError as error:
            raise InputError(f"{self.url}: no such image") from error


def load_pixels(source: ImageSource, preprocess: AnyPreprocess) -> Pixels:
    """Decode and resize one image.

    Raises InputError when it cannot be decoded: skipping images would change the evaluation.
    """
    try:
        return preprocess.resize(decode_rgb(source.read()))
    except SampleError as error:
        raise InputError(f"{source.url}: {error}") from error


def image_batches(sources: Sequence[ImageSource], preprocess: AnyPreprocess) -> Iterator[dict[str, torch.Tensor]]:
    """Model inputs (`pixel_values`, and NaFlex's mask and shapes) in batches of IMAGES_PER_BATCH, in order."""
    with ThreadPoolExecutor(NUM_DECODE_THREADS) as pool:
        for start in range(0, len(sources), IMAGES_PER_BATCH):
            batch = sources[start : start + IMAGES_PER_BATCH]
            pixels = list(pool.map(lambda source: load_pixels(source, preprocess), batch))
            yield {name: torch.from_numpy(array) for name, array in preprocess.model_inputs(pixels).items()}


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class DualEncoder:
    """A contrastive model that computes L2-normalised features of images and texts.

    `num_patches` overrides the folder's number of patches (NaFlex only). Raises InputError when the folder holds
    another kind of model, or `num_patches` is given for a model of one image size.
    """

    def __init__(self, folder: str, num_patches: int | None = None) -> None:
        model_type = model_type_of(folder)
        if model_type not in DUAL_CLASSES:
            raise InputError(f"{folder}: {model_type} has no image and text features; use {', '.join(DUAL_CLASSES)}")
        local = local_folder(folder)
        self.device = pick_device()
        model: Any = DUAL_CLASSES[model_type].from_pretrained(local, dtype=torch.float32)
        if isinstance(model, VisionTextDualEncoderModel):
            pool_texts(model)
        self.model = model.eval().to(self.device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(local)
        self.preprocess = load_any_preprocess(local)
        if num_patches is not None:
            if not isinstance(self.preprocess, NaflexPreprocess):
                raise InputError(f"{folder}: takes images of one size; num_patches is for NaFlex")
            self.preprocess = replace(self.preprocess, num_patches=num_patches)
        self._pads_to_end = pads_to_end(model.config)

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token ids [N, L] as in training. SigLIP pools the last position, so its texts are padded to one length."""
        length = min(max_text_tokens(self.model.config), int(self.tokenizer.model_max_length))
        padding = "max_length" if self._pads_to_end else True
        encoded = self.tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
        names = ["input_ids"] if self._pads_to_end else ["input_ids", "attention_mask"]
        return {name: encoded[name].to(self.device) for name in names}

    def on_device(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move model inputs to the model's device."""
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    @torch.inference_mode()
    def image_features(self, sources: Sequence[ImageSource]) -> torch.Tensor:
        """L2-normalised fp32 features [N, D] of images, on the CPU."""
        batches = [
            self.model.get_image_features(**self.on_device(inputs)).pooler_output
            for inputs in image_batches(sources, self.preprocess)
        ]
        return functional.normalize(torch.cat(batches).float(), dim=-1).cpu()

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        """L2-normalised fp32 features [N, D] of texts, on the CPU."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # to reduce padding
        batches = [
            self.model.get_text_features(**self.tokenize([texts[index] for index in part])).pooler_output
            for part in (order[start : start + TEXTS_PER_BATCH] for start in range(0, len(texts), TEXTS_PER_BATCH))
        ]
        sorted_ND = functional.normalize(torch.cat(batches).float(), dim=-1).cpu()
        return torch.empty_like(sorted_ND).index_copy_(0, torch.tensor(order), sorted_ND)


class LlavaReader:
    """A LLaVA model with its tokenizer and image preprocessing.

    Raises InputError when the folder holds another kind of model or no chat template.
    """

    def __init__(self, folder: str) -> None:
        if model_type_of(folder) != "llava":
            raise InputError(f"{folder}: --kind vqa needs a LLaVA model; this is {model_type_of(folder)}")
        local = local_folder(folder)
        self.device = pick_device()
        model = LlavaForConditionalGeneration.from_pretrained(local, dtype=torch.float32)
        self.model: Any = model.eval().to(self.device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(local)
        self.preprocess = load_preprocess(local)
        if not self.tokenizer.chat_template:
            raise InputError(f"{folder}: no chat template; save chat_template.jinja beside the tokenizer")
