"""receipt.json: differences between an exported folder, as plain transformers loads it, and the trained model.

The reference model does not use `from_pretrained`: it is built from the config, and the checkpoint's tensors are loaded
strictly by name. So a weight that `from_pretrained` renames, ties or initialises at random shows as a difference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer
from transformers.core_model_loading import revert_weight_conversion

from pairloom.schemas.conversation import IMAGE_MARK, Turn
from pairloom.schemas.errors import InputError
from pairloom.schemas.images.decode import Pixels
from pairloom.schemas.images.naflex import AnyPreprocess, load_any_preprocess
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of
from pairloom.trainers.evaluate.load import DUAL_CLASSES, DualEncoder, LlavaReader
from pairloom.trainers.models.hf_folder import local_folder, read_config
from pairloom.trainers.models.towers import pool_texts
from pairloom.trainers.text.chat import Renderer, num_image_tokens

MAX_DIFFERENCE = 1e-4  # absolute, of fp32 outputs; identical weights stay below it on every machine
PROBE_TEXTS = ("a dog on the beach", "Two children play football, 3 others watch.", "naïve café – 東京", "x")
_PROBE_SIZES = ((64, 64), (53, 97), (240, 160), (300, 451))  # px, height and width


def make_receipt(folder: str, checkpoint_model: str, run_tokenizer: str) -> dict[str, Any]:
    """Measure an exported folder.

    Raises InputError when an output differs from the trained model's by more than MAX_DIFFERENCE.
    """
    config = read_config(folder)
    reference, num_tensors = load_strictly(checkpoint_model)
    compare, is_llava = _comparison_of(config["model_type"]), config["model_type"] == "llava"
    differences = compare(folder, reference)
    largest = max(differences.values())
    if not largest <= MAX_DIFFERENCE:
        raise InputError(f"{folder}: outputs differ from the trained model by {largest:.3g}; do not use this export")
    prompts = {"num_prompts_that_differ": prompt_mismatches(folder)} if is_llava else {}
    return {
        "model_class": config["architectures"][0],
        "num_parameters": sum(parameter.numel() for parameter in reference.parameters()),
        "num_tensors": num_tensors,
        "largest_output_difference": largest,
        "output_differences": differences,
        "largest_pixel_difference": pixel_difference(folder),
        "num_texts_that_differ": token_mismatches(folder, run_tokenizer),
        **prompts,
        "sha256": {storage.name_of(url): sha256_of(url) for url in _weight_files(folder)},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _comparison_of(model_type: str) -> Callable[[str, Any], dict[str, float]]:
    if model_type == "llava":
        return _compare_llava
    return _compare_dual if model_type in DUAL_CLASSES else _compare_vision


def _weight_files(folder: str) -> list[str]:
    return [url for url in storage.list_files(folder) if url.endswith(".safetensors")]


def load_strictly(folder: str) -> tuple[Any, int]:
    """Build a folder's model from its config and load its tensors by name; returns it and the number of tensors.

    Raises InputError when a tensor is missing, unexpected or of another shape.
    """
    local = local_folder(folder)
    config = AutoConfig.from_pretrained(local)
    model_class = getattr(transformers, read_config(folder)["architectures"][0])
    model = model_class(config=config).eval()
    if config.model_type == "vision-text-dual-encoder":
        pool_texts(model)
    state: dict[str, torch.Tensor] = {}
    for file in _weight_files(local):
        state |= load_file(file)
    module_names = _module_names(model)
    named = {module_names.get(name, name): tensor for name, tensor in state.items()}
    tied = set(model.all_tied_weights_keys) if getattr(config, "tie_word_embeddings", False) else set()
    missing, unexpected = model.load_state_dict(named, strict=False)
    if set(missing) - tied or unexpected:
        wrong = sorted({*missing, *unexpected} - tied)
        raise InputError(f"{folder}: tensors do not fit {model_class.__name__}: {', '.join(wrong[:5])}")
    model.tie_weights()
    return model, len(named)


def _module_names(model: Any) -> dict[str, str]:
    """Map names in files to names in the module; transformers saves some families under the names of old releases.

    The map comes from the code that saves, not the code that loads, so that loading errors remain visible.
    """
    names = list(model.state_dict())
    saved = revert_weight_conversion(model, {name: torch.tensor(index) for index, name in enumerate(names)})
    return {saved_name: names[int(index)] for saved_name, index in saved.items()}


def probe_images() -> list[Pixels]:
    """Four RGB images of several sizes, identical on every machine: smooth gradients with noise."""
    draw = np.random.default_rng(0)
    images = []
    for height, width in _PROBE_SIZES:
        rows, columns = np.mgrid[0:height, 0:width]
        smooth = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) * 255 / (height + width)], -1)
        images.append(np.clip(smooth + draw.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8))
    return images


def probe_inputs(preprocess: AnyPreprocess) -> dict[str, torch.Tensor]:
    """Model inputs for the four probe images."""
    inputs = preprocess.model_inputs([preprocess.resize(image) for image in probe_images()])
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


@torch.inference_mode()
def _compare_dual(folder: str, reference: Any) -> dict[str, float]:
    encoder = DualEncoder(folder)
    reference = reference.to(encoder.device)
    images, texts = encoder.on_device(probe_inputs(encoder.preprocess)), encoder.tokenize(PROBE_TEXTS)
    outputs = [model(**images, **texts) for model in (encoder.model, reference)]
    names = {"image_features": "image_embeds", "text_features": "text_embeds", "logits": "logits_per_image"}
    return {name: _difference(*(getattr(output, field) for output in outputs)) for name, field in names.items()}


@torch.inference_mode()
def _compare_vision(folder: str, reference: Any) -> dict[str, float]:
    """Compare vision-only models, which tasks of plug-ins may export."""
    model = type(reference).from_pretrained(local_folder(folder), dtype=torch.float32).eval()
    images = probe_inputs(load_any_preprocess(folder))
    outputs = [one(**images) for one in (model, reference)]
    return {"image_states": _difference(*(output.last_hidden_state for output in outputs))}


@torch.inference_mode()
def _compare_llava(folder: str, reference: Any) -> dict[str, float]:
    reader = LlavaReader(folder)
    reference = reference.to(reader.device)
    pixels = probe_inputs(reader.preprocess)["pixel_values"]
    renderer = _renderer(reader)
    differences = []
    for text, values in zip(PROBE_TEXTS, pixels, strict=True):
        prompt = renderer.prompt([Turn("user", f"{IMAGE_MARK}\n{text}")])
        inputs = {"input_ids": torch.tensor([prompt]), "pixel_values": values[None]}
        inputs = {name: tensor.to(reader.device) for name, tensor in inputs.items()}
        differences.append(_difference(*(model(**inputs).logits for model in (reader.model, reference))))
    return {"logits": max(differences)}


def _difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def _renderer(reader: LlavaReader) -> Renderer:
    config = reader.model.config
    num_tokens = num_image_tokens(config.vision_config, config.vision_feature_select_strategy)
    return Renderer(reader.tokenizer, "tokenizer", num_tokens, max_length=1 << 20)


def pixel_difference(folder: str) -> float:
    """Largest difference between pairloom's model inputs and those of the folder's image processor (Pillow backend).

    Raises InputError when transformers has no such image processor.
    """
    processor = _image_processor(folder)
    ours = probe_inputs(load_any_preprocess(folder))
    theirs = [processor(images=image, return_tensors="pt") for image in probe_images()]
    return max(_difference(torch.cat([one[name] for one in theirs]), values) for name, values in ours.items())


def _image_processor(folder: str) -> Any:
    settings = json.loads(storage.read_text(storage.join(folder, "preprocessor_config.json")))
    name = str(settings["image_processor_type"]).removesuffix("Fast").removesuffix("Pil")
    processor_class = getattr(transformers, f"{name}Pil", None)
    if processor_class is None:
        raise InputError(f"{folder}: transformers has no image processor {name}")
    return processor_class.from_pretrained(local_folder(folder))


def token_mismatches(folder: str, run_tokenizer: str) -> int:
    """Number of probe texts whose ids differ between the folder's tokenizer and the run's; 0 without a tokenizer."""
    if not storage.exists(storage.join(folder, "tokenizer_config.json")):
        return 0
    if not storage.exists(storage.join(run_tokenizer, "tokenizer_config.json")):
        run_tokenizer = folder
    tokenizers = [AutoTokenizer.from_pretrained(local_folder(url)) for url in (folder, run_tokenizer)]
    theirs, ours = (
        [tokenizer.encode(text, add_special_tokens=False) for text in PROBE_TEXTS] for tokenizer in tokenizers
    )
    return sum(left != right for left, right in zip(theirs, ours, strict=True))


def prompt_mismatches(folder: str) -> int:
    """Number of probe questions whose ids by LlavaProcessor differ from those in training."""
    local = local_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(local)
    processor = _llava_processor(local, tokenizer)
    num_tokens = num_image_tokens(
        AutoConfig.from_pretrained(local).vision_config, processor.vision_feature_select_strategy
    )
    renderer = Renderer(tokenizer, "tokenizer", num_tokens, max_length=1 << 20)
    return sum(
        _processor_ids(processor, text) != renderer.prompt([Turn("user", f"{IMAGE_MARK}\n{text}")])
        for text in PROBE_TEXTS
    )


def _llava_processor(local: str, tokenizer: Any) -> Any:
    settings: Mapping[str, Any] = json.loads(storage.read_text(storage.join(local, "processor_config.json")))
    names: Sequence[str] = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    kept = {name: settings[name] for name in names}
    return transformers.LlavaProcessor(
        image_processor=_image_processor(local), tokenizer=tokenizer, chat_template=tokenizer.chat_template, **kept
    )


def _processor_ids(processor: Any, question: str) -> list[int]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ids: list[int] = processor(images=probe_images()[0], text=text, return_tensors="pt")["input_ids"][0].tolist()
    return ids
