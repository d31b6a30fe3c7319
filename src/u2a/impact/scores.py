"""Directional derivatives of log-probs, ⟨∇s_i, v⟩: one number for each example, without its gradient.

Three routes to the same number: `fd` (two plain forward passes), `jvp` (forward-mode differentiation) and
`exact` (one backward pass for each example). `fd` is checked against `exact` on a few examples every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2a.data.collate import length_sorted_batches
from u2a.impact.gradient import Direction, inner_product, weighted_logprob_gradient
from u2a.logprobs import (
    Progress,
    dataset_logprobs,
    evaluating,
    refuse_non_finite,
    response_logprobs,
    unwrapped,
)
from u2a.types import Batch, UserError

if TYPE_CHECKING:
    from datasets import Dataset

METHODS = ("fd", "jvp", "exact")
"""Names of the scoring methods."""

SELF_CHECK_TOLERANCE = 0.05
"""Largest relative error of `fd` on the self-check's examples that is still taken as agreement."""


@dataclass(frozen=True)
class SelfCheck:
    """What the comparison of `fd` with exact gradients on a few examples found.

    `relative_error` is ‖fd − exact‖ / ‖exact‖ over those examples (no unit); `epsilon` is the last step
    tried; `passed` says whether the scores are fd's or, failing that, `exact`'s.
    """

    examples: int
    relative_error: float
    epsilon: float
    passed: bool


