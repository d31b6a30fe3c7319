"""Exact directional derivatives by forward-mode differentiation: no activations kept, eager attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2a import processes
from u2a.impact.context import Direction, ScoringContext
from u2a.logprobs import evaluating, response_logprobs, unwrapped
from u2a.passes.dataset import Progress
from u2a.passes.memory import working
from u2a.types import Batch

if TYPE_CHECKING:
    from datasets import Dataset


def forward_mode(
    context: ScoringContext, texts: Dataset, direction: Direction, progress: Progress | None = None
) -> Tensor:
    """⟨∇s_i, v⟩ of N texts: (N,) float64, on the CPU."""
    from torch.func import functional_call, jvp

    out, own = torch.zeros(len(texts), dtype=torch.float64), torch.zeros(len(texts), dtype=torch.bool)
    primals = {name: p.detach() for name, p in context.parameters.items()}
    tangents = {name: direction[name].to(p) for name, p in primals.items()}
    module = _LogProbModule(context.model)

    model = context.model
    with evaluating(model), eager_attention(model), torch.no_grad(), working(model):
        for attempt in context.attempts(texts, "a forward pass with derivatives"):
            with attempt as batch:

                def logprobs(phi: Direction, batch: Batch = batch) -> Tensor:
                    return functional_call(module, {f"model.{n}": v for n, v in phi.items()}, (batch,))

                derivative = jvp(logprobs, (primals,), (tangents,))[1]
                out[batch.index.cpu()] = derivative.double().cpu()
                own[batch.index.cpu()] = True
                if progress:
                    progress(attempt.done)
    return processes.put_together(out, own)


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Fused attention kernels have no forward-mode derivative; the plain one has."""
    base = unwrapped(model)
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(before)


class _LogProbModule(nn.Module):
    """`response_logprobs` as a module, so that `functional_call` can swap the parameters under it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return response_logprobs(self.model, batch)
