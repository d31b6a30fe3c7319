"""Unlikelihood per token: it fades as a response is forgotten, and needs no reference model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from u2a import UserError, option

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Unlikelihood:
    """ℓ = −log(1 − c·p), p = exp(s/|y|) the geometric mean of the tokens' probabilities.

    After Welleck et al. 2020 (arXiv 1908.04319), on the mean instead of each token.
    dℓ/ds = c·p/(1 − c·p)/|y|.
    """

    needs_reference: ClassVar[bool] = False

    ceiling: float = option(0.95, "unlikelihood: c; below 1, so that a certain response has a finite loss.")

    def __post_init__(self) -> None:
        if not 0 < self.ceiling < 1:
            raise UserError(f"--ceiling {self.ceiling}: must be between 0 and 1")

    def __call__(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:  # noqa: ARG002
        return -(-self.ceiling * (s / length).exp()).log1p()

    def derivative(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:  # noqa: ARG002
        likely = self.ceiling * (s / length).exp()
        return likely / (1 - likely) / length
