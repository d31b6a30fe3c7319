"""n-grams of a text, and how many of them repeat."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def ngrams(words: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All n-grams of a text, in order."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def repetition(words: Sequence[Hashable], n: int = 4) -> float:
    """Share of a text's n-grams that stood before in it: 1 − different/all (seq-rep-n of Welleck et al. 2020,
    arXiv 1908.04319); 0 for fewer than n words."""
    found = ngrams(words, n)
    return 1 - len(set(found)) / len(found) if found else 0.0
