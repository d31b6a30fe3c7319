"""Directional derivatives of log-probs, ⟨∇s_i, v⟩: one number for each example and direction.

Three routes to the same number: `fd` (one plain forward pass a direction beyond the log-probs themselves),
`jvp` (forward-mode differentiation, one pass a direction) and `exact` (one backward pass for any number of
directions). `auto` takes the one with the fewest passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from u2a.impact.blocks import WHOLE, Blocks
from u2a.impact.context import Direction, ScoringContext, norm, shifted
from u2a.impact.finite_difference import SELF_CHECK_TOLERANCE, SelfCheck, finite_differences
from u2a.impact.forward_mode import forward_mode
from u2a.impact.per_example import is_batched, per_example_derivatives
from u2a.passes.dataset import Progress, refuse_non_finite
from u2a.types import GuardStop, UserError

if TYPE_CHECKING:
    from datasets import Dataset

METHODS = ("auto", "fd", "jvp", "exact")
"""Names of the scoring methods."""


@dataclass(frozen=True)
class Derivatives:
    """⟨∇s_i, v_d⟩ for D directions and N texts.

    `s` (N,) float64 are the log-probs themselves; `along` (D, N) float64 in nats per unit of v_d;
    `square_norm` (N,) float64 ‖∇s_i‖², where the route gives it (`exact`), else None. `self_checks` has one
    entry a direction that `fd` took; `method` is the route taken.
    """

    s: Tensor
    along: Tensor
    square_norm: Tensor | None
    self_checks: tuple[SelfCheck, ...]
    method: str


def cheapest_method(context: ScoringContext, directions: int) -> str:
    """The route with the fewest passes: `fd` for one direction, `exact` for several if it works in batches.

    Beyond the log-probs themselves, D directions cost `fd` D forward passes; `exact` costs one forward and
    one backward pass whatever D is, about two forward passes where only adapters are trained. For one
    direction fd is the cheaper and keeps no activations.
    """
    return "exact" if directions > 1 and is_batched(context) else "fd"


def directional_derivatives(
    context: ScoringContext,
    texts: Dataset,
    directions: list[Direction],
    *,
    method: str = "auto",
    base: Tensor | None = None,
    self_check: int = 4,
    progress: Progress | None = None,
    blocks: Blocks = WHOLE,
) -> Derivatives:
    """⟨∇_φ s_i, v_d⟩ of each of N texts along each of D directions, at the current φ.

    Args:
        directions: v_d, each by parameter name. The derivative along a zero direction is 0.
        method: `auto`, `fd`, `jvp` or `exact`.
        base: s (N,) at this very φ, if known; saves `fd` a forward pass.
        self_check: number of examples on which `fd` is compared with exact gradients (0 = none).
        blocks: where finished blocks are kept, and taken from.

    Raises:
        UserError: no such method.
        GuardStop: a direction or a derivative is not finite; names the parameter, or the row.
    """
    if method not in METHODS:
        raise UserError(f"--scoring {method}: not a scoring method; take one of {', '.join(METHODS)}")
    if method == "auto":
        method = cheapest_method(context, len(directions))
    norms = _finite_norms(directions)
    moving = [d for d, size in enumerate(norms) if size > 0.0]
    vectors = [directions[d] for d in moving]
    blocks = blocks.marked(f"{method} {' '.join(f'{norms[d]:.3g}' for d in moving)}")
    square_norm: Tensor | None = None
    checks: tuple[SelfCheck, ...] = ()
    if method == "exact":
        exact = blocks.compute(
            "exact",
            texts,
            lambda part: vars(per_example_derivatives(context, part, vectors, progress)),
            progress,
        )
        s, values, square_norm = exact["s"], exact["along"], exact["square_norm"]
    else:
        s = (context.logprobs(texts) if base is None else base).double().cpu()
        if method == "fd":
            values, checks = finite_differences(context, texts, vectors, s, self_check, progress, blocks)
        else:
            forward = [
                blocks.compute(f"jvp-{d}", texts, partial(_forward, context, v, progress), progress)["along"]
                for d, v in enumerate(vectors)
            ]
            values = _stacked(forward, len(texts))
    along = torch.zeros(len(directions), len(texts), dtype=torch.float64)
    along[moving] = values
    for row in along:
        refuse_non_finite(row, texts, "directional derivative")
    return Derivatives(s, along, square_norm, checks, method)


def _finite_norms(directions: list[Direction]) -> list[float]:
    """‖v_d‖ of each direction: one that is NaN would pass for zero, and every score along it be 0.

    Raises:
        GuardStop: a direction is not finite; says which, and in which parameter.
    """
    norms = [norm(v) for v in directions]
    for number, size in enumerate(norms, start=1):
        if not math.isfinite(size):
            whole = directions[number - 1]
            where = next((name for name, part in whole.items() if not torch.isfinite(part).all()), "its norm")
            raise GuardStop(
                f"direction {number} of {len(norms)} to score along is not finite ({where}), so no score "
                "would mean anything. Try --dtype float32, or another --curvature or a larger damping of it."
            )
    return norms


def _forward(
    context: ScoringContext, direction: Direction, progress: Progress | None, texts: Dataset
) -> dict[str, Tensor]:
    return {"along": forward_mode(context, texts, direction, progress)}


def _stacked(rows: list[Tensor], width: int) -> Tensor:
    return torch.stack(rows) if rows else torch.zeros(0, width, dtype=torch.float64)


def impact(dloss_ds: Tensor, ds_along_v: Tensor) -> Tensor:
    """a_i = −(dℓ/ds)_i·⟨∇s_i, H⁻¹∇J⟩: (N,), (N,) -> (N,). Positive = unlearning i raises alignment."""
    return -dloss_ds.double() * ds_along_v.double()


def utility_cost(dloss_ds: Tensor, ds_along_u: Tensor) -> Tensor:
    """c_i = +(dℓ/ds)_i·⟨∇s_i, H⁻¹∇U⟩: (N,), (N,) -> (N,). Positive = usefulness lost, in U's unit."""
    return dloss_ds.double() * ds_along_u.double()


__all__ = [
    "METHODS",
    "SELF_CHECK_TOLERANCE",
    "Derivatives",
    "ScoringContext",
    "SelfCheck",
    "cheapest_method",
    "directional_derivatives",
    "impact",
    "shifted",
    "utility_cost",
]
