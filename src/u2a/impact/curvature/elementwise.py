"""Solving with a diagonal H: one division an element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from u2a.impact.curvature.interface import Solution

if TYPE_CHECKING:
    from u2a.impact.context import Direction


@dataclass(frozen=True)
class ElementwiseSolver:
    """H = diag(h), h by parameter name, all positive; where h is infinite, v is 0."""

    diagonal: Direction
    elementwise: bool = True

    def solve(self, gradient: Direction) -> Solution:
        """g / h."""
        return Solution({name: value / self.diagonal[name] for name, value in gradient.items()})


@dataclass(frozen=True)
class ScalarSolver:
    """H = h·I, as that of the `l2` retain term is; h must be positive."""

    scale: float
    elementwise: bool = True

    def solve(self, gradient: Direction) -> Solution:
        """g / h."""
        return Solution({name: value / self.scale for name, value in gradient.items()})
