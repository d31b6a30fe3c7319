"""Forgetting: how likely the negatives still are, and how much of them would come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from u2a.evaluation.figure import Figure

if TYPE_CHECKING:
    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject


@dataclass(frozen=True)
class Forgetting:
    """`negative_logprob`: mean log-prob of the negatives in nats per token, ↓. `negative_extracted`: share of
    a negative's tokens that are the likeliest one after those before it, that is what greedy decoding led
    along the text would reproduce (memorisation accuracy; Tirumala et al. 2022, arXiv 2205.10770), ↓."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("negatives",),)

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """Both, a value a negative."""
        if material.negatives is None:
            return []
        tokens = subject.token_statistics("negatives", material.negatives)
        return [
            Figure(
                "negative_logprob",
                np.array([each.logprob.mean() for each in tokens]),
                "lower",
                "nats per token",
            ),
            Figure("negative_extracted", np.array([each.greedy.mean() for each in tokens]), "lower", "share"),
        ]
