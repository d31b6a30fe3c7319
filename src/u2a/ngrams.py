"""n-grams of a text: how many of them repeat, and how many other texts have too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BEGIN = object()


class AnswerShares(NamedTuple):
    """Of each of A answers, in tokens: `repetition` (A,), the share of its 4-grams that stood in it before;
    `overlap` (A,), the share of its 2-grams that another answer has too."""

    repetition: NDArray[np.float64]
    overlap: NDArray[np.float64]


def ngrams(words: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All n-grams of a text, in order."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def repetition(words: Sequence[Hashable], n: int = 4) -> float:
    """Share of a text's n-grams that stood before in it: 1 − different/all (seq-rep-n of Welleck et al. 2020,
    arXiv 1908.04319); 0 for fewer than n words."""
    found = ngrams(words, n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def overlaps(texts: Sequence[Sequence[Hashable]], n: int = 2) -> list[float]:
    """Of each text, the share of its n-grams that another text has too; 1 = it says nothing of its own.

    BLEU's clipped precision (Papineni et al. 2002) of each text against all others, as in Self-BLEU (Zhu et
    al. 2018, arXiv 1802.01886): an n-gram counts as often as one other text has it. A mark at the beginning
    counts as a word, so that answers of one token, the one that ends them, are alike too.
    """
    found = [Counter(ngrams([_BEGIN, *words], n)) for words in texts]
    shares = []
    for i, own in enumerate(found):
        others = found[:i] + found[i + 1 :]
        shared = sum(min(times, max((o[gram] for o in others), default=0)) for gram, times in own.items())
        shares.append(shared / own.total() if own else 0.0)
    return shares
