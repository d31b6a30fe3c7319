"""Kronecker factors of linear layers, their eigenvectors, and second moments of gradients along those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from u2a.impact.context import ScoringContext
from u2a.impact.curvature.kept_texts import KeptTexts, example_gradients, wide
from u2a.impact.per_example import Layer, NotLinear, backward_through, linear_layers
from u2a.logprobs import evaluating
from u2a.passes.dataset import Progress
from u2a.types import Batch, GuardStop, UserError

_WHAT_TO_DO = (
    "needs an adapter on plain linear layers (--lora-rank above 0), for it factors each layer's curvature by "
    "its inputs and outputs; take --curvature ggn or diagonal"
)


@dataclass(frozen=True)
class Eigenbasis:
    """Eigenvectors (columns) and eigenvalues of one layer's factors G (out, out) and A (in, in)."""

    output: Tensor
    input: Tensor
    output_values: Tensor
    input_values: Tensor

    def product_eigenvalues(self) -> Tensor:
        """Those of G ⊗ A: (out, in)."""
        return torch.outer(self.output_values, self.input_values)


def eigenbases(kept: KeptTexts, progress: Progress | None = None) -> dict[str, Eigenbasis]:
    """Of A = mean of x·xᵀ over tokens and G = Σ g·gᵀ / T, labels sampled; by name of the layer's weight.

    Keeps one out × out and one in × in matrix a layer in float64.

    Raises:
        UserError: φ is not the weights of plain linear layers.
        GuardStop: a factor is not finite.
    """
    return kept.fitting(lambda part: _eigenbases(part, progress))


def _eigenbases(kept: KeptTexts, progress: Progress | None) -> dict[str, Eigenbasis]:
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    tokens = 0

    def take(name: str, batch: Batch, x: Tensor, g: Tensor) -> None:
        seen = batch.attention_mask.bool()
        for sums, value in ((inputs, x), (outputs, g)):
            rows = wide(value.detach()[seen])
            second = (rows.T @ rows).double()
            sums[name] = sums[name] + second if name in sums else second

    for batch in _each_batch(kept, take, progress):
        tokens += int(batch.attention_mask.sum())
    found = {}
    for name, total in inputs.items():
        a, g = total / tokens, outputs[name] / kept.tokens
        if not (torch.isfinite(a).all() and torch.isfinite(g).all()):
            raise GuardStop(f"the Kronecker factors of {name} are not finite; try --dtype float32")
        (a_values, a_vectors), (g_values, g_vectors) = torch.linalg.eigh(a), torch.linalg.eigh(g)
        # rounding can leave eigenvalues of a positive semidefinite matrix a little under 0
        found[name] = Eigenbasis(g_vectors, a_vectors, g_values.clamp(min=0), a_values.clamp(min=0))
    return {name: found[name] for name in kept.context.parameters}


def second_moments_along(
    kept: KeptTexts, bases: dict[str, Eigenbasis], progress: Progress | None = None
) -> dict[str, Tensor]:
    """Σ_i (u_Gᵀ·∇_W s_i·u_A)² / T, (out, in) float64 a layer, with the labels of `eigenbases`.

    Raises:
        GuardStop: a moment is not finite.
    """
    return kept.fitting(lambda part: _second_moments_along(part, bases, progress))


def _second_moments_along(
    kept: KeptTexts, bases: dict[str, Eigenbasis], progress: Progress | None
) -> dict[str, Tensor]:
    sums = {name: torch.zeros_like(basis.product_eigenvalues()) for name, basis in bases.items()}

    def take(name: str, _batch: Batch, x: Tensor, g: Tensor) -> None:
        basis = bases[name]
        x, g = wide(x), wide(g.detach())
        for _, turned in example_gradients(x @ basis.input.to(x), g @ basis.output.to(g)):
            sums[name] += turned.square().sum(0)

    for _ in _each_batch(kept, take, progress):
        pass
    for name, value in sums.items():
        if not torch.isfinite(value).all():
            raise GuardStop(f"the squared gradients of {name} are not finite; try --dtype float32")
    return {name: value / kept.tokens for name, value in sums.items()}


def _each_batch(
    kept: KeptTexts,
    take: Callable[[str, Batch, Tensor, Tensor], None],
    progress: Progress | None,
) -> list[Batch]:
    """Calls `take(weight name, batch, x, g)` for each layer and batch, labels sampled; gives the batches."""
    layers = _weights_of_linear_layers(kept.context)
    done = []
    with evaluating(kept.context.model), torch.enable_grad():
        for batch in kept.batches(sampled=True):

            def pass_on(layer: Layer, x: Tensor, g: Tensor, batch: Batch = batch) -> None:
                take(str(layer.weight), batch, x, g)

            try:
                backward_through(kept.context, layers, batch, pass_on)
            except NotLinear:
                raise UserError(f"this curvature {_WHAT_TO_DO}") from None
            done.append(batch)
            if progress:
                progress(len(batch.index))
    return done


def _weights_of_linear_layers(context: ScoringContext) -> list[Layer]:
    layers = linear_layers(context)
    if layers is None or any(layer.bias is not None or layer.weight is None for layer in layers):
        raise UserError(f"this curvature {_WHAT_TO_DO}")
    return layers
