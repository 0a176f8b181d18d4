"""Convert conversations to token ids and labels.

A template converts the turns of a conversation to segments of text; each segment is a training target or not. Ids and
labels are appended together per segment, so their lengths always agree. `<image>` outside of targets becomes
`num_image_tokens` image tokens. Training and evaluation prompts use the same templates; `JINJA_TEMPLATES` has their
equivalents for exports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pairloom.schemas.conversation import IMAGE_MARK, Conversation, Turn
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import RecipeError, SampleError

IGNORE_LABEL = -100
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
TemplateName = Literal["plain", "vicuna_v1", "chatml", "tokenizer"]


@dataclass(frozen=True)
class Segment:
    """A piece of text; if `is_target`, its tokens contribute to the loss."""

    text: str
    is_target: bool


@dataclass(frozen=True)
class Rendered:
    """The input of the language model for one sample; labels are not shifted."""

    token_ids: list[int]
    labels: list[int]  # the token id for targets, IGNORE_LABEL for all other tokens
    has_image: bool


Template = Callable[[Sequence[Turn]], list[Segment]]


def num_extra_image_tokens(vision_config: Any) -> int:
    """Number of vision tokens that are not patches: 1 ([CLS]) for CLIP, 0 for SigLIP."""
    return 1 if vision_config.model_type == "clip_vision_model" else 0


def num_image_tokens(vision_config: Any, select_strategy: str) -> int:
    """Number of image tokens per image; `select_strategy` default removes [CLS], full keeps it."""
    num_patches = (vision_config.image_size // vision_config.patch_size) ** 2
    return int(num_patches + num_extra_image_tokens(vision_config) - (1 if select_strategy == "default" else 0))


def caption_conversation(uid: str, caption: str) -> Conversation:
    """Convert a captioned image to a conversation; `<image>` in the caption's own text is removed."""
    text = caption.replace(IMAGE_MARK, " ").strip()
    return Conversation(uid, uid, (Turn("user", IMAGE_MARK), Turn("assistant", text)))


def without_image(conversation: Conversation) -> Conversation:
    """Return the conversation without its image and without `<image>` marks."""

    def cleared(text: str) -> str:
        return text.replace(IMAGE_MARK, "").strip() if IMAGE_MARK in text else text

    return Conversation(conversation.id, None, tuple(Turn(t.role, cleared(t.text)) for t in conversation.turns))


def plain_template(eos: str) -> Template:
    """The image, then the caption; the user's text is dropped (stage 1 of LLaVA, arXiv 2304.08485)."""

    def render(turns: Sequence[Turn]) -> list[Segment]:
        marks = [Segment(IMAGE_MARK, False) for turn in turns if IMAGE_MARK in turn.text and turn.role == "user"]
        answers = [turn.text for turn in turns if turn.role == "assistant"]
        return marks + ([Segment("\n".join(answers) + eos, True)] if answers else [])

    return render


def vicuna_template(eos: str) -> Template:
    """`USER: question ASSISTANT: answer</s>` per pair of turns, without a system prompt."""

    def render(turns: Sequence[Turn]) -> list[Segment]:
        return [
            Segment(f"USER: {turn.text} ASSISTANT:", False)
            if turn.role == "user"
            else Segment(f" {turn.text}{eos}", True)
            for turn in turns
        ]

    return render


def chatml_template(turns: Sequence[Turn]) -> list[Segment]:
    """ChatML in Qwen's form. The assistant's `<|im_end|>` is a target; the newline after it is not."""
    segments = []
    for turn in turns:
        if turn.role == "user":
            text = f"{IM_START}user\n{turn.text}{IM_END}\n{IM_START}assistant\n"
            segments.append(Segment(text, False))
        else:
            segments += [Segment(f"{turn.text}{IM_END}", True), Segment("\n", False)]
    return segments


def tokenizer_template(tokenizer: Any) -> Template:
    """The tokenizer's own chat template, split into prompts and answers.

    The split points come from rendering each prefix of the conversation. The returned template raises RecipeError when
    a longer prefix changes the text of earlier turns.
    """

    def text_of(turns: Sequence[Turn], is_prompt: bool) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt))

    def render(turns: Sequence[Turn]) -> list[Segment]:
        segments: list[Segment] = []
        done = ""
        for index, turn in enumerate(turns):
            text = text_of(turns[: index + 1], is_prompt=turn.role == "user")
            if not text.startswith(done):
                raise RecipeError("the tokenizer's chat template rewrites earlier turns; choose another task.template")
            added, done = text[len(done) :], text
            answer = added.rstrip() if turn.role == "assistant" else added
            segments.append(Segment(answer, turn.role == "assistant"))
            if answer != added:
                segments.append(Segment(added[len(answer) :], False))
        return segments

    return render


