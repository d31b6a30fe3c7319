"""What every method of a comparison gets, and the watch that measures all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from u2a.impact.table import ImpactTable
from u2a.problem import Measurement, Problem, Task, silent
from u2a.types import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from u2a.models.policy import Policy
    from u2a.scorers import Scorer


_ENDLESS = 1_000_000


@dataclass(frozen=True)
class Budget:
    """What a method may spend: `steps` optimiser steps of `batch_size` answers each (a pair has two), or,
    with `seconds` > 0, as many steps as that much wall clock allows, scoring and sampling counted."""

    steps: int
    batch_size: int
    seconds: float = 0.0

    @property
    def most_steps(self) -> int:
        """What a trainer is told: the watch ends it earlier when time counts."""
        return _ENDLESS if self.seconds > 0 else self.steps


@dataclass(frozen=True)
class Point:
    """One look at a method on its way: after `step` optimiser steps and `seconds` of its own time.

    `objective` J, `utility` U and `kl` as in `Measurement`. `held_out` (2P,) are the log-probs of the pairs
    held out, the chosen ones first; None where those are not to be read.
    """

    step: int
    seconds: float
    objective: float
    utility: float
    kl: float | None
    held_out: list[float] | None


@dataclass
class Spent:
    """Tokens that went through the model with padding, `forward` without and `trained` with a gradient. A
    token with a gradient costs about two forward passes with LoRA, three with full fine-tuning."""

    forward: int = 0
    trained: int = 0


@dataclass
class Watch(TrainerCallback):
    """Counts a method's own seconds and tokens, looks at it a few times, and ends it when its time is up.

    What looking costs is not charged to the method. It works in any `transformers.Trainer`; a method with a
    loop of its own calls `step` after each optimiser step.

    Args:
        problem: measured as it is when the watch looks.
        looks: how often, at equal shares of the budget, the last time at the end.
        held_out: tokenised pairs to read then; None = none.
        until: share of the budget at which `step` says stop; a method in rounds raises it by round.
    """

    problem: Problem
    budget: Budget
    looks: int = 1
    held_out: Dataset | None = None
    task: Task = silent
    until: float = 1.0
    points: list[Point] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    steps: int = 0
    _begun: float = 0.0
    _paused: float = 0.0
    _counting: bool = False
    _hooks: list[Any] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The time of the method: seconds and tokens are counted within. Ends with a look."""
        self.attach()
        self._begun, self._counting = time.perf_counter(), True
        try:
            yield
            self.problem.policy.model.eval()  # trainers leave it in training mode
            self.look()
        finally:
            self._counting = False
            for hook in self._hooks:
                hook.remove()

    def attach(self) -> None:
        """Counts the tokens of the problem's model too."""
        embedding = self.problem.policy.model.get_input_embeddings()
        self._hooks.append(embedding.register_forward_hook(self._count))

    @property
    def seconds(self) -> float:
        """The method's own so far."""
        return time.perf_counter() - self._begun - self._paused

    @property
    def share(self) -> float:
        """How much of the budget is spent, 1 = all of it."""
        if self.budget.seconds > 0:
            return self.seconds / self.budget.seconds
        return self.steps / self.budget.steps

    def step(self) -> bool:
        """Notes an optimiser step; says whether the method is to stop."""
        self.steps += 1
        share = self.share
        if (len(self.points) + 1) / self.looks <= share < 1:
            self.look()
        return share >= self.until

    def charge(self, seconds: float, spent: Spent) -> None:
        """Adds what the method uses and did not do itself, such as scores that were made before."""
        self._paused -= seconds
        self.spent.forward += spent.forward
        self.spent.trained += spent.trained

    def look(self) -> None:
        """Measures the model as it is, at nobody's expense."""
        begin, self._counting = time.perf_counter(), False
        seconds = begin - self._begun - self._paused
        measured = self.problem.measure(self.task)
        s = None
        if self.held_out is not None:
            with self.task("held-out pairs", len(self.held_out)) as progress:
                s = self.problem.logprobs(self.held_out, progress).tolist()
        self.points.append(Point(self.steps, seconds, measured.objective, measured.utility, measured.kl, s))
        self._paused += time.perf_counter() - begin
        self._counting = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """As `step`, for a trainer."""
        del args, state
        if self.step():
            control.should_training_stop = True

    def _count(self, _module: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        if not self._counting:
            return
        if torch.is_grad_enabled():
            self.spent.trained += inputs[0].numel()
        else:
            self.spent.forward += inputs[0].numel()


@dataclass
class Stage:
    """Everything a method may use; it trains `problem.policy` in place, from φ₀.

    `validation` are the pairs that J is measured on: who trains on them is told so in the table. `training`
    are pairs beside them, `mixture` the good answers that the original model was made with, `scorer` a
    reward; None where the user has none. `start` is measured at φ₀ with the negatives; `scores` gives the
    impacts there, made once for all methods of a seed, and what they took is charged to each that asks;
    `score` makes them anew at another measured point, by the same curvature and route.
    `rate` is the learning rate, `folder` scratch, `load_options` are those of `load_policy` that the original
    model was loaded with.
    """

    problem: Problem
    validation: Dataset
    start: Measurement
    scores: Callable[[], ImpactTable]
    score: Callable[[Measurement], ImpactTable]
    watch: Watch
    rate: float
    seed: int
    folder: str
    training: Dataset | None = None
    mixture: Dataset | None = None
    scorer: Scorer | None = None
    task: Task = silent
    load_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        """What the method may spend."""
        return self.watch.budget

    @property
    def rank(self) -> int:
        """Of the policy's adapter; 0 = there is none."""
        policy = self.problem.policy
        return int(policy.model.peft_config["default"].r) if policy.has_adapter else 0

    def replace_policy(self, policy: Policy) -> None:
        """Goes on with another model; the policy so far, which must be at φ₀, stays as the reference."""
        reference = self.problem.policy.model.eval()
        self.problem = replace(self.problem, policy=policy, frozen=reference)
        self.watch.problem = self.problem
        self.watch.attach()

    def pairs(self, which: str) -> Dataset:
        """The pairs called `training` or `validation`.

        Raises:
            UserError: there are none of that name.
        """
        if which not in ("training", "validation"):
            raise UserError(f"pairs: {which!r} is neither training nor validation")
        if which == "validation":
            return self.validation
        if self.training is None:
            raise UserError("--pairs is missing: training pairs, for methods that see good answers")
        return self.training
