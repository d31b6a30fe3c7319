"""Retain terms R(φ): what the unlearning step pays for drifting. Sums here; the trainer reduces.

`nll` and `kl` are sums over the response tokens of a retain batch, to be divided by the number of tokens
of the whole optimiser step; `l2` is a function of the parameters alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from u2a.logprobs import response_logits, token_logprobs
from u2a.models.sharding import added_up, own_part
from u2a.types import Batch


def nll_sum(model: nn.Module, batch: Batch) -> Tensor:
    """−Σ log π_φ(token) over the response tokens of the batch, in nats: scalar."""
    return -token_logprobs(model, batch)[0].sum()


def kl_sum(model: nn.Module, batch: Batch, reference_logits: Tensor) -> Tensor:
    """Σ KL(π_ref ‖ π_φ) over the R response tokens of the batch, in nats: scalar.

    The reference comes first, as in TOFU (Maini et al. 2024, arXiv 2401.06121, section 4.1): all that the
    original model would say stays likely. `reference_logits` has shape (R, V).
    """
    policy = response_logits(model, batch)[0].log_softmax(-1)
    reference = reference_logits.log_softmax(-1)
    return (reference.exp() * (reference - policy)).sum()


def l2(parameters: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
    """½‖φ − φ₀‖² over all elements of all trainable parameters (Hessian: the identity): scalar."""
    terms = [((parameters[name] - start[name].to(parameters[name])) ** 2).sum() for name in parameters]
    return 0.5 * torch.stack(terms).sum()


@torch.no_grad()
def add_l2_gradient(
    parameters: Mapping[str, Tensor], start: Mapping[str, Tensor], weight: float
) -> Tensor | float:
    """Adds weight·(φ − φ₀), the gradient of weight·`l2`, to that of φ, each process to its own part.

    For a sharded model, after a step's passes: within them FSDP would take it for a share of the mean over
    processes. Collective.

    Returns:
        weight·½‖φ − φ₀‖² over all elements, those of other processes too: scalar.
    """
    squares: dict[str, Tensor] = {}
    for name, p in parameters.items():
        apart = own_part(p) - own_part(start[name])
        squares[name] = apart.square().sum()
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        own_part(p.grad).add_(apart, alpha=weight)
    return 0.5 * weight * added_up(squares, parameters)
