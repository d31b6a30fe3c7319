"""H = γ·I."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from u2a.config import Checked, option
from u2a.impact.curvature.interface import Solution

if TYPE_CHECKING:
    from u2a.impact.context import Direction
    from u2a.problem import Problem, Task


@dataclass(frozen=True)
class Identity(Checked):
    """H = γ·I: v = g / γ. Exact for the `l2` retain term of weight γ, at no cost.

    Scores keep their order for every γ; their size is a prediction of dJ/dω only as far as γ is right.
    """

    passes: ClassVar[str] = "none"

    gamma: float = option(1.0, "identity: γ in H = γ·I.", above=0)

    def prepare(self, problem: Problem, task: Task) -> IdentitySolver:  # noqa: ARG002
        """Nothing to gather."""
        return IdentitySolver(self.gamma)


@dataclass(frozen=True)
class IdentitySolver:
    """Divides by γ."""

    gamma: float
    elementwise: bool = True

    def solve(self, gradient: Direction) -> Solution:
        """g / γ."""
        return Solution({name: value / self.gamma for name, value in gradient.items()})
