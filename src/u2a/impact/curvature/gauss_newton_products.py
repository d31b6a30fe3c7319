"""Products of the Gauss-Newton matrix of the NLL per token with a vector, never forming the matrix."""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call

from u2a.impact.context import Direction
from u2a.impact.curvature.kept_texts import KeptTexts, wide
from u2a.impact.forward_mode import eager_attention
from u2a.logprobs import evaluating, response_logits
from u2a.types import Batch


def gauss_newton_product(kept: KeptTexts, direction: Direction) -> Direction:
    """Σ_t J_tᵀ·(diag(p_t) − p_t·p_tᵀ)·J_t·v / T over the response tokens of the kept texts, by name.

    One forward pass carries J·v along (forward mode, eager attention) and keeps the graph for the one
    backward pass that gives Jᵀ·u. Where memory runs out, it begins again with smaller batches.
    """
    return kept.fitting(lambda part: _product(part, direction))


def _product(kept: KeptTexts, direction: Direction) -> Direction:
    context = kept.context
    module = _Logits(context.model)
    leaves = list(context.parameters.values())
    sums = {name: torch.zeros_like(wide(p.detach())) for name, p in context.parameters.items()}
    with evaluating(context.model), eager_attention(context.model), torch.enable_grad():
        for batch in kept.batches():
            with forward_ad.dual_level():
                duals = {
                    f"model.{name}": forward_ad.make_dual(p, direction[name].to(p))
                    for name, p in context.parameters.items()
                }
                logits, along = forward_ad.unpack_dual(functional_call(module, duals, (batch,)))
            if along is None:
                continue
            u = softmax_curvature(logits.detach(), along.detach()) / kept.tokens
            gradients = torch.autograd.grad(logits, leaves, u, allow_unused=True)
            for name, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient
    return sums


def softmax_curvature(logits: Tensor, along: Tensor) -> Tensor:
    """(diag(p) − p·pᵀ)·u at each of R tokens, p = softmax(logits): (R, V), (R, V) -> (R, V)."""
    p = logits.softmax(-1)
    weighted = p * along
    return weighted - p * weighted.sum(-1, keepdim=True)


class _Logits(nn.Module):
    """`response_logits` as a module, so that `functional_call` can swap the parameters under it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return response_logits(self.model, batch)[0]
