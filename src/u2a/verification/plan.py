"""What is unlearned for real: the members of every subset, the seeds, and the number of optimiser steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from u2a.config import UnlearnOptions
from u2a.verification.subsets import Members, draw_singles, draw_subsets


class Run(NamedTuple):
    """One real unlearning: a row of the plan's members, and the seed of the inner run."""

    subset: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """M subsets of N negatives and the runs they get.

    `members` (M, N) bool: first the `subsets` of one size, then single negatives. Every subset is unlearned
    once with each of `seeds`; the first one also with each of `repeats`, which tell how noisy a measured
    change is. `steps` optimiser steps each, whatever the subset.
    """

    members: Members
    subsets: int
    seeds: tuple[int, ...]
    repeats: tuple[int, ...]
    steps: int

    @property
    def runs(self) -> list[Run]:
        """Every run, seed by seed."""
        main = [Run(subset, seed) for seed in self.seeds for subset in range(len(self.members))]
        return main + [Run(0, seed) for seed in self.repeats]

    @property
    def size(self) -> int:
        """Negatives in each subset."""
        return int(self.members[0].sum())

    def rows(self, run: Run) -> list[int]:
        """Positions of the negatives that a run unlearns."""
        return np.flatnonzero(self.members[run.subset]).tolist()


def make_plan(
    negatives: int,
    size: int,
    unlearn: UnlearnOptions,
    *,
    subsets: int,
    singles: int = 0,
    seeds: int = 1,
    repeats: int = 0,
    seed: int = 0,
) -> Plan:
    """Draws the subsets and names the seeds: `seed`, `seed` + 1, … and then those of the repeats.

    Raises:
        UserError: more single negatives than there are.
    """
    members = np.concatenate(
        [draw_subsets(negatives, size, subsets, seed), draw_singles(negatives, singles, seed)]
    )
    first, last = seed + seeds, seed + seeds + repeats
    return Plan(members, subsets, tuple(range(seed, first)), tuple(range(first, last)), steps(unlearn, size))


def steps(unlearn: UnlearnOptions, size: int) -> int:
    """Optimiser steps of the user's own settings on `size` negatives, as the trainer counts them."""
    return unlearn.max_steps or math.ceil(unlearn.epochs * steps_per_pass(unlearn, size))


def steps_per_pass(unlearn: UnlearnOptions, size: int) -> int:
    """Optimiser steps of one pass over `size` negatives."""
    return math.ceil(math.ceil(size / unlearn.batch_size) / unlearn.gradient_accumulation)


def over_all(unlearn: UnlearnOptions, plan: Plan) -> UnlearnOptions:
    """Settings under which a run over all N negatives has as many steps and passes as a subset's.

    What follows a run step by step must see every negative as often as a real run sees its members, so
    more micro-batches make up one step.
    """
    micro_batches = math.ceil(plan.members.shape[1] / unlearn.batch_size)
    accumulated = math.ceil(micro_batches / steps_per_pass(unlearn, plan.size))
    return replace(unlearn, max_steps=plan.steps, gradient_accumulation=accumulated)
