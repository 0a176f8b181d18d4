"""Token ids and labels of conversations."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pairloom.schemas.conversation import Conversation, Turn
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import RecipeError, SampleError
from pairloom.trainers.models.llava import load_tokenizer
from pairloom.trainers.text.chat import (
    IGNORE_LABEL,
    JINJA_TEMPLATES,
    Renderer,
    TemplateName,
    caption_conversation,
    make_template,
    num_image_tokens,
    without_image,
)
from tests.support.stories260k import STORIES, write_stories260k
from tests.support.tiny_models import write_tokenizer

GOLDEN = Path(__file__).resolve().parents[2] / "golden/chat.json"
TALK = Conversation(
    "7",
    "dog.jpg",
    (
        Turn("user", "<image>\nwhat is there?"),
        Turn("assistant", "a dog"),
        Turn("user", "what colour?"),
        Turn("assistant", "red"),
    ),
)
NAMES: tuple[TemplateName, ...] = ("plain", "vicuna_v1", "chatml", "tokenizer")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Byte-level BPE with ChatML's tokens and its chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = write_tokenizer(folder)
    made.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    made.chat_template = JINJA_TEMPLATES["chatml"]
    made.save_pretrained(folder)
    return load_tokenizer("llama-test-tiny", str(folder))


def renderer(tokenizer: Any, name: TemplateName, max_length: int = 200) -> Renderer:
    return Renderer(tokenizer, name, 3, max_length)


@pytest.mark.parametrize("name", NAMES)
def test_golden(tokenizer: Any, name: TemplateName) -> None:
    """Every token with a mark where it is trained. After a change on purpose: write what the assertion shows."""
    rendered = renderer(tokenizer, name).render(TALK)
    pairs = zip(tokenizer.convert_ids_to_tokens(rendered.token_ids), rendered.labels, strict=True)
    shown = " ".join(f"[{token}]" if label != IGNORE_LABEL else token for token, label in pairs)
    assert shown == json.loads(GOLDEN.read_text())[name]


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_the_answers(tokenizer: Any, name: TemplateName) -> None:
    rendered = renderer(tokenizer, name).render(TALK)
    assert all(label in (IGNORE_LABEL, token) for token, label in zip(rendered.token_ids, rendered.labels, strict=True))
    answer = tokenizer.decode([label for label in rendered.labels if label != IGNORE_LABEL], skip_special_tokens=True)
    assert answer.split() == ["a", "dog", "red"] if name != "chatml" and name != "tokenizer" else answer == "a dogred"
    assert rendered.token_ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 3
    assert rendered.has_image


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_the_beginning_of_its_sample(tokenizer: Any, name: TemplateName) -> None:
    made = renderer(tokenizer, name)
    first = Conversation("7", "dog.jpg", TALK.turns[:2])
    prompt, whole = made.prompt(TALK.turns[:1]), made.render(first)
    assert whole.token_ids[: len(prompt)] == prompt
    assert whole.labels[len(prompt)] != IGNORE_LABEL
    assert set(whole.labels[: len(prompt)]) == {IGNORE_LABEL}


@pytest.mark.parametrize("name", ["plain", "vicuna_v1", "chatml"])
def test_exported_template_renders_the_same_text(tokenizer: Any, name: TemplateName) -> None:
    turns = TALK.turns[:2] if name == "plain" else TALK.turns  # plain takes one caption
    ours = "".join(segment.text for segment in make_template(name, tokenizer)(turns))
    messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.text} for turn in turns]
    assert tokenizer.apply_chat_template(messages, chat_template=JINJA_TEMPLATES[name], tokenize=False) == ours
    question = {"type": "text", "text": "what is there?"}
    messages[0]["content"] = [{"type": "image"}, question]
    assert tokenizer.apply_chat_template(messages, chat_template=JINJA_TEMPLATES[name], tokenize=False) == ours


def test_a_cut_never_falls_into_the_image(tokenizer: Any) -> None:
    whole = renderer(tokenizer, "vicuna_v1").render(TALK)
    cut = renderer(tokenizer, "vicuna_v1", len(whole.token_ids) - 2).render(TALK)
    assert cut.token_ids == whole.token_ids[:-2]
    assert cut.labels == whole.labels[:-2]
    place = whole.token_ids.index(tokenizer.convert_tokens_to_ids("<image>"))
    for max_length in (place + 1, place + 4):  # inside of the image; behind it, before the answer
        with pytest.raises(SampleError) as caught:
            renderer(tokenizer, "vicuna_v1", max_length).render(TALK)
        assert caught.value.drop_reason == DropReason.CAPTION_TOO_LONG


def test_captions(tokenizer: Any) -> None:
    """A caption that talks of `<image>` holds no second image; an empty one is no sample."""
    rendered = renderer(tokenizer, "plain").render(caption_conversation("u", "an <image> tag"))
    assert rendered.token_ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 3
    assert rendered.labels[:3] == [IGNORE_LABEL] * 3
    assert rendered.labels[-1] == tokenizer.eos_token_id
    with pytest.raises(SampleError):
        renderer(tokenizer, "plain").render(caption_conversation("u", "  "))


def test_text_only_twin(tokenizer: Any) -> None:
    twin = without_image(TALK)
    assert twin.turns[0].text == "what is there?"
    assert not renderer(tokenizer, "vicuna_v1").render(twin).has_image


def test_template_errors_name_the_missing_field(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    bare = load_tokenizer("llama-test-tiny", str(tmp_path))
    with pytest.raises(RecipeError, match="no chat template"):
        make_template("tokenizer", bare)
    with pytest.raises(RecipeError, match="im_end"):
        make_template("chatml", bare)


def test_num_image_tokens() -> None:
    siglip = SimpleNamespace(model_type="siglip_vision_model", image_size=224, patch_size=16)
    clip = SimpleNamespace(model_type="clip_vision_model", image_size=336, patch_size=14)
    assert num_image_tokens(siglip, "full") == 196
    assert num_image_tokens(clip, "default") == 576
    assert num_image_tokens(clip, "full") == 577


@pytest.mark.skipif(not STORIES.exists(), reason="needs real data: set PAIRLOOM_SHARED")
def test_sentencepiece_style_tokenizer_keeps_words_whole(tmp_path: Path) -> None:
    """Segments of a tokenizer that prefixes words with a mark equal the tokens of the whole text."""
    stories = load_tokenizer(str(write_stories260k(tmp_path)), None)
    text = "USER: Where is Lily? ASSISTANT: She is in the park.</s>USER: Why? ASSISTANT: To play.</s>"
    talk = Conversation(
        "1",
        None,
        (
            Turn("user", "Where is Lily?"),
            Turn("assistant", "She is in the park."),
            Turn("user", "Why?"),
            Turn("assistant", "To play."),
        ),
    )
    assert renderer(stories, "vicuna_v1").render(talk).token_ids == stories.encode(text)
