"""Products of the inner problem's Hessian with a vector, by double backward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from u2a.impact.context import Direction
from u2a.impact.curvature.inner_objective import retain_parts, unlearning_parts
from u2a.impact.curvature.kept_texts import drawn_rows, wide
from u2a.impact.forward_mode import eager_attention
from u2a.logprobs import evaluating
from u2a.passes.memory import whole_pass

if TYPE_CHECKING:
    from u2a.problem import Problem


def hessian_product(
    problem: Problem, direction: Direction, retain_weight: float, damping: float, rows: int, seed: int
) -> Direction:
    """∇²[(1/n)·Σ ℓ_i + λ·R]·v + δ·v over n ≤ `rows` drawn negatives and as many drawn retain texts (0 = all).

    Eager attention: fused kernels cannot be differentiated twice. Where memory runs out, it begins again with
    smaller batches.
    """

    def sized(tokens: int) -> Direction:
        return _product(replace(problem, max_tokens=tokens), direction, retain_weight, damping, rows, seed)

    model, texts = problem.policy.model, problem.negative_texts
    return whole_pass(model, texts, problem.max_tokens, sized, kind="products of the Hessian")


def _product(
    problem: Problem, direction: Direction, retain_weight: float, damping: float, rows: int, seed: int
) -> Direction:
    negatives = drawn_rows(len(problem.negative_texts), rows, seed)
    kept = drawn_rows(len(problem.retain_texts), rows, seed) if problem.retain_texts is not None else []
    parts: Iterable[Tensor] = chain(
        unlearning_parts(problem, negatives, 1 / len(negatives)),
        (retain_weight * part for part in retain_parts(problem, kept)),
    )
    known = damping + (retain_weight if problem.retain_loss == "l2" else 0.0)
    parameters = problem.policy.trainable()
    leaves = list(parameters.values())
    vector = [direction[name].to(p) for name, p in parameters.items()]
    sums = {name: known * wide(direction[name]) for name in parameters}
    model = problem.policy.model
    with evaluating(model), eager_attention(model), torch.enable_grad():
        for part in parts:
            gradients = torch.autograd.grad(part, leaves, create_graph=True, allow_unused=True)
            pairs = [
                (g, v) for g, v in zip(gradients, vector, strict=True) if g is not None and g.requires_grad
            ]
            if not pairs:
                continue
            seconds = torch.autograd.grad(
                [g for g, _ in pairs], leaves, grad_outputs=[v for _, v in pairs], allow_unused=True
            )
            for name, second in zip(parameters, seconds, strict=True):
                if second is not None:
                    sums[name] += second
    return sums
