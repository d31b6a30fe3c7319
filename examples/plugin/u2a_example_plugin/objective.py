"""A hinge on pairs: once a pair is right by enough, it asks for nothing more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from u2a import option

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


@dataclass
class Hinge:
    """J = mean over pairs of −max(0, m − [(s_w − s_w,ref) − (s_l − s_l,ref)]), in nats; 0 is the best.

    After Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425), with the sign of a gain.

    Args:
        texts: 2P tokenised texts, the chosen ones first. reference: (2P,) their log-probs under the original.
    """

    texts: Dataset
    reference: Tensor
    gap: float = option(1.0, "hinge: m, in nats.", above=0)

    def terms(self, s: Tensor) -> Tensor:
        """(2P,) -> (P,)."""
        chosen, rejected = (s - self.reference.to(s)).chunk(2)
        return -(self.gap - (chosen - rejected)).relu()
