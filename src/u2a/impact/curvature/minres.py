"""MINRES for a symmetric H that may be indefinite, with the negative curvature it meets."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from u2a.impact.curvature.flat import Product, Run, dot, length


def minres(product: Product, b: Tensor, *, target: float, most: int) -> Run:
    """x that minimises ‖H·x − b‖ over the Krylov space of H and b (Paige & Saunders 1975).

    One product an iteration, seven vectors of memory. scipy's minres stops by ‖H‖·‖x‖, which says little
    about ‖H·x − b‖/‖b‖, and does not tell the curvature it met, hence this one; a test compares the two.
    The smallest eigenvalue of the Lanczos matrix is the least vᵀHv/vᵀv over the space searched.
    """
    x, beta = torch.zeros_like(b), length(b)
    if beta <= target:
        return Run(x, 0)
    v_before, v = torch.zeros_like(b), b / beta
    w_before, w = torch.zeros_like(b), torch.zeros_like(b)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    # rotation (cosine, sine) that last cleared the subdiagonal, and what it left above the diagonal
    cosine, sine, left, above = -1.0, 0.0, 0.0, 0.0
    remaining, scale, beta = beta, 0.0, 0.0
    precision = torch.finfo(b.dtype).eps
    stuck = False
    for _ in range(most):
        hv = product(v) - beta * v_before
        alpha = dot(v, hv)
        hv = hv - alpha * v
        following = length(hv)
        diagonal.append(alpha)
        scale = max(scale, abs(alpha) + beta + following)
        second, delta, rotated = above, cosine * left + sine * alpha, sine * left - cosine * alpha
        above, left = sine * following, -cosine * following
        # ‖H·r‖/‖r‖ of the residual r so far: where it vanishes, H is singular along r and nothing can be won
        stuck = float(np.hypot(rotated, left)) <= precision**0.75 * scale
        if stuck:
            break
        gamma = float(np.hypot(rotated, following))
        cosine, sine = rotated / gamma, following / gamma
        w_before, w = w, (v - second * w_before - delta * w) / gamma
        x = x + (cosine * remaining) * w
        remaining *= sine
        if abs(remaining) <= target or following <= precision * scale:
            break
        off_diagonal.append(following)
        v_before, v, beta = v, hv / following, following
    lowest = eigh_tridiagonal(
        np.array(diagonal), np.array(off_diagonal[: len(diagonal) - 1]), eigvals_only=True
    )[0]
    # what rounding alone could have made negative is not reported
    negative = float(lowest) if lowest < -10 * precision * scale else 0.0
    return Run(x, len(diagonal), negative, stuck)
