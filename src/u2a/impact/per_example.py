"""Per-example gradients of log-probs against any number of directions, from one backward pass a batch.

For a linear layer y = W·x the gradient of s_i is Σ_t g_t·x_tᵀ, with g_t the gradient of s_i at the layer's
output in token t. Examples do not mix, so one backward pass of Σ_i s_i gives every g_t, and the gradients
of a batch are one small product a layer: compared with the directions at once, then dropped. The backward
pass never forms the layers' summed weight gradients. Where a parameter belongs to something other than a
linear layer, or a layer does not see its input as (batch, token, feature), one backward pass an example
does the same job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from u2a import processes
from u2a.impact.context import Direction, ScoringContext
from u2a.logprobs import evaluating, response_logprobs, unwrapped
from u2a.models.sharding import own_part
from u2a.passes.dataset import Progress
from u2a.passes.memory import working
from u2a.types import Batch

if TYPE_CHECKING:
    from datasets import Dataset

BACKWARD = "a backward pass"
"""The kind of pass that keeps activations, as messages name it."""

_LARGEST_BLOCK = 1 << 26
"""Most elements of per-example gradients held at once for one layer (256 MiB in float32)."""


class NotLinear(Exception):  # noqa: N818 - a finding, handled here
    """A layer's input is not (batch, token, feature), so its gradient cannot be told apart by example."""


@dataclass
class PerExample:
    """What one pass over N texts found, all float64 on the CPU.

    `s` (N,) log-probs; `along` (D, N) the derivatives ⟨∇s_i, v_d⟩, in nats per unit of v_d; `square_norm`
    (N,) ‖∇s_i‖².
    """

    s: Tensor
    along: Tensor
    square_norm: Tensor

    def put_together(self, own: Tensor) -> PerExample:
        """With the rows of all processes; `own` (N,) are this one's."""
        return PerExample(*(processes.put_together(value, own) for value in vars(self).values()))


def per_example_derivatives(
    context: ScoringContext,
    texts: Dataset,
    directions: Sequence[Direction],
    progress: Progress | None = None,
) -> PerExample:
    """s_i, ⟨∇s_i, v_d⟩ and ‖∇s_i‖² of N texts at the current φ, for D directions at once.

    Costs one forward and one backward pass over the texts whatever D is (LoRA: about two forward passes);
    keeps the activations of one batch, as a training step does.
    """
    layers = linear_layers(context)
    if layers is not None:
        found = _batched(context, layers, texts, directions, progress)
        if found is not None:
            return found
    return _one_by_one(context, texts, directions, progress)


def is_batched(context: ScoringContext) -> bool:
    """Whether every parameter belongs to a linear layer, as LoRA's do: one backward pass serves a batch."""
    return linear_layers(context) is not None


# -- batches ------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """A linear layer and the names of its parameters among φ; an absent one is None."""

    module: nn.Linear
    weight: str | None = None
    bias: str | None = None


def linear_layers(context: ScoringContext) -> list[Layer] | None:
    """The linear layers that own φ, or None when some parameter is not (only) a linear layer's, or when no
    process has all of φ."""
    if context.is_sharded:
        return None
    names = {id(p): name for name, p in context.parameters.items()}
    layers: list[Layer] = []
    seen: set[str] = set()
    for module in context.model.modules():
        own = {kind: names[id(p)] for kind, p in module.named_parameters(recurse=False) if id(p) in names}
        if not own:
            continue
        if type(module) is not nn.Linear or seen & set(own.values()):
            return None
        seen |= set(own.values())
        layers.append(Layer(module, own.get("weight"), own.get("bias")))
    return layers if len(seen) == len(context.parameters) else None


@dataclass
class _Accumulator:
    """Adds up ⟨∇s_i, v_d⟩ (D, B) and ‖∇s_i‖² (B,) layer by layer."""

    stacked: dict[str, Tensor]
    along: Tensor
    square_norm: Tensor

    def add(self, name: str, gradients: Tensor, examples: slice) -> None:
        """`gradients` (b, P): the examples' gradients of one parameter."""
        self.along[:, examples] += (self.stacked[name] @ gradients.T).double()
        self.square_norm[examples] += gradients.double().square().sum(-1)


def _batched(
    context: ScoringContext,
    layers: list[Layer],
    texts: Dataset,
    directions: Sequence[Direction],
    progress: Progress | None,
) -> PerExample | None:
    """In batches; None where in some process a layer is found not to be linear after all."""
    found, own = PerExample(*_empty(len(texts), len(directions))), torch.zeros(len(texts), dtype=torch.bool)
    stacked = {
        name: torch.stack([v[name].to(p).flatten() for v in directions])
        if directions
        else p.new_zeros(0, p.numel())
        for name, p in context.parameters.items()
    }
    linear = True
    with evaluating(context.model), torch.enable_grad(), working(context.model):
        try:
            for attempt in context.keeping_activations.attempts(texts, BACKWARD):
                with attempt as batch:
                    where = batch.index.cpu()
                    s, sums = _compared(context, layers, batch, stacked, len(directions))
                    found.s[where] = s.detach().double().cpu()
                    found.along[:, where] = sums.along.cpu()
                    found.square_norm[where] = sums.square_norm.cpu()
                    own[where] = True
                    if progress:
                        progress(attempt.done)
        except NotLinear:
            linear = False
    return None if processes.any_of(not linear) else found.put_together(own)


