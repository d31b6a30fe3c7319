"""Parts of the inner problem (1/Ω)·Σ_i ω_i·ℓ_i + λ·R with weights 1, as graphs that can be differentiated.

What `--joint` trains on besides, −μ·J, is no part of it here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from u2a.impact.context import ScoringContext
from u2a.logprobs import evaluating, response_lengths, response_logits, response_logprobs
from u2a.losses.retain import kl_sum, nll_sum
from u2a.types import Batch

if TYPE_CHECKING:
    from u2a.problem import Problem


def unlearning_parts(problem: Problem, rows: Sequence[int], share: float) -> Iterator[Tensor]:
    """share·Σ_i ℓ_i over the negatives at positions `rows`, a batch at a time: scalars that add up to it."""
    reference = problem.reference[list(rows)]
    context = ScoringContext.of(problem)
    for batch in context.batches(problem.negative_texts.select(rows)):
        s = response_logprobs(context.model, batch)
        at_reference = reference[batch.index.cpu()].to(s)
        yield share * problem.loss(s, at_reference, response_lengths(batch).to(s)).sum()


def retain_parts(problem: Problem, rows: Sequence[int], tokens: float | None = None) -> Iterator[Tensor]:
    """R over the retain texts at positions `rows`, a batch at a time: nothing for `none` and `l2`.

    `l2` has no texts: its gradient is φ − φ₀, of which a problem does not hold φ₀, its Hessian the identity.

    Args:
        tokens: what the sum over response tokens is divided by; default the number of these.
    """
    if problem.retain_loss not in ("nll", "kl") or problem.retain_texts is None:
        return
    texts = problem.retain_texts.select(rows)
    tokens = tokens or sum(texts["n_tokens"])
    context = ScoringContext.of(problem)
    for batch in context.batches(texts):
        if problem.retain_loss == "nll":
            total = nll_sum(context.model, batch)
        else:
            total = kl_sum(context.model, batch, _reference_logits(problem, batch))
        yield total / tokens


def _reference_logits(problem: Problem, batch: Batch) -> Tensor:
    with torch.no_grad(), problem.reference_model() as reference, evaluating(reference):
        return response_logits(reference, batch)[0]
