"""What answers look like: a model that has collapsed must look collapsed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from u2a.evaluation.figure import Array, Figure
from u2a.ngrams import ngrams, overlaps, repetition

if TYPE_CHECKING:
    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject


def first_seen(texts: Sequence[Sequence[str]], n: int = 2) -> Array:
    """Of each text, how many different n-grams no text before it has, and how many n-grams: (N, 2)."""
    seen: set[tuple[Any, ...]] = set()
    found = []
    for words in texts:
        grams = ngrams(words, n)
        found.append((len(set(grams) - seen), len(grams)))
        seen.update(grams)
    return np.array(found, float).reshape(-1, 2)


def different_over_all(values: Array) -> Array:
    """Different n-grams over all n-grams of all texts together (distinct-n of Li et al. 2016,
    arXiv 1510.03055), of what `first_seen` counts; 0 where there are none."""
    new, every = values[..., 0].sum(axis=-1), values[..., 1].sum(axis=-1)
    return np.divide(new, every, out=np.zeros(np.shape(every)), where=every > 0)


@dataclass(frozen=True)
class Fluency:
    """Of the answers to the held-out prompts: `answer_tokens`, mean length; `answer_empty`, share without a
    letter or digit, ↓; `answer_unended`, share cut off at the limit, ↓; `answer_repetition`, share of 4-grams
    that stood before in the same answer, ↓ (Welleck et al. 2020); `answer_overlap`, share of 2-grams that
    another answer has too, ↓ (Self-BLEU's precision, Zhu et al. 2018); `answer_same`, share of answers that
    another prompt got word for word, ↓; `answer_distinct_2`, different bigrams of all answers over all of
    them, ↑ (Li et al. 2016; falls with more or longer answers, so compare models and not data sets; no
    interval)."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("prompts",),)

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """All of them, a value an answer but for the last."""
        if material.prompts is None:
            return []
        answers = subject.answers("prompts", material.prompts)
        words = [answer.text.lower().split() for answer in answers]
        times = Counter(answer.text for answer in answers)
        each: dict[str, tuple[list[float], str, str]] = {
            "answer_tokens": ([a.tokens for a in answers], "neither", "tokens"),
            "answer_empty": ([not any(map(str.isalnum, a.text)) for a in answers], "lower", "share"),
            "answer_unended": ([not a.ended for a in answers], "lower", "share"),
            "answer_repetition": ([repetition(w) for w in words], "lower", "share"),
            "answer_overlap": (overlaps(words), "lower", "share"),
            "answer_same": ([times[a.text] > 1 for a in answers], "lower", "share"),
        }
        found = [Figure(name, np.array(v, float), better, unit) for name, (v, better, unit) in each.items()]

        new = first_seen(words)
        return [
            *found,
            Figure("answer_distinct_2", new, "higher", "share", different_over_all, resampled=False),
        ]
