"""Unlearning losses, one file each, and the retain terms that hold the model in place.

A loss is a frozen dataclass whose fields are its options. It is called with s (B,), s_ref (B,) and
|y| (B,) and returns one value per example (B,), lower = more forgotten; `derivative` is dℓ/ds (B,) in
closed form. To add one: one file, one line in `LOSSES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from u2a.losses.ga import GradientAscent
from u2a.losses.npo import NPO
from u2a.losses.simnpo import SimNPO

if TYPE_CHECKING:
    from torch import Tensor


class UnlearningLoss(Protocol):
    """ℓ(s, s_ref, |y|): a function of the response's log-prob alone; never contains a retain term."""

    def __call__(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:
        """Loss of each example: (B,), (B,), (B,) -> (B,)."""
        ...

    def derivative(self, s: Tensor, s_ref: Tensor, length: Tensor) -> Tensor:
        """dℓ/ds of each example: (B,), (B,), (B,) -> (B,). Never negative."""
        ...


LOSSES: dict[str, type] = {"ga": GradientAscent, "npo": NPO, "simnpo": SimNPO}
"""Name -> loss class."""

COMPOSED = {"graddiff": ("ga", "nll"), "ga+kl": ("ga", "kl")}
"""Names of the literature that mean an unlearning loss together with a retain term."""

RETAIN_TERMS = ("none", "nll", "kl", "l2")
"""Names of the retain terms R; see `u2a.losses.retain`."""
