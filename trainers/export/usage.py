"""Example code for model cards: it loads an export without pairloom. A test runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pairloom.trainers.models.towers import FIRST, LAST

_INPUTS = """\
folder = "."  # this folder
image = Image.new("RGB", (640, 480))  # or Image.open(...)
texts = ["a photo of a dog", "a photo of a cat"]
"""

_HF = """\
import torch
from PIL import Image
from transformers import {model}, AutoImageProcessor, AutoTokenizer

{inputs}
model = {model}.from_pretrained(folder).eval()
processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
tokens = tokenizer(texts, padding={padding}, truncation=True, return_tensors="pt")
with torch.no_grad():
    image_features = model.get_image_features(**processor(images=image, return_tensors="pt")).pooler_output
    {text_features}
similarity = torch.nn.functional.cosine_similarity(image_features, text_features)
"""

_VISION = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

folder = "."  # this folder
image = Image.new("RGB", (640, 480))  # or Image.open(...)
model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
with torch.no_grad():
    states = model(**processor(images=image, return_tensors="pt")).last_hidden_state
"""

_LLAVA = """\
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

folder = "."  # this folder
image = Image.new("RGB", (640, 480))  # or Image.open(...)
model, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
prompt = processor.apply_chat_template(question, add_generation_prompt=True)
inputs = processor(images=image, text=prompt, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=50)[0, inputs["input_ids"].shape[1] :]
text = processor.tokenizer.decode(answer, skip_special_tokens=True)
"""

_OPEN_CLIP = """\
import open_clip
import torch
from PIL import Image

{inputs}
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{{folder}}")
with torch.no_grad():
    image_features = model.eval().encode_image(preprocess(image)[None], normalize=True)
    text_features = model.encode_text(tokenizer(texts), normalize=True)
similarity = image_features @ text_features.T
"""

_ONNX = """\
import onnxruntime
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

{inputs}
processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
vision, text = (onnxruntime.InferenceSession(f"{{folder}}/{{name}}.onnx") for name in ("vision", "text"))
pixels = processor(images=image, return_tensors="np")["pixel_values"]
tokens = tokenizer(texts, padding={padding}, truncation=True, return_tensors="np")
[image_features] = vision.run(None, {{"pixel_values": pixels}})  # L2-normalised, as the text features
[text_features] = text.run(None, {{one.name: tokens[one.name] for one in text.get_inputs()}})
similarity = image_features @ text_features.T
"""

_PLACES = {
    LAST: "(tokens.attention_mask * torch.arange(tokens.input_ids.shape[1])).argmax(1)  # the last token of each text",
    FIRST: "0  # the first token",
}
_POOLED = """\
states = model.text_model(**tokens).last_hidden_state  # this text tower has no pooler
    place = {place}
    text_features = model.text_projection(states[torch.arange(len(texts)), place])"""


def usage_of(form: str, config: Mapping[str, Any]) -> str:
    """Markdown code block for an export of `form` (hf, open-clip, onnx); `config` is the model's config.json."""
    if config["model_type"] == "llava":
        code = _LLAVA
    elif "text_config" not in config:
        code = _VISION
    elif form == "open-clip":
        code = _OPEN_CLIP.format(inputs=_INPUTS)
    else:
        code = (_HF if form == "hf" else _ONNX).format(
            inputs=_INPUTS,
            padding='"max_length"' if _pads_to_end(config) else "True",
            model="VisionTextDualEncoderModel" if _is_dual(config) else "AutoModel",
            text_features=_text_features(config),
        )
    return f"```python\n{code}```"


def _is_dual(config: Mapping[str, Any]) -> bool:
    return bool(config["model_type"] == "vision-text-dual-encoder")


def _pads_to_end(config: Mapping[str, Any]) -> bool:
    return config["model_type"] in ("siglip", "siglip2")


def _text_features(config: Mapping[str, Any]) -> str:
    if "text_pooling" in config:
        return _POOLED.format(place=_PLACES[config["text_pooling"]])
    names = "input_ids=tokens.input_ids"
    if not _pads_to_end(config):
        names += ", attention_mask=tokens.attention_mask"
    return f"text_features = model.get_text_features({names}).pooler_output"
