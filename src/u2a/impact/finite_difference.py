"""Directional derivatives by finite differences: plain forward passes, checked against exact gradients.

(s_i(φ+εv) − s_i(φ))/ε needs one forward pass beyond the log-probs that every run has anyway; where a
self-check on a few texts says that this is not accurate enough, (s_i(φ+εv) − s_i(φ−εv))/2ε needs one more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from u2a.data.collate import token_counts
from u2a.impact.blocks import WHOLE, Blocks
from u2a.impact.context import Direction, ScoringContext, norm, shifted
from u2a.impact.per_example import per_example_derivatives
from u2a.logprobs import forward_precision
from u2a.passes.dataset import Progress

if TYPE_CHECKING:
    from datasets import Dataset

SELF_CHECK_TOLERANCE = 0.05
"""Largest relative error on the self-check's examples that is still taken as agreement."""

_PILOT = 4
"""Texts on which ε is chosen when there is no self-check."""


@dataclass(frozen=True)
class SelfCheck:
    """What the comparison with exact gradients on a few examples found.

    `relative_error` is ‖fd − exact‖ / ‖exact‖ over those examples (no unit); `epsilon` is the last step
    tried; `passed` says whether the scores are fd's or, failing that, `exact`'s; `sides` is 1 or 2.
    """

    examples: int
    relative_error: float
    epsilon: float
    passed: bool
    sides: int = 1


def finite_differences(
    context: ScoringContext,
    texts: Dataset,
    directions: list[Direction],
    base: Tensor,
    self_check: int = 4,
    progress: Progress | None = None,
    blocks: Blocks = WHOLE,
) -> tuple[Tensor, tuple[SelfCheck, ...]]:
    """⟨∇s_i, v_d⟩ of N texts along D directions: (D, N) float64, and a self-check for each direction.

    Args:
        base: s (N,) at the current φ.
        self_check: examples, spread over the shorter half, on which the result is compared with exact
            gradients; one exact pass over them serves all directions and also gives each its ε.
    """
    if not directions:
        return torch.zeros(0, len(texts), dtype=torch.float64), ()
    picks = spread(texts, self_check or _PILOT)
    sample = texts.select(picks)
    # one text at a time: the check must not need more memory than the passes that it checks
    alone = replace(context, max_tokens=1)
    exact = per_example_derivatives(alone, sample, directions).along if self_check else None
    values, checks = [], []
    for d, direction in enumerate(directions):
        run = _Run(context, texts, base, direction, progress, blocks, f"fd-{d}")
        if exact is None:
            step = _pilot_step(context, sample, base[picks], direction)
            values.append(run.difference(1, step))
            continue
        few = _Run(context, sample, base[picks], direction, None)
        found, check = _checked(run, few, exact[d], sample["n_tokens"])
        values.append(found)
        checks.append(check)
    return torch.stack(values), tuple(checks)


@dataclass
class _Run:
    """One direction over all texts."""

    context: ScoringContext
    texts: Dataset
    base: Tensor
    direction: Direction
    progress: Progress | None
    blocks: Blocks = WHOLE
    name: str = ""

    def _moved(self, step: float) -> Tensor:
        def moved(texts: Dataset) -> dict[str, Tensor]:
            with shifted(self.context.parameters, self.direction, step, self.context.model):
                return {"s": self.context.logprobs(texts, self.progress).double()}

        blocks = self.blocks.marked(repr(step))
        side = "up" if step > 0 else "down"
        return blocks.compute(f"{self.name}-{side}", self.texts, moved, self.progress)["s"]

    def exact(self) -> Tensor:
        """⟨∇s_i, v⟩ by a backward pass."""

        def exact(texts: Dataset) -> dict[str, Tensor]:
            found = per_example_derivatives(self.context, texts, [self.direction], self.progress)
            return {"along": found.along}

        return self.blocks.compute(f"{self.name}-exact", self.texts, exact, self.progress)["along"][0]

    def difference(self, sides: int, step: float) -> Tensor:
        """(s(φ+εv) − s(φ))/ε, or (s(φ+εv) − s(φ−εv))/2ε."""
        if sides == 1:
            return (self._moved(step) - self.base) / step
        return (self._moved(step) - self._moved(-step)) / (2 * step)


def _checked(run: _Run, few: _Run, exact: Tensor, lengths: list[int]) -> tuple[Tensor, SelfCheck]:
    """One-sided, else one-sided with a finer step, else two-sided, else exact: the first that agrees with the
    exact derivatives of the `few`. All texts are passed over only by the one that is taken."""
    size = float((exact / torch.tensor(lengths)).square().mean().sqrt())
    precision = forward_precision(run.context.model)
    one, two = one_sided_change(precision), two_sided_change(precision)
    error, step = float("inf"), 0.0
    for sides, target in ((1, one), (1, one / 8), (2, two)) if size > 0 else ():
        step = target / size
        error = float((few.difference(sides, step) - exact).norm() / exact.norm())
        if error <= SELF_CHECK_TOLERANCE:
            return run.difference(sides, step), SelfCheck(len(lengths), error, step, True, sides)
    return run.exact(), SelfCheck(len(lengths), error, step, False, 2)


def one_sided_change(precision: float) -> float:
    """The change of log-prob per token, in nats, that balances rounding against truncation: the square root
    of the arithmetic's precision (Nocedal & Wright, Numerical Optimization, section 8.1), times 4 since
    log-probs are some tens of nats, not 1."""
    return 4 * precision**0.5


def two_sided_change(precision: float) -> float:
    """The same for central differences: the cube root."""
    return precision ** (1 / 3)


def _pilot_step(context: ScoringContext, sample: Dataset, base: Tensor, direction: Direction) -> float:
    """ε such that ε·v changes the sample's log-probs per token by the target, in the root mean square.

    ‖φ‖ says nothing about the right step (LoRA's B starts at zero), so the observed change decides.
    """
    target = one_sided_change(forward_precision(context.model))
    lengths = torch.tensor(sample["n_tokens"], dtype=torch.float64)
    epsilon = target / norm(direction)
    for _ in range(12):
        with shifted(context.parameters, direction, epsilon, context.model):
            change = (context.logprobs(sample).double() - base) / lengths
        size = float(change.square().mean().sqrt())
        if target / 3 <= size <= target * 3:
            return epsilon
        # a vanishing change is rounding noise: go up a lot; otherwise the change is linear in ε
        epsilon *= 30.0 if size < target / 30 else target / size
    return epsilon


def spread(texts: Dataset, count: int) -> list[int]:
    """Positions of `count` texts spread evenly over the shorter half: the same for the same data.

    How well a difference agrees does not depend on length, and the check goes backward, so short texts keep
    its memory below that of the passes that it checks.
    """
    by_length = torch.as_tensor(token_counts(texts)).argsort(stable=True)
    shorter = by_length[: max(count, len(by_length) // 2)]
    parts = min(count, len(shorter))
    picks = ((torch.arange(parts) + 0.5) * len(shorter) / parts).long().unique()
    return shorter[picks].tolist()
