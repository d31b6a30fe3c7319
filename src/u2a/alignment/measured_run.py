"""A measured inner run: begun again with half the learning rate where its first point is past a budget."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass

from u2a.alignment.checkpoints import OuterState
from u2a.alignment.inner_checkpoints import InnerCheckpoints, InnerPosition
from u2a.alignment.inner_run import left_as_found, unlearning_trainer
from u2a.alignment.ledger import Ledger, Parameters, restore
from u2a.alignment.measuring import Measuring
from u2a.config import UnlearnOptions
from u2a.problem import Problem, Task
from u2a.training.finetune import ShowSteps
from u2a.types import GuardStop

log = logging.getLogger("u2a")


@dataclass(frozen=True)
class MeasuredRun:
    """What all inner runs of an outer loop have in common; call it to do one.

    Measured points go to `ledger`, whose options say how often the learning rate may be halved; `checkpoints`
    keeps a run that is interrupted; `original` is φ₀, where the `l2` term holds every run.
    """

    problem: Problem
    options: UnlearnOptions
    ledger: Ledger
    checkpoints: InnerCheckpoints
    original: Parameters
    seed: int
    task: Task

    def __call__(self, state: OuterState, position: InnerPosition, begin: Parameters) -> None:
        """Unlearns with the weights of `state`, from φ = `begin`; changes `state`, `position` and the policy.

        The learning rate is halved as long as the first measured point is already past a budget, or not
        finite, which is the far end of the same. In the end a fall of U calibrates the predicted cost.

        Raises:
            GuardStop: something is not finite, after an admissible point or with no halving left.
        """
        halvings = self.ledger.options.halvings
        while True:
            restore(self.problem, begin)
            halving, why = position.halving, ""
            measuring = Measuring(self.ledger, state, position, self.checkpoints, self.task)
            try:
                self._train(state, measuring, seed=self.seed + 1000 * state.outer_step + halving)
            except GuardStop as stop:
                if position.admissible_points or halving == halvings:
                    raise
                why = str(stop)
            if position.admissible_points or halving == halvings:
                break
            position.halving, position.folder, position.last_utility = halving + 1, None, None
            state.learning_rate /= 2
            log.info("learning rate halved to %g: %s", state.learning_rate, why or measuring.passed)
        if position.last_utility is not None and position.predicted_cost is not None:
            # what one unit of predicted cost, Σω·c/Ω, really costs
            fall = position.utility - position.last_utility
            if position.predicted_cost > 0 and fall > 0:
                state.cost_calibration = fall / position.predicted_cost

    def _train(self, state: OuterState, measuring: Measuring, seed: int) -> None:
        resumed = measuring.position.folder
        with tempfile.TemporaryDirectory() as scratch:
            trainer = unlearning_trainer(
                self.problem,
                state.weights,
                self.options,
                learning_rate=state.learning_rate,
                seed=seed,
                folder=scratch,
                callbacks=[ShowSteps(f"unlearning, outer step {state.outer_step}", self.task), measuring],
                l2_start=self.original,
            )
            measuring.trainer = trainer
            try:
                with left_as_found(self.problem.policy):
                    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
            finally:
                measuring.trainer = None  # else the two would keep each other's memory
