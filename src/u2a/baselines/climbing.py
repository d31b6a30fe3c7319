"""Climbing J itself, without any negative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from u2a.baselines.stage import Stage
from u2a.data.retain_order import retain_rows
from u2a.impact.context import ScoringContext
from u2a.impact.gradient import objective_coefficients, weighted_logprob_gradient
from u2a.objectives import Reward
from u2a.types import UserError


@dataclass(frozen=True)
class Climb:
    """AdamW on J itself, a batch of its terms at a time, by the gradient that impact is made of: what a user
    who has the validation pairs would do without a single negative. For `preference` these are DPO's steps,
    without TRL's clipping."""

    needs: ClassVar[tuple[str, ...]] = ()

    def train(self, stage: Stage) -> None:
        """Climbs in place."""
        problem, objective = stage.problem, stage.problem.objective
        if isinstance(objective, Reward):
            raise UserError("climb takes J on given texts; with --objective reward take rloo")
        context, parameters = ScoringContext.of(problem), problem.policy.trainable()
        optimizer = torch.optim.AdamW(parameters.values(), lr=stage.rate, weight_decay=0.0)
        s = stage.start.s_objective.double().clone()
        terms = len(objective.terms(s))
        texts_of_a_term = max(1, len(objective.texts) // terms)
        size = max(1, stage.budget.batch_size // texts_of_a_term)
        for step in range(stage.budget.most_steps):
            rows = np.asarray(retain_rows(terms, size, step, stage.seed))
            texts = objective_coefficients(objective, s, rows).nonzero()[:, 0].tolist()
            s[texts] = context.logprobs(objective.texts.select(texts)).double()
            coefficients = objective_coefficients(objective, s, rows)
            gradient = weighted_logprob_gradient(context, objective.texts, coefficients)
            for name, parameter in parameters.items():
                parameter.grad = -gradient[name].to(parameter)
            optimizer.step()
            if stage.watch.step():
                break
        optimizer.zero_grad(set_to_none=True)
