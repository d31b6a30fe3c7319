"""Options that several curvatures share, worded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from u2a.types import UserError

if TYPE_CHECKING:
    from u2a.problem import Problem

DAMPING_SHARE = 0.1
"""δ as a share of the mean diagonal of the undamped H, where --curvature-damping is 0 (the rule of
Grosse et al. 2023, arXiv 2308.03296, section 2.2, taken over all parameters rather than layer by layer, so
that a layer whose curvature is zero, as LoRA's A while B = 0, is damped too)."""

RETAIN_WEIGHT = "all but identity: λ of the retain term; 0 = that of the run, --retain-weight."
DAMPING = "all but identity and adam: δ in H + δI; 0 = a tenth of H's mean diagonal (none for hessian)."
ROWS = "all but identity and adam: H is measured on at most this many rows; 0 = all."
SEED = "all but identity: seed of the rows and labels that H draws."
TOLERANCE = "ggn, hessian: stop at this relative residual ‖Hv − g‖/‖g‖."
MAX_ITERATIONS = "ggn, hessian: most products with H in one solve."


def weight_of(curvature: Any, problem: Problem, *, stands_alone: bool = False) -> float:
    """λ: the curvature's own, else that of the run.

    Args:
        stands_alone: H is made of more than the retain term, so λ may be 0.

    Raises:
        UserError: λ is 0, and H is made of the retain term alone.
    """
    weight = curvature.retain_weight or problem.retain_weight
    if weight == 0 and not stands_alone:
        raise UserError(
            "--retain-weight 0 leaves nothing for this --curvature to be made of: take --curvature identity, "
            "or give --curvature-retain-weight"
        )
    return weight
