"""AdamW's second moments at one φ, from the minibatches that the trainer would take there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from u2a.data.retain_order import retain_rows
from u2a.impact.context import Direction, ScoringContext
from u2a.impact.curvature.inner_objective import retain_parts, unlearning_parts
from u2a.impact.curvature.kept_texts import wide
from u2a.impact.gradient import first_not_finite
from u2a.logprobs import evaluating
from u2a.passes.memory import whole_pass
from u2a.types import GuardStop

if TYPE_CHECKING:
    from u2a.problem import Problem, Task


def second_moments(
    problem: Problem,
    *,
    batch_size: int,
    most: int,
    retain_weight: float,
    beta2: float,
    seed: int,
    task: Task,
) -> Direction:
    """v̂ = Σ_t β2^(T−t)·(1 − β2)·g_t∘g_t / (1 − β2^T) over T minibatches, by parameter name.

    g_t is the gradient of the trainer's loss of step t at the current φ, weights 1. Its negatives come from a
    seeded shuffle, each once; its retain rows are the trainer's own, divided as there by as many tokens as so
    many have in the mean. Not in it: the `l2` term and −μ·J. `most` bounds T (0 = a whole pass).

    Raises:
        GuardStop: a moment is not finite.
    """

    def sized(tokens: int) -> Direction:
        smaller = replace(problem, max_tokens=tokens)
        return _moments(smaller, batch_size, most, retain_weight, beta2, seed, task)

    model, texts = problem.policy.model, problem.negative_texts
    return whole_pass(model, texts, problem.max_tokens, sized, kind="gradients of minibatches")


def _moments(
    problem: Problem, batch_size: int, most: int, retain_weight: float, beta2: float, seed: int, task: Task
) -> Direction:
    total = len(problem.negative_texts)
    whole_pass = -(-total // batch_size)
    steps = min(whole_pass, most) if most else whole_pass
    order = np.random.default_rng(seed).permutation(total)
    context = ScoringContext.of(problem)
    texts = problem.retain_texts
    mean_length = float(np.mean(texts["n_tokens"])) if texts is not None else 0.0
    moments = {name: torch.zeros_like(wide(p.detach())) for name, p in context.parameters.items()}
    with (
        task("curvature: gradients of minibatches", min(total, steps * batch_size)) as progress,
        evaluating(problem.policy.model),
        torch.enable_grad(),
    ):
        for step in range(steps):
            rows = order[step * batch_size : (step + 1) * batch_size].tolist()
            # the trainer's scale: the mean over a pass's steps is the objective, a short last step included
            parts = list(_gradients(context, unlearning_parts(problem, rows, whole_pass / total)))
            if texts is not None:
                kept = retain_rows(len(texts), batch_size, step, seed)
                terms = retain_parts(problem, kept, len(kept) * mean_length)
                scaled = (retain_weight * part for part in terms)
                parts += _gradients(context, scaled)
            for name, v in moments.items():
                g = torch.stack([part[name] for part in parts]).sum(0)
                v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            if progress:
                progress(len(rows))
    bad = first_not_finite(moments)
    if bad:
        raise GuardStop(f"the minibatch gradients of {bad} are not finite; try --dtype float32")
    return {name: v / (1 - beta2**steps) for name, v in moments.items()}


def _gradients(context: ScoringContext, parts: Iterable[Tensor]) -> Iterator[Direction]:
    """∇ of each part, in float32 at least."""
    for part in parts:
        yield {
            name: torch.zeros_like(wide(p.detach())) if g is None else wide(g)
            for (name, p), g in zip(context.parameters.items(), context.gradients(part), strict=True)
        }
