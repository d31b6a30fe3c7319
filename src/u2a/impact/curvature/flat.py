"""Directions as one vector, and solving H·v = g there by an iterative method, with its residual reported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from u2a.impact.context import Direction
from u2a.impact.curvature.interface import Solution
from u2a.passes.dataset import Progress
from u2a.types import GuardStop

log = logging.getLogger("u2a")

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix as its product with a vector: (P,) -> (P,)."""


@dataclass(frozen=True)
class Run:
    """What one run of an iterative method found.

    `x` (P,) approximates the solution; `iterations` counts products; `negative_curvature` is the most
    negative xᵀHx/xᵀx met, 0 if none; `stuck` says that going on from `x` is of no use.
    """

    x: Tensor
    iterations: int
    negative_curvature: float = 0.0
    stuck: bool = False


class Method(Protocol):
    """Solves H·x = b from x = 0 until it believes ‖H·x − b‖ ≤ target, in at most `most` products."""

    def __call__(self, product: Product, b: Tensor, *, target: float, most: int) -> Run: ...


@dataclass(frozen=True)
class Flat:
    """The layout of φ as one vector of P elements, in float32 at least."""

    shapes: dict[str, torch.Size]

    @classmethod
    def of(cls, direction: Direction) -> Flat:
        """The layout of this direction."""
        return cls({name: value.shape for name, value in direction.items()})

    def flatten(self, direction: Direction) -> Tensor:
        """(P,), in the order of the layout's names."""
        parts = [direction[name].detach().flatten() for name in self.shapes]
        kind = torch.float32
        for part in parts:
            kind = torch.promote_types(kind, part.dtype)
        return torch.cat([part.to(kind) for part in parts])

    def unflatten(self, vector: Tensor) -> Direction:
        """The reverse of `flatten`."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        return {n: part.view(shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}


def dot(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ accumulated in float64."""
    return float((a.double() * b.double()).sum())


def length(a: Tensor) -> float:
    """‖a‖ accumulated in float64."""
    return dot(a, a) ** 0.5


def iterative_solution(
    method: Method,
    product: Callable[[Direction], Direction],
    gradient: Direction,
    *,
    name: str,
    tolerance: float,
    max_iterations: int,
    progress: Progress | None = None,
) -> Solution:
    """v with ‖H·v − g‖ ≤ tolerance·‖g‖, or the best in `max_iterations` products with a warning.

    The residual reported is measured, not the method's own estimate: where rounding parted the two, the
    method goes on from there.

    Raises:
        GuardStop: a product with H is not finite.
    """
    flat = Flat.of(gradient)
    b = flat.flatten(gradient)

    def times(x: Tensor) -> Tensor:
        found = flat.flatten(product(flat.unflatten(x)))
        if not torch.isfinite(found).all():
            raise GuardStop(f"a product with the {name} matrix is not finite; try --dtype float32")
        if progress:
            progress(1)
        return found

    size = length(b)
    x, rest, used, lowest = torch.zeros_like(b), b, 0, 0.0
    while length(rest) > tolerance * size and used < max_iterations - 1:
        run = method(times, rest, target=0.99 * tolerance * size, most=max_iterations - used - 1)
        better = x + run.x
        remaining = b - times(better)
        used += run.iterations + 1
        lowest = min(lowest, run.negative_curvature)
        fell = length(remaining) < length(rest)
        stuck = run.stuck or not fell
        # a first run is kept also where its residual is above that of 0: conjugate gradients lower the error
        # in H's own norm with every product, the residual only in the end
        if fell or not x.any():
            x, rest = better, remaining
        if stuck:
            break
    residual = length(rest) / size if size > 0 else 0.0
    converged = residual <= tolerance
    if not converged:
        log.warning(
            "curvature %s: after %d products the residual is %.2g, not %.2g: raise "
            "--curvature-max-iterations or --curvature-damping",
            *(name, used, residual, tolerance),
        )
    if lowest < 0:
        log.warning("curvature %s: met negative curvature, %.3g: H is not positive definite", name, lowest)
    return Solution(flat.unflatten(x), residual, converged, used, lowest)
