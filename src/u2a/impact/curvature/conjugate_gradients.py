"""Preconditioned conjugate gradients for a symmetric positive definite H."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from u2a.impact.curvature.flat import Product, Run, dot, length


@dataclass(frozen=True)
class ConjugateGradients:
    """Hestenes & Stiefel 1952, preconditioned (Nocedal & Wright, Numerical Optimization, algorithm 5.3).

    `preconditioner` is M⁻¹ as a product, M symmetric positive definite and near H; None = the identity. A
    direction with pᵀHp ≤ 0 ends the run and is reported: then H is not positive definite.
    """

    preconditioner: Product | None = None

    def __call__(self, product: Product, b: Tensor, *, target: float, most: int) -> Run:
        """x with H·x ≈ b; one product with H an iteration."""
        x, r = torch.zeros_like(b), b.clone()
        z = self._preconditioned(r)
        p, along = z.clone(), dot(r, z)
        for done in range(most):
            if length(r) <= target or along == 0:
                return Run(x, done)
            hp = product(p)
            curvature = dot(p, hp)
            if curvature <= 0:
                return Run(x, done + 1, min(curvature / dot(p, p), 0.0), stuck=True)
            step = along / curvature
            x = x + step * p
            r = r - step * hp
            z = self._preconditioned(r)
            before, along = along, dot(r, z)
            p = z + (along / before) * p
        return Run(x, most)

    def _preconditioned(self, r: Tensor) -> Tensor:
        return r if self.preconditioner is None else self.preconditioner(r)
