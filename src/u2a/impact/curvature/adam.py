"""H = diag(√v̂ + ε): the preconditioner that the trainer's AdamW applies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from u2a.config import Checked, option
from u2a.impact.curvature.elementwise import ElementwiseSolver
from u2a.impact.curvature.options import RETAIN_WEIGHT, SEED, weight_of

if TYPE_CHECKING:
    from u2a.problem import Problem, Task

BETA2, EPSILON = 0.999, 1e-8
"""Those of `transformers.TrainingArguments`."""


@dataclass(frozen=True)
class Adam(Checked):
    """H = diag(√v̂ + ε) (Kingma & Ba, arXiv 1412.6980), with v̂ from the trainer's own minibatches.

    v̂ is AdamW's bias-corrected second moment after one seeded pass over the negatives at the current φ, φ
    held still: β2 = 0.999, ε = 1e-8, weights 1, each minibatch with its retain rows, scaled as
    `UnlearnTrainer` scales them. An element whose gradient was exactly 0 in every minibatch, as that of
    LoRA's A while B = 0, is not moved by AdamW, so v is 0 there.

    Left out: the learning rate, so scores are dJ/dω for steps of size 1; LoRA's dropout; the `l2` term,
    whose gradient λ·(φ − φ₀) is zero at the original model but not at later outer steps; and −μ·J of
    `--joint`, so that with a large μ v̂ is not the trainer's.
    """

    passes: ClassVar[str] = (
        "one forward and one backward pass over the negatives (at most `minibatches`) and as many retain "
        "texts, once"
    )

    retain_weight: float = option(0.0, RETAIN_WEIGHT, least=0)
    batch_size: int = option(8, "adam: negatives in each minibatch, as --batch-size.", least=1)
    minibatches: int = option(64, "adam: most minibatches to take; 0 = a whole pass.", least=0)
    seed: int = option(0, SEED, least=0)

    def prepare(self, problem: Problem, task: Task) -> ElementwiseSolver:
        """v̂ from the gradients of minibatches; √v̂ + ε, infinite where v̂ = 0."""
        from u2a.impact.curvature.second_moments import second_moments

        moments = second_moments(
            problem,
            batch_size=self.batch_size,
            most=self.minibatches,
            retain_weight=weight_of(self, problem, stands_alone=True),
            beta2=BETA2,
            seed=self.seed,
            task=task,
        )
        return ElementwiseSolver(
            {n: (v.sqrt() + EPSILON).masked_fill(v == 0, float("inf")) for n, v in moments.items()}
        )