def make_template(name: TemplateName, tokenizer: Any) -> Template:
    """Return a template by name. Raises RecipeError when the tokenizer lacks a token or chat template it needs."""
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise RecipeError("task.template: the tokenizer has no chat template; choose vicuna_v1")
        return tokenizer_template(tokenizer)
    if name == "chatml":
        if IM_END not in tokenizer.get_vocab():
            raise RecipeError(f"task.template: chatml needs a tokenizer that knows {IM_END}; choose vicuna_v1")
        return chatml_template
    if not tokenizer.eos_token:
        raise RecipeError(f"task.template: {name} needs a tokenizer with an eos_token")
    return (plain_template if name == "plain" else vicuna_template)(tokenizer.eos_token)


class Renderer:
    """Renders conversations as token ids and labels, and unanswered conversations as prompts."""

    def __init__(self, tokenizer: Any, name: TemplateName, num_tokens_per_image: int, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._template = make_template(name, tokenizer)
        self._num_image_tokens = num_tokens_per_image
        self._max_length = max_length
        self._image_id = int(tokenizer.convert_tokens_to_ids(IMAGE_MARK))
        self._begin = begin_ids(tokenizer)

    def render(self, conversation: Conversation) -> Rendered:
        """Ids and labels of a conversation, truncated to `max_length` tokens.

        Raises SampleError: empty_caption (every answer is empty), caption_too_long (the truncation removes image tokens
        or leaves no target).
        """
        if not any(turn.text.strip() for turn in conversation.turns if turn.role == "assistant"):
            raise SampleError(DropReason.EMPTY_CAPTION, f"{conversation.id}: every answer is empty")
        token_ids, labels = self._tokens(self._template(conversation.turns))
        if self._image_id in token_ids[self._max_length :]:
            message = f"{conversation.id}: the image does not fit into max_length {self._max_length}"
            raise SampleError(DropReason.CAPTION_TOO_LONG, message)
        token_ids, labels = token_ids[: self._max_length], labels[: self._max_length]
        if all(label == IGNORE_LABEL for label in labels[1:]):
            message = f"{conversation.id}: no target token within max_length {self._max_length}"
            raise SampleError(DropReason.CAPTION_TOO_LONG, message)
        return Rendered(token_ids, labels, self._image_id in token_ids)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Ids up to the start of the next answer; the last turn must be the user's."""
        return self._tokens(self._template(turns))[0]

    def _tokens(self, segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
        bos = self._tokenizer.bos_token
        is_begun = bool(bos and segments and segments[0].text.startswith(bos))  # some chat templates write bos
        token_ids = [] if is_begun else list(self._begin)
        labels = [IGNORE_LABEL] * len(token_ids)
        before = ""
        for text, is_target in _split_marks(segments):
            if text == IMAGE_MARK and not is_target:
                ids = [self._image_id] * self._num_image_tokens
            else:
                ids = self._encode(before, text)
            token_ids += ids
            labels += ids if is_target else [IGNORE_LABEL] * len(ids)
            before = text
        return token_ids, labels

    def _encode(self, before: str, text: str) -> list[int]:
        """Ids of `text` in the context of `before`: SentencePiece treats the start of a text as a new word."""
        left = self._ids(before) if before else []
        both = self._ids(before + text)
        return both[len(left) :] if both[: len(left)] == left else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _split_marks(segments: Sequence[Segment]) -> list[tuple[str, bool]]:
    """Split segments into (text, is_target), image marks separate; marks inside of answers are removed."""
    pieces = []
    for segment in segments:
        if segment.is_target:
            pieces.append((segment.text.replace(IMAGE_MARK, ""), True))
            continue
        for index, part in enumerate(segment.text.split(IMAGE_MARK)):
            if index:
                pieces.append((IMAGE_MARK, False))
            if part:
                pieces.append((part, False))
    return pieces


def begin_ids(tokenizer: Any) -> list[int]:
    """Special token ids that the tokenizer puts before every text; an empty list if there are none.

    Raises RecipeError when adding special tokens changes the ids of the text itself.
    """
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False)
    whole: list[int] = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    raise RecipeError("the tokenizer changes a text when it adds its special tokens; pairloom cannot use it")


_CONTENT = (
    "{%- macro content(message) -%}{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- for item in message['content'] if item['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}"
    "{%- for item in message['content'] if item['type'] == 'text' -%}{{ item['text'] }}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}"
)
JINJA_TEMPLATES = {
    "plain": _CONTENT + "{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}"
    "{{ content(message) + eos_token }}{%- elif '<image>' in content(message) -%}{{ '<image>' }}{%- endif -%}"
    "{%- endfor -%}",
    "vicuna_v1": _CONTENT + "{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}"
    "{{ 'ASSISTANT: ' + content(message) + eos_token }}{%- elif message['role'] == 'user' -%}"
    "{{ 'USER: ' + content(message) + ' ' }}{%- else -%}{{ content(message) + ' ' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}",
    "chatml": _CONTENT + "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + content(message) + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}",
}
"""The templates in Jinja, written into exported folders as the chat template."""
