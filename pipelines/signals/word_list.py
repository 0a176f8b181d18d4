"""word_list: whether a word of the caption is in a list, or means one of the things in it (WordNet).

DataComp's text-based filter (arXiv 2304.14108; `does_contain_text_entity` of its `apply_filter.py`): English captions
with a word whose first WordNet synset is one of ImageNet-21k's. Captions are cut at white space and words are looked up
in lower case, so "dog." is no word; without WordNet they are compared as they stand in the list, in lower case, too.
"""

from __future__ import annotations

from functools import lru_cache, partial

import pyarrow as pa

from pairloom.pipelines.engine.run_shards import run_shards
from pairloom.pipelines.signals.models.actors import SCORE_SIGNALS
from pairloom.pipelines.signals.wordnet import FILES, WordNet
from pairloom.schemas.data_set.manifest import table_url
from pairloom.schemas.data_set.tables import STATUS_SUCCESS, read_table, write_table
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.signals import WordListSignals
from pairloom.schemas.storage import storage
from pairloom.schemas.storage.digests import sha256_of

VERSION = 1


def fingerprints(rules: WordListSignals) -> dict[str, str]:
    """Content of the files that decide. Raises InputError where one is missing."""
    urls = {"entries": rules.entries}
    if rules.wordnet is not None:
        urls |= {name: storage.join(rules.wordnet, name) for name in FILES}
    for url in urls.values():
        if not storage.exists(url):
            raise InputError(f"signals.{rules.name}: {url}: no such file")
    return {name: sha256_of(url) for name, url in urls.items()}


class WordList:
    """Looks words up."""

    def __init__(self, rules: WordListSignals) -> None:
        lines = [line.strip() for line in storage.read_input(rules.entries).splitlines() if line.strip()]
        if not lines:
            raise InputError(f"signals.{rules.name}.entries: {rules.entries}: no entry in it; write one a line")
        self._known: dict[str, bool] = {}  # captions share most of their words
        self._wordnet = None if rules.wordnet is None else WordNet(rules.wordnet)
        self._words = frozenset(line.lower() for line in lines)
        self._synsets: frozenset[int] = frozenset()
        if self._wordnet is not None:
            if not all(line[1:].isdigit() for line in lines):
                raise InputError(
                    f"signals.{rules.name}.entries: {rules.entries}: with wordnet it holds ids like n02084071"
                )
            self._synsets = frozenset(int(line[1:]) for line in lines)

    def has_entry(self, caption: str) -> bool:
        """Whether one of the caption's words counts."""
        return any(self._counts(word) for word in caption.split())

    def _counts(self, word: str) -> bool:
        found = self._known.get(word)
        if found is None:
            found = self._known[word] = self._look_up(word.lower())
        return found

    def _look_up(self, word: str) -> bool:
        return word in self._words if self._wordnet is None else self._wordnet.first_synset(word) in self._synsets


@lru_cache(maxsize=1)
def load_words(rules: WordListSignals) -> WordList:
    """The list, read once a process."""
    return WordList(rules)


def measure_shard(rules: WordListSignals, raw_folder: str, folder: str, shard_name: str) -> None:
    """Write the scores of one raw shard; rows without an image are null."""
    raw = read_table(table_url(raw_folder, shard_name), ["uid", "caption", "status"])
    words = load_words(rules)
    scores = [
        float(words.has_entry(caption or "")) if status == STATUS_SUCCESS else None
        for caption, status in zip(raw["caption"].to_pylist(), raw["status"].to_pylist(), strict=True)
    ]
    write_table(table_url(folder, shard_name), pa.table([raw["uid"], pa.array(scores, pa.float32())], SCORE_SIGNALS))


def measure_words(rules: WordListSignals, raw_folder: str, folder: str, shard_names: list[str], num_done: int) -> None:
    """Measure the captions of the named raw shards, one Ray task a shard."""
    run_shards(f"signals {rules.name}", partial(measure_shard, rules, raw_folder, folder), shard_names, num_done)
