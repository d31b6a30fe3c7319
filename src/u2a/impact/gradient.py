"""Gradients over a data set: ∇J, ∇U, and any weighted sum of log-prob gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2a.data.collate import length_sorted_batches
from u2a.logprobs import Progress, evaluating, response_logprobs
from u2a.types import GuardStop

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.objectives import Objective

Direction = dict[str, Tensor]
"""A vector in parameter space: parameter name -> tensor of that parameter's shape."""


def weighted_logprob_gradient(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    texts: Dataset,
    coefficients: Tensor,
    *,
    max_tokens: int,
    pad_token_id: int,
    progress: Progress | None = None,
) -> Direction:
    """Σ_i c_i·∇_φ s_i over a tokenised data set, one backward pass over it.

    Args:
        parameters: φ, name -> parameter.
        texts: N tokenised rows.
        coefficients: c (N,).
        max_tokens: most padded tokens of one pass.

    Raises:
        GuardStop: the gradient is not finite.
    """
    names, leaves = list(parameters), list(parameters.values())
    total = [torch.zeros_like(p) for p in leaves]
    device = leaves[0].device
    with evaluating(model), torch.enable_grad():
        for batch in length_sorted_batches(texts, max_tokens=max_tokens, pad_token_id=pad_token_id):
            s = response_logprobs(model, batch.to(device))
            weighted = (s * coefficients[batch.index].to(s)).sum()
            gradients = torch.autograd.grad(weighted, leaves, allow_unused=True)
            for sum_, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sum_ += gradient
            if progress:
                progress(len(s))
    for name, sum_ in zip(names, total, strict=True):
        if not torch.isfinite(sum_).all():
            raise GuardStop(f"the gradient of {name} is not finite; try --dtype float32")
    return dict(zip(names, total, strict=True))


def objective_gradient(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    objective: Objective,
    s: Tensor,
    *,
    max_tokens: int,
    pad_token_id: int,
    progress: Progress | None = None,
) -> Direction:
    """∇J = Σ_i (dJ/ds_i)·∇s_i at the current φ.

    Args:
        s: (N,) log-probs of `objective.texts` at the current φ. Measuring J needs them anyway, so the
            gradient costs one forward and one backward pass and no more.
    """
    leaf = s.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        value = objective.terms(leaf).mean()
    (coefficients,) = torch.autograd.grad(value, leaf)
    return weighted_logprob_gradient(
        model,
        parameters,
        objective.texts,
        coefficients,
        max_tokens=max_tokens,
        pad_token_id=pad_token_id,
        progress=progress,
    )


def inner_product(a: Direction, b: Direction) -> float:
    """⟨a, b⟩ over all elements, accumulated in float64."""
    return float(sum((a[name].double() * b[name].double()).sum() for name in a))
