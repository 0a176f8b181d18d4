"""word_list: whether a word of the caption is in a list, or its WordNet synset is.

DataComp's text-based filter (arXiv 2304.14108; `does_contain_text_entity` of its `apply_filter.py`) keeps English
captions with a word whose first WordNet synset is in ImageNet-21k. Captions are split at white space and words are
looked up in lower case, so that "dog." is not found. Without WordNet, words are compared with the list in lower case.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar, Literal

import pyarrow as pa

from pairloom.pipelines.signals.models.actors import SCORE_SIGNALS
from pairloom.pipelines.signals.row_signals import CaptionSignal
from pairloom.pipelines.signals.wordnet import FILES, WordNet
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.signals import Name
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of

VERSION = 1


def fingerprints(rules: WordListSignals) -> dict[str, str]:
    """Fingerprints of the files. Raises InputError if one is missing."""
    urls = {"entries": rules.entries}
    if rules.wordnet is not None:
        urls |= {name: storage.join(rules.wordnet, name) for name in FILES}
    for url in urls.values():
        if not storage.exists(url):
            raise InputError(f"signals.{rules.name}: {url}: no such file")
    return {name: sha256_of(url) for name, url in urls.items()}


class WordList:
    """Looks up words."""

    def __init__(self, rules: WordListSignals) -> None:
        lines = [line.strip() for line in storage.read_input(rules.entries).splitlines() if line.strip()]
        if not lines:
            raise InputError(f"signals.{rules.name}.entries: {rules.entries}: is empty; write one entry per line")
        self._known: dict[str, bool] = {}  # cache: captions share most of their words
        self._wordnet = None if rules.wordnet is None else WordNet(rules.wordnet)
        self._words = frozenset(line.lower() for line in lines)
        self._synsets: frozenset[int] = frozenset()
        if self._wordnet is not None:
            if not all(line[1:].isdigit() for line in lines):
                raise InputError(
                    f"signals.{rules.name}.entries: {rules.entries}: with wordnet, write ids like n02084071"
                )
            self._synsets = frozenset(int(line[1:]) for line in lines)

    def has_entry(self, caption: str) -> bool:
        """Whether a word of the caption matches an entry."""
        return any(self._matches(word) for word in caption.split())

    def _matches(self, word: str) -> bool:
        found = self._known.get(word)
        if found is None:
            found = self._known[word] = self._look_up(word.lower())
        return found

    def _look_up(self, word: str) -> bool:
        return word in self._words if self._wordnet is None else self._wordnet.first_synset(word) in self._synsets


@lru_cache(maxsize=1)
def load_words(rules: WordListSignals) -> WordList:
    """The list, read once per process."""
    return WordList(rules)


class WordListSignals(CaptionSignal):
    """score: 1 if a word of the caption is in a list, else 0.

    With `wordnet`, a word matches if its most common meaning is in the list (DataComp's text-based filter).
    """

    kind: Literal["word_list"]
    name: Name
    entries: str
    """A text file, one entry per line: words, or with `wordnet` WordNet ids (n02084071)."""
    wordnet: str | None = None
    """The `dict` folder of Princeton's WordNet."""

    not_hashed: ClassVar[Mapping[str, str]] = {
        "name": "names the folder",
        "entries": "its content is hashed",
        "wordnet": "its content is hashed",
    }
    version: ClassVar[int] = VERSION
    score_columns: ClassVar[tuple[str, ...]] = ("score",)
    arrow_schema: ClassVar[pa.Schema] = SCORE_SIGNALS

    def inputs(self) -> dict[str, str]:
        """Fingerprints of the list and of WordNet."""
        return fingerprints(self)

    def measure_caption(self, caption: str) -> tuple[float]:
        """1 or 0."""
        return (float(load_words(self).has_entry(caption)),)
