"""Second derivatives of one optimiser step's loss: the Hessian times a vector, by two routes.

The step's loss is L(φ) = scale·Σ_i ω_i·ℓ_i(φ) + λ·R(φ) over the step's micro-batches, as the trainer itself
computes it. With H = ∇²L, both routes give H·v_d, and ⟨∇ℓ_i, v_d⟩ of the step's negatives on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from u2a.impact.context import Direction, ScoringContext, norm, shifted
from u2a.impact.finite_difference import two_sided_change
from u2a.impact.forward_mode import eager_attention
from u2a.impact.per_example import per_example_derivatives
from u2a.logprobs import evaluating, forward_precision
from u2a.problem import Problem
from u2a.trainer import UnlearnTrainer
from u2a.trajectory.recording import RecordedStep


@dataclass
class StepDerivatives:
    """At a step's φ, for D directions and the R negatives of the step: `products` H·v_d; `along` (D, R)
    float64 ⟨∇ℓ_i, v_d⟩ in the order of `RecordedStep.rows`; `gradient` ∇L."""

    products: list[Direction]
    along: Tensor
    gradient: Direction


Route = Callable[[Problem, UnlearnTrainer, RecordedStep, Sequence[Direction]], StepDerivatives]


def double_backward(
    problem: Problem, trainer: UnlearnTrainer, step: RecordedStep, directions: Sequence[Direction]
) -> StepDerivatives:
    """Exact, by differentiating ⟨∇L, v⟩. Eager attention: fused kernels have no second derivative.

    Each ℓ_i enters L once more with a coefficient that is 0; the derivative of ⟨∇L, v⟩ with respect to that
    coefficient is ⟨∇ℓ_i, v⟩, so the negatives' derivatives cost nothing more.

    With LoRA 2 forward passes over the step's rows for the gradient and about 4 a direction; keeps the graph
    of the backward pass beside that of the forward pass.
    """
    leaves = problem.policy.trainable()
    products = [_zeros(leaves) for _ in directions]
    along: list[Tensor] = []
    total = _zeros(leaves)
    with evaluating(problem.policy.model), eager_attention(problem.policy.model), torch.enable_grad():
        for loss, losses in _losses(trainer, step):
            zero = torch.zeros_like(losses, requires_grad=True)
            gradient = torch.autograd.grad(
                loss + (zero * losses).sum(), list(leaves.values()), create_graph=True, allow_unused=True
            )
            _add(total, gradient)
            pairs = [(name, g) for name, g in zip(leaves, gradient, strict=True) if g is not None]
            of_examples = []
            for d, direction in enumerate(directions):
                inner = torch.stack([(g * direction[name]).sum() for name, g in pairs]).sum()
                *product, of_zero = torch.autograd.grad(
                    inner,
                    [*leaves.values(), zero],
                    retain_graph=d + 1 < len(directions),
                    allow_unused=True,
                )
                _add(products[d], product)
                of_examples.append(of_zero.double().cpu())
            along.append(torch.stack(of_examples))
    return StepDerivatives(products, torch.cat(along, 1), total)


def central_differences(
    problem: Problem, trainer: UnlearnTrainer, step: RecordedStep, directions: Sequence[Direction]
) -> StepDerivatives:
    """H·v ≈ (∇L(φ + εv) − ∇L(φ − εv))/2ε: no more memory than a training step, any attention kernel.

    The negatives' derivatives are exact, and give each direction its ε: the one that changes log-probs per
    token by `two_sided_change` in the root mean square. With LoRA 2 forward passes over the step's rows for
    those and 4 a direction.
    """
    leaves = problem.policy.trainable()
    context = ScoringContext.of(problem)
    rows = step.rows
    found = per_example_derivatives(context, problem.negative_texts.select(rows.tolist()), directions)
    lengths = problem.lengths[rows].double()
    slope = problem.loss.derivative(found.s, problem.reference[rows].double(), lengths)
    target = two_sided_change(forward_precision(problem.policy.model))
    products, total = [], _zeros(leaves)
    for direction, derivative in zip(directions, found.along, strict=True):
        size = float((derivative / lengths).square().mean().sqrt()) or norm(direction)
        epsilon = target / size if size else 1.0
        with shifted(leaves, direction, epsilon):
            up = _gradient(problem, trainer, step)
        with shifted(leaves, direction, -epsilon):
            down = _gradient(problem, trainer, step)
        products.append({name: (up[name] - down[name]) / (2 * epsilon) for name in leaves})
        _add(total, [(up[name] + down[name]) / (2 * len(directions)) for name in leaves])
    return StepDerivatives(products, slope * found.along, total)


ROUTES: dict[str, Route] = {"exact": double_backward, "fd": central_differences}
"""Name -> route."""


def replay_passes(directions: int, backward: float) -> float:
    """Forward passes over a step's rows, by either route; `backward` is the cost of a backward pass.

    Measured for `exact` on a Llama-like model of 6 layers, one thread, two directions: 11.0 with LoRA (10 by
    this rule), 14.7 with full fine-tuning (15).
    """
    return (1 + backward) * (1 + 2 * directions)


def _gradient(problem: Problem, trainer: UnlearnTrainer, step: RecordedStep) -> Direction:
    leaves = problem.policy.trainable()
    total = _zeros(leaves)
    with evaluating(problem.policy.model), torch.enable_grad():
        for loss, _ in _losses(trainer, step):
            _add(total, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True))
    return total


def _losses(trainer: UnlearnTrainer, step: RecordedStep) -> Iterator[tuple[Tensor, Tensor]]:
    """Each micro-batch's part of L, and its ℓ_i (B,), by the trainer's own `compute_loss`."""
    trainer.current_gradient_accumulation_steps = len(step.batches)
    for batch in step.batches:
        inputs: dict[str, Any] = trainer._prepare_inputs(batch)
        loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
        yield loss, outputs["losses"]


def _zeros(leaves: dict[str, Any]) -> Direction:
    return {name: torch.zeros_like(p) for name, p in leaves.items()}


def _add(sums: Direction, values: Sequence[Tensor | None]) -> None:
    for name, value in zip(sums, values, strict=True):
        if value is not None:
            sums[name] += value.detach()
