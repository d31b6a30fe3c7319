"""Mean log-prob per token of texts we want: an objective for users without pairs, and the utility U."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


@dataclass
class MeanLogProb:
    """J = Σ_i s_i / Σ_i |y_i|: minus the NLL per token, in nats per token; higher = better.

    Args:
        texts: N tokenised texts with their response length in the column `n_tokens`.

    Example:
        >>> import torch
        >>> from datasets import Dataset
        >>> from u2a import MeanLogProb
        >>> j = MeanLogProb(Dataset.from_dict({"n_tokens": [1, 3]}))
        >>> j.terms(torch.tensor([-1.0, -7.0])).mean()  # −8 nats over 4 tokens
        tensor(-2.)
    """

    texts: Dataset

    def terms(self, s: Tensor) -> Tensor:
        """Each text's share, scaled so that the mean of the terms is J: (N,) -> (N,)."""
        total = sum(self.texts["n_tokens"])
        return s * (len(self.texts) / total)

    @property
    def masses(self) -> list[int]:
        """How much each text counts in J, a mean over tokens and not over texts: its tokens, N."""
        counts: list[int] = self.texts["n_tokens"][:]
        return counts
