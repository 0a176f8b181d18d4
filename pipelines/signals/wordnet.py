"""What a word most commonly means, from the files of Princeton's WordNet (its `dict` folder), as NLTK reads them.

The first synset of a word is what `nltk.corpus.wordnet.synsets(word)[0]` gives: nouns before verbs, adjectives and
adverbs; in each, the first base form of the word that is in the index (exceptions, else the word itself and what
morphy's rules of suffixes make of it), and the first, most frequent, sense of that form. As NLTK did up to 3.8,
DataComp's, rules are applied again where they lead to no known form; later ones stop after the first.
"""

from __future__ import annotations

from collections.abc import Iterable

from pairloom.schemas.storage import storage

PARTS = ("noun", "verb", "adj", "adv")
FILES = tuple(f"index.{part}" for part in PARTS) + tuple(f"{part}.exc" for part in PARTS)
_SUFFIXES = {  # morphy's: ending of the word -> ending of its base form
    "noun": (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
             ("men", "man"), ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip


class WordNet:
    """First senses of words."""

    def __init__(self, folder: str) -> None:
        self._first = {part: _read_index(storage.join(folder, f"index.{part}")) for part in PARTS}
        self._exceptions = {part: _read_exceptions(storage.join(folder, f"{part}.exc")) for part in PARTS}

    def first_synset(self, word: str) -> int | None:
        """Offset of the first synset of a word in lower case, whatever its part of speech; None where it has none."""
        for part in PARTS:
            first = self._first[part]
            for form in self._base_forms(word, part):
                if form in first:
                    return first[form]
        return None

    def _base_forms(self, word: str, part: str) -> Iterable[str]:
        """Forms to look up, in order. A form that the index lacks loses further suffixes until one has it."""
        if word in self._exceptions[part]:
            return [word, *self._exceptions[part][word]]
        first = self._first[part]
        forms = _without_suffix([word], part)
        if word in first or any(form in first for form in forms):
            return [word, *forms]
        while forms:
            forms = _without_suffix(forms, part)
            if any(form in first for form in forms):
                return forms
        return []


def _without_suffix(forms: list[str], part: str) -> list[str]:
    return [form[: len(form) - len(old)] + new for form in forms for old, new in _SUFFIXES[part] if form.endswith(old)]


def _read_index(url: str) -> dict[str, int]:
    """Lemma -> offset of its first synset. The licence at the top is indented."""
    found = {}
    for line in storage.read_input(url).splitlines():
        if line and not line.startswith(" "):
            fields = line.split()
            num_synsets = int(fields[2])
            found[fields[0]] = int(fields[len(fields) - num_synsets])
    return found


def _read_exceptions(url: str) -> dict[str, list[str]]:
    """Irregular form -> its base forms."""
    return {fields[0]: fields[1:] for fields in map(str.split, storage.read_input(url).splitlines()) if fields}
