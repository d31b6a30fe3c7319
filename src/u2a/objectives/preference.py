"""The DPO objective on validation pairs: do we prefer what people preferred, more than the original did?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from u2a.config import check_options, option
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


@dataclass
class Preference:
    """J = mean over pairs of log σ(β·[(s_w − s_w,ref) − (s_l − s_l,ref)]), log-probs summed over tokens.

    Rafailov et al. 2023, arXiv 2305.18290, eq. 7, with the sign of a gain. At the reference J = −log 2.

    Args:
        texts: 2P tokenised texts: the chosen ones, then the rejected ones in the same order.
        reference: (2P,) their log-probs under the original model, in nats.
        beta: per nat.

    Example:
        >>> import torch
        >>> from datasets import Dataset
        >>> from u2a import Preference
        >>> tokens = {"input_ids": [[1, 2], [1, 3]], "response_start": [1, 1], "n_tokens": [1, 1]}
        >>> texts = Dataset.from_dict(tokens)
        >>> j = Preference(texts, reference=torch.tensor([-1.0, -1.0]), beta=0.5)
        >>> j.terms(torch.tensor([-1.0, -3.0]))  # the rejected answer lost 2 nats: log σ(0.5·2)
        tensor([-0.3133])
    """

    texts: Dataset
    reference: Tensor
    beta: float = option(
        0.1, "preference: β of the objective, per nat; reward: reward per nat of KL, 0 = no KL."
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.beta > 0:
            raise UserError(f"Preference(beta={self.beta}): must be above 0")
        if len(self.texts) % 2 or len(self.texts) != len(self.reference):
            raise ValueError(
                "preference needs the chosen texts, then as many rejected ones, and their log-probs"
            )

    def terms(self, s: Tensor) -> Tensor:
        """log σ of each pair: (2P,) -> (P,), in nats, never above 0."""
        return self._terms(s, self.reference)

    def terms_of(self, s: Tensor, index: Tensor) -> Tensor:
        """Those of p pairs: log-probs (2p,) of the texts at `index` (2p,), the chosen ones first -> (p,)."""
        return self._terms(s, self.reference[index])

    def _terms(self, s: Tensor, reference: Tensor) -> Tensor:
        from torch.nn.functional import logsigmoid

        chosen, rejected = (s - reference.to(s)).chunk(2)
        return logsigmoid(self.beta * (chosen - rejected))
