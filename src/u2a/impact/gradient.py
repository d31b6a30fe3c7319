"""Gradients over a data set: ∇J, ∇U, and any weighted sum of log-prob gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from u2a import processes
from u2a.data.collate import row_name
from u2a.impact.context import Direction, ScoringContext
from u2a.impact.per_example import BACKWARD
from u2a.logprobs import evaluating, response_logprobs
from u2a.models.sharding import own_part
from u2a.passes.dataset import Progress
from u2a.passes.memory import working
from u2a.types import GuardStop

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.objectives import Objective


def weighted_logprob_gradient(
    context: ScoringContext, texts: Dataset, coefficients: Tensor, *, progress: Progress | None = None
) -> Direction:
    """Σ_i c_i·∇_φ s_i over N tokenised texts at the current φ, one backward pass over them; summed in float32
    at least, since a sum of many 16-bit gradients stands still once it is 256 times as large as each.

    Several processes share the texts, and all get the sum over all of them.

    Args:
        coefficients: c (N,). A text whose coefficient is 0 costs nothing.

    Raises:
        GuardStop: the gradient is not finite.
    """
    names = list(context.parameters)
    total = [
        torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for p in context.parameters.values()
    ]
    counted = coefficients.nonzero()[:, 0].tolist()
    chosen = texts if len(counted) == len(texts) else texts.select(counted)
    kept = coefficients[counted]
    with evaluating(context.model), torch.enable_grad(), working(context.model):
        for attempt in context.keeping_activations.shared_attempts(chosen, BACKWARD) if counted else ():
            with attempt as batch:
                s = response_logprobs(context.model, batch)
                weighted = (s * kept[batch.index.cpu()].to(s)).sum() * (0.0 if attempt.idle else 1.0)
                for sum_, gradient in zip(total, context.gradients(weighted), strict=True):
                    if gradient is not None:
                        sum_ += gradient
                if progress:
                    progress(attempt.done)
    count = processes.count()
    total = [sum_ * count for sum_ in total] if context.is_sharded else processes.summed(total)
    found = dict(zip(names, total, strict=True))
    bad = first_not_finite(found)
    if bad:
        whose = _whose(context, chosen, kept)
        raise GuardStop(f"the gradient of {bad} is not finite{whose}; try --dtype float32")
    return found


def first_not_finite(direction: Direction) -> str:
    """The first name under which something is not finite, in any process; empty = none."""
    here = (name for name, value in direction.items() if not torch.isfinite(own_part(value)).all())
    return next((name for name in processes.gathered(next(here, "")) if name), "")


def _whose(context: ScoringContext, texts: Dataset, coefficients: Tensor) -> str:
    """Which text has a gradient that is not finite, one by one: asked only once the sum is not."""
    with evaluating(context.model), torch.enable_grad():
        for attempt in replace(context, max_tokens=1).attempts(texts, BACKWARD, deal=False):
            with attempt as batch:
                position = int(batch.index[0])
                s = response_logprobs(context.model, batch)[0] * float(coefficients[position])
                gradients = dict(zip(context.parameters, context.gradients(s), strict=True))
                if first_not_finite({name: g for name, g in gradients.items() if g is not None}):
                    return f": that of {row_name(texts, position)} is the first"
    return ", though that of each text alone is"


def objective_coefficients(objective: Objective, s: Tensor, terms: np.ndarray | None = None) -> Tensor:
    """dJ/ds_i (N,) at the log-probs s; with `terms`, those of the mean over these terms alone."""
    leaf = s.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        each = objective.terms(leaf)
        value = (each if terms is None else each[torch.as_tensor(terms)]).mean()
    (coefficients,) = torch.autograd.grad(value, leaf)
    return coefficients


def objective_gradient(
    context: ScoringContext, objective: Objective, s: Tensor, *, progress: Progress | None = None
) -> Direction:
    """∇J = Σ_i (dJ/ds_i)·∇s_i at the current φ.

    Args:
        s: (N,) log-probs of `objective.texts` at the current φ. Measuring J needs them anyway, so the
            gradient costs one forward and one backward pass and no more.
    """
    coefficients = objective_coefficients(objective, s)
    return weighted_logprob_gradient(context, objective.texts, coefficients, progress=progress)


def combined(directions: list[Direction], weights: list[float]) -> Direction:
    """Σ_d w_d·v_d."""
    out = {name: torch.zeros_like(value) for name, value in directions[0].items()}
    for direction, weight in zip(directions, weights, strict=True):
        for name, value in direction.items():
            out[name].add_(value, alpha=weight)
    return out
