"""Curvatures H of the inner problem, one file each: v = H⁻¹·g.

A curvature is a frozen dataclass whose fields are its options. `prepare` gathers what it needs at the
current φ and returns a solver. To add one: one file, one line in `CURVATURES`.
"""

from __future__ import annotations

from u2a.impact.curvature.adam import Adam
from u2a.impact.curvature.diagonal import Diagonal
from u2a.impact.curvature.ggn import GaussNewton
from u2a.impact.curvature.hessian import Hessian
from u2a.impact.curvature.identity import Identity
from u2a.impact.curvature.interface import Curvature, Solution, Solver
from u2a.impact.curvature.kronecker import EKFAC, KFAC

CURVATURES: dict[str, type] = {
    "identity": Identity,
    "diagonal": Diagonal,
    "adam": Adam,
    "ggn": GaussNewton,
    "kfac": KFAC,
    "ekfac": EKFAC,
    "hessian": Hessian,
}
"""Name -> curvature class."""

__all__ = [
    "CURVATURES",
    "EKFAC",
    "KFAC",
    "Adam",
    "Curvature",
    "Diagonal",
    "GaussNewton",
    "Hessian",
    "Identity",
    "Solution",
    "Solver",
]
