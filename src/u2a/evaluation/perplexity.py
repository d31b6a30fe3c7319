"""Perplexity: how well the model still predicts texts that it should keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from u2a.evaluation.figure import Figure, perplexity_of

if TYPE_CHECKING:
    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean NLL per token, over all response tokens of the retain texts (`perplexity_retain`) and
    over a plain text file (`perplexity_text`). ↓; 1 = every token is certain. Jelinek et al. 1977."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("retain", "plain"),)

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """One figure for each of the two that there is."""
        found = []
        for role, name in (("retain", "perplexity_retain"), ("plain", "perplexity_text")):
            texts = getattr(material, role)
            if texts is not None:
                values = np.stack([-subject.logprobs(role, texts), np.asarray(texts["n_tokens"], float)], 1)
                found.append(Figure(name, values, "lower", "per token", perplexity_of))
        return found