def _compared(
    context: ScoringContext, layers: list[Layer], batch: Batch, stacked: dict[str, Tensor], directions: int
) -> tuple[Tensor, _Accumulator]:
    """One batch: s (B,), and its examples' gradients compared with the directions."""
    size, device = len(batch.index), context.device
    sums = _Accumulator(
        stacked,
        torch.zeros(directions, size, dtype=torch.float64, device=device),
        torch.zeros(size, dtype=torch.float64, device=device),
    )
    s = backward_through(context, layers, batch, lambda layer, x, g: _compare(layer, x, g, sums))
    return s, sums


def backward_through(
    context: ScoringContext,
    layers: list[Layer],
    batch: Batch,
    take: Callable[[Layer, Tensor, Tensor], None],
) -> Tensor:
    """One backward pass of Σ_i s_i; calls `take(layer, x, g)` with each layer's input and output gradient.

    x is (B, T, in), g (B, T, out). Returns s (B,).

    Raises:
        NotLinear: a layer's input has another shape, or a layer was used more than once.
    """
    used: set[int] = set()

    def forward_hook(layer: Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach()
            if x.dim() != 3 or x.shape[:2] != batch.input_ids.shape or id(layer) in used:
                raise NotLinear
            used.add(id(layer))
            output.register_hook(lambda g: take(layer, x, g))

        return hook

    handles = [layer.module.register_forward_hook(forward_hook(layer)) for layer in layers]
    try:
        with _embeddings_need_gradient(context.model) as inputs:
            s = response_logprobs(context.model, batch)
            torch.autograd.grad(s.sum(), inputs[0])
    finally:
        for handle in handles:
            handle.remove()
    return s


def _compare(layer: Layer, x: Tensor, g: Tensor, sums: _Accumulator) -> None:
    """Compares one layer's per-example gradients with the directions, in blocks that fit."""
    g = g.detach()
    if layer.bias is not None:
        sums.add(layer.bias, g.sum(1), slice(0, len(g)))
    if layer.weight is None:
        return
    block = max(1, _LARGEST_BLOCK // (g.shape[-1] * x.shape[-1]))
    for begin in range(0, len(g), block):
        examples = slice(begin, begin + block)
        gradients = torch.bmm(g[examples].transpose(1, 2), x[examples].to(g))
        sums.add(layer.weight, gradients.flatten(1), examples)


@contextmanager
def _embeddings_need_gradient(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within, the token embeddings' output is a leaf that needs a gradient; it is collected in the list.

    Every later layer then lies on a path to it, so that one backward pass to it alone reaches them all.
    """
    collected: list[Tensor] = []

    def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_(True)
        collected.append(leaf)
        return leaf

    handle = unwrapped(model).get_input_embeddings().register_forward_hook(hook)
    try:
        yield collected
    finally:
        handle.remove()


# -- one by one ---------------------------------------------------------------------------------------------


def _one_by_one(
    context: ScoringContext, texts: Dataset, directions: Sequence[Direction], progress: Progress | None
) -> PerExample:
    found, own = PerExample(*_empty(len(texts), len(directions))), torch.zeros(len(texts), dtype=torch.bool)
    sharded = context.is_sharded  # then all processes work at the same text, each on its part of φ
    with evaluating(context.model), torch.enable_grad(), working(context.model):
        for attempt in replace(context, max_tokens=1).attempts(texts, BACKWARD, deal=not sharded):
            with attempt as batch:
                position = int(batch.index[0])
                s = response_logprobs(context.model, batch)[0]
                found.s[position] = s.detach().double().cpu()
                for name, gradient in zip(context.parameters, context.gradients(s), strict=True):
                    if gradient is None:
                        continue
                    wide = own_part(gradient).double()
                    found.square_norm[position] += wide.square().sum().cpu()
                    for d, direction in enumerate(directions):
                        found.along[d, position] += (wide * own_part(direction[name]).to(wide)).sum().cpu()
                own[position] = True
                if progress:
                    progress(attempt.done)
    if sharded:
        found.along, found.square_norm = processes.summed([found.along, found.square_norm])
        return found
    return found.put_together(own)


def _empty(rows: int, directions: int) -> tuple[Tensor, Tensor, Tensor]:
    zeros = torch.zeros(rows, dtype=torch.float64)
    return zeros.clone(), torch.zeros(directions, rows, dtype=torch.float64), zeros
