"""How many answers hold a word that they should not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from u2a import Figure, option

if TYPE_CHECKING:
    from u2a import Material, Subject


@dataclass(frozen=True)
class Words:
    """`unwanted_words`: share of answers to the held-out prompts with a word of `--unwanted`, ↓."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("prompts",),)
    asks: ClassVar[tuple[str, ...]] = ("unwanted",)

    unwanted: str = option("", "words: words by commas; empty = leave it out.")

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """A value an answer."""
        if material.prompts is None:
            return []
        unwanted = {word.strip().lower() for word in self.unwanted.split(",")}
        answers = [answer.text.lower().split() for answer in subject.answers("prompts", material.prompts)]
        found = np.array([not unwanted.isdisjoint(words) for words in answers], np.float64)
        return [Figure("unwanted_words", found, "lower", "share")]
