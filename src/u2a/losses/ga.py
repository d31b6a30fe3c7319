"""Gradient ascent: make the response less likely, per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GradientAscent:
    """ℓ = s / |y|, the mean log-prob per token (Jang et al. 2023, arXiv 2210.01504).

    It has no minimum of its own: without a retain term only guards and few steps hold the model.

    Example:
        >>> import torch
        >>> from u2a import GradientAscent
        >>> s, reference, length = torch.tensor([-6.0, -2.0]), torch.zeros(2), torch.tensor([3, 2])
        >>> GradientAscent()(s, reference, length)
        tensor([-2., -1.])
    """

    needs_reference: ClassVar[bool] = False

    def __call__(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:  # noqa: ARG002
        return s / length

    def derivative(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:  # noqa: ARG002
        return s.new_ones(s.shape) / length
