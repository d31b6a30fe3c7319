"""The texts on which the retain term's curvature is measured, with their own labels or sampled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from u2a.impact.context import Direction, ScoringContext
from u2a.impact.curvature.options import DAMPING_SHARE
from u2a.impact.gradient import first_not_finite
from u2a.impact.per_example import Layer, NotLinear, backward_through, linear_layers
from u2a.logprobs import evaluating, response_lengths, response_logits, response_logprobs
from u2a.passes.dataset import Progress
from u2a.passes.memory import Result, whole_pass
from u2a.types import IGNORE, Batch, GuardStop

if TYPE_CHECKING:
    from datasets import Dataset

    from u2a.problem import Problem

_LARGEST_BLOCK = 1 << 25
"""Most elements of per-example gradients held at once for one layer (128 MiB in float32)."""

_TOKENS_AT_ONCE = 256
"""Tokens whose cumulative probabilities are held at once in float64."""


def wide(value: Tensor) -> Tensor:
    """`value` in float32 at least: what sums are taken in."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def drawn_rows(total: int, rows: int, seed: int) -> list[int]:
    """Positions of at most `rows` of `total` rows (0 = all), in order: the same for the same seed."""
    if rows == 0 or total <= rows:
        return list(range(total))
    return sorted(np.random.default_rng(seed).permutation(total)[:rows].tolist())


@dataclass(frozen=True)
class KeptTexts:
    """n texts of the retain term R = −Σ_i s_i / T, and T, the number of their response tokens.

    They are the problem's retain texts; where the retain term is `none`, U's texts stand for them. `rows`
    are their positions there.
    """

    context: ScoringContext
    texts: Dataset
    rows: list[int]
    tokens: int
    seed: int

    @classmethod
    def of(cls, problem: Problem, rows: int, seed: int) -> KeptTexts:
        """At most `rows` texts (0 = all), drawn by `seed`."""
        texts = problem.utility.texts if problem.retain_texts is None else problem.retain_texts
        positions = drawn_rows(len(texts), rows, seed)
        chosen = texts.select(positions)
        return cls(ScoringContext.of(problem), chosen, positions, sum(chosen["n_tokens"]), seed)

    def batches(self, *, sampled: bool = False, one_by_one: bool = False) -> Iterator[Batch]:
        """The texts in batches; with `sampled` their labels are drawn from the model.

        A label is drawn for each response token, given the text's own tokens before it: what makes the
        gradients' second moment the Gauss-Newton matrix in expectation (Kunstner et al. 2019,
        arXiv 1905.12558). Draws depend on the seed and the row alone, not on how rows are batched.
        """
        context = replace(self.context, max_tokens=1) if one_by_one else self.context
        for batch in context.batches(self.texts):
            yield self._sampled(batch) if sampled else batch

    def fitting(self, work: Callable[[KeptTexts], Result]) -> Result:
        """`work` on these texts, begun again with smaller batches where memory runs out."""

        def sized(tokens: int) -> Result:
            return work(replace(self, context=replace(self.context, max_tokens=tokens)))

        context = self.context
        return whole_pass(context.model, self.texts, context.max_tokens, sized, kind="curvature")

    def _sampled(self, batch: Batch) -> Batch:
        with torch.no_grad():
            logits = response_logits(self.context.model, batch)[0]
        index, lengths = batch.index.tolist(), response_lengths(batch).tolist()
        streams = [np.random.default_rng((self.seed, self.rows[i])) for i in index]
        uniform = np.concatenate([stream.random(n) for stream, n in zip(streams, lengths, strict=True)])
        drawn = []
        for part, u in zip(
            logits.split(_TOKENS_AT_ONCE), torch.as_tensor(uniform).split(_TOKENS_AT_ONCE), strict=True
        ):
            cumulative = part.double().softmax(-1).cumsum(-1)
            found = torch.searchsorted(cumulative, u.to(cumulative)[:, None] * cumulative[:, -1:])
            drawn.append(found[:, 0].clamp(max=part.shape[-1] - 1))
        labels = batch.labels.clone()
        labels[:, 1:][labels[:, 1:] != IGNORE] = torch.cat(drawn)
        return replace(batch, labels=labels)


def fisher_diagonal(kept: KeptTexts, *, sampled: bool, progress: Progress | None = None) -> Direction:
    """Σ_i (∇s_i)∘(∇s_i) / T over the kept texts, by parameter name.

    With the texts' own labels: the diagonal of the empirical Fisher matrix. With sampled ones: an unbiased
    estimate of the diagonal of R's Gauss-Newton matrix, whose sum estimates the trace. One forward and one
    backward pass over the texts (sampling: one more forward pass); full fine-tuning goes text by text.

    Raises:
        GuardStop: a square is not finite.
    """
    layers = linear_layers(kept.context)
    squares = None
    if layers is not None:
        try:
            squares = kept.fitting(lambda part: _batched_squares(part, layers, sampled, progress))
        except NotLinear:
            squares = None
    if squares is None:
        squares = kept.fitting(lambda part: _squares_one_by_one(part, sampled, progress))
    bad = first_not_finite(squares)
    if bad:
        raise GuardStop(f"the squared gradients of {bad} are not finite; try --dtype float32")
    return {name: value / kept.tokens for name, value in squares.items()}


def default_damping(trace: float, size: int) -> float:
    """δ by rule: `DAMPING_SHARE` of the mean diagonal of an H with this trace and `size` rows.

    Raises:
        GuardStop: the curvature is zero or not finite.
    """
    delta = DAMPING_SHARE * trace / size
    if not 0 < delta < float("inf"):
        raise GuardStop(
            f"the mean curvature of the retain texts is {trace / size}: no damping follows from it"
        )
    return delta


def example_gradients(layer_input: Tensor, output_gradient: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Per-example gradients of one layer's weight, (b, out, in), in blocks that fit.

    Shapes: `layer_input` (B, T, in), `output_gradient` (B, T, out); the slice says which b of the B.
    """
    x, g = wide(layer_input), wide(output_gradient.detach())
    block = max(1, _LARGEST_BLOCK // (g.shape[-1] * x.shape[-1]))
    for begin in range(0, len(g), block):
        part = slice(begin, begin + block)
        yield part, torch.bmm(g[part].transpose(1, 2), x[part])


def _zeros(context: ScoringContext) -> Direction:
    return {name: torch.zeros_like(wide(p.detach())) for name, p in context.parameters.items()}


def _batched_squares(
    kept: KeptTexts, layers: list[Layer], sampled: bool, progress: Progress | None
) -> Direction:
    sums = _zeros(kept.context)

    def take(layer: Layer, x: Tensor, g: Tensor) -> None:
        if layer.bias is not None:
            sums[layer.bias] += wide(g.detach()).sum(1).square().sum(0)
        if layer.weight is not None:
            for _, gradients in example_gradients(x, g):
                sums[layer.weight] += gradients.square().sum(0)

    with evaluating(kept.context.model), torch.enable_grad():
        for batch in kept.batches(sampled=sampled):
            backward_through(kept.context, layers, batch, take)
            if progress:
                progress(len(batch.index))
    return sums


def _squares_one_by_one(kept: KeptTexts, sampled: bool, progress: Progress | None) -> Direction:
    sums = _zeros(kept.context)
    with evaluating(kept.context.model), torch.enable_grad():
        for batch in kept.batches(sampled=sampled, one_by_one=True):
            s = response_logprobs(kept.context.model, batch)[0]
            for name, gradient in zip(sums, kept.context.gradients(s), strict=True):
                if gradient is not None:
                    sums[name] += wide(gradient).square()
            if progress:
                progress(1)
    return sums
