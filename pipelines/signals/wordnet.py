"""The most common meaning of a word, from the files of Princeton's WordNet (its `dict` folder), as in NLTK.

The first synset of a word equals `nltk.corpus.wordnet.synsets(word)[0]`: nouns before verbs, adjectives and adverbs; in
each, the first base form in the index (exceptions, else the word itself and the results of morphy's suffix rules), and
its first, most frequent, sense. As in NLTK up to 3.8, which DataComp uses, rules are applied again if they give no
known form; later versions apply them once.
"""

from __future__ import annotations

from collections.abc import Iterable

from pairloom.schemas.storage import storage

PARTS = ("noun", "verb", "adj", "adv")
FILES = tuple(f"index.{part}" for part in PARTS) + tuple(f"{part}.exc" for part in PARTS)
_SUFFIXES = {  # rules of morphy: ending of the word -> ending of its base form
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
        """Offset of the first synset of a lower-case word, of any part of speech; None if there is none."""
        for part in PARTS:
            first = self._first[part]
            for form in self._base_forms(word, part):
                if form in first:
                    return first[form]
        return None

    def _base_forms(self, word: str, part: str) -> Iterable[str]:
        """Forms to look up, in order. Suffix rules are applied again until a form is in the index."""
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
    """Lemma -> offset of its first synset. Indented lines are the licence."""
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
