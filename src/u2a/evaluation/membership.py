"""Membership inference: can an attacker still tell the unlearned answers from others like them?"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from u2a.config import option
from u2a.evaluation.figure import Array, Figure, auc

if TYPE_CHECKING:
    from u2a.evaluation.material import Material
    from u2a.evaluation.subject import Subject, TokenStatistics

Attack = Callable[["TokenStatistics", str, float], float]
"""Token statistics and the response's text -> a score, higher = more likely a member; the share k."""


def loss_score(tokens: TokenStatistics, text: str, k: float) -> float:
    """Mean log-prob per token (Yeom et al. 2018, arXiv 1709.01604)."""
    del text, k
    return float(tokens.logprob.mean())


def zlib_score(tokens: TokenStatistics, text: str, k: float) -> float:
    """Mean log-prob per token over the bytes that zlib needs for the text: minus the ratio of log-perplexity
    and zlib entropy (Carlini et al. 2021, arXiv 2012.07805, section 5.2; the code of 2404.02936 alike)."""
    del k
    return float(tokens.logprob.mean()) / len(zlib.compress(text.encode("utf-8")))


def min_k_score(tokens: TokenStatistics, text: str, k: float) -> float:
    """Mean log-prob of the share k of least likely tokens (Shi et al. 2024, arXiv 2310.16789, eq. 2)."""
    del text
    return _lowest(tokens.logprob, k)


def min_k_plus_score(tokens: TokenStatistics, text: str, k: float) -> float:
    """The same of (log p − μ)/σ, μ and σ those of the log-prob of a token drawn from the model there (Zhang
    et al. 2025, arXiv 2404.02936, eq. 3); where σ is 0 the token was certain, and counts 0."""
    del text
    known = tokens.spread > 0
    scaled = np.divide(
        tokens.logprob - tokens.mean, tokens.spread, out=np.zeros_like(tokens.spread), where=known
    )
    return _lowest(scaled, k)


def _lowest(values: Array, k: float) -> float:
    count = max(1, int(len(values) * k))
    return float(np.sort(values)[:count].mean())


ATTACKS: dict[str, Attack] = {
    "loss": loss_score,
    "zlib": zlib_score,
    "min_k": min_k_score,
    "min_k_plus": min_k_plus_score,
}


@dataclass(frozen=True)
class Membership:
    """AUC of four attacks that tell negatives (members) from held-out negatives (not members): `mia_loss`
    (Yeom et al. 2018), `mia_zlib` (Carlini et al. 2021), `mia_min_k` (Shi et al. 2024) and `mia_min_k_plus`
    (Zhang et al. 2025). 0.5 = chance; ↓ for a model that should have forgotten; below
    0.5 they stand out the other way. Needs negatives that the original model was trained on, and others like
    them that it was not."""

    needs: ClassVar[tuple[tuple[str, ...], ...]] = (("negatives",), ("held_out_negatives",))

    mia_share: float = option(
        0.2, "mia_min_k, mia_min_k_plus: share of least likely tokens.", above=0, most=1
    )

    def measure(self, subject: Subject, material: Material) -> list[Figure]:
        """One figure an attack, over members and non-members."""
        groups = [
            (subject.token_statistics(role, texts), answers, member)
            for role, texts, answers, member in (
                ("negatives", material.negatives, material.negative_answers, 1.0),
                ("held_out_negatives", material.held_out_negatives, material.held_out_answers, 0.0),
            )
            if texts is not None and answers is not None
        ]
        if len(groups) < 2:
            return []
        return [
            Figure(
                f"mia_{name}",
                np.array(
                    [
                        (attack(tokens, text, self.mia_share), member)
                        for statistics, answers, member in groups
                        for tokens, text in zip(statistics, answers, strict=True)
                    ]
                ),
                "lower",
                "AUC",
                auc,
            )
            for name, attack in ATTACKS.items()
        ]