@dataclass(frozen=True)
class ScoringContext:
    """What every scoring route needs: the model, φ by name, and how to batch."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    max_tokens: int
    pad_token_id: int

    def logprobs(self, texts: Dataset, progress: Progress | None = None) -> Tensor:
        """s (N,) of `texts` at the current φ, no gradient."""
        return dataset_logprobs(
            self.model,
            texts,
            max_tokens=self.max_tokens,
            pad_token_id=self.pad_token_id,
            progress=progress,
        )


@contextmanager
def shifted(parameters: dict[str, nn.Parameter], direction: Direction, step: float) -> Iterator[None]:
    """φ + step·v within; the very bits of φ are back after, whatever happens inside."""
    saved = [p.detach().clone() for p in parameters.values()]
    try:
        with torch.no_grad():
            for name, p in parameters.items():
                p.add_(direction[name].to(p), alpha=step)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters.values(), saved, strict=True):
                p.copy_(old)


def directional_derivatives(
    context: ScoringContext,
    texts: Dataset,
    direction: Direction,
    *,
    method: str = "fd",
    self_check: int = 4,
    progress: Progress | None = None,
) -> tuple[Tensor, SelfCheck | None]:
    """⟨∇_φ s_i, v⟩ of each of N texts at the current φ, in nats per unit of v.

    Args:
        direction: v, by parameter name.
        method: `fd`, `jvp` or `exact`.
        self_check: number of examples on which `fd` is compared with exact gradients (0 = none).

    Returns:
        the derivatives (N,), and the self-check's finding (None unless `fd` was checked).

    Raises:
        GuardStop: a derivative is not finite; names the row.
    """
    if method not in METHODS:
        raise UserError(f"--scoring {method}: not a scoring method; take one of {', '.join(METHODS)}")
    check = None
    if _norm(direction) == 0.0:
        return torch.zeros(len(texts)), None
    if method == "fd":
        values, check = _finite_differences(context, texts, direction, self_check, progress)
    elif method == "jvp":
        values = _forward_mode(context, texts, direction, progress)
    else:
        values = _per_example(context, texts, direction, progress)
    refuse_non_finite(values, texts, "directional derivative")
    return values, check


def _norm(direction: Direction) -> float:
    return inner_product(direction, direction) ** 0.5


def _central_difference(
    context: ScoringContext, texts: Dataset, direction: Direction, epsilon: float, progress: Progress | None
) -> Tensor:
    with shifted(context.parameters, direction, epsilon):
        plus = context.logprobs(texts, progress)
    with shifted(context.parameters, direction, -epsilon):
        minus = context.logprobs(texts, progress)
    return (plus - minus).double() / (2 * epsilon)


def _target_change(dtype: torch.dtype) -> float:
    """The change of log-prob per token that balances rounding against truncation: the cube root of the
    arithmetic's relative precision (Nocedal & Wright, Numerical Optimization, section 8.1).

    Model families compute norms, rotary angles and softmax in float32 whatever the weights are, so the
    arithmetic is never finer than that.
    """
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) ** (1 / 3)


def _choose_epsilon(context: ScoringContext, pilot: Dataset, direction: Direction) -> float:
    """ε such that ±ε·v changes the pilot's log-probs per token by the target, in the root mean square.

    ‖φ‖ says nothing about the right step (LoRA's B starts at zero), so the observed change decides.
    """
    precision = next(context.model.parameters()).dtype
    target = _target_change(precision)
    lengths = torch.tensor(pilot["n_tokens"], dtype=torch.float64)
    epsilon = target / _norm(direction)
    for _ in range(12):
        change = _central_difference(context, pilot, direction, epsilon, None) * epsilon / lengths
        size = float(change.square().mean().sqrt())
        if target / 3 <= size <= target * 3:
            return epsilon
        # a vanishing change is rounding noise: go up a lot; otherwise the change is linear in ε
        epsilon *= 30.0 if size < target / 30 else target / size
    return epsilon


def _finite_differences(
    context: ScoringContext, texts: Dataset, direction: Direction, self_check: int, progress: Progress | None
) -> tuple[Tensor, SelfCheck | None]:
    sample = texts.select(_spread(texts, max(self_check, 4)))
    epsilon = _choose_epsilon(context, sample, direction)
    if self_check == 0:
        return _central_difference(context, texts, direction, epsilon, progress), None
    exact = _per_example(context, sample, direction, None)
    error = float("inf")
    for factor in (1.0, 0.2, 5.0):
        step = epsilon * factor
        estimate = _central_difference(context, sample, direction, step, None)
        error = float((estimate - exact).norm() / exact.norm().clamp(min=torch.finfo(torch.float64).tiny))
        if error <= SELF_CHECK_TOLERANCE:
            values = _central_difference(context, texts, direction, step, progress)
            return values, SelfCheck(len(sample), error, step, True)
    values = _per_example(context, texts, direction, progress)
    return values, SelfCheck(len(sample), error, step, False)


def _spread(texts: Dataset, count: int) -> list[int]:
    """Positions of `count` texts spread evenly over the range of lengths: the same for the same data."""
    lengths = torch.tensor([len(ids) for ids in texts["input_ids"]])
    by_length = lengths.argsort(stable=True)
    picks = torch.linspace(0, len(by_length) - 1, min(count, len(by_length))).round().long().unique()
    return by_length[picks].tolist()


def _per_example(
    context: ScoringContext, texts: Dataset, direction: Direction, progress: Progress | None
) -> Tensor:
    out = torch.zeros(len(texts), dtype=torch.float64)
    for position in range(len(texts)):
        gradient = weighted_logprob_gradient(
            context.model,
            context.parameters,
            texts.select([position]),
            torch.ones(1),
            max_tokens=context.max_tokens,
            pad_token_id=context.pad_token_id,
        )
        out[position] = inner_product(gradient, direction)
        if progress:
            progress(1)
    return out


@contextmanager
def _eager_attention(model: nn.Module) -> Iterator[None]:
    """Fused attention kernels have no forward-mode derivative; the plain one has."""
    base = unwrapped(model)
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def _forward_mode(
    context: ScoringContext, texts: Dataset, direction: Direction, progress: Progress | None
) -> Tensor:
    from torch.func import functional_call, jvp

    out = torch.zeros(len(texts), dtype=torch.float64)
    primals = {name: p.detach() for name, p in context.parameters.items()}
    tangents = {name: direction[name].to(p) for name, p in primals.items()}
    device = next(iter(primals.values())).device
    module = _LogProbModule(context.model)

    with evaluating(context.model), _eager_attention(context.model), torch.no_grad():
        batches = length_sorted_batches(
            texts, max_tokens=context.max_tokens, pad_token_id=context.pad_token_id
        )
        for batch in batches:
            on_device = batch.to(device)

            def logprobs(phi: Direction, batch: Batch = on_device) -> Tensor:
                return functional_call(module, {f"model.{n}": v for n, v in phi.items()}, (batch,))

            derivative = jvp(logprobs, (primals,), (tangents,))[1]
            out[batch.index] = derivative.double().cpu()
            if progress:
                progress(len(batch.index))
    return out


class _LogProbModule(nn.Module):
    """`response_logprobs` as a module, so that `functional_call` can swap the parameters under it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return response_logprobs(self.model, batch)


def impact(dloss_ds: Tensor, ds_along_v: Tensor) -> Tensor:
    """a_i = −(dℓ/ds)_i·⟨∇s_i, H⁻¹∇J⟩: (N,), (N,) -> (N,). Positive = unlearning i raises alignment."""
    return -dloss_ds.double() * ds_along_v.double()


def utility_cost(dloss_ds: Tensor, ds_along_u: Tensor) -> Tensor:
    """c_i = +(dℓ/ds)_i·⟨∇s_i, H⁻¹∇U⟩: (N,), (N,) -> (N,). Positive = usefulness lost, in U's unit."""
    return dloss_ds.double() * ds_along_u.double()


__all__ = [
    "METHODS",
    "ScoringContext",
    "SelfCheck",
    "directional_derivatives",
    "impact",
    "shifted",
    "utility_cost",
]
