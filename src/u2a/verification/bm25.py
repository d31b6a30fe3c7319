"""BM25, the classic measure of how much a document is about a query's words.

Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", Foundations and Trends in
Information Retrieval 3(4), 2009, eq. 3.15. Plain Python: validation sets are small.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case runs of letters, digits and underscores."""
    return _WORD.findall(text.lower())


def bm25(
    queries: Sequence[str], documents: Sequence[str], *, k1: float = 1.2, b: float = 0.75
) -> NDArray[np.float64]:
    """Scores of D documents for Q queries: (Q, D), never negative, no unit.

    Σ over the query's distinct words w of idf(w)·f·(k1 + 1)/(f + k1·(1 − b + b·|d|/mean |d|)), with f how
    often w is in d and |d| in words. idf(w) = log(1 + (D − n + ½)/(n + ½)), n the documents that hold w:
    the 1 keeps words of more than half the documents from counting against them.
    """
    counts = [Counter(words(document)) for document in documents]
    lengths = np.array([sum(count.values()) for count in counts], np.float64)
    mean = lengths.mean() if lengths.any() else 1.0
    norm = k1 * (1 - b + b * lengths / mean)
    postings: dict[str, list[tuple[int, int]]] = {}
    for d, count in enumerate(counts):
        for word, times in count.items():
            postings.setdefault(word, []).append((d, times))
    scores = np.zeros((len(queries), len(documents)))
    for q, query in enumerate(queries):
        # sorted: a set's order differs between processes, and with it the last bits of the sum
        for word in sorted(set(words(query)) & postings.keys()):
            found = postings[word]
            idf = math.log(1 + (len(documents) - len(found) + 0.5) / (len(found) + 0.5))
            for d, times in found:
                scores[q, d] += idf * times * (k1 + 1) / (times + norm[d])
    return scores
