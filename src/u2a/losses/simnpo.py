"""SimNPO: NPO without a reference model, per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from u2a.config import Checked, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SimNPO(Checked):
    """ℓ = −(2/β)·log σ(−(β/|y|)·s − γ) (Fan et al. 2024, arXiv 2410.07163, eq. 4).

    dℓ/ds = (2/|y|)·σ((β/|y|)·s + γ); for β → 0 that is 2σ(γ) times the gradient of `ga`.

    Example:
        >>> import torch
        >>> from u2a import SimNPO
        >>> s, length = torch.tensor([-6.0]), torch.tensor([3])
        >>> SimNPO(beta=0.5)(s, torch.zeros(1), length)  # (2/β)·log(1 + exp(−1))
        tensor([1.2530])
    """

    needs_reference: ClassVar[bool] = False

    beta: float = option(0.1, "npo, simnpo: β of the unlearning loss, per nat.", above=0)
    gamma: float = option(0.0, "simnpo: margin γ, in units of β·nats.")

    def __call__(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:  # noqa: ARG002
        from torch.nn.functional import softplus

        # threshold: softplus(x) = x above it, an error of e^-40 rather than torch's default e^-20
        return 2 / self.beta * softplus(self.beta * s / length + self.gamma, threshold=40.0)

    def derivative(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:  # noqa: ARG002
        return 2 / length * (self.beta * s / length + self.gamma).sigmoid()
