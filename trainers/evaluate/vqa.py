"""Visual question answering: exact match of a LLaVA's greedy answers after normalisation."""

from __future__ import annotations

import hashlib
import re
import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pairloom.schemas.conversation import IMAGE_MARK, Turn, load_conversations
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage
from pairloom.trainers.evaluate.load import ImageSource, LlavaReader, image_batches
from pairloom.trainers.evaluate.recipes import ImageMode as ImageMode
from pairloom.trainers.evaluate.records import file_beside, read_jsonl
from pairloom.trainers.text.chat import Renderer, num_image_tokens

MAX_NEW_TOKENS = 16
QUESTIONS_PER_BATCH = 32


@dataclass(frozen=True)
class Question:
    """One question about one image; each of `answers` is correct."""

    image: str  # URL
    text: str
    answers: tuple[str, ...]
    kind: str | None = None


def vqa(reader: LlavaReader, data: str, image_mode: ImageMode = "real") -> dict[str, Any]:
    """Exact-match accuracy (0..1), overall and per kind of question.

    `image_mode` none removes the image and wrong replaces it by another one; both measure how much the model answers
    without seeing the image. Raises InputError.
    """
    questions = load_questions(data)
    answers = answer(reader, questions, image_mode)
    is_right = [matches(said, question.answers) for said, question in zip(answers, questions, strict=True)]
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for question, right in zip(questions, is_right, strict=True):
        if question.kind is not None:
            by_kind[question.kind].append(right)
    return {
        "num_questions": len(questions),
        "image_mode": image_mode,
        "accuracy": sum(is_right) / len(is_right),
        **{f"accuracy_{kind}": sum(rights) / len(rights) for kind, rights in sorted(by_kind.items())},
    }


def answer(reader: LlavaReader, questions: Sequence[Question], image_mode: ImageMode) -> list[str]:
    """Greedy answers of the model, in the order of the questions."""
    shown = wrong_images(questions) if image_mode == "wrong" else {}
    config = reader.model.config
    num_tokens = num_image_tokens(config.vision_config, config.vision_feature_select_strategy)
    renderer = Renderer(reader.tokenizer, "tokenizer", num_tokens, max_length=1 << 20)
    mark = "" if image_mode == "none" else f"{IMAGE_MARK}\n"
    prompts = [renderer.prompt([Turn("user", mark + question.text)]) for question in questions]
    order = sorted(range(len(questions)), key=lambda index: len(prompts[index]))  # to reduce padding
    said = [""] * len(questions)
    for start in range(0, len(order), QUESTIONS_PER_BATCH):
        batch = order[start : start + QUESTIONS_PER_BATCH]
        urls = [] if image_mode == "none" else [shown.get(questions[i].image, questions[i].image) for i in batch]
        texts = _generate(reader, [prompts[index] for index in batch], urls)
        for index, text in zip(batch, texts, strict=True):
            said[index] = text
    return said


@torch.inference_mode()
def _generate(reader: LlavaReader, prompts: Sequence[Sequence[int]], urls: Sequence[str]) -> list[str]:
    """Greedy answers of one batch, padded on the left."""
    length = max(len(prompt) for prompt in prompts)
    pad = int(reader.tokenizer.pad_token_id)
    input_ids = torch.tensor([[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    if urls:
        batches = image_batches([ImageSource(url) for url in urls], reader.preprocess)
        inputs["pixel_values"] = torch.cat([batch["pixel_values"] for batch in batches])
    inputs = {name: tensor.to(reader.device) for name, tensor in inputs.items()}
    generated = reader.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    texts: list[str] = reader.tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True)
    return texts


def wrong_images(questions: Sequence[Question]) -> dict[str, str]:
    """Map every image to a different one: the next image in the order of the URLs' SHA-256, cyclically.

    Raises InputError when there are fewer than two images.
    """
    images = sorted({question.image for question in questions}, key=lambda url: hashlib.sha256(url.encode()).digest())
    if len(images) < 2:
        raise InputError("image mode wrong needs questions about at least two images")
    return dict(zip(images, images[1:] + images[:1], strict=True))


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans({mark: " " for mark in string.punctuation})


def normalise_answer(text: str) -> str:
    """Lower-case the text and remove punctuation, articles and repeated spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def matches(said: str, answers: Sequence[str]) -> bool:
    """True if the normalised answer equals one of the normalised correct answers."""
    return normalise_answer(said) in {normalise_answer(right) for right in answers}


def load_questions(data: str) -> list[Question]:
    """Load a jsonl of {image, question, answer | answers[, kind | answer_type]}, a folder with qa.jsonl, or a file of
    LLaVA conversations.

    Each question of a LLaVA conversation becomes a separate question about the image; its images are in the file's
    folder or in `images/` below it. Raises InputError when a file is missing or malformed.
    """
    if not data.endswith((".jsonl", ".json")):
        data = storage.join(data, "qa.jsonl")
    if data.endswith(".json") or "conversations" in read_jsonl(data, ())[0]:
        return _from_conversations(data)
    return [_question(record, data) for record in read_jsonl(data, ("image", "question"))]


def _question(record: Mapping[str, Any], where: str) -> Question:
    answers = record.get("answers") or [record.get("answer")]
    if not all(isinstance(text, str | int | float) for text in answers):
        raise InputError(f"{where}: question {record['question']!r} needs answer: text or answers: [text, ...]")
    kind = record.get("kind") or record.get("answer_type")
    url = file_beside(where, record["image"])
    return Question(url, record["question"], tuple(str(text) for text in answers), kind)


def _from_conversations(path: str) -> list[Question]:
    base = path.rpartition("/")[0] or "."
    questions = []
    for conversation in load_conversations(path):
        if conversation.image is None:
            continue
        url = storage.join(base, conversation.image)
        if not storage.exists(url):
            url = storage.join(base, "images", conversation.image)
        for asked, said in zip(conversation.turns[::2], conversation.turns[1::2], strict=True):
            text = asked.text.replace(IMAGE_MARK, "").strip()
            questions.append(Question(url, text, (said.text,)))
    if not questions:
        raise InputError(f"{path}: no conversation with an image")
    return questions
