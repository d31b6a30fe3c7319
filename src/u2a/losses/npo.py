"""Negative preference optimisation: DPO's loss with only the rejected half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from u2a.config import Checked, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class NPO(Checked):
    """ℓ = −(2/β)·log σ(−β·(s − s_ref)) (Zhang et al. 2024, arXiv 2404.05868, eq. 3).

    dℓ/ds = 2σ(β·(s − s_ref)): 1 at the reference, so the gradient there is |y| times that of `ga`; it
    fades as the response is forgotten. With `length_normalise` both log-probs are taken per token, and the
    gradient at the reference is exactly that of `ga`.

    Example:
        >>> import torch
        >>> from u2a import NPO
        >>> s, length = torch.tensor([-6.0, -2.0]), torch.tensor([3, 2])
        >>> NPO(beta=0.1)(s, s, length)  # at the reference: (2/β)·log 2
        tensor([13.8629, 13.8629])
        >>> NPO(beta=0.1).derivative(s, s, length)
        tensor([1., 1.])
    """

    needs_reference: ClassVar[bool] = True

    beta: float = option(0.1, "npo, simnpo: β of the unlearning loss, per nat.", above=0)
    length_normalise: bool = option(False, "npo: use log-probs per token, so that length does not count.")

    def _gap(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:
        return (s - s_ref) / length if self.length_normalise else s - s_ref

    def __call__(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:
        from torch.nn.functional import softplus

        # threshold: softplus(x) = x above it, an error of e^-40 rather than torch's default e^-20
        return 2 / self.beta * softplus(self.beta * self._gap(s, s_ref, length), threshold=40.0)

    def derivative(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:
        slope = 2 * (self.beta * self._gap(s, s_ref, length)).sigmoid()
        return slope / length if self.length_normalise else slope
