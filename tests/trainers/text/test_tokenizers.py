"""The tokenizer made from captions, and which ones a model can take."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, GemmaTokenizer, Siglip2Tokenizer

from pairloom.schemas.errors import RecipeError
from pairloom.trainers.tasks.contrastive import check_tokenizer
from pairloom.trainers.text.bpe_tokenizer import train_tokenizer
from pairloom.trainers.text.siglip2_tokenizer import load_siglip2_tokenizer, train_siglip2_tokenizer

TEXTS = ["A red circle on the left", "a blue square", "zwei grüne Dreiecke 🙂"] * 20


def test_equal_texts_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_tokenizer(TEXTS, 300, str(tmp_path / name), 16)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "tokenizer.json" in files
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_it_loads_and_ends_every_text(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 300, str(tmp_path / "tokenizer"), 8)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer("a red CIRCLE", padding="max_length", max_length=8)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red circle"
    long = tokenizer("a red circle on the left " * 5, truncation=True, max_length=8)["input_ids"]
    assert len(long) == 8
    assert long[-1] == tokenizer.eos_token_id  # CLIP pools there
    assert tokenizer.eos_token_id != 2  # transformers' CLIP then pools at the largest id
    assert tokenizer.decode(tokenizer("неизвестно")["input_ids"], skip_special_tokens=True) == "неизвестно"


def test_a_siglip2_tokenizer_is_the_same_in_the_folder_of_a_model(tmp_path: Path) -> None:
    """There transformers makes a Siglip2Tokenizer of whatever it finds."""
    for name in ("one", "two"):
        train_siglip2_tokenizer(TEXTS, 320, str(tmp_path / name), 16)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert all((tmp_path / "two" / name).read_bytes() == content for name, content in files.items())
    before = load_siglip2_tokenizer(str(tmp_path / "one"))
    (tmp_path / "one" / "config.json").write_text('{"model_type": "siglip2"}')
    after = AutoTokenizer.from_pretrained(tmp_path / "one")
    for tokenizer in (before, after):
        assert isinstance(tokenizer, Siglip2Tokenizer)
        encoded = tokenizer("A Red CIRCLE, 東京", padding="max_length", max_length=32)
        assert list(encoded) == ["input_ids"]
        ids = encoded["input_ids"]
        assert ids == before("a red circle, 東京", padding="max_length", max_length=32)["input_ids"]
        assert ids[-1] == tokenizer.pad_token_id == 0
        assert tokenizer.eos_token_id in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == "a red circle, 東京"
        assert len(tokenizer("a red circle on the left " * 5, truncation=True, max_length=8)["input_ids"]) == 8


def test_gemma_texts_are_lower_cased_and_other_kinds_refused(tmp_path: Path) -> None:
    train_siglip2_tokenizer(TEXTS, 320, str(tmp_path / "siglip2"), 16)
    train_tokenizer(TEXTS, 300, str(tmp_path / "bytes"), 16)
    learned = json.loads((tmp_path / "siglip2" / "tokenizer.json").read_text())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    GemmaTokenizer(vocab=learned["vocab"], merges=merges).save_pretrained(tmp_path / "gemma")
    gemma, found = AutoTokenizer.from_pretrained(tmp_path / "gemma"), load_siglip2_tokenizer(str(tmp_path / "gemma"))
    assert (
        found("A Red circle")["input_ids"] == gemma("a red circle")["input_ids"] != gemma("A Red circle")["input_ids"]
    )
    with pytest.raises(RecipeError, match="this is another kind"):
        load_siglip2_tokenizer(str(tmp_path / "bytes"))


class FakeTokenizer:
    """Ids as given; `ends` says whether texts end with `</s>`."""

    def __init__(self, size: int, eos: int, pad: int | None = 0, ends: bool = True) -> None:
        self.size, self.eos_token_id, self.pad_token_id, self.ends = size, eos, pad, ends

    def __len__(self) -> int:
        return self.size

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [5, self.eos_token_id] if self.ends else [5]}


def test_a_tokenizer_that_does_not_fit_the_model_is_refused() -> None:
    for model_type, tokenizer, reason in [
        ("siglip", FakeTokenizer(400, 1), "has 400 tokens, the model 300"),
        ("siglip", FakeTokenizer(300, 1, pad=None), "no pad token"),
        ("clip", FakeTokenizer(300, 1, ends=False), "does not add it"),
        ("clip", FakeTokenizer(300, 2), "pools at the largest id"),
    ]:
        config = config_of(model_type, tokenizer.eos_token_id)
        with pytest.raises(RecipeError, match=reason):
            check_tokenizer(tokenizer, config, "folder")
    check_tokenizer(FakeTokenizer(300, 299), config_of("clip", 2), "openai")  # CLIP's own: the largest id ends texts


def config_of(model_type: str, eos: int) -> SimpleNamespace:
    text = SimpleNamespace(model_type=f"{model_type}_text_model", vocab_size=300, eos_token_id=eos)
    return SimpleNamespace(model_type=model_type, text_config=text)
