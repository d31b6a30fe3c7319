"""What every scoring route needs, and moving φ for the time of a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2a.data.collate import length_sorted_batches
from u2a.models.sharding import added_up, at_rest, is_sharded, own_part
from u2a.passes.dataset import Progress, dataset_logprobs, fitting_apart, fitting_batches
from u2a.passes.memory import Attempt
from u2a.types import Batch, PackedBatch

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.problem import Problem

Direction = dict[str, Tensor]
"""A vector in parameter space: parameter name -> tensor of that parameter's shape."""


_ACTIVATIONS = 4
"""How many times fewer tokens a batch has when activations are kept. Over 2,048 tokens of SmolLM2-135M the
backward pass peaked at 9.7 GiB, the forward pass at 1.6 (measured as in `benchmarks/scoring.py`)."""


@dataclass(frozen=True)
class ScoringContext:
    """The model, φ by name, and how to batch."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    max_tokens: int
    pad_token_id: int

    @classmethod
    def of(cls, problem: Problem) -> ScoringContext:
        """The context of a prepared problem, at whatever φ its policy has."""
        policy = problem.policy
        return cls(policy.model, policy.trainable(), problem.max_tokens, problem.pad_token_id)

    @property
    def is_sharded(self) -> bool:
        """Whether φ is spread over processes: every pass and every gradient then needs all of them."""
        return is_sharded(self.model)

    def gradients(self, value: Tensor) -> list[Tensor | None]:
        """∇_φ of a scalar, in the order of φ. Where φ is sharded, the mean over the processes' values."""
        leaves = list(self.parameters.values())
        if not self.is_sharded:
            return list(torch.autograd.grad(value, leaves, allow_unused=True))
        for p in leaves:
            p.grad = None
        value.backward()
        found = [p.grad for p in leaves]
        for p in leaves:
            p.grad = None
        return found

    @property
    def keeping_activations(self) -> ScoringContext:
        """The same with smaller batches, for passes that go backward: they keep what each layer put out."""
        return replace(self, max_tokens=max(1, self.max_tokens // _ACTIVATIONS))

    @property
    def device(self) -> torch.device:
        """Where φ is."""
        return next(iter(self.parameters.values())).device

    def shared_attempts(self, texts: Dataset, kind: str) -> Iterator[Attempt[Batch | PackedBatch]]:
        """`texts` in the cheapest layout, where prompts may be shared, on the device of φ; each batch is
        worked on in a block that may run out of memory. `kind` of pass, and how batches are dealt to the
        processes, as in `u2a.passes.memory.fitting`."""
        sizes = {"max_tokens": self.max_tokens, "pad_token_id": self.pad_token_id}
        return fitting_batches(self.model, texts, **sizes, kind=kind, deal=True)

    def attempts(self, texts: Dataset, kind: str, *, deal: bool = True) -> Iterator[Attempt[Batch]]:
        """The same in length-sorted batches, examples apart."""
        sizes = {"max_tokens": self.max_tokens, "pad_token_id": self.pad_token_id}
        return fitting_apart(self.model, texts, **sizes, kind=kind, deal=deal)

    def batches(self, texts: Dataset) -> Iterator[Batch]:
        """`texts` in length-sorted batches, examples apart, on the device of φ."""
        for batch in length_sorted_batches(texts, max_tokens=self.max_tokens, pad_token_id=self.pad_token_id):
            yield batch.to(self.device)

    def logprobs(self, texts: Dataset, progress: Progress | None = None) -> Tensor:
        """s (N,) of `texts` at the current φ, no gradient."""
        return dataset_logprobs(
            self.model,
            texts,
            max_tokens=self.max_tokens,
            pad_token_id=self.pad_token_id,
            progress=progress,
        )


def inner_product(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """⟨a, b⟩ over all elements, those of other processes too, accumulated in float64."""
    products = {name: (own_part(a[name]).double() * own_part(b[name]).double()).sum() for name in a}
    return float(added_up(products, a))


def norm(a: Mapping[str, Tensor]) -> float:
    """‖a‖ over all elements."""
    return inner_product(a, a) ** 0.5


@contextmanager
def shifted(
    parameters: Mapping[str, nn.Parameter], direction: Direction, step: float, model: nn.Module | None = None
) -> Iterator[None]:
    """φ + step·v within; the very bits of φ are back after, whatever happens inside. Of a sharded `model`
    every process moves its part."""
    own = {name: own_part(p.detach()) for name, p in parameters.items()}
    saved = [p.clone() for p in own.values()]
    try:
        with torch.no_grad():
            for name, p in own.items():
                p.add_(own_part(direction[name]).to(p), alpha=step)
        if model is not None:
            at_rest(model)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(own.values(), saved, strict=True):
                p.copy_(old)
        if model is not None:
            at_rest(model)
