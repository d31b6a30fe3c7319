"""v = H⁻¹·∇J: the inverse curvature of the inner problem applied to a gradient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.impact.gradient import Direction


@dataclass(frozen=True)
class Identity:
    """H = γ·I: v = g / γ. Exact for the `l2` retain term of weight γ, at no cost.

    Scores keep their order for every γ; their size is a prediction of dJ/dω only as far as γ is right.
    """

    gamma: float = field(default=1.0, metadata={"help": "identity: γ in H = γ·I. Must be positive."})

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"--curvature-gamma {self.gamma}: must be positive")

    def solve(self, gradient: Direction) -> Direction:
        """H⁻¹·g, tensors of the shapes of g."""
        return {name: value / self.gamma for name, value in gradient.items()}


CURVATURES: dict[str, type] = {"identity": Identity}
"""Name -> curvature class."""
